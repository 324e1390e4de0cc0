"""From bytes to pixels: Pillow's, bit for bit; what is broken is named, what is too large is not begun."""

import io
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
from tests.support.making import picture

WHERE = "train-00003.tar, sample 17"
JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "optimised": {"optimize": True, "quality": 100},
    "poor": {"quality": 5},
    "RGB inside": {"keep_rgb": True},
}
SIZES = [(50, 40), (37, 61), (1, 1), (8, 1), (17, 16)]


def written(pixels, kind="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def same(content):
    found = decode(content, WHERE)
    assert found.dtype == np.uint8
    assert np.array_equal(found, by_pillow(content))
    return found


def refused(content, *said):
    with pytest.raises(DataError) as caught:
        decode(content, WHERE)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    assert all(words in message for words in said), message


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_decode_to_pillows_pixels(kind, mode):
    if (kind, mode) == ("RGB inside", "L"):
        pytest.skip("grey has no colours")
    for number, (height, width) in enumerate(SIZES):
        content = written(picture(number, height=height, width=width), mode=mode, **JPEGS[kind])
        assert same(content).shape == (height, width, 3)


def test_cmyk_decodes_to_pillows_pixels():
    content = written(picture(1), mode="CMYK")
    same(content)
    assert not np.array_equal(simplejpeg.decode_jpeg(content, "RGB"), by_pillow(content))  # why it goes round


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
def test_other_kinds_called_jpeg_decode_to_pillows_pixels(kind, mode, options):
    same(written(picture(2), kind, mode, **options))


def test_a_palette_that_lets_light_through_decodes_to_pillows_pixels_without_a_warning():
    file = io.BytesIO()
    Image.fromarray(picture(2)).convert("P").save(file, "PNG", transparency=bytes(range(256)))
    found = decode(file.getvalue(), WHERE)
    with pytest.warns(UserWarning, match="Transparency"):
        assert np.array_equal(found, by_pillow(file.getvalue()))


def test_bytes_behind_the_end_do_no_harm():
    content = written(picture(3))
    assert np.array_equal(same(content + b"trailing garbage" * 20), by_pillow(content))
    same(content[:-2] + b"\x11\x22\x33" + content[-2:])  # libjpeg warns: extraneous bytes before the end


def test_pixels_may_be_written_to():
    for content in (written(picture(4)), written(picture(4), "PNG")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.from_numpy(decode(content, WHERE)).add_(1)


# --- broken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "restarts"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_truncated_jpeg_is_named_wherever_it_ends(kind, mode):
    content = written(picture(5), mode=mode, **JPEGS[kind])
    for end in [*range(0, len(content) - 1, 41), len(content) - 2, len(content) - 1]:
        refused(content[:end], "is no readable picture")


def test_data_that_end_before_the_marker_does_are_taken_as_pillow_takes_them():
    content = written(picture(5))
    same(content[:-200] + content[-2:])


def test_a_truncated_png_is_named():
    content = written(picture(5), "PNG")
    for end in range(0, len(content) - 30, 97):
        refused(content[:end], "is no readable picture")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xd8\xff", b"<html>404 not found</html>", bytes(1000), b"\xff\xd8\xff" + bytes(1000), b"%PDF-1.4"],
)
def test_what_is_no_picture_is_named(content):
    refused(content, f"{len(content)} bytes that are no picture", "restore or remove it")


def test_postscript_is_never_run():
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n%%EOF\n"
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "EPS"  # Pillow would, by starting Ghostscript
    refused(content, "no picture")


def test_pictures_of_more_than_8_bits_are_refused():
    deep = Image.fromarray(np.full((5, 5), 40_000, np.uint16))
    file = io.BytesIO()
    deep.save(file, "PNG")
    refused(file.getvalue(), "I;16", "convert it")


# --- too large ---------------------------------------------------------------------------------------------


def claiming(content, height, width):
    """A JPEG whose header says another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def claiming_png(height, width):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


BOMBS = {
    "JPEG": claiming(written(picture(6)), 60_000, 60_000),
    "grey JPEG": claiming(written(picture(6), mode="L"), 60_000, 60_000),
    "CMYK JPEG": claiming(written(picture(6), mode="CMYK"), 60_000, 60_000),
    "PNG": claiming_png(60_000, 60_000),
    "PNG a little too large": claiming_png(9_460, 9_460),
    "wide": claiming(written(picture(6)), 2_000, 65_000),
}


@pytest.mark.filterwarnings("error")  # and what it was comes back
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(bomb):
    refused(BOMBS[bomb], f"more than {MAX_PIXELS:,}")  # also where Pillow's warning is an error, as in these tests
    warnings.simplefilter("ignore")
    tracemalloc.start()
    try:
        refused(BOMBS[bomb], "pixels", f"more than {MAX_PIXELS:,}", "resize or remove it")
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_pillow_does_not_warn_of_what_is_refused(monkeypatch):
    jpeg._pillow.cache_clear()  # as in a process that has decoded nothing yet
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        refused(BOMBS["PNG a little too large"], f"more than {MAX_PIXELS:,}")
    assert said == []


def test_the_bound_is_where_pillow_begins_to_warn():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


# --- resizing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (40, 30), (256, 341), (500, 600)])
def test_resizing_is_pillows_within_a_tenth_of_a_step(size, interpolation):
    image = decode(written(picture(7, height=375, width=500), quality=95), WHERE)
    row, column, height, width = box = (20, 30, 300, 400)
    found = resize(image, box, size, interpolation)
    assert found.shape == (*size, 3)
    assert found.dtype == torch.uint8
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    part = Image.fromarray(image[row : row + height, column : column + width])
    wanted = np.asarray(part.resize(size[::-1], filters[interpolation])).astype(int)
    difference = np.abs(found.numpy().astype(int) - wanted)
    assert difference.mean() < 0.1
    assert difference.max() <= 2


def test_a_part_of_the_right_size_is_cut_only():
    image = picture(8, height=50, width=60)
    assert np.array_equal(resize(image, (3, 4, 20, 30), (20, 30)).numpy(), image[3:23, 4:34])


def test_a_thin_picture_is_not_resized_to_more_than_memory_holds():
    with pytest.raises(
        DataError, match="2 x 8000 pixels would become one of 256 x 1024000, more than 89,478,485; ta"
    ):
        resize(np.zeros((2, 8000, 3), np.uint8), (0, 0, 2, 8000), size_for_short_side(2, 8000, 256))


def test_resizing_without_antialiasing_would_be_noticed():
    image = picture(7, height=375, width=500)
    wanted = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BILINEAR)).astype(int)
    plain = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], (48, 64), mode="bilinear"
    )
    assert np.abs(plain[0].permute(1, 2, 0).numpy().astype(int) - wanted).mean() > 1


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
def test_short_side_rounds_the_long_one_down(height, width, short, size):
    assert size_for_short_side(height, width, short) == size


def test_short_side_is_torchvisions():
    from torchvision.transforms.functional import resize as theirs

    for height, width in [(375, 500), (500, 333), (17, 400), (640, 427), (97, 131)]:
        found = theirs(torch.zeros(3, height, width), 256, antialias=True)
        assert tuple(found.shape[1:]) == size_for_short_side(height, width, 256)
