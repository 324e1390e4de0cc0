"""Source images of the ILSVRC-2012 archives, read in place; damaged archives are refused."""

import gzip
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.data.prepare import (
    archive_files,
    source_archives,
)
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    TRAIN_BOXES,
    VAL_ARCHIVE,
    VAL_BOXES,
)
from tests.support.ilsvrc_archives import (
    ARCHIVE_NAMES,
    CLASSES,
    assert_refused,
    list_archives,
    md5,
    rewrite_archive,
    rewrite_class,
    special_member,
    tar_members,
    treat_as_published,
    update_checksums,
)

BLOCK = 512  # bytes: a tar file's unit (POSIX.1-1988, ustar)


def test_images_are_read_in_place(archives):
    before = {path.name: md5(path) for path in archives.iterdir()}
    found = list_archives(archives)
    inner = {m.name: inside for m, inside in tar_members((archives / TRAIN_ARCHIVE).read_bytes())}
    expected = {m.name: inside for wnid in CLASSES for m, inside in tar_members(inner[f"{wnid}.tar"])}
    expected |= {m.name: inside for m, inside in tar_members((archives / VAL_ARCHIVE).read_bytes())}
    images = [*found.splits["train"], *found.splits["test"]]
    assert {f"{image.stem}.JPEG": image.read() for image in images} == expected
    assert len(images) == 4 * (3 + 2)
    assert {path.name: md5(path) for path in archives.iterdir()} == before  # nothing is unpacked or created


def test_the_classes_are_in_imagenets_order(archives):
    found = list_archives(archives)
    assert found.classes == tuple(CLASSES)
    for image in found.splits["train"]:
        assert image.stem.startswith(CLASSES[image.label])


def test_the_location_of_an_image_has_its_archive_and_name(archives):
    image = list_archives(archives).splits["train"][0]
    assert TRAIN_ARCHIVE in image.where
    assert CLASSES[0] in image.where


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # from torchvision
@pytest.mark.parametrize("as_published", [False, True])  # True: meta.mat is loaded
def test_torchvision_reads_the_same(archives, tmp_path, monkeypatch, as_published):
    from torchvision.datasets import imagenet

    for name in ARCHIVE_NAMES:
        (tmp_path / "torchvision").mkdir(exist_ok=True)
        shutil.copy(archives / name, tmp_path / "torchvision")
    archive_meta = {
        "train": (TRAIN_ARCHIVE, md5(archives / TRAIN_ARCHIVE)),
        "val": (VAL_ARCHIVE, md5(archives / VAL_ARCHIVE)),
        "devkit": (DEVKIT_ARCHIVE, md5(archives / DEVKIT_ARCHIVE)),
    }
    monkeypatch.setattr(imagenet, "ARCHIVE_META", archive_meta)
    if as_published:
        treat_as_published(archives, monkeypatch)
    found = list_archives(archives)
    for torchvision_split, split in (("train", "train"), ("val", "test")):
        expected = imagenet.ImageNet(tmp_path / "torchvision", torchvision_split)
        assert expected.wnids == list(found.classes)
        samples = [(Path(path).stem, label) for path, label in expected.samples]
        assert samples == [(image.stem, image.label) for image in found.splits[split]]  # in the same order
        for (path, _), image in zip(expected.samples, found.splits[split], strict=True):
            assert Path(path).read_bytes() == image.read()


def test_a_listing_takes_less_than_300_bytes_per_image_and_can_be_pickled(archives):
    split = list_archives(archives).splits["train"]
    assert split.entries.nbytes <= 300 * len(split)
    again = pickle.loads(pickle.dumps(split))
    assert list(again) == list(split)
    assert split[1:3] == [split[1], split[2]]
    assert split[-1] == split[len(split) - 1]
    with pytest.raises(IndexError):
        split[len(split)]


def test_the_training_archive_alone_gives_the_train_split(archives):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (archives / name).unlink()
    found = list_archives(archives)
    assert list(found.splits) == ["train"]
    assert found.classes == tuple(CLASSES)


