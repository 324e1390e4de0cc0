"""ILSVRC-2012's archives: what is read from them, and that whatever is wrong with them is named. On stand-ins."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pipeline.data.prepare.archives import source_from_archives
from pipeline.data.prepare.standin import make_standin
from scipy.io import savemat

from pipeline.data.images import DataError
from pipeline.data.prepare import archive_files, archives, devkit
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    has_archives,
    imagenet_wnids,
)
from pipeline.data.prepare.devkit import META, TRUTH

CLASSES = ["n01440764", "n01443537", "n01484850", "n01491361"]  # the first of ImageNet's, in its order
BLOCK = 512  # bytes: a tar file's unit (POSIX.1-1988, ustar)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "standin"
    make_standin(folder, classes=4, train=3, test=2, side=32)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made, tmp_path / "ilsvrc")


def read(folder, **options):
    return source_from_archives(folder, cache=folder.parent / "cache", **options)


def refused(folder, *texts):
    with pytest.raises(DataError) as caught:
        read(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder) in said
    for text in texts:
        assert text in said


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


def sums_anew(folder):
    """STAND-IN.json as if the archives had been made as they are now: what is wrong inside must then be seen."""
    said = json.loads((folder / STAND_IN_FILE).read_text())
    said["files"] = {
        name: {"md5": md5(folder / name)}
        for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE)
        if (folder / name).exists()
    }
    (folder / STAND_IN_FILE).write_text(json.dumps(said))


def publish(folder, monkeypatch):
    """As if these were the published archives, whatever is in them."""
    sums = {
        name: archive_files.PublishedSum(md5=md5(folder / name))
        for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE)
    }
    monkeypatch.setattr(archive_files, "PUBLISHED_SUMS", sums)
    (folder / STAND_IN_FILE).unlink()


def members(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]


def tar(files):
    """A tar file; each of (TarInfo or name, bytes)."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, inside in files:
            head = tarfile.TarInfo(member) if isinstance(member, str) else member
            head.size = len(inside) if head.isreg() else 0
            archive.addfile(head, io.BytesIO(inside))
    return content.getvalue()


def special(name, kind, target=""):
    head = tarfile.TarInfo(name)
    head.type, head.linkname = kind, target
    return head, b""


def change(folder, name, how):
    """Rewrite an archive: `how` takes its members and returns them changed."""
    zipped = name == DEVKIT_ARCHIVE
    content = (folder / name).read_bytes()
    content = tar(how(members(gzip.decompress(content) if zipped else content)))
    (folder / name).write_bytes(gzip.compress(content) if zipped else content)
    sums_anew(folder)


def change_class(folder, how, *, wnid=CLASSES[1]):
    """Rewrite the tar file of one class within that of the training pictures."""

    def outer(files):
        return [(m.name, tar(how(members(inside))) if m.name == f"{wnid}.tar" else inside) for m, inside in files]

    change(folder, TRAIN_ARCHIVE, outer)


def change_file(folder, name, how):
    """Rewrite a file of the devkit."""
    change(
        folder,
        DEVKIT_ARCHIVE,
        lambda files: [(m.name, how(inside) if m.name == name else inside) for m, inside in files],
    )


# --- what is read ----------------------------------------------------------------------------------------------


def test_the_pictures_are_read_where_they_lie(folder):
    before = {path.name: md5(path) for path in folder.iterdir()}
    found = read(folder)
    inner = {m.name: inside for m, inside in members((folder / TRAIN_ARCHIVE).read_bytes())}
    expected = {m.name: inside for wnid in CLASSES for m, inside in members(inner[f"{wnid}.tar"])}
    expected |= {m.name: inside for m, inside in members((folder / VAL_ARCHIVE).read_bytes())}
    pictures = [*found.splits["train"], *found.splits["test"]]
    assert {f"{one.stem}.JPEG": one.read() for one in pictures} == expected
    assert len(pictures) == 4 * (3 + 2)
    assert {path.name: md5(path) for path in folder.iterdir()} == before  # nothing unpacked, nothing left behind


def test_the_classes_are_imagenets_own_in_its_order(folder):
    found = read(folder)
    assert found.classes == tuple(CLASSES)
    for one in found.splits["train"]:
        assert one.stem.startswith(CLASSES[one.label])


