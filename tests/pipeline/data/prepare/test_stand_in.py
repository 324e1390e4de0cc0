"""The stand-in for ImageNet: reproducible files in its layout, learnable, written completely or not at all."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.class_names import imagenet_wnids
from pipeline.data.images import DataError
from pipeline.data.prepare import (
    stand_in,
)
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
)
from pipeline.data.prepare.devkit import META, TRUTH
from pipeline.data.prepare.source_archives import source_from_archives
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.stand_in import gzip_stored, make_stand_in
from pipeline.data.prepare.synthetic_images import (
    encode_image,
)

SMALL = {"classes": 3, "train": 3, "test": 2, "side": 32}


def contents(folder):
    """Return relative path -> content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.parametrize("layout", ["archives", "folders"])
def test_the_same_arguments_give_the_same_bytes(tmp_path, layout):
    for name in ("first", "second"):
        make_stand_in(tmp_path / name, **SMALL, layout=layout)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_another_seed_gives_other_bytes(tmp_path):
    for seed in (0, 1):
        make_stand_in(tmp_path / str(seed), **SMALL, seed=seed)
    first, second = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_the_bytes_do_not_depend_on_time_and_user(tmp_path, monkeypatch):
    make_stand_in(tmp_path / "now", **SMALL)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.asctime", lambda *args: "another day")
    make_stand_in(tmp_path / "later", **SMALL)
    assert contents(tmp_path / "now") == contents(tmp_path / "later")
    with tarfile.open(tmp_path / "now" / TRAIN_ARCHIVE) as archive:
        assert {(image.mtime, image.uid, image.gid, image.uname, image.gname) for image in archive} == {
            (0, 0, 0, "", "")
        }


def test_the_devkit_is_a_valid_gzip_file(tmp_path):
    make_stand_in(tmp_path / "set", **SMALL)
    with tarfile.open(
        fileobj=io.BytesIO(gzip.decompress((tmp_path / "set" / DEVKIT_ARCHIVE).read_bytes()))
    ) as archive:
        assert archive.getnames()[1:] == [META, TRUTH]


@pytest.mark.parametrize("size", [0, 1, 65534, 65535, 65536, 200_000])
def test_uncompressed_gzip_unpacks(size):
    content = np.random.default_rng(0).bytes(size)
    assert gzip.decompress(gzip_stored(content)) == content


def test_both_layouts_have_the_same_images(tmp_path):
    make_stand_in(tmp_path / "archives", **SMALL)
    make_stand_in(tmp_path / "folders", **SMALL, layout="folders")
    found = source_from_archives(tmp_path / "archives", cache=tmp_path / "cache")
    expected = {}
    for split, name in (("train", "train"), ("test", "val")):
        for image in found.splits[split]:
            expected[f"{name}/{found.classes[image.label]}/{image.stem}.JPEG"] = image.read()
    files = contents(tmp_path / "folders")
    assert json.loads(files.pop(STAND_IN_FILE))["files"] == {}
    assert files == expected


def test_class_folders_and_archives_are_listed_in_the_same_order(tmp_path):
    make_stand_in(tmp_path / "archives", **SMALL)
    make_stand_in(tmp_path / "folders", **SMALL, layout="folders")
    archives = source_from_archives(tmp_path / "archives", cache=tmp_path / "cache")
    folders = source_from_folders(tmp_path / "folders")
    assert archives.classes == folders.classes
    for split in ("train", "test"):
        assert [(image.label, image.stem) for image in archives.splits[split]] == [
            (image.label, image.stem) for image in folders.splits[split]
        ]


def test_the_class_numbers_are_in_another_order_than_the_classes(tmp_path):
    from scipy.io import loadmat

    make_stand_in(tmp_path / "set", classes=10, train=1, test=1, side=32)
    numbers = json.loads((tmp_path / "set" / STAND_IN_FILE).read_text())["numbers"]
    assert sorted(numbers) == list(range(1, 11))
    assert numbers != sorted(numbers)
    with tarfile.open(tmp_path / "set" / DEVKIT_ARCHIVE) as archive:
        synsets = loadmat(archive.extractfile(META), squeeze_me=True)["synsets"]
    leaves = {str(row["WNID"]): int(row["ILSVRC2012_ID"]) for row in synsets if row["num_children"] == 0}
    assert leaves == dict(zip(imagenet_wnids()[:10], numbers, strict=True))
    assert len(synsets) == 11  # one parent


def test_every_class_has_its_images_and_the_validation_images_are_shuffled(tmp_path):
    make_stand_in(tmp_path / "set", classes=5, train=2, test=4, side=32)
    found = source_from_archives(tmp_path / "set", cache=tmp_path / "cache")
    assert np.bincount([image.label for image in found.splits["train"]]).tolist() == [2] * 5
    assert np.bincount([image.label for image in found.splits["test"]]).tolist() == [4] * 5
    by_number = [image.label for image in sorted(found.splits["test"], key=lambda image: image.stem)]
    assert by_number != sorted(by_number)


