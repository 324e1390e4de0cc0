"""Random crops of images of any size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
from torch import Tensor

from pipeline.data.jpeg import Box, Interpolation, centre_offset, resize, size_for_short_side

ATTEMPTS = 10  # at a part that lies within the picture, before the middle is taken


@dataclass(frozen=True)
class CropSpec:
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


class CropBox(NamedTuple):
    """A part of a resized picture."""

    box: Box  # of the picture, which is resized ...
    size: tuple[int, int]  # ... to this (height, width)
    crop: tuple[int, int]  # row and column in it from which a square of `side` is cut
    corner: tuple[int, int]  # the same, counted within the frame


def crop_box(cut: CropSpec, height: int, width: int, draw: float) -> CropBox:
    """What is cut out of a picture of (height, width) pixels for one `draw` from [0, 1).

    The draw seeds a generator of the picture's own, since GoogLeNet's crop takes as many numbers as it needs.
    Uniform everywhere; the aspect is uniform in its logarithm.
    """
    random = Random(int(draw * 2**53)).random
    if cut.area and cut.aspect:
        return CropBox(
            area_crop(height, width, cut.area, cut.aspect, random), (cut.side, cut.side), (0, 0), (0, 0)
        )
    assert cut.short is not None
    scale, down, right, which = random(), random(), random(), random()
    short = cut.short[0] + int(scale * (cut.short[1] - cut.short[0] + 1))
    tall, wide = size_for_short_side(height, width, short)
    top, left, rows, columns = 0, 0, tall, wide
    if cut.centre:
        top, left = centre_offset(tall, wide, cut.centre)
        rows = columns = cut.centre
    centre = centre_offset(rows, columns, cut.side)
    rows, columns = rows - cut.side, columns - cut.side  # from the first to the last place
    if cut.five:
        corner = ((0, 0), (0, columns), (rows, 0), (rows, columns), centre)[int(which * 5)]
    else:
        corner = (int(down * (rows + 1)), int(right * (columns + 1)))
    return CropBox((0, 0, height, width), (tall, wide), (top + corner[0], left + corner[1]), corner)


def area_crop(
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


def crop_image(cut: CropSpec, image: np.ndarray, draw: float) -> tuple[Tensor, tuple[int, int]]:
    """uint8 (H, W, 3) -> uint8 (side, side, 3), and its corner in the frame."""
    found = crop_box(cut, image.shape[0], image.shape[1], draw)
    resized = resize(image, found.box, found.size, cut.interpolation)
    row, column = found.crop
    return resized[row : row + cut.side, column : column + cut.side], found.corner
