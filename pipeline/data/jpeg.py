"""From a picture's file to uint8 pixels: decoding, and resizing of a part.

Decoded pixels are Pillow's, bit for bit; resized ones differ from Pillow's by 0.03 of 255 on average, since the
two round differently. Both let other threads run meanwhile.
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
from torch import Tensor

from pipeline.data.images import DataError

JPEG = b"\xff\xd8\xff"
MAX_PIXELS = 89_478_485  # pixels, from where on Pillow warns of a bomb: 0.27 GB decoded
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # never EPS: for that Pillow runs a program
Interpolation = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]  # row, column, height, width


def decode(content: bytes, where: str) -> np.ndarray:
    """A file's bytes -> uint8 (H, W, 3) RGB; DataError names a broken one as `where`.

    What libjpeg only warns of (extraneous bytes), CMYK (ImageNet has 22) and other kinds of files (a PNG called
    .JPEG) go through Pillow, which refuses a file that ends too early. Where a file has its end, but too few or
    wrong data before that, the pixels are libjpeg's guess, as with Pillow: then only a checksum could tell.
    """
    import simplejpeg  # late: small sets are trained without it

    if content.startswith(JPEG):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
            if height * width > MAX_PIXELS:
                raise DataError(_too_large(height, width, where))
            if colours in ("Gray", "YCbCr", "RGB"):  # CMYK to RGB is one step of 255 off from Pillow's
                return simplejpeg.decode_jpeg(content, "RGB")
        except DataError:
            raise
        except ValueError:
            pass
    return _by_pillow(content, where)


@functools.cache
def _pillow() -> Any:
    """PIL.Image, which warns no more of what LARGEST refuses."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # here: filters are all threads'
    return Image


def _by_pillow(content: bytes, where: str) -> np.ndarray:
    Image = _pillow()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.height * image.width > MAX_PIXELS:
                raise DataError(_too_large(image.height, image.width, where))
            if image.mode.startswith(("I", "F")):  # more than 8 bits: Pillow would cut off what is above 255
                raise DataError(f"{where} has Pillow's mode {image.mode!r}; convert it to grey or RGB of 8 bits")
            if isinstance(image.info.get("transparency"), bytes):  # a palette's: Pillow warns of the direct way
                image = image.convert("RGBA")
            return np.array(image.convert("RGB"))  # a copy: Pillow's own memory is read-only
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{where} has more than {MAX_PIXELS:,} pixels; resize or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = f"{len(content)} bytes that are no picture" if "identify" in str(error) else str(error)
        raise DataError(f"{where} is no readable picture ({reason}); restore or remove it") from None


def _too_large(height: int, width: int, where: str) -> str:
    return f"{where} has {height} x {width} pixels, more than {MAX_PIXELS:,}; resize or remove it"


def resize(
    image: np.ndarray, box: Box, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> Tensor:
    """The part `box` of uint8 (H, W, 3), resized with anti-aliasing -> uint8 (height, width, 3)."""
    row, column, height, width = box
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"a picture of {height} x {width} pixels would become one of {size[0]} x {size[1]}, more than"
            f" {MAX_PIXELS:,}; take pictures so thin out of the set"
        )
    part = torch.from_numpy(image[row : row + height, column : column + width])
    if (height, width) == size:
        return part
    # The order matters: as (1, H, W, C) it has the strides that torch takes for channels-last memory, and keeps.
    x = part[None].permute(0, 3, 1, 2)
    return F.interpolate(x, size, mode=interpolation, antialias=True).permute(0, 2, 3, 1)[0]


def centre_offset(height: int, width: int, side: int) -> tuple[int, int]:
    """Row and column of the square in the middle; half a pixel goes to the even number, as in torchvision."""
    return round((height - side) / 2), round((width - side) / 2)


def size_for_short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """(H, W) of a picture resized so that its short side is `short`: the long one cut, as torchvision does."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short