def test_the_validation_archive_alone_gives_the_test_split(archives):
    (archives / TRAIN_ARCHIVE).unlink()
    found = list_archives(archives)
    assert list(found.splits) == ["test"]
    assert found.classes == tuple(CLASSES)


def test_the_origin_states_that_the_test_split_is_the_validation_images(archives):
    origin = list_archives(archives).source
    assert "the 8 validation images are the test part" in origin
    assert str(archives) not in origin


@pytest.mark.parametrize(
    ("missing", "texts"),
    [
        ([DEVKIT_ARCHIVE], [f"contains {VAL_ARCHIVE} but not {DEVKIT_ARCHIVE}"]),
        ([TRAIN_ARCHIVE, VAL_ARCHIVE], ["contains neither", "image-net.org"]),
        ([TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE], ["contains neither", "image-net.org"]),
        ([TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE, STAND_IN_FILE], ["contains neither", "image-net.org"]),
    ],
)
def test_a_missing_archive_is_named(archives, missing, texts):
    for name in missing:
        (archives / name).unlink()
    assert_refused(archives, *texts)


def test_a_missing_folder_is_named(tmp_path):
    assert_refused(tmp_path / "nowhere", "not found")


def test_an_unreadable_archive_is_named(archives, monkeypatch):
    def deny(file, *_):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(archive_files, "cached_md5", deny)
    assert_refused(archives, f"{archives / DEVKIT_ARCHIVE} cannot be read (Permission denied); fix this")


def test_a_stand_in_is_not_named_imagenet(archives):
    found = list_archives(archives)
    assert found.name == "imagenet-standin"
    assert found.source.startswith("a stand-in for ILSVRC-2012")


def test_archives_with_the_published_checksums_are_named_imagenet(archives, monkeypatch):
    treat_as_published(archives, monkeypatch)
    found = list_archives(archives)
    assert found.name == "imagenet"
    assert found.source.startswith("ILSVRC-2012: ")


@pytest.mark.parametrize("name", [DEVKIT_ARCHIVE, TRAIN_BOXES, VAL_BOXES])
@pytest.mark.parametrize("suffix", [".tar", ""])
def test_an_archive_that_a_browser_unpacked_is_explained(archives, name, suffix):
    """Without its box archives a set would be prepared without boxes, without a word."""
    unpacked = f"{name.partition('.')[0]}{suffix}"
    (archives / name).rename(archives / unpacked)
    assert_refused(
        archives, f"contains {unpacked} but not {name}, which a browser may have unpacked", "curl or wget"
    )


def test_an_archive_that_was_unpacked_under_its_own_name_is_explained(archives):
    path = archives / DEVKIT_ARCHIVE
    path.write_bytes(gzip.decompress(path.read_bytes()))
    size = {"bytes": None}
    info = json.loads((archives / STAND_IN_FILE).read_text())
    info["files"][DEVKIT_ARCHIVE] |= size
    (archives / STAND_IN_FILE).write_text(json.dumps(info))
    assert_refused(archives, f"{DEVKIT_ARCHIVE} is not compressed; a browser may have unpacked it")


@pytest.mark.parametrize("missing", [[], [TRAIN_ARCHIVE, TRAIN_BOXES], [VAL_ARCHIVE, VAL_BOXES, DEVKIT_ARCHIVE]])
def test_progress_ends_at_twice_the_bytes_of_the_archives(archives, missing):
    for name in missing:
        (archives / name).unlink()
    size = sum((archives / name).stat().st_size for name in ARCHIVE_NAMES if name not in missing)
    for _ in range(2):  # the second time the checksums are cached
        reports = []
        list_archives(archives, progress=lambda done, total, reports=reports: reports.append((done, total)))
        assert reports == sorted(reports)
        assert reports[-1] == (2 * size, 2 * size)
        assert {total for _, total in reports} == {2 * size}


IMAGE_NAME = f"{CLASSES[1]}_18.JPEG"


