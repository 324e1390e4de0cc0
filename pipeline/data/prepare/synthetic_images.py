"""Synthetic images for the ImageNet stand-in: one textured shape on a spotted background.

A class is a shape, a texture and the difference of the texture's two colours. Position, size and mean colours are
drawn for each image, so neither a single pixel nor the mean colour predicts the class. All draws are integers from
the seed: the pixels are the same on every machine.

As in ImageNet, some files named .JPEG are greyscale, some are CMYK, and some are PNG files.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.order import seeded_generator

SPECIAL_EVERY = 200  # of this many images one is greyscale, one CMYK and one a PNG file

SYNTHETIC_JPEG_QUALITY = 90

SPOT = 8  # pixels: side of a spot of the background

TEXTURE_CONTRAST = 56  # of 255: from a texture's mean to either of its colours

PALETTES = (  # sign of the difference between a texture's two colours in each channel
    *((1, 1, 1), (1, -1, 0), (1, 0, -1), (0, 1, -1), (1, 1, -1)),
    *((1, -1, 1), (-1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
)


@dataclass(frozen=True)
class SyntheticImage:
    """Everything that determines one image."""

    seed: int
    split: str
    number: int  # within the split, from 0
    label: int
    name: str  # of its file
    side: int  # pixels: the smallest short side


def encode_image(image: SyntheticImage) -> bytes:
    """Draw an image and return its file: a JPEG, or one of the special kinds (see SPECIAL_EVERY)."""
    from PIL import Image

    drawn = Image.fromarray(draw_image(image))
    kind = {0: "grey", 1: "CMYK", 2: "PNG"}.get(image.number % SPECIAL_EVERY, "RGB")
    content = io.BytesIO()
    if kind == "PNG":
        drawn.save(content, "PNG", compress_level=0)
    else:
        drawn.convert({"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB")).save(
            content, "JPEG", quality=SYNTHETIC_JPEG_QUALITY
        )
    return content.getvalue()


@dataclass(frozen=True, eq=False)
class Drawing:
    """Everything drawn at random for one image, in the order of the draws."""

    height: int  # pixels
    width: int
    radius: int  # of the shape
    top: int  # row of the shape's centre
    left: int  # column of the shape's centre
    background: list[int]  # mean colour
    colours: list[int]  # mean colour of the texture
    phase: int  # of the texture
    spots: np.ndarray  # (H / SPOT, W / SPOT, 3): differences of the background's spots from its mean

    def shape(self, label: int) -> np.ndarray:
        """Return bool (H, W): True inside the shape of class `label`."""
        y, x = self.coordinates()
        mask = shape_mask(class_appearance(label)[0], y, x, self.radius)
        return np.broadcast_to(mask, (self.height, self.width))

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (H, 1) and columns (1, W), counted from the shape's centre."""
        return np.arange(self.height)[:, None] - self.top, np.arange(self.width)[None, :] - self.left


def random_drawing(image: SyntheticImage) -> Drawing:
    """Return the random choices of an image."""
    generator = seeded_generator(image.seed, "stand-in", image.split, image.number)
    draws: Iterator[int] = iter(torch.randint(1 << 30, (16,), generator=generator).tolist())

    def between(low: int, high: int) -> int:
        return low + next(draws) % (high - low + 1)

    short = between(image.side, image.side * 3 // 2)
    long = short * between(100, 200) // 100
    height, width = (short, long) if between(0, 1) else (long, short)
    radius = short * between(28, 42) // 100
    top, left = (size // 2 + between(-short // 10, short // 10) for size in (height, width))
    background = [between(56, 200) for _ in range(3)]
    colours = [between(TEXTURE_CONTRAST + 16, 239 - TEXTURE_CONTRAST) for _ in range(3)]
    phase = between(0, 1000)
    spots = torch.randint(-32, 33, (-(-height // SPOT), -(-width // SPOT), 3), generator=generator).numpy()
    return Drawing(height, width, radius, top, left, background, colours, phase, spots)


def shape_box(image: SyntheticImage) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return (height, width) of an image, and the edges of its shape in pixels: left, top, right, bottom."""
    drawing = random_drawing(image)
    inside = drawing.shape(image.label)
    rows, columns = np.flatnonzero(inside.any(1)).tolist(), np.flatnonzero(inside.any(0)).tolist()
    return (drawing.height, drawing.width), (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def draw_image(image: SyntheticImage) -> np.ndarray:
    """Return the pixels, uint8 (H, W, 3)."""
    drawing = random_drawing(image)
    height, width = drawing.height, drawing.width
    spots = drawing.spots.repeat(SPOT, axis=0).repeat(SPOT, axis=1)[:height, :width]
    pixels = np.array(drawing.background) + spots
    _, texture, palette = class_appearance(image.label)
    light = texture_mask(texture, *drawing.coordinates(), drawing.radius, drawing.phase)[..., None]
    inside = drawing.shape(image.label)
    difference = TEXTURE_CONTRAST * np.array(PALETTES[palette])
    filled = np.array(drawing.colours) + np.where(light, difference, -difference)
    return np.where(inside[..., None], filled, pixels).astype(np.uint8)


def class_appearance(label: int) -> tuple[int, int, int]:
    """Return the shape, texture and palette of a class, each 0 to 9.

    No two of 1000 classes are equal, and no two of the first ten share a shape, a texture or a palette.
    """
    ones, tens, hundreds = label % 10, label // 10 % 10, label // 100
    return ones, (ones + tens) % 10, (ones + hundreds) % 10


def shape_mask(shape: int, y: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
    """Return bool (H, W): True inside a shape centred at row 0, column 0. `y` (H, 1), `x` (1, W), in pixels."""
    far, near, square = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y)), x * x + y * y
    third, block = radius // 3, radius * 4 // 5
    mask: np.ndarray
    if shape == 0:  # disc
        mask = square <= radius * radius
    elif shape == 1:  # square
        mask = far <= block
    elif shape == 2:  # diamond
        mask = abs(x) + abs(y) <= radius
    elif shape == 3:  # triangle
        mask = (2 * abs(x) <= y + radius) & (y <= block)
    elif shape == 4:  # ring
        mask = (square <= radius * radius) & (3 * square >= radius * radius)
    elif shape == 5:  # plus
        mask = (near <= third) & (far <= radius)
    elif shape == 6:  # diagonal cross
        mask = (far - near <= third) & (far <= radius)
    elif shape == 7:  # frame
        mask = (far <= block) & (2 * far >= radius)
    elif shape == 8:  # half disc
        mask = (square <= radius * radius) & (y >= 0)
    else:  # two bars
        mask = (far <= block) & (abs(x) >= third)
    return mask


def texture_mask(texture: int, y: np.ndarray, x: np.ndarray, radius: int, phase: int) -> np.ndarray:
    """Return bool (H, W): True for the first colour of a texture; five patterns, each coarse and fine."""
    stripe = max(2, radius // (3 if texture < 5 else 7))  # pixels
    rows, columns = np.broadcast_arrays(y, x)
    across = (rows, columns, rows + columns, rows - columns, rows)[texture % 5]
    light: np.ndarray = (across + phase) // stripe % 2 == 0
    if texture % 5 == 4:  # checks
        light = light ^ ((columns + phase) // stripe % 2 == 0)
    return light
