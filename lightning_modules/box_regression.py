"""Training of networks that predict bounding boxes: Simonyan and Zisserman 2014, arXiv:1409.1556, appendix A.

A box is centre x, centre y, width and height, as fractions of the side of the network's input. Corners are left,
top, right, bottom, in any unit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.classifier import Classifier, all_reduce_sum
from lightning_modules.vgg_localisation import boxes_of_classes

LOCALISED_IOU = 0.5  # a box is right if its intersection over union with a true one is above this (appendix A.2)


class BoxBatch(NamedTuple):
    """One micro-batch for training: a `recipe.Batch` with a target box for each image."""

    step: int
    images: Tensor  # float32 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    boxes: Tensor  # float32 (N, 4): centre x, centre y, width, height


def euclidean_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return half the squared Euclidean distance of boxes from targets, (N, 4) each, mean over N.

    The paper names a Euclidean loss only; the half is that of Caffe, which it trains with (section 3.3).
    """
    return (boxes - targets).square().sum(1).mean() / 2


def corners_of(boxes: Tensor) -> Tensor:
    """Return the corners of boxes (..., 4) given by centre and size. A negative width or height counts as 0."""
    centre, half = boxes[..., :2], boxes[..., 2:].clamp(min=0) / 2
    return torch.cat([centre - half, centre + half], -1)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes given by corners, (..., 4) each, with broadcasting; (...).

    Without an area it is 0.
    """
    size = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    intersection = size.clamp(min=0).prod(-1)
    areas = [(corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1) for corners in (first, second)]
    union = areas[0] + areas[1] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0)


class BoxRegressor(Classifier):
    """Train a network that predicts boxes with the Euclidean loss on the box of each image's class."""

    def training_step(self, batch: BoxBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Return the loss of one micro-batch; see `Classifier.training_step`."""
        self.set_lr(batch.step)
        boxes = boxes_of_classes(self.forward_network(batch.images).float(), batch.labels)
        loss = euclidean_loss(boxes, batch.boxes)
        with torch.no_grad():
            right = (overlap(corners_of(boxes), corners_of(batch.boxes)) > LOCALISED_IOU).sum(dtype=torch.float64)
            n, sum_of_losses = len(boxes), loss.double() * len(boxes)
            wrong = n - right
            totals = torch.stack([torch.full_like(right, n), wrong, wrong, sum_of_losses, sum_of_losses])
        self.totals = totals if self.totals is None else self.totals + totals
        if (batch_idx + 1) % self.accumulation_steps == 0:
            self.add_step_totals(batch.step, all_reduce_sum(self.totals))
            self.totals = None
        return loss

    def pop_window_metrics(self) -> dict[str, float]:
        """Return localisation error, loss (on augmented images) and gradient norms, and reset the window."""
        found = super().pop_window_metrics()
        if "train/top1_error_pct" in found:
            found["train/localisation_error_pct"] = found.pop("train/top1_error_pct")
            del found["train/top5_error_pct"]
        return found
