"""Training batches of photographs: read and cropped by threads, the rest on the device.

The picture that a place in a global batch gets, and the part of it that is cut out, are functions of (seed, step,
place): the same on any number of ranks and threads, and after a resume in the middle of an epoch.
"""

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.recipe import Batch
from pipeline.data.ahead import ahead
from pipeline.data.batches import shares
from pipeline.data.colour import PhotoMaker
from pipeline.data.images import DataError
from pipeline.data.jpeg import Box, Interpolation, decode, middle, resize, short_side
from pipeline.data.order import batch_indices
from pipeline.data.samples import Samples

CHUNK = 16  # pictures that a thread reads and decodes at a time
BATCHES_AHEAD = 2
ATTEMPTS = 10  # at a part that lies within the picture, before the middle is taken


@dataclass(frozen=True)
class Cut:
    """How a square is taken from a picture: experiment.Crop as plain values."""

    side: int
    short: tuple[int, int] | None  # smallest and largest
    centre: int | None
    five: bool
    area: tuple[float, float] | None
    aspect: tuple[float, float] | None
    interpolation: Interpolation

    @property
    def frame(self) -> int | None:
        """The side of the square that a crop's corner is counted in, if there is such a square."""
        return self.centre


class Piece(NamedTuple):
    """A part of a resized picture."""

    box: Box  # of the picture, which is resized ...
    size: tuple[int, int]  # ... to this (height, width)
    crop: tuple[int, int]  # row and column in it from which a square of `side` is cut
    corner: tuple[int, int]  # the same, counted within the frame


def piece(cut: Cut, height: int, width: int, draw: float) -> Piece:
    """What is cut out of a picture of (height, width) pixels for one `draw` from [0, 1).

    The draw seeds a generator of the picture's own, since GoogLeNet's crop takes as many numbers as it needs.
    Uniform everywhere; the aspect is uniform in its logarithm.
    """
    random = Random(int(draw * 2**53)).random
    if cut.area and cut.aspect:
        return Piece(
            part_of_area(height, width, cut.area, cut.aspect, random), (cut.side, cut.side), (0, 0), (0, 0)
        )
    assert cut.short is not None
    scale, down, right, which = random(), random(), random(), random()
    short = cut.short[0] + int(scale * (cut.short[1] - cut.short[0] + 1))
    tall, wide = short_side(height, width, short)
    top, left, rows, columns = 0, 0, tall, wide
    if cut.centre:
        top, left = middle(tall, wide, cut.centre)
        rows = columns = cut.centre
    centre = middle(rows, columns, cut.side)
    rows, columns = rows - cut.side, columns - cut.side  # from the first to the last place
    if cut.five:
        corner = ((0, 0), (0, columns), (rows, 0), (rows, columns), centre)[int(which * 5)]
    else:
        corner = (int(down * (rows + 1)), int(right * (columns + 1)))
    return Piece((0, 0, height, width), (tall, wide), (top + corner[0], left + corner[1]), corner)


def part_of_area(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], random: Callable[[], float]
) -> Box:
    """A part whose share of the area and whose aspect are drawn from these ranges (arXiv:1409.4842, section 6).

    Drawn again, up to ten times, until it lies within the picture; else the middle, as large as aspects allow.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(ATTEMPTS):
        pixels = height * width * (area[0] + random() * (area[1] - area[0]))
        ratio = math.exp(low + random() * (high - low))
        wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(random() * (height - tall + 1)), int(random() * (width - wide + 1)), tall, wide
    tall = min(height, max(1, round(width / aspect[0])))
    wide = min(width, max(1, round(height * aspect[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def cropped(cut: Cut, image: np.ndarray, draw: float) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (H, W, 3) -> uint8 (side, side, 3), and its corner in the frame."""
    found = piece(cut, image.shape[0], image.shape[1], draw)
    resized = resize(image, found.box, found.size, cut.interpolation)
    row, column = found.crop
    return resized[row : row + cut.side, column : column + cut.side], found.corner


class PhotoFeed:
    """The training batches of updates `start_step` to `stop_step - 1`, for one rank of `world`.

    With `parts` > 1 a rank's share of a global batch comes in so many batches, as of batches.Feed.
    """

    def __init__(
        self,
        samples: Samples,
        maker: PhotoMaker,
        cut: Cut,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        stop_step: int,
        threads: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if not len(samples):
            raise DataError("there is no picture to learn from")
        self.mine = shares(batch_size, rank, world, parts)
        self.samples, self.maker, self.cut = samples, maker, cut
        self.seed, self.batch_size, self.threads = seed, batch_size, threads
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * len(self.mine)

    def __iter__(self) -> Generator[Batch, None, None]:
        chunks = -(-len(range(self.batch_size)[self.mine[0]]) // CHUNK)  # in a batch of this rank
        depth = BATCHES_AHEAD * chunks * len(self.mine)
        with closing(ahead(self._jobs(), self._cut_out, threads=self.threads, depth=depth)) as ready:
            for step in range(self.start_step, self.stop_step):
                for _ in self.mine:
                    yield self._batch(step, list(islice(ready, chunks)))

    def _batch(self, step: int, parts: Sequence["Chunk"]) -> Batch:
        """One batch on the device; what is copied there does not wait for what the device is doing."""
        device = self.maker.device
        indices = torch.cat([part.indices for part in parts])
        corners = torch.tensor([corner for part in parts for corner in part.corners])
        pixels, labels, at = (
            tensor.to(device, non_blocking=True)
            for tensor in (parts[0].batch, self.samples.labels[indices], corners)
        )
        draws = torch.cat([part.draws for part in parts])
        return Batch(step, self.maker(pixels, at, self.cut.frame, draws), labels)

    def _jobs(self) -> Iterable["Chunk"]:
        """Of each batch in turn: some of its pictures."""
        for step in range(self.start_step, self.stop_step):
            order = batch_indices(self.seed, step, self.batch_size, len(self.samples))
            draws = self.maker.draw(self.seed, step, self.batch_size)
            for mine in self.mine:
                shape = (len(order[mine]), self.cut.side, self.cut.side, 3)
                batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.maker.device.type == "cuda")
                parts = (of.split(CHUNK) for of in (order[mine], draws[mine], batch))
                for some, theirs, pixels in zip(*parts, strict=True):
                    yield Chunk(some, theirs, pixels, batch)

    def _cut_out(self, chunk: "Chunk") -> "Chunk":
        """The same, with the pixels and corners of its crops."""
        numbers, corners = chunk.indices.tolist(), []
        contents = self.samples.read(numbers)
        for into, number, content, draw in zip(
            chunk.pixels, numbers, contents, chunk.draws[:, 0].tolist(), strict=True
        ):
            crop, corner = cropped(self.cut, decode(content, self.samples.where(number)), draw)
            into.copy_(crop)  # at once, while it is in the processor's cache
            corners.append(corner)
        return chunk._replace(corners=corners)


class Chunk(NamedTuple):
    """Some of a batch's pictures."""

    indices: Tensor  # int64 (n,)
    draws: Tensor  # float64 (n, 16); the first column is the crops'
    pixels: Tensor  # uint8 (n, side, side, 3), a part of ...
    batch: Tensor  # ... the whole batch
    corners: Sequence[tuple[int, int]] = ()
