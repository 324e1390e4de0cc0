"""Images held in memory: what they are, the one order they are kept in, and their fingerprint."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.common.errors import UserError


class DataError(UserError):
    """Data that cannot be used as asked: one sentence saying what, where, and what to do."""


@dataclass(frozen=True, eq=False)  # comparing tensors with == does not give one truth value
class LabelledImages:
    """Pictures and what they show."""

    pixels: Tensor  # uint8 (N, H, W, C), C = 1 (grey) or 3 (RGB)
    labels: Tensor  # int64 (N,), positions in ImageSet.classes

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set; both splits are in canonical order."""

    name: str
    source: str  # one line: where it came from; not part of the fingerprint
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages


def in_canonical_order(images: LabelledImages) -> LabelledImages:
    """The same images sorted by the sha256 of (label, pixel bytes).

    A set read from class folders then has the order, and training on it the bits, of the same set
    read from its original archive. Equal keys mean equal images, so ties do not matter.
    """
    rows = np.concatenate([_label_bytes(images.labels), images.pixels.numpy().reshape(len(images), -1)], axis=1)
    keys = [hashlib.sha256(row).digest() for row in rows]
    order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)
    return LabelledImages(images.pixels[order], images.labels[order])


def fingerprint(classes: tuple[str, ...], train: LabelledImages, test: LabelledImages) -> str:
    """sha256 of the content: class names, shapes, labels and pixels of both splits, in their order."""
    header = {
        "classes": list(classes),
        "train": list(train.pixels.shape),
        "test": list(test.pixels.shape),
    }
    digest = hashlib.sha256(json.dumps(header).encode())
    for part in (train, test):
        digest.update(_label_bytes(part.labels).data)
        digest.update(part.pixels.contiguous().numpy().data)
    return digest.hexdigest()


def _label_bytes(labels: Tensor) -> np.ndarray:
    """(N,) -> (N, 8): each label as little-endian int64, the same on every machine."""
    return labels.numpy().astype("<i8").view(np.uint8).reshape(-1, 8)
