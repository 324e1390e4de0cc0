"""What a test protocol shows a network of one picture: the picture resized, and parts cut out of it.

Any picture gives all its views, a tiny one (which is made larger) and a very long one too. Nothing here is
mirrored: that comes after normalising, since a mean image is mirrored along with the picture.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from pipeline.data.jpeg import Box, centre_offset, resize, size_for_short_side
from pipeline.declare.protocol import ProtocolPart

GRID = 5  # places in a row and in a column: VGG's multi-crop


@dataclass(frozen=True, eq=False)
class ViewGroup:
    """Views of one picture that have one size: those of one scale."""

    pixels: Tensor  # uint8 (V, h, w, 3), none of them mirrored yet
    corners: Tensor | None  # int64 (V, 2): row, column in the frame, where the crops come from one (`Part.square`)
    frame: int | None  # its side
    mirror: bool  # the network is also shown the mirror image of each
    dense: bool  # the network is applied densely


def protocol_views(image: np.ndarray, part: ProtocolPart) -> list[ViewGroup]:
    """What is shown of uint8 (H, W, 3): one group for each of the part's scales."""
    image = np.require(image, requirements=["W"])  # a copy of what Pillow keeps to itself: torch wants its own
    return [_at_scale(image, part, short) for short in part.shorts]


def _at_scale(image: np.ndarray, part: ProtocolPart, short: int) -> ViewGroup:
    height, width = image.shape[:2]
    picture = resize(image, (0, 0, height, width), size_for_short_side(height, width, short), part.interpolation)
    height, width = picture.shape[:2]
    if part.side is None:
        return ViewGroup(picture[None].contiguous(), None, None, mirror=True, dense=True)
    side = part.side
    if part.kind == "googlenet":
        pixels = torch.stack([view for box in squares(height, width) for view in _six(picture, box, part)])
        return ViewGroup(pixels, None, None, mirror=True, dense=False)
    if part.square:
        picture = _cut(picture, *centre_offset(height, width, short), short)
        height = width = short
    places = CROP_LAYOUTS[part.kind](height, width, side)
    pixels = torch.stack([_cut(picture, row, column, side) for row, column in places])
    frame, corners = (short, torch.tensor(places)) if part.square else (None, None)
    return ViewGroup(pixels, corners, frame, mirror=part.kind != "centre", dense=False)


def _six(picture: Tensor, box: Box, part: ProtocolPart) -> list[Tensor]:
    """Of one of GoogLeNet's squares: four corners, the middle, and all of it at the size of a crop."""
    row, column, side, _ = box
    assert part.side is not None
    crops = [_cut(picture, row + i, column + j, part.side) for i, j in corners_and_centre(side, side, part.side)]
    return [*crops, resize(picture.numpy(), box, (part.side, part.side), part.interpolation)]


def _cut(picture: Tensor, row: int, column: int, side: int) -> Tensor:
    return picture[row : row + side, column : column + side]


def corners_and_centre(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Krizhevsky et al. 2012, section 4.1: "the four corner patches and the center patch"."""
    return [*product((0, height - side), (0, width - side)), centre_offset(height, width, side)]


def grid(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """VGG (arXiv:1409.1556, section 3.2): a regular 5 x 5 grid, whose first and last crops touch the borders."""
    rows, columns = ([round(i * (length - side) / (GRID - 1)) for i in range(GRID)] for length in (height, width))
    return list(product(rows, columns))


def squares(height: int, width: int) -> list[Box]:
    """GoogLeNet (arXiv:1409.4842, section 7): left, middle, right; of an upright picture top, middle, bottom.

    Of a square picture the same square three times.
    """
    side = min(height, width)
    places = [(0, 0), centre_offset(height, width, side), (height - side, width - side)]
    return [(row, column, side, side) for row, column in places]


CROP_LAYOUTS = {"centre": lambda *sides: [centre_offset(*sides)], "ten": corners_and_centre, "grid": grid}
