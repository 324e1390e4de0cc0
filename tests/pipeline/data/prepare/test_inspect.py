"""What a set holds, in numbers and pictures; what verifying says of a whole set, near and far."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import store
from pipeline.data.images import DataError
from pipeline.data.prepare.inspect import sample_images, sample_indices, summarise, summary_lines
from pipeline.data.prepare.originals import source_from_folders
from pipeline.data.prepare.prepare import prepare_shards
from pipeline.data.prepare.verify import _numbers, verify_shards
from pipeline.data.shard_manifest import MANIFEST_NAME, with_checksum
from pipeline.data.shards import open_shards
from pipeline.data.store import open_store
from pipeline.report.figures import ACROSS, balance_figure, class_balance, contact_figure, contact_sheet
from tests.support.making import photograph, prepared
from tests.support.servers import Refusing, Whole, s3_server, serve, use_s3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("made"), classes=3, train=5, test=2, samples=4)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(store, "PAUSES", ())


# --- verifying ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_a_whole_set_has_no_faults(shards, threads):
    told = []
    assert verify_shards(shards.place, threads=threads, progress=lambda done, of: told.append((done, of))) == []
    total = sum(split.bytes for split in shards.manifest.splits.values())
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) == 4 + 2  # shards of four: 15 and 6 pictures


def test_verifying_leaves_the_set_as_it_was(shards):
    before = {file.name: file.read_bytes() for file in shards.place.local.iterdir()}
    verify_shards(shards.place, threads=2)
    assert {file.name: file.read_bytes() for file in shards.place.local.iterdir()} == before


def test_all_that_is_wrong_is_named_at_once(shards):
    folder = shards.place.local
    (folder / "train-00000.tar").unlink()
    (folder / "train-00002.tar").write_bytes(b"")
    (folder / "test-00001.tar").write_bytes((folder / "test-00001.tar").read_bytes()[:-1])
    (folder / "notes.txt").write_text("x")
    (folder / ".train-00000.tar.0123").write_text("x")
    (folder / "two\nlines").mkdir()
    found = verify_shards(shards.place, threads=2)
    assert len(found) == 6
    for name, said in [
        ("train-00000.tar", "is missing"),
        ("train-00002.tar", "it is empty"),
        ("test-00001.tar", "1 of its"),
        ("notes.txt", "is not part of the set; remove it"),
        (".train-00000.tar.0123", "is not part of the set"),
        ("two\ufffdlines", "is not part of the set"),
    ]:
        assert any(fault.startswith(f"{folder}/{name} ") and said in fault for fault in found), (name, found)


def test_without_an_index_the_shards_are_still_checked(shards):
    folder = shards.place.local
    (folder / "train.index.npy").unlink()
    (fault,) = verify_shards(shards.place, threads=2)
    assert "there is no" in fault
    assert "train.index.npy" in fault
    content = bytearray((folder / "train-00001.tar").read_bytes())
    (folder / "train-00001.tar").write_bytes(content[:1024])
    found = verify_shards(shards.place, threads=2)
    assert len(found) == 2
    assert "train-00001.tar is damaged" in found[1]
    assert "samples 5 to 7 are missing" in found[1]


def test_an_index_that_leaves_gaps_is_named(shards):
    import hashlib
    import io

    import numpy as np

    index = np.array(shards.train.index)
    index["size"][2] -= 512
    file = io.BytesIO()
    np.save(file, index)
    (shards.place.local / "train.index.npy").write_bytes(file.getvalue())
    values = json.loads((shards.place.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["index_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (shards.place.local / MANIFEST_NAME).write_text(with_checksum(values))
    (fault,) = verify_shards(shards.place, threads=1)
    assert "train.index.npy does not say where the samples of train-00000.tar are" in fault


def test_without_a_manifest_nothing_can_be_said(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*/manifest.json"):
        verify_shards(open_store(tmp_path), threads=1)


def test_far_away_the_same_is_said(shards, monkeypatch, tmp_path):
    folder = shards.place.local
    (folder / "train-00000.tar").unlink()
    content = bytearray((folder / "train-00001.tar").read_bytes())
    content[600] ^= 1
    (folder / "train-00001.tar").write_bytes(content)
    near = verify_shards(shards.place, threads=2)
    assert len(near) == 2
    for handler in (None, Whole):  # it needs no ranges
        with serve(folder, handler or Whole) as address:
            far = verify_shards(open_store(address), threads=2)
            assert [fault.replace(address, str(folder)) for fault in far] == near
    with s3_server() as address:
        use_s3(monkeypatch, address)
        there = open_store("s3://bucket/set")
        for file in folder.iterdir():
            there.put(shutil.copyfile(file, tmp_path / "copy"), file.name)
        there.put(shutil.copyfile(folder / MANIFEST_NAME, tmp_path / "copy"), "strange.txt")
        far = verify_shards(there, threads=2)
        assert "s3://bucket/set/strange.txt is not part of the set" in far[0]
        assert [fault.replace("s3://bucket/set", str(folder)) for fault in far[1:]] == near


def test_without_a_folder_for_copies_nothing_far_is_verified(shards, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with (
        serve(shards.place.local) as address,
        pytest.raises(DataError, match="no folder for temporary files can be"),
    ):
        verify_shards(open_store(address), threads=1)


def test_a_server_that_refuses_is_said_to(shards):
    with serve(shards.place.local, Refusing) as address, pytest.raises(DataError, match="refuses access"):
        verify_shards(open_store(address), threads=2)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([3], "sample 3 is"),
        ([3, 4], "samples 3, 4 are"),
        ([9, 5, 7, 6], "samples 5 to 7, 9 are"),
        (range(0, 40, 2), "samples 0, 2, 4, 6, 8 and 15 more are"),
        ([*range(100), *range(200, 1000)], "samples 0 to 99, 200 to 999 are"),
    ],
)
def test_numbers_are_said_shortly(numbers, said):
    assert _numbers(list(numbers)) == said


# --- what is there -----------------------------------------------------------------------------------------


def test_the_summary_counts(shards, made):
    found = summarise(shards)
    sizes = {"train": [], "test": []}
    for name, list_of in sizes.items():
        for file in (made.place.local.parent / "photographs" / name).rglob("*.jpg"):
            with Image.open(file) as image:
                list_of.append(image.size)
    assert (found.classes, found.resized, found.sha256) == (3, "no", shards.manifest.sha256)
    for name, split in found.splits.items():
        widths, heights = (sorted(side) for side in zip(*sizes[name], strict=True))
        each = {"train": 5, "test": 2}[name]
        assert split.per_class == dict.fromkeys(shards.classes, each)
        assert split.balance == (each, each, each)
        assert (split.height[0], split.height[2]) == (heights[0], heights[-1])
        assert (split.width[0], split.width[2]) == (widths[0], widths[-1])
        assert split.samples == len(widths)
    assert found.splits["train"].width[1] == sorted(size[0] for size in sizes["train"])[7]  # the median of 15
    assert found.splits["train"].bytes == sum(f.stat().st_size for f in shards.place.local.glob("train-*.tar"))
    assert json.loads(json.dumps(found.to_dict()))["splits"]["test"]["shards"] == 2
    assert summary_lines(found)[0].startswith("train: 5 to 5 pictures of a class (median 5); ")


def test_the_summary_says_what_was_resized(tmp_path):
    small = prepared(tmp_path, classes=2, train=2, test=1, short_side=16)
    found = summarise(small)
    assert found.resized == "short side 16, bilinear, JPEG quality 95"
    sides = [min(row["height"], row["width"]) for row in small.train.index]
    assert sides == [16] * 4
    assert verify_shards(small.place, threads=1) == []


def test_pictures_for_the_sheet_are_the_same_for_the_same_seed(shards):
    images, titles = sample_images(shards, 6)
    assert titles == ["ant", "ant", "bee", "bee", "cat", "cat"]
    again, _ = sample_images(shards, 6)
    assert all((a == b).all() for a, b in zip(images, again, strict=True))
    other, _ = sample_images(shards, 6, seed=1)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(images, other, strict=True))
    every, _ = sample_images(shards)
    assert len(every) == 15


def test_pictures_for_the_sheet_are_as_large_as_it_shows_them(tmp_path):
    photograph(tmp_path / "large" / "train" / "ant" / "a.png", 0, height=500, width=1300)
    prepare_shards(source_from_folders(tmp_path / "large"), open_store(tmp_path / "s"))
    (image,), titles = sample_images(open_shards(tmp_path / "s"))
    with Image.open(tmp_path / "large" / "train" / "ant" / "a.png") as whole:
        assert (image == np.asarray(whole)[::4, ::4]).all()  # every fourth: 325 of 1300
    assert image.base is None  # the whole picture is not kept
    (drawn,) = contact_figure([image], titles).axes[0].images
    assert (drawn.get_array() == image).all()


def test_as_many_classes_as_there_are_come_before_a_class_comes_again():
    labels = torch.tensor([0] * 90 + [1] * 9 + [3] * 1)  # class 2 is empty
    assert labels[sample_indices(labels, 3, 0)].tolist() == [0, 1, 3]
    assert labels[sample_indices(labels, 5, 0)].tolist() == [0, 0, 1, 1, 3]
    chosen = sample_indices(labels, 30, 0)
    assert len(set(chosen)) == 30
    assert torch.bincount(labels[chosen]).tolist() == [20, 9, 0, 1]
    assert sorted(sample_indices(labels, 1000, 0)) == list(range(100))
    many = torch.arange(1000).repeat(3)
    assert len(set(many[sample_indices(many, 48, 0)].tolist())) == 48
    assert sample_indices(many, 48, 0) != sample_indices(many, 48, 1)


def test_the_contact_sheet_shows_every_picture_above_its_class(shards, tmp_path):
    images, titles = sample_images(shards)
    figure = contact_figure(images, [*titles[:-1], "$n_0$ of a very long name"], "photographs")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 2 * ACROSS
    assert [ax.texts[0].get_text() for ax in shown] == [*titles[:-1], "$n_0$ of a very long…"]
    assert all((ax.images[0].get_array() == image).all() for ax, image in zip(shown, images, strict=True))
    path = contact_sheet(images, titles, tmp_path / "new" / "sheet.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert contact_sheet(images, titles, tmp_path / "2.png").read_bytes() == path.read_bytes()


def test_the_balance_is_drawn_from_the_largest_class_to_the_smallest(tmp_path):
    figure = balance_figure({"train": [3, 9, 1], "test": [2, 2, 2]}, "photographs")
    assert [ax.get_title() for ax in figure.axes] == [
        "train: 13 pictures, 1 to 9 of a class",
        "test: 6 pictures, 2 to 2 of a class",
    ]
    (area,) = figure.axes[0].collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert heights.max() == 9
    assert class_balance({"train": [3, 9, 1]}, tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
