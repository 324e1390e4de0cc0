"""Summarise a sharded data set: counts, sizes, class balance, sample images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.jpeg import decode
from pipeline.data.order import seeded_generator
from pipeline.data.shards import ShardSet, ShardSplit


@dataclass(frozen=True)
class SplitSummary:
    """One split in numbers."""

    samples: int
    shards: int
    bytes: int
    per_class: dict[str, int]
    balance: tuple[int, float, int]  # samples of the smallest class, median, of the largest
    height: tuple[int, float, int]  # pixels: least, median, most
    width: tuple[int, float, int]


@dataclass(frozen=True)
class SetSummary:
    """A prepared set in numbers."""

    name: str
    source: str
    classes: int
    order: str
    resized: str  # 'no', or to what
    sha256: str
    splits: dict[str, SplitSummary]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def summarise(shards: ShardSet) -> SetSummary:
    """Counts and sizes, from manifest and index: no picture is opened."""
    manifest, said = shards.manifest, shards.manifest.resized
    return SetSummary(
        name=manifest.name,
        source=manifest.source,
        classes=len(manifest.classes),
        order=manifest.order,
        resized=f"short side {said.short_side}, {said.interpolation}, JPEG quality {said.quality}"
        if said
        else "no",
        sha256=manifest.sha256,
        splits={name: _split_summary(split, manifest.classes) for name, split in shards.splits.items()},
    )


def summary_lines(found: SetSummary) -> list[str]:
    """Balance and sizes of each split, a line each."""
    lines = []
    for name, split in found.splits.items():
        (least, middle, most), (low, median, high), (thin, usual, wide) = split.balance, split.height, split.width
        lines.append(
            f"{name}: {least:,} to {most:,} pictures of a class (median {middle:g});"
            f" {low} to {high} pixels high ({median:g}), {thin} to {wide} wide ({usual:g})"
        )
    return lines


def _split_summary(split: ShardSplit, classes: Sequence[str]) -> SplitSummary:
    return SplitSummary(
        samples=len(split),
        shards=len(split.split.shards),
        bytes=split.split.bytes,
        per_class=dict(zip(classes, split.split.per_class, strict=True)),
        balance=_spread(np.array(split.split.per_class)),
        height=_spread(split.index["height"]),
        width=_spread(split.index["width"]),
    )


def _spread(values: np.ndarray) -> tuple[int, float, int]:
    """Least, median, most."""
    return int(values.min()), float(np.median(values)), int(values.max())


def sample_images(shards: ShardSet, count: int = 48, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Pictures for a contact sheet and their classes, sorted by class: the same for the same seed.

    Of the training part, if there is one. uint8 (H, W, 3) each, thinned to fewer than 640 pixels a side.
    """
    split = shards.splits.get("train") or shards.test
    chosen = sample_indices(split.labels, count, seed)
    images = []
    for number, content in zip(chosen, split.read(chosen), strict=True):
        image = decode(content, split.where(number))
        few = max(max(image.shape[:2]) // 320, 1)
        images.append(image[::few, ::few].copy())  # a copy: the whole picture is given back at once
    return images, [shards.classes[int(split.labels[number])] for number in chosen]


def sample_indices(labels: Tensor, count: int, seed: int) -> list[int]:
    """Numbers of `count` samples drawn at random, from as many classes as there are, sorted by class.

    A class comes a second time only when all others came once, as far as they reach.
    """
    drawn = torch.randperm(len(labels), generator=seeded_generator(seed, "contact sheet"))
    by_class = drawn[labels[drawn].argsort(stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    turn = torch.arange(len(labels)) - starts[labels[by_class]]  # how many of its class came before it
    mixed = torch.empty(len(labels), dtype=torch.int64)
    mixed[drawn] = torch.arange(len(labels))  # where it came in the draw
    order = (turn * len(labels) + mixed[by_class]).argsort()
    chosen = by_class[order[:count]]
    return [int(number) for number in chosen[labels[chosen].argsort(stable=True)]]
