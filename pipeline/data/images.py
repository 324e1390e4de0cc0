"""Sets of images in memory, their canonical order and their fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.common.errors import UserError

KEY_CHUNK = 4096  # images whose bytes are copied at a time


class DataError(UserError):
    """Data that cannot be used; the message says what is wrong, where, and what to do."""


@dataclass(frozen=True, eq=False)  # comparing tensors with == does not give one truth value
class LabelledImages:
    """Images of one size with their labels."""

    pixels: Tensor  # uint8 (N, H, W, C), C = 1 (grey) or 3 (RGB)
    labels: Tensor  # int64 (N,), indices into ImageSet.classes

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A data set in memory; both splits are in canonical order."""

    name: str
    source: str  # origin, in one line; not part of the fingerprint
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    # Where the training images come from, if from more than one published part (svhn-extra): name of the part ->
    # ascending indices into `train`, int64.
    train_parts: Mapping[str, Tensor] = field(default_factory=dict)


def in_canonical_order(images: LabelledImages) -> LabelledImages:
    """Return the images sorted by the sha256 of (label, pixel bytes).

    The order does not depend on the source: training on class folders gives the same bits as training on the
    original archive of the same set. Equal keys mean equal images, so ties do not matter.
    """
    order = canonical_order(images)
    return LabelledImages(images.pixels[order], images.labels[order])


def canonical_order(images: LabelledImages) -> Tensor:
    """Return the indices of the images in canonical order, int64 (N,); see `in_canonical_order`."""
    labels, pixels = _label_bytes(images.labels), images.pixels.numpy().reshape(len(images), -1)
    keys: list[bytes] = []
    for start in range(0, len(images), KEY_CHUNK):
        part = slice(start, start + KEY_CHUNK)
        rows = np.concatenate([labels[part], pixels[part]], axis=1)
        keys += [hashlib.sha256(row).digest() for row in rows]
    return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__), dtype=torch.int64)


def fingerprint(classes: tuple[str, ...], train: LabelledImages, test: LabelledImages) -> str:
    """Return the sha256 of class names, shapes, labels and pixels of both splits, in their order."""
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


def _label_bytes(labels: Tensor) -> NDArray[np.uint8]:
    """Return (N,) labels as the (N, 8) bytes of little-endian int64, whatever the machine's byte order."""
    return labels.numpy().astype("<i8").view(np.uint8).reshape(-1, 8)