def test_the_thousand_are_in_order():
    assert len(imagenet_wnids()) == 1000
    assert imagenet_wnids()[:4] == CLASSES
    assert imagenet_wnids() == sorted(imagenet_wnids())


def test_a_message_names_archive_and_picture(folder):
    one = read(folder).splits["train"][0]
    assert TRAIN_ARCHIVE in one.where
    assert CLASSES[0] in one.where


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # torchvision's unpacking
@pytest.mark.parametrize("as_published", [False, True])  # with meta.mat read by us too
def test_torchvision_reads_the_same(folder, tmp_path, monkeypatch, as_published):
    from torchvision.datasets import imagenet

    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        shutil.copy(folder / name, tmp_path / "theirs")
    their = {
        "train": (TRAIN_ARCHIVE, md5(folder / TRAIN_ARCHIVE)),
        "val": (VAL_ARCHIVE, md5(folder / VAL_ARCHIVE)),
        "devkit": (DEVKIT_ARCHIVE, md5(folder / DEVKIT_ARCHIVE)),
    }
    monkeypatch.setattr(imagenet, "ARCHIVE_META", their)
    if as_published:
        publish(folder, monkeypatch)
    ours = read(folder)
    for split, part in (("train", "train"), ("val", "test")):
        theirs = imagenet.ImageNet(tmp_path / "theirs", split)
        assert theirs.wnids == list(ours.classes)
        samples = [(Path(path).stem, label) for path, label in theirs.samples]
        assert samples == [(one.stem, one.label) for one in ours.splits[part]]  # in the same order too
        for (path, _), one in zip(theirs.samples, ours.splits[part], strict=True):
            assert Path(path).read_bytes() == one.read()


def test_the_sums_are_those_that_torchvision_publishes():
    from torchvision.datasets.imagenet import ARCHIVE_META

    assert {name: one.md5 for name, one in archive_files.PUBLISHED_SUMS.items()} == dict(ARCHIVE_META.values())


