"""Listing of class folders: which files are images, what is left out, and what is refused."""

import os
import re

import pytest

from pipeline.data import folder_listing
from pipeline.data.folder_listing import list_class_folders
from pipeline.data.images import DataError
from pipeline.data.prepare.source_folders import source_from_folders
from tests.support.image_sets import write_image

CLUTTER = (".DS_Store", "._1.jpg", "Thumbs.db", "desktop.ini")
CLUTTER_FOLDERS = (".git", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN")


@pytest.fixture
def folder(tmp_path):
    """Class folders a and b with one JPEG each."""
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "val" / name / "1.jpg", seed)
    return tmp_path / "val"


def files_of(listing):
    return {name: [os.path.basename(path) for path in listing.files(name)] for name in listing.names}  # noqa: PTH119


def assert_refused(folder, *texts):
    """Expect one-line errors with `texts` from the listing, and from the preparation that uses it."""
    for read in (lambda: list_class_folders(folder), lambda: source_from_folders(folder, "test")):
        with pytest.raises(DataError) as caught:
            read()
        assert "\n" not in str(caught.value)
        for text in texts:
            assert text in str(caught.value)


def test_clutter_is_left_out_and_listed(folder):
    for name in CLUTTER_FOLDERS:
        write_image(folder / name / "1.jpg", 0)
    for name in CLUTTER:
        (folder / "a" / name).write_bytes(b"\0\5\x16\7")
    (folder / "b" / "@eaDir").mkdir()
    listing = list_class_folders(folder)
    assert files_of(listing) == {"a": ["1.jpg"], "b": ["1.jpg"]}
    assert len(listing.clutter) == len(listing.skipped) == len(CLUTTER_FOLDERS) + len(CLUTTER) + 1
    assert f"{folder}/a/._1.jpg" in listing.skipped
    assert listing.others == []


def test_images_are_known_by_suffix_or_by_their_first_bytes(folder):
    content = (folder / "a" / "1.jpg").read_bytes()
    for name in ("2.jfif", "3.TIF", "4.webp", "5.JPE", "no suffix"):
        (folder / "a" / name).write_bytes(content)
    for name, other in (("notes.txt", b"x"), ("empty", b""), ("film.mp4", b"\0\0\0\x18ftypmp42")):
        (folder / "a" / name).write_bytes(other)
    listing = list_class_folders(folder)
    assert files_of(listing)["a"] == ["1.jpg", "2.jfif", "3.TIF", "4.webp", "5.JPE", "no suffix"]
    assert [os.path.basename(path) for path in listing.others] == ["empty", "film.mp4", "notes.txt"]  # noqa: PTH119


def test_evaluation_and_preparation_take_the_same_images(folder):
    for name in ("2.jfif", "3.tif", "x.dat"):
        (folder / "a" / name).write_bytes((folder / "a" / "1.jpg").read_bytes())
    (folder / "a" / "labels.csv").write_text("a,b")
    (folder / "readme.txt").write_text("hello")
    listing, prepared = list_class_folders(folder), source_from_folders(folder, "test")
    assert [image.file for image in prepared.splits["test"]] == [*listing.files("a"), *listing.files("b")]
    assert prepared.skipped == tuple(listing.skipped) == (f"{folder}/a/labels.csv", f"{folder}/readme.txt")


def test_entries_that_may_hide_images_are_all_named(folder):
    (folder / "a" / "gone.jpg").symlink_to(folder / "nothing")
    write_image(folder / "b" / "more" / "2.jpg", 0)
    (folder / "b" / "round.jpg").symlink_to("round.jpg")
    assert_refused(
        folder,
        "a/gone.jpg is a link that leads to no file",
        "b/more is a folder in a class folder (class folders contain only images)",
        "b/round.jpg is a link that leads to no file",
        "restore, move or remove them",
    )


def test_links_to_files_and_folders_are_followed(folder, tmp_path):
    write_image(tmp_path / "elsewhere" / "2.jpg", 0)
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    assert files_of(list_class_folders(folder)) == {"a": ["1.jpg", "2.jpg"], "b": ["1.jpg"], "c": ["2.jpg"]}


def test_images_without_a_class_folder_are_refused(folder):
    write_image(folder / "3.jpg", 0)
    assert_refused(folder, "contains images that are in no class folder: 3.jpg; move each into the folder of its")


def test_the_flat_validation_images_of_ilsvrc_are_explained(tmp_path):
    for number in range(1, 6):
        write_image(tmp_path / f"ILSVRC2012_val_{number:08}.JPEG", number)
    assert_refused(
        tmp_path,
        "contains images that are in no class folder: ILSVRC2012_val_00000001.JPEG, ",
        "and 2 more",
        "ILSVRC2012_devkit_t12.tar.gz with repro data prepare",
    )


def test_the_validation_part_of_tiny_imagenet_is_explained(tmp_path):
    for number, wnid in enumerate(("n02", "n01")):
        write_image(tmp_path / "images" / f"val_{number}.JPEG", number)
        with (tmp_path / "val_annotations.txt").open("a") as file:
            file.write(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    assert_refused(tmp_path, "is the validation part of Tiny ImageNet", "while read f c _; do")
    with pytest.raises(DataError) as caught:
        list_class_folders(tmp_path)
    command = str(caught.value).partition("in this folder with: ")[2]
    assert os.system(f"cd {tmp_path} && {command}") == 0
    assert files_of(list_class_folders(tmp_path)) == {"n01": ["val_1.JPEG"], "n02": ["val_0.JPEG"]}


def test_a_class_folder_without_access_is_named(folder, monkeypatch):
    scandir = os.scandir

    def deny(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(folder_listing.os, "scandir", deny)
    assert_refused(folder, "val/b cannot be read (Permission denied); check its permissions")


def test_a_file_without_access_is_named(folder, monkeypatch):
    (folder / "a" / "x").write_bytes(b"x")

    def deny(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", deny)
    with pytest.raises(DataError, match=re.escape("a/x cannot be read (Permission denied); restore or remove it")):
        list_class_folders(folder)