SPECIAL_MEMBERS = [
    (tarfile.SYMTYPE, "a symbolic link"),
    (tarfile.LNKTYPE, "a hard link"),
    (tarfile.CHRTYPE, "a device"),
    (tarfile.BLKTYPE, "a device"),
    (tarfile.FIFOTYPE, "a pipe"),
    (tarfile.DIRTYPE, "a folder"),
    (b"V", "of an unknown type"),
]


UNSAFE_NAMES = [
    "/etc/passwd",
    "../n01440764_1.JPEG",
    "a/../../b.JPEG",
    "sub/n01443537_1.JPEG",
    ".hidden",
    "a\nb",
    "ü.JPEG",
    "a\\b",
]


@pytest.mark.parametrize(("kind", "text"), SPECIAL_MEMBERS)
def test_anything_but_a_regular_file_is_refused(archives, stand_in_folder, tmp_path, kind, text):
    rewrite_class(archives, lambda members: [*members, special_member(f"{CLASSES[1]}_9.JPEG", kind, IMAGE_NAME)])
    assert_refused(archives, f"{TRAIN_ARCHIVE}, {CLASSES[1]}.tar, '{CLASSES[1]}_9.JPEG", text)
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE):
        other = shutil.copytree(stand_in_folder, tmp_path / name)
        rewrite_archive(other, name, lambda members: [special_member("x", kind, "/etc/passwd"), *members])
        assert_refused(other, name, text)


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_an_unsafe_member_name_is_refused(archives, stand_in_folder, tmp_path, name):
    rewrite_class(archives, lambda members: [*members, (name, b"x")])
    assert_refused(archives, f"{TRAIN_ARCHIVE}, {CLASSES[1]}.tar", repr(name), "has an unsafe name")
    for archive in (TRAIN_ARCHIVE, VAL_ARCHIVE):
        other = shutil.copytree(stand_in_folder, tmp_path / archive)
        rewrite_archive(other, archive, lambda members: [*members, (name, b"x")])
        assert_refused(other, archive, repr(name), "has an unsafe name")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda members: [*members, members[0]], f"{IMAGE_NAME} occurs twice"),
        (
            lambda members: [*members, (f"{CLASSES[0]}_18.JPEG", b"x")],
            f"{CLASSES[0]}_18.JPEG must be named {CLASSES[1]}_",
        ),
        (lambda members: [*members, (f"{CLASSES[1]}_1.txt", b"x")], f"{CLASSES[1]}_1.txt must be named"),
        (lambda members: [*members, (f"{CLASSES[1]}_.JPEG", b"x")], f"{CLASSES[1]}_.JPEG must be named"),
        (lambda members: [*members, (f"{CLASSES[1]}_{'1' * 30}.JPEG", b"x")], "too long"),
        (lambda members: [*members, (f"{CLASSES[1]}_1.JPEG", b"")], f"{CLASSES[1]}_1.JPEG' is empty"),
        (lambda members: [], "contains no images"),
    ],
)
def test_an_unexpected_training_image_is_named(archives, change, text):
    rewrite_class(archives, change)
    assert_refused(archives, f"{TRAIN_ARCHIVE}, {CLASSES[1]}.tar", text, "make the stand-in again")


def test_an_image_that_is_too_large_is_refused(archives, monkeypatch):
    monkeypatch.setattr(source_archives, "MAX_IMAGE_BYTES", 10)
    assert_refused(
        archives, f"{TRAIN_ARCHIVE}, {CLASSES[0]}.tar, {CLASSES[0]}_18.JPEG has", "too large for an image"
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda members: [*members, ("n00000001.tar", b"x")],
            "n00000001.tar is not the tar file of one of the 4 classes",
        ),
        (
            lambda members: [*members, ("n01494475.tar", b"x")],
            "n01494475.tar is not the tar file of one of the 4 classes",
        ),
        (lambda members: [*members, ("readme", b"x")], "readme is not the tar file"),
        (lambda members: [*members, members[0]], f"{CLASSES[0]}.tar occurs twice"),
        (lambda members: members[1:], f"has no images of class {CLASSES[0]}"),
        (lambda members: [], "contains no classes"),
        (
            lambda members: [(f"{CLASSES[0]}.tar", b"x" * 2000), *members[1:]],
            f"{CLASSES[0]}.tar is damaged at byte 0",
        ),
    ],
)
def test_an_unexpected_class_is_named(archives, change, text):
    rewrite_archive(archives, TRAIN_ARCHIVE, change)
    assert_refused(archives, TRAIN_ARCHIVE, text)