def meta(rows, **others):
    """meta.mat with rows of (number, wnid, children)."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    synsets = np.empty((len(rows), 1), dtype=[(field, object) for field in fields])
    for index, (number, wnid, children) in enumerate(rows):
        synsets[index, 0] = number, wnid, "words", "gloss", children, np.zeros((1, 0))
    content = io.BytesIO()
    savemat(content, {"synsets": synsets, **others})
    return content.getvalue()


def test_the_devkits_numbers_go_through_its_list_of_synsets(folder, monkeypatch):
    """Number 1 is the last class here, 4 the first, and one above them is no class."""
    rows = [(1, CLASSES[3], 0), (2, CLASSES[2], 0), (3, CLASSES[1], 0), (4, CLASSES[0], 0), (5, "n00001740", 4)]
    change_file(folder, META, lambda old: meta(rows))
    change_file(folder, TRUTH, lambda old: b"1\n1\n2\n2\n3\n3\n4\n4\n")
    publish(folder, monkeypatch)
    test = read(folder).splits["test"]
    label = {one.stem: one.label for one in test}
    assert label == {f"ILSVRC2012_val_{i + 1:08}": [3, 3, 2, 2, 1, 1, 0, 0][i] for i in range(8)}
    assert [one.label for one in test] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [one.stem[-1] for one in test] == ["7", "8", "5", "6", "3", "4", "1", "2"]


def test_1_3_million_pictures_fit_into_memory_and_go_to_other_processes(folder):
    split = read(folder).splits["train"]
    assert split.rows.nbytes <= 300 * len(split)
    again = pickle.loads(pickle.dumps(split))
    assert list(again) == list(split)
    assert split[1:3] == [split[1], split[2]]
    assert split[-1] == split[len(split) - 1]
    with pytest.raises(IndexError):
        split[len(split)]


# --- which archives there are ----------------------------------------------------------------------------------


def test_the_training_pictures_alone_are_one_split(folder):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (folder / name).unlink()
    found = read(folder)
    assert list(found.splits) == ["train"]
    assert found.classes == tuple(CLASSES)


def test_the_validation_pictures_alone_are_one_split(folder):
    (folder / TRAIN_ARCHIVE).unlink()
    found = read(folder)
    assert list(found.splits) == ["test"]
    assert found.classes == tuple(CLASSES)


def test_the_source_says_that_the_test_part_is_the_validation_images(folder):
    said = read(folder).source
    assert "the 8 validation images are the test part" in said
    assert str(folder) not in said


@pytest.mark.parametrize(
    ("gone", "texts"),
    [
        ([DEVKIT_ARCHIVE], [f"holds {VAL_ARCHIVE} but not {DEVKIT_ARCHIVE}"]),
        ([TRAIN_ARCHIVE, VAL_ARCHIVE], ["holds neither", "image-net.org"]),
        ([TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE], ["holds neither", "image-net.org"]),
        ([TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE, STAND_IN_FILE], ["holds neither", "image-net.org"]),
    ],
)
def test_an_archive_that_is_missing_is_named(folder, gone, texts):
    for name in gone:
        (folder / name).unlink()
    refused(folder, *texts)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    refused(tmp_path / "nowhere", "there is no folder")


def test_archives_are_known_by_their_names(folder, tmp_path):
    assert has_archives(folder)
    assert not has_archives(tmp_path)
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE):
        (folder / name).unlink()
    assert has_archives(folder)
    refused(folder, f"holds neither {TRAIN_ARCHIVE} nor {VAL_ARCHIVE}")
    (folder / "val").mkdir()  # torchvision leaves the devkit beside what it unpacked
    assert not has_archives(folder)


def test_a_folder_that_may_not_be_read_is_one_sentence(folder, monkeypatch):
    def scandir(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"ilsvrc cannot be read \(Permission denied\); check its permissions"):
        has_archives(folder)


def test_an_archive_that_may_not_be_read_is_named(folder, monkeypatch):
    def md5(file, *_):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(archive_files, "_md5", md5)
    refused(folder, f"{folder / DEVKIT_ARCHIVE} cannot be read (Permission denied); mend that")


# --- ImageNet, and what is not --------------------------------------------------------------------------------


def test_a_stand_in_is_never_called_imagenet(folder):
    found = read(folder)
    assert found.name == "imagenet-standin"
    assert found.source.startswith("a stand-in for ILSVRC-2012")


def test_other_archives_called_as_imagenets_are_refused(folder):
    (folder / STAND_IN_FILE).unlink()
    refused(folder, f"{VAL_ARCHIVE} has", "6,744,924,160", "download it again from https://image-net.org")
    (folder / VAL_ARCHIVE).unlink()
    refused(folder, f"{TRAIN_ARCHIVE} has", "147,897,477,120")


def test_a_devkit_with_another_sum_than_the_published_is_refused(folder, monkeypatch):
    devkit = archive_files.PUBLISHED_SUMS[DEVKIT_ARCHIVE]
    publish(folder, monkeypatch)
    monkeypatch.setitem(archive_files.PUBLISHED_SUMS, DEVKIT_ARCHIVE, devkit)
    refused(
        folder, f"{DEVKIT_ARCHIVE} is damaged or another file", "it should be fa75699e90414af021442c21a62c3abf"
    )


def test_archives_with_the_published_sums_are_imagenet(folder, monkeypatch):
    publish(folder, monkeypatch)
    found = read(folder)
    assert found.name == "imagenet"
    assert found.source.startswith("ILSVRC-2012: ")


def test_a_file_that_the_stand_in_does_not_know_is_refused(folder):
    said = json.loads((folder / STAND_IN_FILE).read_text())
    del said["files"][TRAIN_ARCHIVE]
    (folder / STAND_IN_FILE).write_text(json.dumps(said))
    refused(folder, f"{STAND_IN_FILE} does not know {TRAIN_ARCHIVE}")


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "cannot be read"), ("{}", "required"), ("[]", ""), ('{"format": 1, "nmae": 2}', "nmae"), ("\xff", "")],
)
def test_a_damaged_stand_in_json_is_named(folder, content, text):
    (folder / STAND_IN_FILE).write_text(content, encoding="latin-1")
    refused(folder, STAND_IN_FILE, text)


# --- sums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE])
@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_one_flipped_bit_anywhere_is_noticed(folder, name, where):
    content = bytearray((folder / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    expected = md5(folder / name)
    (folder / name).write_bytes(content)
    refused(folder, name, f"its md5 is {md5(folder / name)} where it should be {expected}")


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE])
def test_an_archive_that_was_not_downloaded_to_its_end_is_noticed_before_it_is_summed(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    refused(folder, f"{name} has {len(content) - 1:,} bytes where it should have {len(content):,}")


def test_sums_are_found_once_and_remembered(folder, monkeypatch):
    found = read(folder)

    def never(*args, **kwargs):
        raise AssertionError("summed")

    monkeypatch.setattr(archive_files.hashlib, "md5", never)
    again = read(folder)
    for split in ("train", "test"):
        assert list(again.splits[split]) == list(found.splits[split])
    (folder / VAL_ARCHIVE).touch()
    with pytest.raises(AssertionError, match="summed"):
        read(folder)


@pytest.mark.parametrize("gone", [[], [TRAIN_ARCHIVE], [VAL_ARCHIVE, DEVKIT_ARCHIVE]])
def test_progress_ends_where_it_should(folder, gone):
    for name in gone:
        (folder / name).unlink()
    size = sum(
        (folder / name).stat().st_size for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE) if name not in gone
    )
    for _ in range(2):  # the second time the sums are known
        said = []
        read(folder, progress=lambda done, total, said=said: said.append((done, total)))
        assert said == sorted(said)
        assert said[-1] == (2 * size, 2 * size)
        assert {total for _, total in said} == {2 * size}


def test_a_file_that_changed_is_summed_again_though_its_size_and_date_are_the_same(folder):
    read(folder)
    before = (folder / TRAIN_ARCHIVE).stat()
    content = bytearray((folder / TRAIN_ARCHIVE).read_bytes())
    content[3 * BLOCK + 100] ^= 1  # within a picture
    (folder / TRAIN_ARCHIVE).write_bytes(content)
    os.utime(folder / TRAIN_ARCHIVE, ns=(before.st_atime_ns, before.st_mtime_ns))
    refused(folder, TRAIN_ARCHIVE, "md5")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "\x00"])
def test_a_damaged_memory_of_sums_is_made_anew(folder, content):
    found = list(read(folder).splits["train"])
    notes = folder.parent / "cache" / archive_files.CHECKSUM_CACHE
    whole = json.loads(notes.read_text())
    notes.write_text(content)
    assert list(read(folder).splits["train"]) == found
    assert whole.items() <= json.loads(notes.read_text()).items()


def test_a_cache_that_cannot_be_written_costs_only_time(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(read(folder).splits["train"]) == 12


# --- the pictures ----------------------------------------------------------------------------------------------

PICTURE = f"{CLASSES[1]}_18.JPEG"
LINKS = [
    (tarfile.SYMTYPE, "a symbolic link"),
    (tarfile.LNKTYPE, "a hard link"),
    (tarfile.CHRTYPE, "a device"),
    (tarfile.BLKTYPE, "a device"),
    (tarfile.FIFOTYPE, "a pipe"),
    (tarfile.DIRTYPE, "a folder"),
    (b"V", "of an unknown kind"),
]
AWAY = [
    "/etc/passwd",
    "../n01440764_1.JPEG",
    "a/../../b.JPEG",
    "sub/n01443537_1.JPEG",
    ".hidden",
    "a\nb",
    "ü.JPEG",
    "a\\b",
]


@pytest.mark.parametrize(("kind", "words"), LINKS)
def test_anything_but_a_regular_file_is_refused(folder, made, tmp_path, kind, words):
    change_class(folder, lambda files: [*files, special(f"{CLASSES[1]}_9.JPEG", kind, PICTURE)])
    refused(folder, f"{TRAIN_ARCHIVE}, {CLASSES[1]}.tar, '{CLASSES[1]}_9.JPEG", words)
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE):
        other = shutil.copytree(made, tmp_path / name)
        change(other, name, lambda files: [special("x", kind, "/etc/passwd"), *files])
        refused(other, name, words)


@pytest.mark.parametrize("name", AWAY)
def test_a_name_that_leads_elsewhere_is_refused(folder, made, tmp_path, name):
    change_class(folder, lambda files: [*files, (name, b"x")])
    refused(folder, f"{TRAIN_ARCHIVE}, {CLASSES[1]}.tar", repr(name), "could lead elsewhere")
    for archive in (TRAIN_ARCHIVE, VAL_ARCHIVE):
        other = shutil.copytree(made, tmp_path / archive)
        change(other, archive, lambda files: [*files, (name, b"x")])
        refused(other, archive, repr(name), "could lead elsewhere")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda files: [*files, files[0]], f"{PICTURE} is there twice"),
        (
            lambda files: [*files, (f"{CLASSES[0]}_18.JPEG", b"x")],
            f"{CLASSES[0]}_18.JPEG should be called {CLASSES[1]}_",
        ),
        (lambda files: [*files, (f"{CLASSES[1]}_1.txt", b"x")], f"{CLASSES[1]}_1.txt should be called"),
        (lambda files: [*files, (f"{CLASSES[1]}_.JPEG", b"x")], f"{CLASSES[1]}_.JPEG should be called"),
        (lambda files: [*files, (f"{CLASSES[1]}_{'1' * 30}.JPEG", b"x")], "too long"),
        (lambda files: [*files, (f"{CLASSES[1]}_1.JPEG", b"")], f"{CLASSES[1]}_1.JPEG' is empty"),
        (lambda files: [], "holds no pictures"),
    ],
)
def test_a_training_picture_out_of_place_is_named(folder, how, words):
    change_class(folder, how)
    refused(folder, f"{TRAIN_ARCHIVE}, {CLASSES[1]}.tar", words, "make the stand-in again")


def test_a_picture_larger_than_any_is_refused(folder, monkeypatch):
    monkeypatch.setattr(archives, "MAX_IMAGE_BYTES", 10)
    refused(folder, f"{TRAIN_ARCHIVE}, {CLASSES[0]}.tar, {CLASSES[0]}_18.JPEG has", "far more than a picture")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            lambda files: [*files, ("n00000001.tar", b"x")],
            "n00000001.tar is not the tar file of one of the 4 classes",
        ),
        (
            lambda files: [*files, ("n01494475.tar", b"x")],
            "n01494475.tar is not the tar file of one of the 4 classes",
        ),
        (lambda files: [*files, ("readme", b"x")], "readme is not the tar file"),
        (lambda files: [*files, files[0]], f"{CLASSES[0]}.tar is there twice"),
        (lambda files: files[1:], f"has no pictures of class {CLASSES[0]}"),
        (lambda files: [], "holds no classes"),
        (lambda files: [(f"{CLASSES[0]}.tar", b"x" * 2000), *files[1:]], f"{CLASSES[0]}.tar is damaged at byte 0"),
    ],
)
def test_a_class_out_of_place_is_named(folder, how, words):
    change(folder, TRAIN_ARCHIVE, how)
    refused(folder, TRAIN_ARCHIVE, words)


def test_an_unknown_class_is_refused_without_a_devkit_too(folder):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (folder / name).unlink()
    change(folder, TRAIN_ARCHIVE, lambda files: [*files, ("n00000001.tar", b"x")])
    refused(folder, "n00000001.tar is not the tar file of one of the 1000 classes")


def test_training_pictures_of_no_class_are_refused(folder):
    for name in (VAL_ARCHIVE, DEVKIT_ARCHIVE):
        (folder / name).unlink()
    change(folder, TRAIN_ARCHIVE, lambda files: [])
    refused(folder, TRAIN_ARCHIVE, "holds no classes")


@pytest.mark.parametrize("left", [0.3, 0.5, 0.99])
def test_a_class_that_is_cut_off_is_named(folder, left):
    """Cut to whole blocks, as no tar file ends elsewhere; its length in the outer file is that which is left."""

    def cut(inside):
        return inside[: int(left * len(inside.rstrip(b"\0"))) // BLOCK * BLOCK]  # zeros are its end

    change(folder, TRAIN_ARCHIVE, lambda files: [(m.name, cut(inside)) for m, inside in files])
    refused(folder, f"{TRAIN_ARCHIVE}, {CLASSES[0]}.tar", "is cut off")


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE])
@pytest.mark.parametrize("left", [0, 100, 512, 0.3, 0.8])
def test_an_archive_that_is_cut_off_is_named(folder, name, left):
    content = (folder / name).read_bytes().rstrip(b"\0")
    (folder / name).write_bytes(content[: left if left >= 1 else int(left * len(content))])
    sums_anew(folder)
    refused(folder, name, "is cut off")


def test_a_damaged_header_is_named(folder):
    content = bytearray((folder / VAL_ARCHIVE).read_bytes())
    content[5] ^= 1
    (folder / VAL_ARCHIVE).write_bytes(content)
    sums_anew(folder)
    refused(folder, f"{VAL_ARCHIVE} is damaged at byte 0")


def test_a_negative_size_is_refused(folder):
    """The base-256 form of a number may be below zero, and would lead back into what was read."""
    head = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
    block = bytearray(head.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\xff" * 12  # -1
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (folder / VAL_ARCHIVE).write_bytes(bytes(block) + bytes(1024))
    sums_anew(folder)
    refused(folder, VAL_ARCHIVE, "is empty")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda files: [*files, files[0]], "ILSVRC2012_val_00000001.JPEG is there twice"),
        (lambda files: files[1:], "holds 7 pictures"),
        (lambda files: [*files, ("ILSVRC2012_val_00000009.JPEG", b"x")], "holds 9 pictures"),
        (
            lambda files: [*files[:-1], ("ILSVRC2012_val_00000009.JPEG", b"x")],
            "ILSVRC2012_val_00000009.JPEG is where ILSVRC2012_val_00000008.JPEG should be",
        ),
        (lambda files: [*files[:-1], ("ILSVRC2012_val_8.JPEG", b"x")], "ILSVRC2012_val_8.JPEG is where"),
        (lambda files: [*files[:-1], (PICTURE, b"x")], f"{PICTURE} should be called ILSVRC2012_val_"),
    ],
)
def test_a_validation_picture_out_of_place_is_named(folder, how, words):
    change(folder, VAL_ARCHIVE, how)
    refused(folder, VAL_ARCHIVE, words)


def test_the_order_of_the_validation_pictures_in_their_archive_does_not_matter(folder):
    before = [(one.stem, one.label, one.read()) for one in read(folder).splits["test"]]
    change(folder, VAL_ARCHIVE, lambda files: files[::-1])
    assert [(one.stem, one.label, one.read()) for one in read(folder).splits["test"]] == before


# --- the devkit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (b"1\n2\n3\n4\n1\n2\n3\n", f"holds 8 pictures, but {DEVKIT_ARCHIVE} says of 7 what they show"),
        (b"1\n2\n3\n4\n1\n2\n3\n4\n4\n", "says of 9"),
        (b"", "says of 0"),
        (b"1\n2\n0\n4\n1\n2\n3\n4\n", "line 3: '0' is not the number of one of the 4 classes"),
        (b"1\n2\n3\n4\n1\n2\n3\n1001\n", "line 8: '1001' is not the number"),
        (b"1\n2\n3\n5\n1\n2\n3\n4\n", "line 4: '5' is not the number"),  # 5 is a synset, but not a class
        (b"1\n-1\n3\n4\n1\n2\n3\n4\n", "line 2: '-1'"),
        (b"1\n\n3\n4\n1\n2\n3\n4\n", "line 2: ''"),
        (b"1\n2 3\n4\n1\n2\n3\n4\n1\n", "line 2: '2 3'"),
        (b"1\n1e0\n3\n4\n1\n2\n3\n4\n", "line 2: '1e0'"),
        (b"\xff\n", "is no list of numbers"),
    ],
)
def test_a_wrong_ground_truth_is_named(folder, truth, words):
    change_file(folder, TRUTH, lambda old: truth)
    refused(folder, words)


GOOD = [(1, CLASSES[0], 0), (2, CLASSES[1], 0), (3, CLASSES[2], 0), (4, CLASSES[3], 0)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no list of synsets"),
        (b"nonsense" * 100, "is no list of synsets"),
        (meta(GOOD)[:300], "is no list of synsets"),
        (meta([*GOOD[:3], (4, "n00000001", 0)]), "numbers 'n00000001' as 4"),
        (meta([*GOOD[:3], (3, CLASSES[3], 0)]), "does not give each of 4 classes a number of its own"),
        (meta([*GOOD[:3], (4, CLASSES[2], 0)]), "does not give each of 4 classes a number of its own"),
        (meta([(1, CLASSES[0], 3)]), "does not give each of 0 classes a number of its own"),
        (meta([("one", CLASSES[0], 0)]), "is no list of synsets"),
    ],
)
def test_a_wrong_list_of_synsets_is_named(folder, monkeypatch, content, words):
    change_file(folder, META, lambda old: content)
    publish(folder, monkeypatch)
    refused(folder, f"{DEVKIT_ARCHIVE}, data/meta.mat", words)


@pytest.mark.parametrize("synsets", [np.arange(5.0), np.array(["a"]), {"WNID": "n01440764"}, [[1, "x"]]])
def test_what_is_no_array_of_structs_is_refused(folder, monkeypatch, synsets):
    content = io.BytesIO()
    savemat(content, {"synsets": synsets})
    change_file(folder, META, lambda old: content.getvalue())
    publish(folder, monkeypatch)
    refused(folder, f"{DEVKIT_ARCHIVE}, data/meta.mat", "is no list of synsets")


def test_only_the_published_meta_mat_is_opened(folder, monkeypatch):
    """scipy's loadmat crashes on some damaged files: 300 with a few bytes changed were enough to see it."""

    def never(*args, **kwargs):
        raise AssertionError("opened")

    monkeypatch.setattr("scipy.io.loadmat", never)
    assert len(read(folder).splits["test"]) == 8  # a stand-in's is not opened
    publish(folder, monkeypatch)
    with monkeypatch.context() as another:
        another.setitem(archive_files.PUBLISHED_SUMS, DEVKIT_ARCHIVE, archive_files.PublishedSum(md5="0" * 32))
        refused(folder, f"{DEVKIT_ARCHIVE} is damaged or another file")  # nor is one with another sum
    with pytest.raises(AssertionError, match="opened"):
        read(folder)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([1, 2, 3, 3], "does not give each of 4 classes a number of its own"),
        ([1, 2, 3], "numbers 3 classes where it says that there are 4"),
        ([1, 2, 3, "4"], "numbers"),
    ],
)
def test_wrong_numbers_of_a_stand_in_are_named(folder, numbers, words):
    said = json.loads((folder / STAND_IN_FILE).read_text())
    (folder / STAND_IN_FILE).write_text(json.dumps(said | {"numbers": numbers}))
    refused(folder, STAND_IN_FILE, words)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda files: [one for one in files if one[0].name != META], "lacks data/meta.mat"),
        (lambda files: [one for one in files if one[0].name != TRUTH], f"lacks {TRUTH.partition('/')[2]}"),
        (lambda files: [], "lacks data/meta.mat"),
        (
            lambda files: [*files, next(one for one in files if one[0].name == META)],
            "data/meta.mat is there twice",
        ),
        (lambda files: [special(META, tarfile.SYMTYPE, "/etc/passwd")], "data/meta.mat is a symbolic link"),
        (lambda files: [special(TRUTH, tarfile.LNKTYPE, META)], "is a hard link"),
        (lambda files: [special(TRUTH, tarfile.DIRTYPE)], "is a folder"),
    ],
)
def test_a_devkit_without_what_is_needed_is_named(folder, how, words):
    change(folder, DEVKIT_ARCHIVE, how)
    refused(folder, DEVKIT_ARCHIVE, words)


