"""Source images in class folders: listing, names, and folders that are refused."""

import os
import pickle
import re
import tarfile
from pathlib import Path

import pytest
import torch

from pipeline.data.class_names import WNIDS_FILE
from pipeline.data.images import DataError
from pipeline.data.prepare import (
    source_folders,
)
from pipeline.data.prepare.source_folders import FileListing, source_from_folders
from pipeline.data.prepare.source_images import SourceImage
from pipeline.data.sources import SET_NAME
from tests.support.image_sets import write_class_folders, write_image


@pytest.fixture
def folder(tmp_path):
    """Class folders with 2 x 3 training and 2 x 2 test images."""
    return write_class_folders(tmp_path / "animals", classes=2, train=3, test=2)


def refused(folder, text, split=None):
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        source_from_folders(folder, split)
    assert "\n" not in str(caught.value)


def test_files_are_listed_by_class_and_name(folder):
    found = source_from_folders(folder)
    assert (found.name, found.classes) == ("animals", ("ant", "bee"))
    assert found.source == "class folders animals/train and animals/test"
    assert [image.label for image in found.splits["train"]] == [0, 0, 0, 1, 1, 1]
    assert [image.stem for image in found.splits["test"]] == ["ant_00000", "ant_00001", "bee_00000", "bee_00001"]
    for image in found.splits["test"]:
        file = folder / "test" / image.stem.partition("_")[0] / f"{image.stem}.jpg"
        assert image.read() == file.read_bytes()
        assert image.signature() == (file.stat().st_size, file.stat().st_mtime_ns)
        assert image.where == str(file)


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
        write_image(tmp_path / "n" / "train" / name / "a.jpg", 0)
    assert source_from_folders(tmp_path / "n").classes == ("0", "9", "10")


def test_imagenet_classes_are_in_the_order_of_their_list(tmp_path):
    wnids = WNIDS_FILE.read_text(encoding="utf-8").split()
    for number in torch.randperm(1000).tolist():
        (tmp_path / "train" / wnids[number]).mkdir(parents=True)
        (tmp_path / "train" / wnids[number] / f"{wnids[number]}_1.JPEG").write_bytes(b"\xff\xd8\xff")
    found = source_from_folders(tmp_path)
    assert list(found.classes) == wnids
    assert [image.stem for image in found.splits["train"]] == [f"{wnid}_1" for wnid in wnids]


def test_val_is_the_test_split(folder):
    before = source_from_folders(folder)
    (folder / "test").rename(folder / "val")
    after = source_from_folders(folder)
    assert [image.stem for image in after.splits["test"]] == [image.stem for image in before.splits["test"]]
    assert after.source == "class folders animals/train and animals/val"


def test_a_set_may_have_one_split(folder):
    assert set(source_from_folders(folder, "test").splits) == {"test"}
    (folder / "train").rename(folder.parent / "elsewhere")
    assert set(source_from_folders(folder).splits) == {"test"}
    refused(folder, "has no train split, only test", "train")


def test_class_folders_without_a_split_folder_need_the_split_option(folder):
    refused(folder / "train", "contains the folders ant, bee, not only train and test (or val)")
    refused(folder / "train", "--split train or --split test")
    found = source_from_folders(folder / "train", "test")
    assert set(found.splits) == {"test"}
    assert [image.label for image in found.splits["test"]] == [0, 0, 0, 1, 1, 1]
    assert found.source == "class folders train as test"


def test_a_class_called_train_among_others_is_a_class(tmp_path):
    for name in ("car", "plane", "train"):
        write_image(tmp_path / "vehicles" / name / "a.jpg", 0)
    refused(tmp_path / "vehicles", "contains the folders car, plane, train, not only")
    assert source_from_folders(tmp_path / "vehicles", "train").classes == ("car", "plane", "train")


