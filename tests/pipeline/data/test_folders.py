"""Class folders of images of one size: reading, rejected folders, and the cache."""

import os
import re
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import folders
from pipeline.data.folders import read_folders
from pipeline.data.images import DataError


def write_random(path, seed=0, *, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def root(tmp_path):
    """A folder with the set "animals": 3 training and 3 test images of birds and cats."""
    for number, split in enumerate(("train", "test")):
        for index, name in enumerate(("bird", "cat")):
            for image in range(3):
                write_random(
                    tmp_path / "animals" / split / name / f"{image}.png", 100 * number + 10 * index + image
                )
    return tmp_path


def same(images, other):
    """Return True if two sets have equal pixels and labels."""
    parts = ((images.train, other.train), (images.test, other.test))
    return all(torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels) for a, b in parts)


def assert_rejected(root, text):
    """Expect a one-line DataError with `text`."""
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        read_folders("animals", root)
    assert "\n" not in str(caught.value)


def test_reads_every_image_once_with_its_class(root):
    images = read_folders("animals", root)
    assert images.classes == ("bird", "cat")
    assert images.train.pixels.shape == (6, 5, 6, 3)  # N, H, W, C
    assert images.train.labels.sort().values.tolist() == [0, 0, 0, 1, 1, 1]
    cat = write_random(root / "elsewhere.png", 11)  # what train/cat/1.png was written with
    rows = [row for row, label in zip(images.train.pixels, images.train.labels, strict=True) if label == 1]
    assert sum(np.array_equal(row.numpy(), cat) for row in rows) == 1


def test_file_names_do_not_change_the_set(root):
    before = read_folders("animals", root)
    for split in ("train", "test"):
        for name in ("bird", "cat"):
            folder = root / "animals" / split / name
            for old, new in (("0", "z"), ("1", "y"), ("2", "a")):
                (folder / f"{old}.png").rename(folder / f"{new}.png")
    assert same(before, read_folders("animals", root))


def test_grey_images_have_one_channel(tmp_path):
    for split in ("train", "test"):
        pixels = write_random(tmp_path / "grey" / split / "a" / "0.png", mode="L")
    images = read_folders("grey", tmp_path)
    assert images.train.pixels.shape == (1, 5, 6, 1)
    assert np.array_equal(images.train.pixels[0, :, :, 0].numpy(), pixels)


def test_val_is_read_as_test(root):
    before = read_folders("animals", root)
    (root / "animals" / "test").rename(root / "animals" / "val")
    after = read_folders("animals", root)
    assert same(before, after)
    assert after.source == "class folders animals/train and animals/val"


def test_numbered_classes_sort_by_value(tmp_path):
    for split in ("train", "test"):
        for number in ("10", "9", "0"):
            write_random(tmp_path / "n" / split / number / "0.png", int(number))
    assert read_folders("n", tmp_path).classes == ("0", "9", "10")


def test_hidden_files_and_what_systems_leave_are_ignored(root):
    (root / "animals" / "train" / ".DS_Store").write_text("x")
    (root / "animals" / "train" / "cat" / "Thumbs.db").write_text("x")
    write_random(root / "animals" / "train" / "@eaDir" / "0.png")
    images = read_folders("animals", root)
    assert (len(images.train), images.classes) == (6, ("bird", "cat"))


def test_missing_split_names_the_folders(root):
    shutil.rmtree(root / "animals" / "test")
    assert_rejected(root, "it must hold the folders train/<class>/ and test/<class>/ (or val/<class>/)")


def test_image_of_another_size_is_named(root):
    odd = root / "animals" / "train" / "cat" / "1.png"
    write_random(odd, size=(7, 5))
    assert_rejected(root, f"{odd} is 7x5 RGB, but {root / 'animals/train/bird/0.png'} is 6x5 RGB")


def test_grey_image_among_colour_images_is_named(root):
    odd = root / "animals" / "test" / "cat" / "2.png"
    write_random(odd, mode="L")
    assert_rejected(root, f"{odd} is 6x5 grey, but")


