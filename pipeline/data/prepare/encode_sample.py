"""Encoding of one source image for its shard: checked by decoding it, resized if requested."""

import io

import numpy as np

from pipeline.data import jpeg
from pipeline.data.images import DataError
from pipeline.data.prepare.png import encode_png, image_format
from pipeline.data.prepare.shard_plan import RESIZE_JPEG_QUALITY
from pipeline.data.prepare.source_images import SourceImage

MAX_JPEG_SIDE = 65_500  # pixels: the limit of libjpeg (JPEG_MAX_DIMENSION)


def encode_sample(image: SourceImage, short_side: int | None) -> tuple[bytes, str, int, int]:
    """Return the image file for the shard, its format, height and width in pixels.

    The file is the source's own bytes; a PNG of the same pixels if these are neither JPEG nor PNG; or a JPEG
    resized to `short_side`. Raise DataError if the source cannot be decoded or becomes too large.
    """
    content = image.read()
    pixels = jpeg.decode(content, image.where)
    kind = image_format(content)
    height, width = pixels.shape[:2]
    if short_side and min(height, width) != short_side:
        height, width = jpeg.size_for_short_side(height, width, short_side)
        if max(height, width) > MAX_JPEG_SIDE or height * width > jpeg.MAX_PIXELS:
            raise DataError(
                f"{image.where} resized to {width} x {height} pixels would be too large to decode; remove it"
            )
        content, kind = encode_resized(pixels, height, width), "jpg"
    elif kind is None:
        content, kind = encode_png(pixels), "png"
    return content, kind, height, width


def encode_resized(pixels: np.ndarray, height: int, width: int) -> bytes:
    """Resize uint8 (H, W, 3) bilinearly to (height, width) and return it as a JPEG file."""
    from PIL import Image

    stream = io.BytesIO()
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)  # with anti-aliasing
    resized.save(stream, "JPEG", quality=RESIZE_JPEG_QUALITY, subsampling="4:2:0")
    return stream.getvalue()