def test_an_unknown_class_is_refused_without_a_devkit(archives):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (archives / name).unlink()
    rewrite_archive(archives, TRAIN_ARCHIVE, lambda members: [*members, ("n00000001.tar", b"x")])
    assert_refused(archives, "n00000001.tar is not the tar file of one of the 1000 classes")


def test_a_training_archive_without_classes_is_refused(archives):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (archives / name).unlink()
    rewrite_archive(archives, TRAIN_ARCHIVE, lambda members: [])
    assert_refused(archives, TRAIN_ARCHIVE, "contains no classes")


@pytest.mark.parametrize("left", [0.3, 0.5, 0.99])
def test_a_truncated_class_is_named(archives, left):
    """Truncate the inner tar files to whole blocks; the outer header has the truncated length."""

    def cut(inside):
        return inside[: int(left * len(inside.rstrip(b"\0"))) // BLOCK * BLOCK]  # without the zeros at its end

    rewrite_archive(archives, TRAIN_ARCHIVE, lambda members: [(m.name, cut(inside)) for m, inside in members])
    assert_refused(archives, f"{TRAIN_ARCHIVE}, {CLASSES[0]}.tar", "is truncated")


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE])
@pytest.mark.parametrize("left", [0, 100, 512, 0.3, 0.8])
def test_a_truncated_archive_is_named(archives, name, left):
    content = (archives / name).read_bytes().rstrip(b"\0")
    (archives / name).write_bytes(content[: left if left >= 1 else int(left * len(content))])
    update_checksums(archives)
    assert_refused(archives, name, "is truncated")


def test_a_damaged_header_is_named(archives):
    content = bytearray((archives / VAL_ARCHIVE).read_bytes())
    content[5] ^= 1
    (archives / VAL_ARCHIVE).write_bytes(content)
    update_checksums(archives)
    assert_refused(archives, f"{VAL_ARCHIVE} is damaged at byte 0")


def test_a_negative_size_is_refused(archives):
    """A base-256 size may be negative, and would move the position backwards."""
    header = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
    block = bytearray(header.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\xff" * 12  # -1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (archives / VAL_ARCHIVE).write_bytes(bytes(block) + bytes(1024))
    update_checksums(archives)
    assert_refused(archives, VAL_ARCHIVE, "is empty")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda members: [*members, members[0]], "ILSVRC2012_val_00000001.JPEG occurs twice"),
        (lambda members: members[1:], "contains 7 images"),
        (lambda members: [*members, ("ILSVRC2012_val_00000009.JPEG", b"x")], "contains 9 images"),
        (
            lambda members: [*members[:-1], ("ILSVRC2012_val_00000009.JPEG", b"x")],
            "ILSVRC2012_val_00000009.JPEG is where ILSVRC2012_val_00000008.JPEG should be",
        ),
        (lambda members: [*members[:-1], ("ILSVRC2012_val_8.JPEG", b"x")], "ILSVRC2012_val_8.JPEG is where"),
        (lambda members: [*members[:-1], (IMAGE_NAME, b"x")], f"{IMAGE_NAME} must be named ILSVRC2012_val_"),
    ],
)
def test_an_unexpected_validation_image_is_named(archives, change, text):
    rewrite_archive(archives, VAL_ARCHIVE, change)
    assert_refused(archives, VAL_ARCHIVE, text)


def test_the_order_in_the_validation_archive_does_not_matter(archives):
    before = [(image.stem, image.label, image.read()) for image in list_archives(archives).splits["test"]]
    rewrite_archive(archives, VAL_ARCHIVE, lambda members: members[::-1])
    assert [(image.stem, image.label, image.read()) for image in list_archives(archives).splits["test"]] == before
