"""Test reading of Caltech-101, Caltech-256 and VOC from archives in their layout."""

import inspect
import io
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torchvision.datasets import caltech, voc

from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.prepare.transfer_stand_in import make_transfer_stand_in, tar_of, voc_marks
from pipeline.data.transfer_sets import published
from pipeline.data.transfer_sets.load import load_transfer_set
from pipeline.data.transfer_sets.published import PUBLISHED_ARCHIVES
from pipeline.data.transfer_sets.voc import VOC_CLASSES
from tests.support.ilsvrc_archives import md5
from tests.support.servers import WholeFileHandler, serve


@pytest.fixture
def write_voc(tmp_path):
    """Return a function that writes VOC-2012's archive with some files changed, and loads the set."""
    folder = "VOCdevkit/VOC2012"
    files = {f"{folder}/JPEGImages/{name}.jpg": name.encode() for name in ("2008_1", "2008_2", "2008_3")}
    files |= {
        f"{folder}/ImageSets/Main/train.txt": b"2008_1\n2008_2\n",
        f"{folder}/ImageSets/Main/val.txt": b"2008_3\n",
    }
    for label in VOC_CLASSES:
        files[f"{folder}/ImageSets/Main/{label}_train.txt"] = b"2008_1 -1\n2008_2 -1\n"
        files[f"{folder}/ImageSets/Main/{label}_val.txt"] = b"2008_3 -1\n"
    files[f"{folder}/ImageSets/Main/cat_train.txt"] = b"2008_1  1\n2008_2  0\n"
    files[f"{folder}/ImageSets/Main/dog_train.txt"] = b"2008_1  1\n2008_2 -1\n"

    def load(changes=None):
        content = files | {f"{folder}/{name}": value for name, value in (changes or {}).items()}
        content = {name: value for name, value in content.items() if value is not None}
        path = tmp_path / "voc2012-standin" / "VOCtrainval_11-May-2012.tar"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(tar_of(iter(content.items())))
        return load_transfer_set("voc2012-standin", tmp_path)

    return load


@pytest.mark.parametrize("name", ["caltech101", "caltech256"])
def test_caltech_has_the_images_of_its_class_folders(stand_ins, name):
    found = load_transfer_set(f"{name}-standin", stand_ins)
    assert len(found.classes) == 10
    assert found.images.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert found.parts == {}
    assert found.manifest.per_class == {"train": [2] * 10, "test": [0] * 10}
    content = found.images.read([0, 19])
    assert [decode(file, "x").shape[2] for file in content] == [3, 3]
    assert found.images.where(19).endswith("0002.jpg")


def test_voc_2007_has_three_parts_with_marks(stand_ins):
    found = load_transfer_set("voc2007-standin", stand_ins)
    assert {part: len(indices) for part, indices in found.parts.items()} == {"train": 20, "val": 20, "test": 20}
    assert (found.manifest.train, found.manifest.test) == (40, 20)
    assert found.average_precision == "11-point"
    for part in found.parts.values():
        for number, marks in enumerate(found.images.labels[part].tolist()):
            expected = voc_marks(number)
            assert marks == [expected.get(label, -1) for label in range(20)]
    assert 0 in found.images.labels  # difficult ones exist


def test_marks_of_voc_are_read_as_written(write_voc):
    found = write_voc()
    cat, dog = VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")
    assert found.images.labels[:, [cat, dog]].tolist() == [[1, 1], [0, -1], [-1, -1]]
    assert found.images.read([2, 0]) == [b"2008_3", b"2008_1"]
    assert found.average_precision == "area"
    assert set(found.parts) == {"train", "val"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ImageSets/Main/cow_val.txt": None}, "ImageSets/Main/cow_val.txt not found"),
        ({"ImageSets/Main/cow_val.txt": b"2008_9 -1\n"}, "cow_val.txt does not mark each image of val"),
        ({"ImageSets/Main/cow_val.txt": b"2008_3 2\n"}, "cow_val.txt does not mark each image of val"),
        ({"ImageSets/Main/val.txt": b""}, "val.txt lists no image"),
        ({"ImageSets/Main/val.txt": b"2008_3\n2008_3\n"}, "val.txt lists no image, or one twice"),
        ({"JPEGImages/2008_3.jpg": None}, "JPEGImages/2008_3.jpg not found"),
    ],
)
def test_missing_files_and_marks_of_voc_are_errors(write_voc, changes, message):
    assert write_voc()
    with pytest.raises(DataError, match=message):
        write_voc(changes)


def test_other_content_is_another_set(write_voc):
    before = write_voc().sha256
    assert write_voc().sha256 == before
    assert write_voc({"JPEGImages/2008_3.jpg": b"changed"}).sha256 != before