def test_palette_image_is_rejected_with_its_mode(root):
    path = root / "animals" / "train" / "bird" / "0.png"
    Image.fromarray(np.zeros((5, 6), np.uint8)).convert("P").save(path)
    assert_rejected(root, f"{path} has Pillow's mode 'P'; convert it")


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_broken_image_is_named(root, keep):
    path = root / "animals" / "train" / "cat" / "2.png"
    path.write_bytes(path.read_bytes()[:keep])
    assert_rejected(root, f"{path} cannot be read as an image; restore or remove it")


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
@pytest.mark.parametrize("remove", [True, False])
def test_class_missing_or_empty_in_one_split_is_named(root, split, other, remove):
    shutil.rmtree(root / "animals" / split / "cat")
    if not remove:
        (root / "animals" / split / "cat").mkdir()
    assert_rejected(root, f"class 'cat' has no images in the {split} split")
    assert (root / "animals" / other / "cat").is_dir()


def test_set_without_classes_is_rejected(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "animals" / split).mkdir(parents=True)
    assert_rejected(tmp_path, "holds no class folders")


def test_file_that_is_not_an_image_is_named(root):
    path = root / "animals" / "train" / "cat" / "notes.txt"
    path.write_text("x")
    assert_rejected(root, f"contains files that are not images: {path}; convert them or move them away")


def test_file_for_which_pillow_would_start_a_program_is_refused(root):
    file = root / "animals" / "test" / "cat" / "1.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    assert_rejected(root, f"{file} cannot be read as an image")


def test_image_that_is_too_large_by_its_header_is_named(root):
    file = root / "animals" / "test" / "cat" / "1.png"
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    file.write_bytes(head + struct.pack(">I", 1) + b"IDAT\0" + struct.pack(">I", zlib.crc32(b"IDAT\0")))
    assert_rejected(root, f"{file} has more than 89,478,485 pixels")


def test_file_beside_the_class_folders_is_named(root):
    path = root / "animals" / "train" / "README"
    path.write_text("x")
    assert_rejected(root, f"contains files that are not images: {path}")


def fail(*args):
    raise AssertionError("the images were decoded")


def test_second_load_uses_the_cache(root, monkeypatch):
    first = read_folders("animals", root)
    monkeypatch.setattr(folders, "_decode", fail)
    assert same(first, read_folders("animals", root))


def test_cache_is_valid_for_a_relative_root(root, monkeypatch):
    first = read_folders("animals", root)
    monkeypatch.setattr(folders, "_decode", fail)
    monkeypatch.chdir(root.parent)
    assert same(first, read_folders("animals", root.relative_to(root.parent)))


def test_changed_image_of_the_same_size_and_time_is_read_again(root):
    path = root / "animals" / "train" / "cat" / "0.bmp"  # uncompressed: always the same size
    write_random(path, 1)
    date = path.stat().st_mtime_ns
    first = read_folders("animals", root)
    write_random(path, 2)
    os.utime(path, ns=(date, date))
    assert not same(first, read_folders("animals", root))


@pytest.mark.parametrize("damage", ["flip a byte", "cut", "empty"])
def test_damaged_cache_is_rebuilt(root, damage, monkeypatch):
    first = read_folders("animals", root)
    cache = root / ".cache" / "animals.safetensors"
    content = bytearray(cache.read_bytes())
    if damage == "flip a byte":
        content[-5] ^= 1
    cache.write_bytes({"cut": content[:-9], "empty": b""}.get(damage, content))
    assert same(first, read_folders("animals", root))
    monkeypatch.setattr(folders, "_decode", fail)
    assert same(first, read_folders("animals", root))


def test_cache_of_other_class_names_is_not_used(root):
    read_folders("animals", root)
    for split in ("train", "test"):
        (root / "animals" / split / "cat").rename(root / "animals" / split / "dog")
    assert read_folders("animals", root).classes == ("bird", "dog")


def test_cache_folder_holds_no_temporary_files(root):
    read_folders("animals", root)
    assert [path.name for path in (root / ".cache").iterdir()] == ["animals.safetensors"]


def test_unwritable_cache_is_skipped(root):
    (root / ".cache").write_text("a file where the folder would be")
    assert len(read_folders("animals", root).train) == 6
