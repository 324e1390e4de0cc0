"""The ILSVRC-2012 archive files: names, sizes, MD5 sums and their cache."""

import json
import os

import pytest

from pipeline.common import checksums
from pipeline.data.class_names import imagenet_wnids
from pipeline.data.images import DataError
from pipeline.data.prepare import (
    archive_files,
)
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    has_archives,
)
from tests.support.ilsvrc_archives import (
    CLASSES,
    assert_refused,
    list_archives,
    md5,
    treat_as_published,
)

BLOCK = 512  # bytes: a tar file's unit (POSIX.1-1988, ustar)


def test_the_wordnet_ids_are_sorted():
    assert len(imagenet_wnids()) == 1000
    assert imagenet_wnids()[:4] == CLASSES
    assert imagenet_wnids() == sorted(imagenet_wnids())


def test_the_checksums_equal_torchvisions():
    from torchvision.datasets.imagenet import ARCHIVE_META

    boxes = {  # image-net.org, page of downloads of 2012
        "ILSVRC2012_bbox_train_v2.tar.gz": "9271167e2176350e65cfe4e546f14b17",
        "ILSVRC2012_bbox_val_v3.tgz": "f4cd18b5ea29fe6bbea62ec9c20d80f0",
    }
    found = {name: expected.md5 for name, expected in archive_files.PUBLISHED_FILES.items()}
    assert found == dict(ARCHIVE_META.values()) | boxes


def test_archives_are_recognised_by_their_names(archives, tmp_path):
    assert has_archives(archives)
    assert not has_archives(tmp_path)
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE):
        (archives / name).unlink()
    assert has_archives(archives)
    assert_refused(archives, f"contains neither {TRAIN_ARCHIVE} nor {VAL_ARCHIVE}")
    (archives / "val").mkdir()  # torchvision leaves the devkit beside the unpacked folders
    assert not has_archives(archives)


def test_an_unreadable_folder_is_reported(archives, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(DataError, match=r"ilsvrc cannot be read \(Permission denied\); check its permissions"):
        has_archives(archives)


def test_other_archives_with_imagenets_names_are_refused(archives):
    (archives / STAND_IN_FILE).unlink()
    assert_refused(archives, f"{VAL_ARCHIVE} has", "6,744,924,160", "download it again from https://image-net.org")
    (archives / VAL_ARCHIVE).unlink()
    assert_refused(archives, f"{TRAIN_ARCHIVE} has", "147,897,477,120")


def test_a_devkit_with_another_checksum_is_refused(archives, monkeypatch):
    devkit = archive_files.PUBLISHED_FILES[DEVKIT_ARCHIVE]
    treat_as_published(archives, monkeypatch)
    monkeypatch.setitem(archive_files.PUBLISHED_FILES, DEVKIT_ARCHIVE, devkit)
    assert_refused(
        archives, f"{DEVKIT_ARCHIVE} is damaged or a different file", "expected fa75699e90414af021442c21a62c3abf"
    )


def test_an_archive_that_the_stand_in_does_not_list_is_refused(archives):
    info = json.loads((archives / STAND_IN_FILE).read_text())
    del info["files"][TRAIN_ARCHIVE]
    (archives / STAND_IN_FILE).write_text(json.dumps(info))
    assert_refused(archives, f"{STAND_IN_FILE} does not list {TRAIN_ARCHIVE}")


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "cannot be read"), ("{}", "required"), ("[]", ""), ('{"format": 1, "nmae": 2}', "nmae"), ("\xff", "")],
)
def test_a_damaged_stand_in_json_is_reported(archives, content, text):
    (archives / STAND_IN_FILE).write_text(content, encoding="latin-1")
    assert_refused(archives, STAND_IN_FILE, text)


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE])
@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit_is_noticed(archives, name, where):
    content = bytearray((archives / name).read_bytes())
    content[round(where * (len(content) - 1))] ^= 1
    expected = md5(archives / name)
    (archives / name).write_bytes(content)
    assert_refused(archives, name, f"its MD5 is {md5(archives / name)}, expected {expected}")


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE])
def test_a_truncated_download_is_noticed_by_its_size(archives, name):
    content = (archives / name).read_bytes()
    (archives / name).write_bytes(content[:-1])
    assert_refused(archives, f"{name} has {len(content) - 1:,} bytes, expected {len(content):,}")


def test_checksums_are_cached(archives, monkeypatch):
    found = list_archives(archives)

    def never(*args, **kwargs):
        raise AssertionError("hashed")

    monkeypatch.setattr(checksums.hashlib, "md5", never)
    again = list_archives(archives)
    for split in ("train", "test"):
        assert list(again.splits[split]) == list(found.splits[split])
    (archives / VAL_ARCHIVE).touch()
    with pytest.raises(AssertionError, match="hashed"):
        list_archives(archives)


def test_a_changed_file_with_the_same_size_and_date_is_hashed_again(archives):
    list_archives(archives)
    before = (archives / TRAIN_ARCHIVE).stat()
    content = bytearray((archives / TRAIN_ARCHIVE).read_bytes())
    content[3 * BLOCK + 100] ^= 1  # inside an image
    (archives / TRAIN_ARCHIVE).write_bytes(content)
    os.utime(archives / TRAIN_ARCHIVE, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert_refused(archives, TRAIN_ARCHIVE, "MD5")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "\x00"])
def test_a_damaged_cache_is_written_again(archives, content):
    found = list(list_archives(archives).splits["train"])
    cache_file = archives.parent / "cache" / checksums.CHECKSUM_CACHE
    entries = json.loads(cache_file.read_text())
    cache_file.write_text(content)
    assert list(list_archives(archives).splits["train"]) == found
    assert entries.items() <= json.loads(cache_file.read_text()).items()


def test_a_cache_that_cannot_be_written_is_ignored(archives, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert len(list_archives(archives).splits["train"]) == 12