@pytest.mark.slow
def test_a_small_network_learns_it_in_a_minute(tmp_path):
    """Four convolutions on centre crops resized to 64 pixels: 99% of 500 in half a minute; chance is 10%."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    make_stand_in(tmp_path / "set")
    found = source_from_archives(tmp_path / "set", cache=tmp_path / "cache")

    def load(split):
        """Return the images as (N, 3, 64, 64) and their labels."""
        images = []
        for image in found.splits[split]:
            with Image.open(io.BytesIO(image.read())) as opened:
                width, height = opened.size
                left, top, side = (
                    (width - min(width, height)) // 2,
                    (height - min(width, height)) // 2,
                    min(width, height),
                )
                part = opened.convert("RGB").resize((64, 64), box=(left, top, left + side, top + side))
            images.append(np.asarray(part))
        labels = torch.tensor([image.label for image in found.splits[split]])
        return torch.tensor(np.stack(images)).permute(0, 3, 1, 2).float() / 128 - 1, labels

    def block(inputs, outputs):
        layers = nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)
        return nn.Sequential(*layers)

    (x, y), (x_test, y_test) = load("train"), load("test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        net = nn.Sequential(block(3, 16), block(16, 32), block(32, 64), block(64, 64), *pooled)
        optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
        for _ in range(6):
            for i in torch.randperm(len(x)).split(50):
                loss = F.cross_entropy(net(x[i]), y[i])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with torch.no_grad():
        accuracy = (net.eval()(x_test).argmax(1) == y_test).float().mean()
    assert accuracy > 0.8


@pytest.mark.parametrize("name", [TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE, "notes.txt", ".hidden"])
def test_a_folder_that_is_not_empty_is_refused(tmp_path, name):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_text("dear")
    with pytest.raises(DataError, match=f"already contains {name}; give a new or an empty folder"):
        make_stand_in(tmp_path / "set", **SMALL)
    assert contents(tmp_path) == {f"set/{name}": b"dear"}


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    def deny(self):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "set").mkdir()
    monkeypatch.setattr("pathlib.Path.iterdir", deny)
    with pytest.raises(DataError, match=r"set cannot be written \(Permission denied\); fix this"):
        make_stand_in(tmp_path / "set", **SMALL)


def test_an_existing_file_is_refused(tmp_path):
    (tmp_path / "set").write_text("dear")
    with pytest.raises(DataError, match="is not a folder"):
        make_stand_in(tmp_path / "set", **SMALL)
    assert (tmp_path / "set").read_text() == "dear"


@pytest.mark.parametrize("out", [".", ""])
def test_the_current_folder_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="the current folder"):
        make_stand_in(Path(out), **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_stand_in(Path("set"), **SMALL)
    assert (tmp_path / "set" / STAND_IN_FILE).is_file()


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    make_stand_in(tmp_path / "some", **SMALL)
    monkeypatch.setattr(stand_in.os, "cpu_count", lambda: 5)
    make_stand_in(tmp_path / "five", **SMALL)
    assert contents(tmp_path / "some") == contents(tmp_path / "five")


def test_an_empty_folder_and_a_nested_new_folder_are_accepted(tmp_path):
    (tmp_path / "set").mkdir()
    make_stand_in(tmp_path / "set", **SMALL)
    make_stand_in(tmp_path / "a" / "b" / "set", **SMALL)
    assert contents(tmp_path / "set") == contents(tmp_path / "a" / "b" / "set")


@pytest.mark.parametrize("layout", ["archives", "folders"])
@pytest.mark.parametrize("at", [1, 7, 15])
def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch, layout, at):
    def fail(image):
        if image.number + 1 == at or (at > 9 and image.split == "test"):
            raise OSError(28, "No space left on device")
        return encode_image(image)

    monkeypatch.setattr(stand_in, "encode_image", fail)
    with pytest.raises(DataError, match=r"set cannot be written \(No space left on device\)"):
        make_stand_in(tmp_path / "set", **SMALL, layout=layout)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_file(tmp_path):
    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_stand_in(tmp_path / "set", **SMALL, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"classes": 0}, "classes is 0, must be from 1 to 1000"),
        ({"classes": 1001}, "from 1 to 1000"),
        ({"train": 0}, "train is 0"),
        ({"test": 0}, "test is 0"),
        ({"side": 31}, "side is 31, must be from 32"),
    ],
)
def test_sizes_out_of_range_are_refused(tmp_path, sizes, text):
    with pytest.raises(DataError, match=text):
        make_stand_in(tmp_path / "set", **(SMALL | sizes))
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_image(tmp_path):
    reports = []
    make_stand_in(tmp_path / "set", **SMALL, progress=lambda done, total: reports.append((done, total)))
    assert reports == [(i, 15) for i in range(1, 16)]


def test_the_stand_in_json_has_description_sizes_and_checksums(tmp_path):
    make_stand_in(tmp_path / "set", **SMALL, seed=3)
    info = json.loads((tmp_path / "set" / STAND_IN_FILE).read_text())
    assert "not ImageNet" in info["what"]
    assert {key: info[key] for key in (*SMALL, "seed")} == SMALL | {"seed": 3}
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE):
        content = (tmp_path / "set" / name).read_bytes()
        assert info["files"][name] == {"md5": hashlib.md5(content).hexdigest(), "bytes": len(content)}
