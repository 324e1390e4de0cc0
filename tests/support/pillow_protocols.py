"""A second implementation of the test protocols: Pillow and plain loops, one view and one network at a time."""

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Way(NamedTuple):
    """One part of a protocol."""

    kind: str
    side: int | None
    shorts: tuple[int, ...]
    square: bool = False
    interpolation: str = "bilinear"


PROTOCOLS = {
    "1-crop-24-of-32": [Way("centre", 24, (32,))],
    "1-crop-21-of-32-bicubic": [Way("centre", 21, (32,), interpolation="bicubic")],
    "1-crop-24-of-square-32": [Way("centre", 24, (32,), square=True)],
    "10-crop-24-of-32": [Way("ten", 24, (32,))],
    "10-crop-23-of-square-32": [Way("ten", 23, (32,), square=True)],
    "12-crop-24-of-32": [Way("twelve", 24, (32,))],
    "50-crop-24-of-32": [Way("grid", 24, (32,))],
    "150-crop-24-of-32-37-56": [Way("grid", 24, (32, 37, 56))],
    "144-crop-24-of-32-36-40-44": [Way("googlenet", 24, (32, 36, 40, 44))],
    "dense-of-24-37": [Way("dense", None, (24, 37))],
    "dense-of-40-and-50-crop-24-of-40": [Way("dense", None, (40,)), Way("grid", 24, (40,))],
}


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth random image, uint8 (H, W, 3)."""
    draw = np.random.default_rng(seed)
    spots = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return np.array(spots.resize((width, height), Image.Resampling.BICUBIC))


def resized(image: Image.Image, short: int, interpolation: str) -> Image.Image:
    """Resize the short side to `short` and the long one in proportion, rounded down."""
    width, height = image.size
    size = max(short, short * width // height), max(short, short * height // width)
    return image.resize(size, RESAMPLING[interpolation])


def at(image: Image.Image, row: int, column: int, side: int) -> Image.Image:
    assert row >= 0
    assert column >= 0
    assert row + side <= image.height
    assert column + side <= image.width
    return image.crop((column, row, column + side, row + side))


def middle(image: Image.Image, side: int) -> tuple[int, int]:
    return round((image.height - side) / 2), round((image.width - side) / 2)


def five(image: Image.Image, side: int) -> list[tuple[int, int]]:
    last_row, last_column = image.height - side, image.width - side
    return [(0, 0), (0, last_column), (last_row, 0), (last_row, last_column), middle(image, side)]


def views(pixels: np.ndarray, way: Way, short: int) -> list[tuple[np.ndarray, tuple[int, int] | None]]:
    """Return the unmirrored views at one scale, with their offsets in the central square if cut out of it."""
    image = resized(Image.fromarray(pixels), short, way.interpolation)
    if way.kind == "dense":
        return [(np.array(image), None)]
    side = way.side
    if way.kind == "twelve":
        square = at(image, *middle(image, short), short)
        corners = [at(square, i, j, side) for i, j in five(square, side)]
        whole = square.resize((side, side), RESAMPLING[way.interpolation])
        return [(np.array(view), None) for view in [*corners, whole]]
    if way.kind == "googlenet":
        found = []
        first, half, last = 0, round((max(image.size) - short) / 2), max(image.size) - short
        for along in (first, half, last):
            row, column = (along, 0) if image.height > image.width else (0, along)
            square = at(image, row, column, short)
            found += [at(square, i, j, side) for i, j in five(square, side)]
            found.append(square.resize((side, side), RESAMPLING[way.interpolation]))
        return [(np.array(view), None) for view in found]
    if way.square:
        image = at(image, *middle(image, short), short)
    if way.kind == "centre":
        places = [middle(image, side)]
    elif way.kind == "ten":
        places = five(image, side)
    else:
        places = [
            (round(i * (image.height - side) / 4), round(j * (image.width - side) / 4))
            for i in range(5)
            for j in range(5)
        ]
    return [(np.array(at(image, *place, side)), place if way.square else None) for place in places]


def probabilities(networks, pixels: np.ndarray, ways: list[Way]) -> np.ndarray:
    """Return (classes,) probabilities, averaged over views, scales, parts and networks.

    `networks`: pairs of a network in evaluation mode and its mean, (3,) or (S, S, 3), to be subtracted from x/255.
    """
    by_network = []
    for network, mean in networks:
        by_part = []
        for way in ways:
            by_scale = []
            for short in way.shorts:
                by_view = []
                for view, place in views(pixels, way, short):
                    own = mean
                    if mean.ndim == 3:
                        own = mean.mean((0, 1))
                        if place and len(mean) == short:
                            own = mean[place[0] : place[0] + way.side, place[1] : place[1] + way.side]
                    x = view / np.float32(255) - own.astype(np.float32)
                    by_view.append(probability(network, x, way))
                    if way.kind != "centre":
                        by_view.append(probability(network, x[:, ::-1], way))
                by_scale.append(np.mean(by_view, 0))
            by_part.append(np.mean(by_scale, 0))
        by_network.append(np.mean(by_part, 0))
    return np.mean(by_network, 0)


def probability(network, x: np.ndarray, way: Way) -> np.ndarray:
    shown = network.dense if way.kind == "dense" and hasattr(network, "dense") else network
    with torch.no_grad():
        scores = shown(torch.from_numpy(x.copy()).permute(2, 0, 1)[None])[0]
    return scores.softmax(0).numpy().astype(np.float64)
