"""Small sets in shards with bounding boxes, and small networks that predict boxes or classes at every position."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.layers import as_convolution
from lightning_modules.networks import NETWORKS, Network
from pipeline.data.boxes import BoxedShards, with_boxes
from pipeline.data.prepare.source_archives import source_from_archives
from pipeline.data.prepare.stand_in import make_stand_in
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.shards import open_shards
from pipeline.data.store import Store

BOX_EXPERIMENT = """
paper: {title: Toy, authors: Nobody, year: 2026, section: "1"}
question: Does it learn to predict boxes?
data: {name: imagenet-standin, crop: {side: 32, short: [36, 44]}, augment: [flip], normalise: raw-mean-colour,
  test: [dense-of-36]}
train: {steps: 6, batch_size: 4, lr: 1e-4, log_every: 2, eval_every: 3, optimizer: {name: sgd, momentum: 0.9}}
variants:
  classes: {model: {name: tiny_scores}}
  boxes: {model: {name: tiny_boxes}, data: {boxes: true, test: [1-crop-32-of-40]},
    train: {loss: {name: euclidean}, start: {variant: classes, layers: [conv, fc6]}}}
  frozen: {model: {name: tiny_boxes}, data: {boxes: true, val: 3, test: [1-crop-32-of-40]},
    train: {loss: {name: euclidean}, trainable: [fc6, fc7], select: val,
    plateau: {watch: val, factor: 0.1, patience: 1, max_drops: 1}}}
derived:
  localised: {kind: localisation, boxes: {boxes: [36, 48]}, classes: [classes], labels: 1-crop-32-of-40}
seeds: [0]
scales: {paper: {}}
"""

WINDOW, STRIDE = 32, 8  # pixels, of the small networks


class TinyScores(nn.Module):
    """Class scores of windows of 32 x 32 pixels, every 8 pixels."""

    window, stride = WINDOW, STRIDE

    def __init__(self, outputs: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, STRIDE, stride=STRIDE)
        self.fc6 = nn.Linear(4 * (WINDOW // STRIDE) ** 2, 16)
        self.fc7 = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, outputs)."""
        return self.score_map(x).flatten(1)

    def score_map(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs, H / 8 - 3, W / 8 - 3)."""
        x = F.relu(as_convolution(self.fc6, F.relu(self.conv(x))))
        return as_convolution(self.fc7, x)

    def dense(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, outputs)."""
        return self.score_map(x).mean((2, 3))


class TinyBoxes(TinyScores):
    """Boxes of windows of 32 x 32 pixels, every 8 pixels."""

    predicts_boxes = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 32, 32) -> (N, boxes, 4)."""
        return super().forward(x).unflatten(1, (-1, 4))

    def box_map(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, boxes, 4, H / 8 - 3, W / 8 - 3)."""
        return self.score_map(x).unflatten(1, (-1, 4))


def tiny_scores(*, num_classes: int, in_channels: int) -> TinyScores:
    """Build the network that predicts classes."""
    return TinyScores(num_classes, in_channels)


def tiny_boxes(*, num_classes: int, in_channels: int) -> TinyBoxes:
    """Build the network that predicts a box per class."""
    return TinyBoxes(4 * num_classes, in_channels)


SMALL_NETWORKS = {
    "tiny_scores": Network(tiny_scores, (3, WINDOW, WINDOW), 3),
    "tiny_boxes": Network(tiny_boxes, (3, WINDOW, WINDOW), 3),
}


@contextmanager
def small_networks() -> Iterator[None]:
    """Within the context, recipes can name the small networks."""
    NETWORKS.update(SMALL_NETWORKS)
    try:
        yield
    finally:
        for name in SMALL_NETWORKS:
            del NETWORKS[name]


def prepare_boxed_set(folder: Path, *, classes: int = 3, train: int = 7, test: int = 4, side: int = 40) -> Path:
    """Write a stand-in to `folder/made`, its shards with boxes to `folder/imagenet-standin`; return `folder`."""
    make_stand_in(folder / "made", classes=classes, train=train, test=test, side=side)
    source = source_from_archives(folder / "made", cache=folder / "cache")
    prepare_shards(source, Store(str(folder / "imagenet-standin")), samples=5, workers=1)
    return folder


def open_boxed_set(folder: Path) -> BoxedShards:
    """Open the set that `prepare_boxed_set` wrote."""
    return with_boxes(open_shards(folder / "imagenet-standin"))


def slow_overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two boxes, from their definition."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = [max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0) for box in (first, second)]
    union = sum(areas) - intersection
    return intersection / union if union > 0 else 0.0


def torch_boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    """Return boxes as float64 (n, 4)."""
    return torch.tensor(rows, dtype=torch.float64)
