"""Random crops of images of any size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.jpeg import Box, Interpolation, centre_offset, resize, size_for_short_side

# Methods of `interpolation: random`, "with equal probability" (GoogLeNet, arXiv:1409.4842, section 6).
RANDOM_INTERPOLATIONS: tuple[Interpolation, ...] = ("bilinear", "area", "nearest", "bicubic")
AREA_CROP_ATTEMPTS = 10  # draws of a crop that lies within the image, before the centre is taken


@dataclass(frozen=True)
class CropSpec:
    """How a square crop is taken from an image: `Crop` of a declaration as plain values, lengths in pixels."""

    side: int  # of the crop
    short: tuple[int, int] | None  # smallest and largest short side of the resized image; None: by area
    centre: int | None  # side of the centre square that crops are taken from; None: the whole image
    five: bool  # crops are at one of five positions (corners and centre) instead of anywhere
    area: tuple[float, float] | None  # smallest and largest share of the image's area
    aspect: tuple[float, float] | None  # smallest and largest width / height
    interpolation: Interpolation | Literal["random"]  # random: one of RANDOM_INTERPOLATIONS, drawn for each crop

    @property
    def frame(self) -> int | None:
        """Side of the square in which corners of crops are counted, or None if there is no such square."""
        return self.centre


class CropBox(NamedTuple):
    """A crop of a resized part of an image."""

    box: Box  # part of the image
    size: tuple[int, int]  # (height, width) that the part is resized to
    crop: tuple[int, int]  # row and column of the crop in the resized part
    corner: tuple[int, int]  # row and column of the crop in the frame
    interpolation: Interpolation  # by which the part is resized


def crop_box(spec: CropSpec, height: int, width: int, draw: float) -> CropBox:
    """Return the crop of an image of (height, width) pixels for one random `draw` from [0, 1).

    The draw seeds a generator for this image, since GoogLeNet's crop needs a variable number of draws. Sizes and
    positions are uniform, and the aspect ratio is uniform in its logarithm. A random interpolation is drawn last,
    so that it changes no position.
    """
    random = Random(int(draw * 2**53)).random
    if spec.area and spec.aspect:
        box = area_crop(height, width, spec.area, spec.aspect, random)
        return CropBox(box, (spec.side, spec.side), (0, 0), (0, 0), _interpolation(spec, random))
    assert spec.short is not None
    scale, down, right, which = random(), random(), random(), random()
    short = spec.short[0] + int(scale * (spec.short[1] - spec.short[0] + 1))
    size = size_for_short_side(height, width, short)
    top, left, (rows, columns) = 0, 0, size
    if spec.centre:
        top, left = centre_offset(*size, spec.centre)
        rows = columns = spec.centre
    centre = centre_offset(rows, columns, spec.side)
    rows, columns = rows - spec.side, columns - spec.side  # largest row and column of a corner
    if spec.five:
        corner = ((0, 0), (0, columns), (rows, 0), (rows, columns), centre)[int(which * 5)]
    else:
        corner = (int(down * (rows + 1)), int(right * (columns + 1)))
    position = (top + corner[0], left + corner[1])
    return CropBox((0, 0, height, width), size, position, corner, _interpolation(spec, random))


def _interpolation(spec: CropSpec, random: Callable[[], float]) -> Interpolation:
    """Return the declared interpolation, or the one drawn."""
    if spec.interpolation != "random":
        return spec.interpolation
    return RANDOM_INTERPOLATIONS[int(random() * len(RANDOM_INTERPOLATIONS))]


def area_crop(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], random: Callable[[], float]
) -> Box:
    """Return a part with share of the area and aspect ratio drawn from these ranges (arXiv:1409.4842, section 6).

    Up to ten draws are made until the part fits into the image. Otherwise it is the largest centred part that the
    aspect range allows.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(AREA_CROP_ATTEMPTS):
        pixels = height * width * (area[0] + random() * (area[1] - area[0]))
        ratio = math.exp(low + random() * (high - low))
        wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return int(random() * (height - tall + 1)), int(random() * (width - wide + 1)), tall, wide
    tall = min(height, max(1, round(width / aspect[0])))
    wide = min(width, max(1, round(height * aspect[1])))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def crop_image(spec: CropSpec, image: NDArray[np.uint8], draw: float) -> tuple[Tensor, tuple[int, int]]:
    """Crop uint8 (H, W, 3) to uint8 (side, side, 3); also return the crop's corner in the frame."""
    box = crop_box(spec, image.shape[0], image.shape[1], draw)
    resized = resize(image, box.box, box.size, box.interpolation)
    row, column = box.crop
    return resized[row : row + spec.side, column : column + spec.side], box.corner
