"""Decoding and resizing against Pillow; broken and too large files are rejected."""

import io
import itertools
import math
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from pipeline.data import jpeg
from pipeline.data.images import DataError
from pipeline.data.jpeg import MAX_PIXELS, decode, resize, size_for_short_side
from tests.support.image_sets import random_image

WHERE = "train-00003.tar, sample 17"
JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "optimised": {"optimize": True, "quality": 100},
    "poor": {"quality": 5},
    "RGB stored": {"keep_rgb": True},
}
SIZES = [(50, 40), (37, 61), (1, 1), (8, 1), (17, 16)]


def encode(pixels, kind="JPEG", mode="RGB", **options):
    """Return an image file's bytes, written by Pillow."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def decode_by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def decode_as_pillow(content):
    """Decode, and check that the pixels are Pillow's."""
    pixels = decode(content, WHERE)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, decode_by_pillow(content))
    return pixels


def assert_rejected(content, *texts):
    """Expect a one-line DataError that begins with the name of the file and contains `texts`."""
    with pytest.raises(DataError) as caught:
        decode(content, WHERE)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    assert all(text in message for text in texts), message


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_decodes_to_pillows_pixels(kind, mode):
    if (kind, mode) == ("RGB stored", "L"):
        pytest.skip("grey has no colours")
    for number, (height, width) in enumerate(SIZES):
        content = encode(random_image(number, height=height, width=width), mode=mode, **JPEGS[kind])
        assert decode_as_pillow(content).shape == (height, width, 3)


def test_cmyk_decodes_to_pillows_pixels():
    content = encode(random_image(1), mode="CMYK")
    decode_as_pillow(content)
    assert not np.array_equal(
        simplejpeg.decode_jpeg(content, "RGB"), decode_by_pillow(content)
    )  # why Pillow decodes it


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "1", {}),
        ("BMP", "RGB", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("TIFF", "RGB", {}),
        ("PPM", "RGB", {}),
    ],
)
def test_other_formats_decode_to_pillows_pixels(kind, mode, options):
    decode_as_pillow(encode(random_image(2), kind, mode, **options))


def test_transparent_palette_decodes_to_pillows_pixels_without_a_warning():
    file = io.BytesIO()
    Image.fromarray(random_image(2)).convert("P").save(file, "PNG", transparency=bytes(range(256)))
    pixels = decode(file.getvalue(), WHERE)
    with pytest.warns(UserWarning, match="Transparency"):
        assert np.array_equal(pixels, decode_by_pillow(file.getvalue()))


def test_extraneous_bytes_are_ignored():
    content = encode(random_image(3))
    assert np.array_equal(decode_as_pillow(content + b"trailing garbage" * 20), decode_by_pillow(content))
    decode_as_pillow(
        content[:-2] + b"\x11\x22\x33" + content[-2:]
    )  # libjpeg warns: extraneous bytes before the end


def test_pixels_are_writable():
    for content in (encode(random_image(4)), encode(random_image(4), "PNG")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.from_numpy(decode(content, WHERE)).add_(1)


# --- broken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "restarts"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncated_jpeg_is_named(kind, mode):
    content = encode(random_image(5), mode=mode, **JPEGS[kind])
    for end in [*range(0, len(content) - 1, 41), len(content) - 2, len(content) - 1]:
        assert_rejected(content[:end], "is not a readable image")


def test_missing_data_before_the_end_marker_decodes_as_in_pillow():
    content = encode(random_image(5))
    decode_as_pillow(content[:-200] + content[-2:])


def test_truncated_png_is_named():
    content = encode(random_image(5), "PNG")
    for end in range(0, len(content) - 30, 97):
        assert_rejected(content[:end], "is not a readable image")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8\xff", b"<html>404 not found</html>", bytes(1000), b"\xff\xd8\xff" + bytes(1000), b"%PDF-1.4"],
)
def test_file_that_is_not_an_image_is_named(content):
    assert_rejected(content, f"its {len(content)} bytes are not an image", "restore or remove it")


def test_postscript_is_never_run():
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n"
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "EPS"  # Pillow would start Ghostscript
    assert_rejected(content, "not an image")


def test_images_of_more_than_8_bits_are_rejected():
    deep = Image.fromarray(np.full((5, 5), 40_000, np.uint16))
    file = io.BytesIO()
    deep.save(file, "PNG")
    assert_rejected(file.getvalue(), "I;16", "convert it")


# --- too large ---------------------------------------------------------------------------------------------


def with_jpeg_size(content, height, width):
    """Return a JPEG with another size in its header."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def with_png_size(height, width):
    """Return a PNG with this size in its header."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


BOMBS = {
    "JPEG": with_jpeg_size(encode(random_image(6)), 60_000, 60_000),
    "grey JPEG": with_jpeg_size(encode(random_image(6), mode="L"), 60_000, 60_000),
    "CMYK JPEG": with_jpeg_size(encode(random_image(6), mode="CMYK"), 60_000, 60_000),
    "PNG": with_png_size(60_000, 60_000),
    "PNG a little too large": with_png_size(9_460, 9_460),
    "wide": with_jpeg_size(encode(random_image(6)), 2_000, 65_000),
}


