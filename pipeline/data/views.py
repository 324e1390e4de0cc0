"""Views of one image by a test protocol: the resized image and crops of it.

Every image gives all its views, also a tiny one, which is enlarged, and a very long one. Views are not mirrored
here: mirroring comes after normalisation, since the mean image is mirrored along with the image.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.jpeg import Box, centre_offset, resize, size_for_short_side
from pipeline.declare.protocol import ProtocolPart

GRID_SIZE = 5  # rows and columns of crops: VGG's multi-crop evaluation


@dataclass(frozen=True, eq=False)
class ViewGroup:
    """Views of one image at one scale; they have one size."""

    pixels: Tensor  # uint8 (V, h, w, 3), not mirrored
    corners: (
        Tensor | None
    )  # int64 (V, 2): row and column in the frame; None without a frame (`ProtocolPart.square`)
    frame: int | None  # side of the frame
    mirror: bool  # each view is also evaluated mirrored
    dense: bool  # the network is applied densely


def protocol_views(image: NDArray[np.uint8], part: ProtocolPart) -> list[ViewGroup]:
    """Return the views of uint8 (H, W, 3), one group for each scale of the part."""
    image = np.require(image, requirements=["W"])  # copies read-only memory, which torch does not accept
    return [_at_scale(image, part, short) for short in part.shorts]


def _at_scale(image: NDArray[np.uint8], part: ProtocolPart, short: int) -> ViewGroup:
    """Return the views of an image resized to one short side."""
    height, width = image.shape[:2]
    size = size_for_short_side(height, width, short)
    resized = resize(image, (0, 0, height, width), size, part.interpolation)
    height, width = size
    if part.side is None:
        return ViewGroup(resized[None].contiguous(), None, None, mirror=True, dense=True)
    side = part.side
    if part.kind in ("twelve", "googlenet"):
        boxes = squares(height, width) if part.kind == "googlenet" else [squares(height, width)[1]]
        pixels = torch.stack([view for box in boxes for view in _square_views(resized, box, part)])
        return ViewGroup(pixels, None, None, mirror=True, dense=False)
    if part.square:
        resized = _crop(resized, *centre_offset(height, width, short), short)
        height = width = short
    positions = CROP_LAYOUTS[part.kind](height, width, side)
    pixels = torch.stack([_crop(resized, row, column, side) for row, column in positions])
    frame, corners = (short, torch.tensor(positions)) if part.square else (None, None)
    return ViewGroup(pixels, corners, frame, mirror=part.kind != "centre", dense=False)


def _square_views(image: Tensor, box: Box, part: ProtocolPart) -> list[Tensor]:
    """Return six views of a square of the image: four corners, the centre, and the square resized to a crop."""
    row, column, side, _ = box
    assert part.side is not None
    crops = [_crop(image, row + i, column + j, part.side) for i, j in corners_and_centre(side, side, part.side)]
    return [*crops, resize(image.numpy(), box, (part.side, part.side), part.interpolation)]


def _crop(image: Tensor, row: int, column: int, side: int) -> Tensor:
    """Return the square crop with this corner; (H, W, 3) -> (side, side, 3)."""
    return image[row : row + side, column : column + side]


def corners_and_centre(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Return corners of "the four corner patches and the center patch" (Krizhevsky et al. 2012, section 4.1)."""
    return [*product((0, height - side), (0, width - side)), centre_offset(height, width, side)]


def grid(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Return corners of a regular 5 x 5 grid of crops up to the borders (VGG, arXiv:1409.1556, section 3.2)."""
    rows, columns = (
        [round(i * (length - side) / (GRID_SIZE - 1)) for i in range(GRID_SIZE)] for length in (height, width)
    )
    return list(product(rows, columns))


def squares(height: int, width: int) -> list[Box]:
    """Return GoogLeNet's squares (arXiv:1409.4842, section 7): left, centre, right, or top, centre, bottom.

    A square image gives the same square three times.
    """
    side = min(height, width)
    positions = [(0, 0), centre_offset(height, width, side), (height - side, width - side)]
    return [(row, column, side, side) for row, column in positions]


CROP_LAYOUTS = {"centre": lambda *sides: [centre_offset(*sides)], "ten": corners_and_centre, "grid": grid}
