"""What a set holds before it is prepared: class folders listed, small sets as PNGs, what is refused."""

import io
import os
import pickle
import re
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pipeline.data.prepare.originals import (
    FileListing,
    SourceImage,
    encode_png,
    source_from_folders,
    source_from_named_set,
)

from pipeline.data.class_folders import WNIDS_FILE
from pipeline.data.images import DataError
from pipeline.data.prepare import originals
from pipeline.data.sources import SET_NAME, load_images
from tests.support.making import photograph, photographs


@pytest.fixture
def folder(tmp_path):
    return photographs(tmp_path / "animals", classes=2, train=3, test=2)


def refused(folder, text, split=None):
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        source_from_folders(folder, split)
    assert "\n" not in str(caught.value)


# --- class folders -----------------------------------------------------------------------------------------


def test_every_file_is_listed_once_class_by_class_in_order_of_name(folder):
    found = source_from_folders(folder)
    assert (found.name, found.classes) == ("animals", ("ant", "bee"))
    assert found.source == "class folders animals/train and animals/test"
    assert [one.label for one in found.splits["train"]] == [0, 0, 0, 1, 1, 1]
    assert [one.stem for one in found.splits["test"]] == ["ant_00000", "ant_00001", "bee_00000", "bee_00001"]
    for one in found.splits["test"]:
        file = folder / "test" / one.stem.partition("_")[0] / f"{one.stem}.jpg"
        assert one.read() == file.read_bytes()
        assert one.facts() == (file.stat().st_size, file.stat().st_mtime_ns)
        assert one.where == str(file)


def test_a_listing_is_a_sequence(folder):
    listing = source_from_folders(folder).splits["train"]
    assert len(listing) == 6
    assert listing[-1] == listing[5] == list(listing)[5]
    assert listing[1:4] == list(listing)[1:4]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            listing[outside]


def test_classes_that_are_numbers_are_sorted_by_value(tmp_path):
    for name in ("10", "9", "0"):
        photograph(tmp_path / "n" / "train" / name / "a.jpg", 0)
    assert source_from_folders(tmp_path / "n").classes == ("0", "9", "10")


def test_ilsvrcs_thousand_classes_come_in_the_order_of_their_list(tmp_path):
    wnids = WNIDS_FILE.read_text(encoding="utf-8").split()
    for number in torch.randperm(1000).tolist():
        (tmp_path / "train" / wnids[number]).mkdir(parents=True)
        (tmp_path / "train" / wnids[number] / f"{wnids[number]}_1.JPEG").write_bytes(b"\xff\xd8\xff")
    found = source_from_folders(tmp_path)
    assert list(found.classes) == wnids
    assert [one.stem for one in found.splits["train"]] == [f"{wnid}_1" for wnid in wnids]


def test_val_serves_as_test(folder):
    before = source_from_folders(folder)
    (folder / "test").rename(folder / "val")
    after = source_from_folders(folder)
    assert [one.stem for one in after.splits["test"]] == [one.stem for one in before.splits["test"]]
    assert after.source == "class folders animals/train and animals/val"


def test_a_set_may_have_one_part_only(folder):
    assert set(source_from_folders(folder, "test").splits) == {"test"}
    (folder / "train").rename(folder.parent / "elsewhere")
    assert set(source_from_folders(folder).splits) == {"test"}
    refused(folder, "holds no train part, only test", "train")


def test_class_folders_alone_need_to_be_told_which_part_they_are(folder):
    refused(folder / "train", "holds the folders ant, bee and not just train and test (or val)")
    refused(folder / "train", "--split train or --split test")
    found = source_from_folders(folder / "train", "test")
    assert set(found.splits) == {"test"}
    assert [one.label for one in found.splits["test"]] == [0, 0, 0, 1, 1, 1]
    assert found.source == "class folders train as test"


def test_a_class_called_train_among_others_is_a_class(tmp_path):
    for name in ("car", "plane", "train"):
        photograph(tmp_path / "vehicles" / name / "a.jpg", 0)
    refused(tmp_path / "vehicles", "holds the folders car, plane, train and not just")
    assert source_from_folders(tmp_path / "vehicles", "train").classes == ("car", "plane", "train")


def test_a_jpeg_may_have_any_name_and_hidden_files_are_ignored(folder):
    content = (folder / "train" / "ant" / "ant_00000.jpg").read_bytes()
    for name in ("zz.dat", "no suffix", "n\xe4me \u732b.jpg", ".DS_Store"):
        (folder / "train" / "bee" / name).write_bytes(content)
    (folder / "train" / ".notes").write_text("mine")
    stems = [one.stem for one in source_from_folders(folder).splits["train"]]
    assert stems[3:] == ["bee_00000", "bee_00001", "bee_00002", "no suffix", "n\xe4me \u732b", "zz"]