@pytest.mark.filterwarnings("error")  # and the default returns after the test
@pytest.mark.parametrize("bomb", BOMBS)
def test_too_large_image_is_rejected_before_memory_is_allocated(bomb):
    assert_rejected(
        BOMBS[bomb], f"more than {MAX_PIXELS:,}"
    )  # also if Pillow's warning is an error, as in these tests
    warnings.simplefilter("ignore")
    tracemalloc.start()
    try:
        assert_rejected(BOMBS[bomb], "pixels", f"more than {MAX_PIXELS:,}", "resize or remove it")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_pillow_does_not_warn_about_rejected_images(monkeypatch):
    jpeg._pillow.cache_clear()  # as in a new process
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_rejected(BOMBS["PNG a little too large"], f"more than {MAX_PIXELS:,}")
    assert caught == []


def test_limit_is_that_of_pillows_warning():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


# --- resizing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (40, 30), (256, 341), (500, 600)])
def test_resized_pixels_differ_from_pillows_by_less_than_a_tenth(size, interpolation):
    image = decode(encode(random_image(7, height=375, width=500), quality=95), WHERE)
    row, column, height, width = box = (20, 30, 300, 400)
    found = resize(image, box, size, interpolation)
    assert found.shape == (*size, 3)
    assert found.dtype == torch.uint8
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    part = Image.fromarray(image[row : row + height, column : column + width])
    expected = np.asarray(part.resize(size[::-1], filters[interpolation])).astype(int)
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.mean() < 0.1
    assert difference.max() <= 2


@pytest.mark.parametrize("size", [(7, 5), (20, 30), (40, 33), (90, 61), (1, 1)])
def test_nearest_takes_the_pixel_at_the_centre_of_each_new_one(size):
    image = random_image(7, height=40, width=50)
    found = resize(image, (2, 3, 33, 44), size, "nearest").numpy()
    for i, j in itertools.product(*map(range, size)):
        row, column = int((i + 0.5) * 33 / size[0]), int((j + 0.5) * 44 / size[1])
        assert np.array_equal(found[i, j], image[2 + row, 3 + column])


@pytest.mark.parametrize("size", [(7, 5), (20, 30), (40, 33), (90, 61), (1, 1)])
def test_area_takes_the_mean_of_the_pixels_that_each_new_one_touches(size):
    image = random_image(7, height=40, width=50)
    found = resize(image, (2, 3, 33, 44), size, "area")
    assert found.dtype == torch.uint8
    part = image[2:35, 3:47].astype(np.float64)
    for i, j in itertools.product(*map(range, size)):
        rows = slice(math.floor(i * 33 / size[0]), math.ceil((i + 1) * 33 / size[0]))
        columns = slice(math.floor(j * 44 / size[1]), math.ceil((j + 1) * 44 / size[1]))
        expected = part[rows, columns].mean((0, 1))
        assert np.abs(found[i, j].numpy() - expected).max() <= 0.5001


def test_part_of_the_right_size_is_not_resampled():
    image = random_image(8, height=50, width=60)
    assert np.array_equal(resize(image, (3, 4, 20, 30), (20, 30)).numpy(), image[3:23, 4:34])


def test_thin_image_is_not_resized_beyond_the_limit():
    with pytest.raises(
        DataError, match="2 x 8000 pixels would be resized to 256 x 1024000, more than 89,478,485 pixels; rem"
    ):
        resize(np.zeros((2, 8000, 3), np.uint8), (0, 0, 2, 8000), size_for_short_side(2, 8000, 256))


def test_resizing_without_antialiasing_would_differ():
    image = random_image(7, height=375, width=500)
    expected = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BILINEAR)).astype(int)
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], (48, 64), mode="bilinear"
    )
    assert np.abs(plain[0].permute(1, 2, 0).numpy().astype(int) - expected).mean() > 1


@pytest.mark.parametrize(
    ("height", "width", "short", "size"),
    [
        (375, 500, 256, (256, 341)),  # 341.33
        (500, 375, 256, (341, 256)),
        (256, 256, 256, (256, 256)),
        (100, 300, 256, (256, 768)),
        (333, 500, 256, (256, 384)),  # 384.38
        (2, 3, 1, (1, 1)),
    ],
)
def test_long_side_is_rounded_down(height, width, short, size):
    assert size_for_short_side(height, width, short) == size


def test_size_for_short_side_is_torchvisions():
    from torchvision.transforms.functional import resize as torchvision_resize

    for height, width in [(375, 500), (500, 333), (17, 400), (640, 427), (97, 131)]:
        found = torchvision_resize(torch.zeros(3, height, width), 256, antialias=True)
        assert tuple(found.shape[1:]) == size_for_short_side(height, width, 256)
