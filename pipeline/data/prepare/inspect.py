"""Summarise a prepared set: counts, sizes, class balance, sample images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.jpeg import decode
from pipeline.data.order import seeded_generator
from pipeline.data.shards import ShardSet, ShardSplit

SHEET_SIDE = 320  # pixels: images for a contact sheet are subsampled to less than twice this


@dataclass(frozen=True)
class SplitSummary:
    """Counts and sizes of one split."""

    samples: int
    shards: int
    bytes: int
    per_class: dict[str, int]
    balance: tuple[int, float, int]  # samples per class: minimum, median, maximum
    height: tuple[int, float, int]  # pixels: minimum, median, maximum
    width: tuple[int, float, int]  # pixels: minimum, median, maximum


@dataclass(frozen=True)
class SetSummary:
    """Counts and sizes of a prepared set."""

    name: str
    source: str
    classes: int
    order: str
    resized: str  # 'no', or the short side, interpolation and quality
    sha256: str
    splits: dict[str, SplitSummary]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def summarise(shards: ShardSet) -> SetSummary:
    """Return counts and sizes from the manifest and the indexes, without opening an image."""
    manifest, resize = shards.manifest, shards.manifest.resized
    return SetSummary(
        name=manifest.name,
        source=manifest.source,
        classes=len(manifest.classes),
        order=manifest.order,
        resized=f"short side {resize.short_side}, {resize.interpolation}, JPEG quality {resize.quality}"
        if resize
        else "no",
        sha256=manifest.sha256,
        splits={name: _summarise_split(split, manifest.classes) for name, split in shards.splits.items()},
    )


def summary_lines(summary: SetSummary) -> list[str]:
    """Return a line per split with class balance and image sizes."""
    lines = []
    for name, split in summary.splits.items():
        balance, height, width = (
            f"{least:,} to {most:,} {unit} (median {median:g})"
            for (least, median, most), unit in (
                (split.balance, "images per class"),
                (split.height, "pixels high"),
                (split.width, "pixels wide"),
            )
        )
        lines.append(f"{name}: {balance}, {height}, {width}")
    return lines


def _summarise_split(split: ShardSplit, classes: Sequence[str]) -> SplitSummary:
    return SplitSummary(
        samples=len(split),
        shards=len(split.split.shards),
        bytes=split.split.bytes,
        per_class=dict(zip(classes, split.split.per_class, strict=True)),
        balance=_min_median_max(np.array(split.split.per_class)),
        height=_min_median_max(split.index["height"]),
        width=_min_median_max(split.index["width"]),
    )


def _min_median_max(values: np.ndarray) -> tuple[int, float, int]:
    return int(values.min()), float(np.median(values)), int(values.max())


def sample_images(shards: ShardSet, count: int = 48, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Return images for a contact sheet and their class names, sorted by class; a function of `seed`.

    They are from the train split if there is one. Each is uint8 (H, W, 3), subsampled to fewer than 640 pixels a
    side.
    """
    split = shards.splits.get("train") or shards.test
    chosen = sample_indices(split.labels, count, seed)
    images = []
    for number, content in zip(chosen, split.read(chosen), strict=True):
        image = decode(content, split.where(number))
        step = max(max(image.shape[:2]) // SHEET_SIDE, 1)
        images.append(image[::step, ::step].copy())  # a copy, so that the whole image is freed
    return images, [shards.classes[int(split.labels[number])] for number in chosen]


def sample_indices(labels: Tensor, count: int, seed: int) -> list[int]:
    """Return the indices of `count` random samples of as many classes as possible, sorted by class.

    A class is used again only after every class with samples left was used. `labels`: int64 (N,).
    """
    drawn = torch.randperm(len(labels), generator=seeded_generator(seed, "contact sheet"))
    by_class = drawn[labels[drawn].argsort(stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(labels)) - starts[labels[by_class]]  # samples of the same class drawn before it
    position = torch.empty(len(labels), dtype=torch.int64)
    position[drawn] = torch.arange(len(labels))  # of a sample in the draw
    order = (rank * len(labels) + position[by_class]).argsort()
    chosen = by_class[order[:count]]
    return [int(number) for number in chosen[labels[chosen].argsort(stable=True)]]