def test_a_name_that_is_no_text_is_read_and_shown_on_one_line(folder):
    for name in (b"\xff\xfe.jpg", b"two\nlines.jpg"):
        with open(os.fsencode(folder / "train" / "ant") + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(b"\xff\xd8\xff none")
    found = {one.where: one for one in source_from_folders(folder).splits["train"]}
    for end in ("\ufffd\ufffd.jpg", "two\ufffdlines.jpg"):
        where = next(where for where in found if where.endswith(end))
        assert found[where].read() == b"\xff\xd8\xff none"
        where.encode()


def changed(folder, how):
    """The folder after one thing went wrong, and what is said of it."""
    ant = folder / "train" / "ant"
    if how == "no folder":
        return folder / "nowhere", f"there is no folder {folder}/nowhere"
    if how == "a file":
        return ant / "ant_00000.jpg", "there is no folder"
    if how == "empty":
        (folder / "empty").mkdir()
        return folder / "empty", "holds no class folders; put the pictures into train/<class>/ and test/<class>/"
    if how == "no classes":
        (folder / "empty" / "train").mkdir(parents=True)
        return folder / "empty", "holds no class folders"
    if how == "class without pictures":
        for path in ant.iterdir():
            path.unlink()
        return (
            folder,
            "class 'ant' has no pictures in the train part; add some, or remove the class from both parts",
        )
    if how == "class of one part":
        photograph(folder / "test" / "yak" / "a.jpg", 0)
        return folder, "class 'yak' has no pictures in the train part"
    if how == "file among classes":
        (folder / "train" / "readme.txt").write_text("hello")
        return folder, "train/readme.txt is a file where only class folders belong; move it away"
    if how == "no picture":
        (ant / "labels.csv").write_text("a,b")
        return folder, "train/ant/labels.csv is no picture; move it away"
    if how == "folder in a class":
        (ant / "more").mkdir()
        return folder, "train/ant/more is no file, where only pictures belong"
    if how == "dangling link":
        (ant / "gone.jpg").symlink_to(folder / "nothing")
        return folder, "train/ant/gone.jpg is no file"
    assert how == "test and val"
    photograph(folder / "val" / "ant" / "a.jpg", 0)
    return folder, "holds both test and val; move away the one that is not the test part"


@pytest.mark.parametrize(
    "how",
    [
        "no folder",
        "a file",
        "empty",
        "no classes",
        "class without pictures",
        "class of one part",
        "file among classes",
        "no picture",
        "folder in a class",
        "dangling link",
        "test and val",
    ],
)
def test_what_does_not_belong_is_named(folder, how):
    refused(*changed(folder, how))


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("mnist", "mnist-folders"),
        ("imagenet", "imagenet-folders"),
        ("ImageNet", "ImageNet-folders"),
        ("cats", "cats"),
        ("My Photos!", "My-Photos"),
        ("photos[red]", "photos-red"),
        (".mnist", "mnist-folders"),
        ("\u732b", "set-\u732b"),
        ("- -", "folders"),
    ],
)
def test_a_folder_is_not_taken_for_a_published_set_by_its_name(tmp_path, called, name):
    photograph(tmp_path / called / "train" / "ant" / "a.jpg", 0)
    assert source_from_folders(tmp_path / called).name == name
    assert SET_NAME.fullmatch(name)


@pytest.fixture
def like_imagenet(tmp_path, monkeypatch):
    """A few files called as ILSVRC's are, and the sizes of tar archives of them as the published ones."""
    wnids = WNIDS_FILE.read_text(encoding="ascii").split()
    files = {wnid: tmp_path / wnid / f"{wnid}_1.JPEG" for wnid in wnids[:3]}
    for number, file in enumerate(files.values()):
        photograph(file, number)
    inner, outer, val = tmp_path / "inner", tmp_path / "train.tar", tmp_path / "val.tar"
    inner.mkdir()
    with tarfile.open(outer, "w") as whole, tarfile.open(val, "w") as flat:
        for wnid, file in files.items():
            with tarfile.open(inner / f"{wnid}.tar", "w") as one:
                one.add(file, file.name)
            whole.add(inner / f"{wnid}.tar", f"{wnid}.tar")
            flat.add(file, file.name)
    sizes = {"train": (outer.stat().st_size, 4), "test": (val.stat().st_size, 1)}
    monkeypatch.setattr(originals, "ARCHIVE_SUFFIXES", sizes)
    monkeypatch.setattr(originals, "ILSVRC_2012", {"train": 3, "test": 3})
    return wnids, [originals.SourceImage(0, file.stem, str(file)) for file in files.values()]