def test_a_truncated_archive_is_an_error(write_voc, tmp_path):
    found = write_voc()
    path = tmp_path / "voc2012-standin" / "VOCtrainval_11-May-2012.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match="is truncated: "):
        found.images.read([2])
    with pytest.raises(DataError, match="voc2012"):
        load_transfer_set("voc2012-standin", tmp_path)


def test_a_zip_file_without_images_is_an_error(tmp_path):
    folder = tmp_path / "caltech101-standin"
    folder.mkdir()
    with zipfile.ZipFile(folder / "caltech-101.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(DataError, match=r"has no 101_ObjectCategories.tar.gz; delete it and run again"):
        load_transfer_set("caltech101-standin", tmp_path)
    (folder / "caltech-101.zip").write_bytes(b"no zip file")
    with pytest.raises(DataError, match=r"caltech-101.zip is damaged"):
        load_transfer_set("caltech101-standin", tmp_path)


def test_a_missing_stand_in_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"make the set with: repro data stand-in voc2007 --out .*voc2007-standin"):
        load_transfer_set("voc2007-standin", tmp_path)


# --- download ------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve a tar file over http as VOC-2012's archive, and yield it with its address and checksum."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    remote = tmp_path / "remote.tar"
    remote.write_bytes(content.getvalue())
    [archive] = PUBLISHED_ARCHIVES["voc2012"]
    with serve(tmp_path, WholeFileHandler) as address:
        served = replace(archive, url=f"{address}/remote.tar", md5=md5(remote))
        monkeypatch.setitem(published.PUBLISHED_ARCHIVES, "voc2012", (served,))
        yield remote, served


def test_a_missing_archive_is_downloaded_once(served, tmp_path):
    remote, archive = served
    found = published.open_archives("voc2012", tmp_path)
    assert found.md5 == (archive.md5,)
    assert [path.name for path in (tmp_path / "voc2012").iterdir()] == [archive.name]
    remote.unlink()
    assert published.open_archives("voc2012", tmp_path).sha256 == found.sha256


def test_a_download_with_another_checksum_is_refused_and_leaves_no_archive(served, tmp_path):
    remote, archive = served
    remote.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"could not be downloaded to .*voc2012 .*put the file from"):
        published.open_archives("voc2012", tmp_path)
    assert not (tmp_path / "voc2012" / archive.name).exists()


def test_of_two_processes_one_downloads_and_the_other_waits(served, tmp_path, monkeypatch):
    _, archive = served
    under_way = []

    def slowly(url, root, filename, md5):
        under_way.append(filename)
        time.sleep(0.1)
        (root / filename).write_bytes(b"content")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", slowly)
    folder, cache = tmp_path / "voc2012", tmp_path / ".cache"
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(published.download, archive, folder, cache) for _ in range(2)]:
            done.result()
    assert len(under_way) == 1
    assert [path.name for path in folder.iterdir()] == [archive.name]


def test_an_archive_that_is_not_the_published_one_is_refused(served, tmp_path):
    _, archive = served
    (tmp_path / "voc2012").mkdir()
    (tmp_path / "voc2012" / archive.name).write_bytes(b"mine")
    with pytest.raises(DataError, match=rf"its MD5 is \w+, expected {archive.md5}; delete it"):
        published.open_archives("voc2012", tmp_path)


def test_addresses_and_checksums_are_torchvisions():
    known = {
        (entry["url"], entry["filename"], entry["md5"])
        for year, entry in voc.DATASET_YEAR_DICT.items()
        if year in ("2007", "2007-test", "2012")
    }
    ours = {(a.url, a.name, a.md5) for name in ("voc2007", "voc2012") for a in PUBLISHED_ARCHIVES[name]}
    assert ours == known
    source = inspect.getsource(caltech)
    for name in ("caltech101", "caltech256"):
        for archive in PUBLISHED_ARCHIVES[name]:
            assert all(f'"{value}"' in source for value in (archive.url, archive.name, archive.md5))


def test_stand_ins_are_the_same_bytes_each_time(stand_ins, tmp_path):
    make_transfer_stand_in("caltech101", tmp_path / "again", images=2, side=32)
    first = stand_ins / "caltech101-standin" / "caltech-101.zip"
    assert (tmp_path / "again" / "caltech-101.zip").read_bytes() == first.read_bytes()
    assert torch.equal(
        load_transfer_set("caltech101-standin", stand_ins).images.labels,
        torch.arange(10).repeat_interleave(2),
    )
    with pytest.raises(DataError, match="is not an empty folder"):
        make_transfer_stand_in("caltech101", tmp_path / "again")
