"""The devkit: classes and validation labels; damaged devkits are refused."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.prepare import (
    archive_files,
    devkit,
)
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
)
from pipeline.data.prepare.devkit import META, TRUTH
from tests.support.ilsvrc_archives import (
    CLASSES,
    assert_refused,
    list_archives,
    meta_mat,
    rewrite_archive,
    rewrite_devkit_file,
    special_member,
    treat_as_published,
    update_checksums,
)


def test_class_numbers_are_mapped_by_the_synsets(archives, monkeypatch):
    """Number 1 is the last class, 4 the first, and 5 is a parent, not a class."""
    rows = [(1, CLASSES[3], 0), (2, CLASSES[2], 0), (3, CLASSES[1], 0), (4, CLASSES[0], 0), (5, "n00001740", 4)]
    rewrite_devkit_file(archives, META, meta_mat(rows))
    rewrite_devkit_file(archives, TRUTH, b"1\n1\n2\n2\n3\n3\n4\n4\n")
    treat_as_published(archives, monkeypatch)
    test = list_archives(archives).splits["test"]
    label = {image.stem: image.label for image in test}
    assert label == {f"ILSVRC2012_val_{i + 1:08}": [3, 3, 2, 2, 1, 1, 0, 0][i] for i in range(8)}
    assert [image.label for image in test] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [image.stem[-1] for image in test] == ["7", "8", "5", "6", "3", "4", "1", "2"]


@pytest.mark.parametrize(
    ("truth", "text"),
    [
        (b"1\n2\n3\n4\n1\n2\n3\n", f"contains 8 images, but {DEVKIT_ARCHIVE} has 7 labels"),
        (b"1\n2\n3\n4\n1\n2\n3\n4\n4\n", "has 9 labels"),
        (b"", "has 0 labels"),
        (b"1\n2\n0\n4\n1\n2\n3\n4\n", "line 3: '0' is not the number of one of the 4 classes"),
        (b"1\n2\n3\n4\n1\n2\n3\n1001\n", "line 8: '1001' is not the number"),
        (b"1\n2\n3\n5\n1\n2\n3\n4\n", "line 4: '5' is not the number"),  # 5 is a synset, but not a class
        (b"1\n-1\n3\n4\n1\n2\n3\n4\n", "line 2: '-1'"),
        (b"1\n\n3\n4\n1\n2\n3\n4\n", "line 2: ''"),
        (b"1\n2 3\n4\n1\n2\n3\n4\n1\n", "line 2: '2 3'"),
        (b"1\n1e0\n3\n4\n1\n2\n3\n4\n", "line 2: '1e0'"),
        (b"\xff\n", "is not a list of numbers"),
    ],
)
def test_a_wrong_ground_truth_is_reported(archives, truth, text):
    rewrite_devkit_file(archives, TRUTH, truth)
    assert_refused(archives, text)


GOOD_ROWS = [(1, CLASSES[0], 0), (2, CLASSES[1], 0), (3, CLASSES[2], 0), (4, CLASSES[3], 0)]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not a list of synsets"),
        (b"nonsense" * 100, "is not a list of synsets"),
        (meta_mat(GOOD_ROWS)[:300], "is not a list of synsets"),
        (meta_mat([*GOOD_ROWS[:3], (4, "n00000001", 0)]), "gives number 4 to 'n00000001'"),
        (meta_mat([*GOOD_ROWS[:3], (3, CLASSES[3], 0)]), "does not give 4 classes distinct numbers"),
        (meta_mat([*GOOD_ROWS[:3], (4, CLASSES[2], 0)]), "does not give 4 classes distinct numbers"),
        (meta_mat([(1, CLASSES[0], 3)]), "does not give 0 classes distinct numbers"),
        (meta_mat([("one", CLASSES[0], 0)]), "is not a list of synsets"),
    ],
)
def test_wrong_synsets_are_reported(archives, monkeypatch, content, text):
    rewrite_devkit_file(archives, META, content)
    treat_as_published(archives, monkeypatch)
    assert_refused(archives, f"{DEVKIT_ARCHIVE}, data/meta.mat", text)


@pytest.mark.parametrize("synsets", [np.arange(5.0), np.array(["a"]), {"WNID": "n01440764"}, [[1, "x"]]])
def test_synsets_of_another_type_are_reported(archives, monkeypatch, synsets):
    content = io.BytesIO()
    savemat(content, {"synsets": synsets})
    rewrite_devkit_file(archives, META, content.getvalue())
    treat_as_published(archives, monkeypatch)
    assert_refused(archives, f"{DEVKIT_ARCHIVE}, data/meta.mat", "is not a list of synsets")


def test_only_the_published_meta_mat_is_loaded(archives, monkeypatch):
    """scipy.io.loadmat crashes on some damaged files: 300 files with a few changed bytes showed it."""

    def never(*args, **kwargs):
        raise AssertionError("loaded")

    monkeypatch.setattr("scipy.io.loadmat", never)
    assert len(list_archives(archives).splits["test"]) == 8  # not loaded for a stand-in
    treat_as_published(archives, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setitem(archive_files.PUBLISHED_FILES, DEVKIT_ARCHIVE, archive_files.ExpectedFile(md5="0" * 32))
        assert_refused(archives, f"{DEVKIT_ARCHIVE} is damaged or a different file")  # nor with another checksum
    with pytest.raises(AssertionError, match="loaded"):
        list_archives(archives)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([1, 2, 3, 3], "does not give 4 classes distinct numbers"),
        ([1, 2, 3], "numbers has 3 entries, but classes is 4"),
        ([1, 2, 3, "4"], "numbers"),
    ],
)
def test_wrong_numbers_of_a_stand_in_are_reported(archives, numbers, text):
    info = json.loads((archives / STAND_IN_FILE).read_text())
    (archives / STAND_IN_FILE).write_text(json.dumps(info | {"numbers": numbers}))
    assert_refused(archives, STAND_IN_FILE, text)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda members: [member for member in members if member[0].name != META],
            "does not contain data/meta.mat",
        ),
        (
            lambda members: [member for member in members if member[0].name != TRUTH],
            f"does not contain {TRUTH.partition('/')[2]}",
        ),
        (lambda members: [], "does not contain data/meta.mat"),
        (
            lambda members: [*members, next(member for member in members if member[0].name == META)],
            "data/meta.mat occurs twice",
        ),
        (
            lambda members: [special_member(META, tarfile.SYMTYPE, "/etc/passwd")],
            "data/meta.mat is a symbolic link",
        ),
        (lambda members: [special_member(TRUTH, tarfile.LNKTYPE, META)], "is a hard link"),
        (lambda members: [special_member(TRUTH, tarfile.DIRTYPE)], "is a folder"),
    ],
)
def test_an_incomplete_devkit_is_reported(archives, change, text):
    rewrite_archive(archives, DEVKIT_ARCHIVE, change)
    assert_refused(archives, DEVKIT_ARCHIVE, text)


def test_a_devkit_that_unpacks_to_too_many_bytes_is_refused(archives, monkeypatch):
    monkeypatch.setattr(devkit, "MAX_DEVKIT_BYTES", 1000)
    assert_refused(archives, DEVKIT_ARCHIVE, "unpacks to more than 1,000 bytes")


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"no tar file"), gzip.compress(b"x" * 5000)[:20]],
    ids=[
        "empty",
        "no gzip",
        "no tar",
        "truncated",
    ],  # gzip writes the time, so default ids would differ by process
)
def test_a_devkit_that_is_not_an_archive_is_refused(archives, content):
    (archives / DEVKIT_ARCHIVE).write_bytes(content)
    update_checksums(archives)
    assert_refused(archives, DEVKIT_ARCHIVE)


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9])
def test_a_truncated_devkit_is_refused(archives, left):
    content = (archives / DEVKIT_ARCHIVE).read_bytes()
    (archives / DEVKIT_ARCHIVE).write_bytes(content[: int(left * len(content))])
    update_checksums(archives)
    assert_refused(archives, DEVKIT_ARCHIVE)


def test_a_devkit_class_without_training_images_is_refused(archives, monkeypatch):
    rewrite_devkit_file(archives, META, meta_mat([*GOOD_ROWS, (5, "n01494475", 0)]))
    treat_as_published(archives, monkeypatch)
    assert_refused(
        archives, f"{TRAIN_ARCHIVE} has no images of class n01494475, which is a class of {DEVKIT_ARCHIVE}"
    )