def test_a_folder_with_imagenets_classes_counts_and_sizes_may_be_called_imagenet(like_imagenet):
    wnids, pictures = like_imagenet
    for split in ("train", "test"):
        assert originals.set_name("imagenet", wnids, {split: pictures}) == "imagenet"
        assert originals.set_name("imagenet", wnids, {split: pictures[:2]}) == "imagenet-folders"
        assert originals.set_name("imagenet", wnids[:3], {split: pictures}) == "imagenet-folders"


def test_resized_pictures_are_not_imagenets(like_imagenet):
    wnids, pictures = like_imagenet
    with Path(pictures[1].file).open("ab") as file:
        file.write(bytes(100_000))
    for split in ("train", "test"):
        assert originals.set_name("imagenet", wnids, {split: pictures}) == "imagenet-folders"


# --- cost --------------------------------------------------------------------------------------------------


def test_a_listed_file_costs_less_than_forty_bytes():
    names = b"".join(b"n01440764_%05d.JPEG\0" % number for number in range(10_000))
    listing = FileListing(["/data/train/n01440764"], [names])
    cost = len(listing.text) + listing.cuts.nbytes
    assert len(listing) == 10_000
    assert cost / len(listing) < 40
    assert listing[9_999].file == "/data/train/n01440764/n01440764_09999.JPEG"


def test_an_original_of_an_archive_costs_less_than_300_bytes_and_can_be_sent_elsewhere():
    one = SourceImage(3, "n01440764_10026", "/data/ILSVRC2012_img_train.tar", 123_456_789_000, 110_000)
    own = (one, one.stem, one.offset, one.size)  # the archive's path is shared
    assert sum(map(sys.getsizeof, own)) + 8 < 300
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_listing_can_be_sent_elsewhere(folder):
    listing = source_from_folders(folder).splits["train"]
    assert list(pickle.loads(pickle.dumps(listing))) == list(listing)


# --- parts of files ----------------------------------------------------------------------------------------


def test_a_part_of_a_file_is_read_and_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    one = SourceImage(0, "n1_2", str(tmp_path / "x.tar"), 3, 4)
    assert one.read() == b"3456"
    assert one.facts()[0] == 4
    assert one.where == "x.tar, n1_2"


def test_a_part_beyond_the_end_or_a_file_that_is_gone_is_one_sentence(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    with pytest.raises(DataError, match=r"^x.tar, n1_2 is cut off: 2 of 4 bytes are there; restore the archive$"):
        SourceImage(0, "n1_2", str(tmp_path / "x.tar"), 8, 4).read()
    gone = SourceImage(0, "a", str(tmp_path / "a.jpg"))
    for use in (gone.read, gone.facts):
        with pytest.raises(
            DataError, match=r"a\.jpg cannot be read \(No such file or directory\); restore or remove"
        ):
            use()


def test_a_file_larger_than_any_picture_is_named_and_not_read(tmp_path):
    with (tmp_path / "film.jpg").open("wb") as file:
        file.truncate(2**40)  # of holes only
    with pytest.raises(
        DataError, match=r"film\.jpg has 1,099,511,627,776 bytes, far more than a picture; remove it"
    ):
        SourceImage(0, "film", str(tmp_path / "film.jpg")).read()


# --- small sets --------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 3]), st.integers(0, 2**32))
def test_pillow_reads_from_a_png_the_pixels_that_went_in(height, width, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode == ("RGB" if channels == 3 else "L")
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_a_png_is_what_the_specification_says_byte_for_byte():
    # One black pixel; the checksums by zlib's own functions, everything else from RFC 2083, 1950 and 1951.
    head = bytes.fromhex("0000000d 49484452 00000001 00000001 08 00 00 00 00 3a7e9b55")
    data = bytes.fromhex("0000000d 49444154 7801 01 0200 fdff 00 00 00020001")
    data += zlib.crc32(data[4:]).to_bytes(4, "big")
    end = bytes.fromhex("00000000 49454e44 ae426082")
    assert encode_png(np.zeros((1, 1, 1), np.uint8)) == b"\x89PNG\r\n\x1a\n" + head + data + end


def test_a_small_set_comes_in_its_canonical_order(tmp_path):
    images, found = load_images("noise", tmp_path), source_from_named_set("noise", tmp_path)
    assert (found.name, found.source, found.classes) == (images.name, images.source, images.classes)
    for part, split in ((images.train, found.splits["train"]), (images.test, found.splits["test"])):
        assert [one.label for one in split] == part.labels.tolist()
        for index in (0, 7, len(split) - 1):
            with Image.open(io.BytesIO(split[index].read())) as image:
                assert np.array_equal(np.asarray(image), part.pixels[index].numpy())
    assert found.splits["train"][3].where == "noise, train, picture 3"
    assert [one.stem for one in found.splits["test"][:2]] == ["0", "1"]


def test_an_unknown_small_set_is_named_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        source_from_named_set("mnits", Path(tmp_path))
