"""Top-k errors. Separate from the LightningModule, because counting errors needs no trainer."""

import torch
from torch import Tensor


def wrong_in_top(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Count the top-k errors of scores (N, classes) and labels (N,); a 0-d int64 tensor.

    A prediction is wrong if at least k other classes score as high as the label or higher. Ties count as wrong, so
    constant scores are always wrong. A score that is not finite is wrong too. With k classes or fewer, finite
    scores are never wrong.
    """
    label_score = scores.gather(1, labels[:, None])
    at_least_as_high = (scores >= label_score).sum(dim=1) - 1  # without the label itself
    at_least_as_high = torch.where(label_score[:, 0].isfinite(), at_least_as_high, scores.shape[1])
    return (at_least_as_high >= k).sum()