def test_a_jpeg_may_have_any_name_and_hidden_files_are_ignored(folder):
    content = (folder / "train" / "ant" / "ant_00000.jpg").read_bytes()
    for name in ("zz.dat", "no suffix", "n\xe4me \u732b.jpg", ".DS_Store"):
        (folder / "train" / "bee" / name).write_bytes(content)
    (folder / "train" / ".notes").write_text("mine")
    stems = [image.stem for image in source_from_folders(folder).splits["train"]]
    assert stems[3:] == ["bee_00000", "bee_00001", "bee_00002", "no suffix", "n\xe4me \u732b", "zz"]


def test_a_file_name_that_is_not_text_is_read_and_printed_on_one_line(folder):
    for name in (b"\xff\xfe.jpg", b"two\nlines.jpg"):
        with open(os.fsencode(folder / "train" / "ant") + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(b"\xff\xd8\xff none")
    found = {image.where: image for image in source_from_folders(folder).splits["train"]}
    for end in ("\ufffd\ufffd.jpg", "two\ufffdlines.jpg"):
        where = next(where for where in found if where.endswith(end))
        assert found[where].read() == b"\xff\xd8\xff none"
        where.encode()


def break_folder(folder, defect):
    """Return the path to list after introducing a defect, and the expected message."""
    ant = folder / "train" / "ant"
    if defect == "no folder":
        return folder / "nowhere", f"folder {folder}/nowhere not found"
    if defect == "a file":
        return ant / "ant_00000.jpg", "not found"
    if defect == "empty":
        (folder / "empty").mkdir()
        return folder / "empty", "contains no class folders; put the images into train/<class>/ and test/<class>/"
    if defect == "no classes":
        (folder / "empty" / "train").mkdir(parents=True)
        return folder / "empty", "contains no class folders"
    if defect == "class without images":
        for path in ant.iterdir():
            path.unlink()
        return (
            folder,
            "class 'ant' has no images in the train split; add some, or remove the class from both splits",
        )
    if defect == "class of one split":
        write_image(folder / "test" / "yak" / "a.jpg", 0)
        return folder, "class 'yak' has no images in the train split"
    if defect == "image among classes":
        write_image(folder / "train" / "a.jpg", 0)
        return folder, "train contains images that are in no class folder: a.jpg"
    if defect == "folder in a class":
        (ant / "more").mkdir()
        return folder, "train/ant/more is a folder in a class folder (class folders contain only images)"
    if defect == "blank at an end":
        for split in ("train", "test"):
            (folder / split / "ant").rename(folder / split / "ant ")
        return folder, "the name of the class folder 'ant ' has a blank at an end; rename it 'ant'"
    if defect == "dangling link":
        (ant / "gone.jpg").symlink_to(folder / "nothing")
        return folder, "train/ant/gone.jpg is a link that leads to no file"
    assert defect == "test and val"
    write_image(folder / "val" / "ant" / "a.jpg", 0)
    return folder, "contains both test and val; move away the one that is not the test split"


@pytest.mark.parametrize(
    "defect",
    [
        "no folder",
        "a file",
        "empty",
        "no classes",
        "class without images",
        "class of one split",
        "image among classes",
        "folder in a class",
        "blank at an end",
        "dangling link",
        "test and val",
    ],
)
def test_a_defect_is_named(folder, defect):
    refused(*break_folder(folder, defect))


def test_tiny_imagenet_as_it_is_unpacked_is_explained(tmp_path):
    tiny = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(("n02", "n01")):
        write_image(tiny / "train" / wnid / "images" / f"{wnid}_0.JPEG", number)
        (tiny / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t10\t10\n")
        write_image(tiny / "val" / "images" / f"val_{number}.JPEG", number + 2)
        with (tiny / "val" / "val_annotations.txt").open("a") as file:
            file.write(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    write_image(tiny / "test" / "images" / "test_0.JPEG", 4)
    (tiny / "wnids.txt").write_text("n02\nn01\n")
    with pytest.raises(DataError, match="is Tiny ImageNet as it is unpacked; sort its images") as caught:
        source_from_folders(tiny)
    command = str(caught.value).partition("in this folder with: ")[2]
    assert os.system(f"cd {tiny} && {command}") == 0
    found = source_from_folders(tiny)
    assert found.classes == ("n01", "n02")
    assert [Path(image.file).name for image in found.splits["train"]] == ["n01_0.JPEG", "n02_0.JPEG"]
    assert [Path(image.file).name for image in found.splits["test"]] == ["val_1.JPEG", "val_0.JPEG"]


@pytest.mark.parametrize(
    ("folder_name", "name"),
    [
        ("mnist", "mnist-folders"),
        ("imagenet", "imagenet-folders"),
        ("ImageNet", "ImageNet-folders"),
        ("imagenet-short256", "imagenet-short256-folders"),
        ("cats", "cats"),
        ("My Photos!", "My-Photos"),
        ("photos[red]", "photos-red"),
        (".mnist", "mnist-folders"),
        ("\u732b", "set-\u732b"),
        ("- -", "folders"),
    ],
)
def test_a_folder_does_not_get_the_name_of_a_published_set(tmp_path, folder_name, name):
    write_image(tmp_path / folder_name / "train" / "ant" / "a.jpg", 0)
    assert source_from_folders(tmp_path / folder_name).name == name
    assert SET_NAME.fullmatch(name)


@pytest.fixture
def like_imagenet(tmp_path, monkeypatch):
    """WordNet ids and three images, with the published counts and archive sizes set to those of the images."""
    wnids = WNIDS_FILE.read_text(encoding="ascii").split()
    files = {wnid: tmp_path / wnid / f"{wnid}_1.JPEG" for wnid in wnids[:3]}
    for number, file in enumerate(files.values()):
        write_image(file, number)
    inner, outer, val = tmp_path / "inner", tmp_path / "train.tar", tmp_path / "val.tar"
    inner.mkdir()
    with tarfile.open(outer, "w") as whole, tarfile.open(val, "w") as flat:
        for wnid, file in files.items():
            with tarfile.open(inner / f"{wnid}.tar", "w") as archive:
                archive.add(file, file.name)
            whole.add(inner / f"{wnid}.tar", f"{wnid}.tar")
            flat.add(file, file.name)
    sizes = {"train": (outer.stat().st_size, 4), "test": (val.stat().st_size, 1)}
    monkeypatch.setattr(source_folders, "ARCHIVE_SIZES", sizes)
    monkeypatch.setattr(source_folders, "ILSVRC_2012", {"train": 3, "test": 3})
    return wnids, [SourceImage(0, file.stem, str(file)) for file in files.values()]


def test_a_folder_with_imagenets_classes_counts_and_sizes_is_named_imagenet(like_imagenet):
    wnids, images = like_imagenet
    for split in ("train", "test"):
        assert source_folders.set_name("imagenet", wnids, {split: images}) == "imagenet"
        assert source_folders.set_name("imagenet", wnids, {split: images[:2]}) == "imagenet-folders"
        assert source_folders.set_name("imagenet", wnids[:3], {split: images}) == "imagenet-folders"


def test_resized_images_are_not_named_imagenet(like_imagenet):
    wnids, images = like_imagenet
    with Path(images[1].file).open("ab") as file:
        file.write(bytes(100_000))
    for split in ("train", "test"):
        assert source_folders.set_name("imagenet", wnids, {split: images}) == "imagenet-folders"


def test_a_listed_file_takes_less_than_forty_bytes():
    names = b"".join(b"n01440764_%05d.JPEG\0" % number for number in range(10_000))
    listing = FileListing(["/data/train/n01440764"], [names])
    size = len(listing.text) + listing.name_ends.nbytes
    assert len(listing) == 10_000
    assert size / len(listing) < 40
    assert listing[9_999].file == "/data/train/n01440764/n01440764_09999.JPEG"


def test_a_listing_can_be_pickled(folder):
    listing = source_from_folders(folder).splits["train"]
    assert list(pickle.loads(pickle.dumps(listing))) == list(listing)
