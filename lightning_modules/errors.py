"""How often the right class is missed; apart from the LightningModule, since counting needs no trainer."""

import torch
from torch import Tensor


def wrong_in_top(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of (N, classes) `scores` have their label not among the k best; a 0-d int64 tensor.

    A label that ties with the k-th best counts as wrong when k others are at least as good: a network
    that gives every class the same score knows nothing. Fewer than k classes: none is wrong.
    """
    own = scores.gather(1, labels[:, None])
    as_good = (scores >= own).sum(dim=1) - 1  # the label itself is as good as itself
    as_good = torch.where(own[:, 0].isfinite(), as_good, scores.shape[1])
    return (as_good >= k).sum()
