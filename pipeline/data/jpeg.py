"""Decoding of image files to uint8 pixels, and resizing of a part of an image.

Decoded pixels equal Pillow's to the bit. Resized pixels differ from Pillow's by 0.03 of 255 on average, since the
two libraries round differently. Both operations release the interpreter's lock.
"""

import functools
import io
import struct
import warnings
import zlib
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import DataError

JPEG_MAGIC = b"\xff\xd8\xff"
MAX_PIXELS = 89_478_485  # pixels above which Pillow warns of a decompression bomb: 0.27 GB decoded
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # never EPS, for which Pillow runs Ghostscript
Interpolation = Literal["bilinear", "bicubic", "nearest", "area"]
Box = tuple[int, int, int, int]  # row, column, height, width


def decode(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode a file's bytes to uint8 (H, W, 3) RGB; DataError names an unreadable file as `where`.

    Pillow decodes files that libjpeg warns about (extraneous bytes), CMYK (22 images of ImageNet) and other
    formats (a PNG named .JPEG); it rejects truncated files. If a file has an end marker but missing or wrong data
    before it, the pixels are libjpeg's guess, as in Pillow: only a checksum detects that.
    """
    import simplejpeg  # imported here: sets in memory do not need it

    if content.startswith(JPEG_MAGIC):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            if height * width > MAX_PIXELS:
                raise DataError(_too_large(height, width, where))
            if colours in ("Gray", "YCbCr", "RGB"):  # its CMYK to RGB differs from Pillow's by 1 of 255
                pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
                return pixels
        except DataError:
            raise
        except ValueError:
            pass
    return _by_pillow(content, where)


@functools.cache
def _pillow() -> Any:
    """Return PIL.Image, with its warning about large images disabled: MAX_PIXELS rejects them."""
    from PIL import Image

    warnings.filterwarnings(
        "ignore", category=Image.DecompressionBombWarning
    )  # once, since filters are shared by all threads
    return Image


def _by_pillow(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode with Pillow; DataError names an unreadable file as `where`."""
    Image = _pillow()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.height * image.width > MAX_PIXELS:
                raise DataError(_too_large(image.height, image.width, where))
            if image.mode.startswith(("I", "F")):  # more than 8 bits: Pillow would clip at 255
                raise DataError(f"{where} has Pillow's mode {image.mode!r}; convert it to grey or RGB of 8 bits")
            if isinstance(
                image.info.get("transparency"), bytes
            ):  # a palette with transparency: Pillow warns about a direct conversion
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))  # a copy, since Pillow's memory is read-only
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{where} has more than {MAX_PIXELS:,} pixels; resize or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = f"its {len(content)} bytes are not an image" if "identify" in str(error) else str(error)
        raise DataError(f"{where} is not a readable image ({reason}); restore or remove it") from None


def _too_large(height: int, width: int, where: str) -> str:
    return f"{where} has {height} x {width} pixels, more than {MAX_PIXELS:,}; resize or remove it"


def resize(
    image: NDArray[np.uint8], box: Box, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Resize the part `box` of uint8 (H, W, 3) to `size` -> uint8 (*size, 3).

    "bilinear" and "bicubic" with anti-aliasing. "nearest": the pixel at the centre of each new pixel. "area": the
    mean of all pixels that each new pixel touches.
    """
    row, column, height, width = box
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"an image of {height} x {width} pixels would be resized to {size[0]} x {size[1]}, more than"
            f" {MAX_PIXELS:,} pixels; remove such thin images from the set"
        )
    part = torch.from_numpy(image[row : row + height, column : column + width])
    if (height, width) == size:
        return part
    # Add the axis before permuting: the strides are then those of channels_last memory, which torch keeps.
    x = part[None].permute(0, 3, 1, 2)
    if interpolation == "nearest":
        resized = F.interpolate(x, size, mode="nearest-exact")
    elif interpolation == "area":
        resized = F.interpolate(x.float(), size, mode="area").round_().to(torch.uint8)
    else:
        resized = F.interpolate(x, size, mode=interpolation, antialias=True)
    return resized.permute(0, 2, 3, 1)[0]


def centre_offset(height: int, width: int, side: int) -> tuple[int, int]:
    """Return row and column of the centred square; half pixels round to even, as in torchvision."""
    return round((height - side) / 2), round((width - side) / 2)


def size_for_short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """Return (H, W) resized to short side `short`; the long side is rounded down, as in torchvision."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short
