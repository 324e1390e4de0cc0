"""Uncompressed PNG files."""

import io
import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.prepare.png import encode_png


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]), st.integers(0, 2**32))
def test_pillow_decodes_the_encoded_pixels(height, width, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == ("RGB" if channels == 3 else "L")
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_a_png_equals_the_specification_byte_for_byte():
    # One black pixel: the checksums from zlib's functions, everything else from RFC 2083, 1950 and 1951.
    head = bytes.fromhex("0000000d 49484452 00000001 00000001 08 00 00 00 00 3a7e9b55")
    data = bytes.fromhex("0000000d 49444154 7801 01 0200 fdff 00 00 00020001")
    data += zlib.crc32(data[4:]).to_bytes(4, "big")
    end = bytes.fromhex("00000000 49454e44 ae426082")
    assert encode_png(np.zeros((1, 1, 1), np.uint8)) == b"\x89PNG\r\n\x1a\n" + head + data + end
