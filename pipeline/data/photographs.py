"""Training batches of photographs: read and cropped by threads, the rest on the device.

The picture that a place in a global batch gets, and the part of it that is cut out, are functions of (seed, step,
place): the same on any number of ranks and threads, and after a resume in the middle of an epoch.
"""

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_modules.recipe import Batch
from pipeline.data.ahead import ahead
from pipeline.data.colour import PhotoMaker
from pipeline.data.images import DataError
from pipeline.data.jpeg import Box, Interpolation, decode, resize, short_side
from pipeline.data.order import positions
from pipeline.data.samples import Samples, share

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

    The draw seeds a counter-based generator of the picture's own, since GoogLeNet's crop takes as many numbers as
    it needs. Uniform everywhere; the aspect is uniform in its logarithm.
    """
    random = np.random.Generator(np.random.Philox(key=int(draw * 2**53))).random
    if cut.area and cut.aspect:
        box = part_of_area(height, width, cut.area, cut.aspect, random(3 * ATTEMPTS + 2).tolist())
        return Piece(box, (cut.side, cut.side), (0, 0), (0, 0))
    assert cut.short is not None
    scale, down, right, which = random(4).tolist()
    short = cut.short[0] + int(scale * (cut.short[1] - cut.short[0] + 1))
    tall, wide = short_side(height, width, short)
    top, left, rows, columns = 0, 0, tall, wide
    if cut.centre:
        top, left = (tall - cut.centre) // 2, (wide - cut.centre) // 2
        rows = columns = cut.centre
    rows, columns = rows - cut.side, columns - cut.side  # from the first to the last place
    if cut.five:
        corner = ((0, 0), (0, columns), (rows, 0), (rows, columns), (rows // 2, columns // 2))[int(which * 5)]
    else:
        corner = (int(down * (rows + 1)), int(right * (columns + 1)))
    return Piece((0, 0, height, width), (tall, wide), (top + corner[0], left + corner[1]), corner)


def part_of_area(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], draws: list[float]
) -> Box:
    """A part whose share of the area and whose aspect are drawn from these ranges (arXiv:1409.4842, section 6).

    Drawn again, up to ten times, until it lies within the picture; else the middle, as large as aspects allow.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    *tries, down, right = draws
    for share_of, shape in zip(tries[::3], tries[1::3], strict=True):
        pixels = height * width * (area[0] + share_of * (area[1] - area[0]))
        ratio = math.exp(low + shape * (high - low))
        wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide
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
    """The training batches of updates `start_step` to `stop_step - 1`, for one rank of `world`."""

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
    ) -> None:
        if not len(samples):
            raise DataError("there is no picture to learn from")
        self.mine = share(batch_size, rank, world)
        self.samples, self.maker, self.cut = samples, maker, cut
        self.seed, self.batch_size, self.threads = seed, batch_size, threads
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __iter__(self) -> Generator[Batch, None, None]:
        chunks = -(-len(range(self.batch_size)[self.mine]) // CHUNK)  # in a batch of this rank
        ready = ahead(self._jobs(), self._cut_out, threads=self.threads, depth=BATCHES_AHEAD * chunks)
        device = self.maker.device
        for step in range(self.start_step, self.stop_step):
            parts = list(islice(ready, chunks))
            indices = torch.cat([part[0] for part in parts])
            pixels = torch.stack([crop for part in parts for crop in part[1]])
            if device.type == "cuda":
                pixels = pixels.pin_memory()
            corners = torch.tensor([corner for part in parts for corner in part[2]])
            draws = self.maker.draw(self.seed, step, self.batch_size)[self.mine]
            images = self.maker(pixels.to(device, non_blocking=True), corners.to(device), self.cut.frame, draws)
            yield Batch(step, images, self.samples.labels[indices].to(device))

    def _jobs(self) -> Iterable[tuple[Tensor, list[float]]]:
        """Of each batch in turn: some of its pictures, and the draws of their crops."""
        for step in range(self.start_step, self.stop_step):
            first = step * self.batch_size
            order = positions(self.seed, first, first + self.batch_size, len(self.samples))[self.mine]
            draws = self.maker.draw(self.seed, step, self.batch_size)[self.mine, 0]
            for some, theirs in zip(order.split(CHUNK), draws.split(CHUNK), strict=True):
                yield some, theirs.tolist()

    def _cut_out(self, job: tuple[Tensor, list[float]]) -> tuple[Tensor, list[Tensor], list[tuple[int, int]]]:
        """Indices, uint8 (side, side, 3) crops and corners of some pictures."""
        indices, draws = job
        numbers = indices.tolist()
        crops, corners = [], []
        for number, content, draw in zip(numbers, self.samples.read(numbers), draws, strict=True):
            crop, corner = cropped(self.cut, decode(content, self.samples.where(number)), draw)
            crops.append(crop)
            corners.append(corner)
        return indices, crops, corners