def test_a_devkit_that_unpacks_to_more_than_any_is_refused(folder, monkeypatch):
    monkeypatch.setattr(devkit, "LARGEST_DEVKIT", 1000)
    refused(folder, DEVKIT_ARCHIVE, "unpacks to more than 1,000 bytes")


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"no tar file"), gzip.compress(b"x" * 5000)[:20]],
    ids=["empty", "no gzip", "no tar", "cut off"],  # gzip writes the time: made-up names would differ by process
)
def test_a_devkit_that_is_no_archive_is_named(folder, content):
    (folder / DEVKIT_ARCHIVE).write_bytes(content)
    sums_anew(folder)
    refused(folder, DEVKIT_ARCHIVE)


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9])
def test_a_devkit_that_is_cut_off_is_named(folder, left):
    content = (folder / DEVKIT_ARCHIVE).read_bytes()
    (folder / DEVKIT_ARCHIVE).write_bytes(content[: int(left * len(content))])
    sums_anew(folder)
    refused(folder, DEVKIT_ARCHIVE)


def test_a_devkit_that_knows_more_classes_than_there_are_pictures_of_is_refused(folder, monkeypatch):
    change_file(folder, META, lambda old: meta([*GOOD, (5, "n01494475", 0)]))
    publish(folder, monkeypatch)
    refused(folder, f"{TRAIN_ARCHIVE} has no pictures of class n01494475, which {DEVKIT_ARCHIVE} knows")
