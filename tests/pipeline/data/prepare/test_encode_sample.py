"""Encoding of one image for its shard: formats and resizing."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipeline.data import jpeg
from pipeline.data.images import DataError
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.shards import open_shards
from tests.support.image_sets import random_image, write_image
from tests.support.preparing import (
    assert_prepare_refused,
    copy_folder,
    prepare_folder,
)


def test_other_image_formats_become_png_files_of_the_same_pixels(tmp_path, out):
    folder = tmp_path / "mixed" / "train" / "a"
    folder.mkdir(parents=True)
    kinds = ("bmp", "gif", "ppm", "tif", "webp")
    for number, kind in enumerate(kinds):
        Image.fromarray(random_image(number)).save(folder / f"{kind}.{kind}")
    prepare_folder(tmp_path / "mixed", out, samples=10)
    with tarfile.open(out.local / "train-00000.tar") as tar:
        found = {name: tar.extractfile(name).read() for name in tar.getnames() if not name.endswith(".cls")}
    assert len(found) == len(kinds)
    assert all(name.endswith(".png") for name in found)
    stored = [jpeg.decode(content, name) for name, content in found.items()]
    for kind in kinds:
        file = folder / f"{kind}.{kind}"
        assert any(np.array_equal(jpeg.decode(file.read_bytes(), kind), pixels) for pixels in stored), kind


def test_an_empty_and_a_missing_file_are_reported(source, out, tmp_path):
    own = copy_folder(source, tmp_path / "mine" / "animals")
    file = own / "train" / "bee" / "bee_00004.jpg"
    file.write_bytes(b"")
    assert_prepare_refused(f"{file} is not a readable image (its 0 bytes", own, out)
    source_set = source_from_folders(own)
    file.unlink()
    with pytest.raises(DataError, match="No such file or directory"):
        prepare_shards(source_set, out, samples=4)


def test_resized_images_equal_pillows_and_have_the_requested_short_side(tmp_path, out):
    folder = tmp_path / "sizes" / "train" / "a"
    sizes = {"wide": (30, 61), "tall": (77, 40), "exact": (24, 50), "small": (10, 12)}
    for number, (name, (height, width)) in enumerate(sizes.items()):
        write_image(folder / f"{name}.jpg", number, height=height, width=width)
    manifest = prepare_folder(tmp_path / "sizes", out, short_side=24, samples=10)
    resize = manifest.resized
    assert resize is not None
    assert (resize.short_side, resize.interpolation, resize.quality) == (24, "bilinear", 95)
    # 24 * 61 / 30 = 48.8, 24 * 77 / 40 = 46.2, 24 * 12 / 10 = 28.8: the long side is rounded down
    expected = {"wide": (24, 48), "tall": (46, 24), "exact": (24, 50), "small": (24, 28)}
    with tarfile.open(out.local / "train-00000.tar") as tar:
        found = {name[9:-4]: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")}
    assert found["exact"] == (folder / "exact.jpg").read_bytes()
    for name, (height, width) in expected.items():
        with Image.open(io.BytesIO(found[name])) as image, Image.open(folder / f"{name}.jpg") as original:
            assert (image.height, image.width) == (height, width)
            if name != "exact":
                again = io.BytesIO()
                small = original.resize((width, height), Image.Resampling.BILINEAR)
                small.save(again, "JPEG", quality=95, subsampling=2)  # Pillow's number for 4:2:0
                assert again.getvalue() == found[name]
    opened = open_shards(out).train.index
    assert sorted(zip(opened["height"].tolist(), opened["width"].tolist(), strict=True)) == sorted(
        expected.values()
    )


@pytest.mark.parametrize(("height", "short", "size"), [(1, 256, "76800 x 256"), (20, 400, "6000 x 400")])
def test_an_image_that_would_be_too_large_after_resizing_is_reported(
    tmp_path, out, monkeypatch, height, short, size
):
    file = tmp_path / "thin" / "train" / "a" / "x.jpg"
    write_image(file, 0, height=height, width=300)
    monkeypatch.setattr(jpeg, "MAX_PIXELS", 2_000_000)
    message = f"{file} resized to {size} pixels would be too large to decode; remove it"
    assert_prepare_refused(message, tmp_path / "thin", out, short_side=short)
