"""Shard plans: names, shard sizes, and settings that differ from an existing set."""

import dataclasses
import tarfile

import pytest

from pipeline.data.images import DataError
from pipeline.data.prepare import (
    write_shards,
)
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.store import Store
from tests.support.image_sets import write_image
from tests.support.preparing import (
    assert_prepare_refused,
    copy_folder,
    file_sums,
    prepare_folder,
)


def test_file_names_are_cleaned_and_a_png_gets_its_suffix(tmp_path, out):
    folder = tmp_path / "odd" / "train" / "a"
    write_image(folder / "one.two \u732b\xe4.JPEG", 0)
    write_image(folder / ("long" * 50 + ".jpg"), 1)
    write_image(folder / "kind.png", 2)
    (folder / "kind.png").rename(folder / "kind.jpg")  # as ImageNet has one
    prepare_folder(tmp_path / "odd", out, samples=10)
    with tarfile.open(out.local / "train-00000.tar") as tar:
        names = sorted(name[9:] for name in tar.getnames() if not name.endswith(".cls"))
    assert names == sorted(["one_two_.jpg", "long" * 15 + ".jpg", "kind.png"])


def test_the_sha256_of_a_set_does_not_depend_on_samples_per_shard(source, out, tmp_path):
    few, many = (
        prepare_folder(source, out, samples=3),
        prepare_folder(source, Store(str(tmp_path / "many")), samples=100),
    )
    assert few.sha256 == many.sha256
    assert [split.sha256 for split in few.splits.values()] == [split.sha256 for split in many.splits.values()]
    resized = prepare_folder(source, Store(str(tmp_path / "resized")), short_side=16)
    assert resized.sha256 != few.sha256


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"short_side": 16}, "(short side none, not 16)"),
        ({"samples": 3}, "(images per shard 4 train + 4 test, not 3 train + 3 test)"),
        ({"split": "test"}, "(images 10 train + 6 test, not 6 test)"),
        ({"name": "animals2"}, "(name animals, not animals2)"),
    ],
)
def test_an_existing_set_with_other_settings_is_refused(source, out, monkeypatch, options, text):
    def prepare_with_options():
        source_set = source_from_folders(source, options.get("split"))
        source_set = dataclasses.replace(source_set, name=options.get("name", "animals"))
        return prepare_shards(
            source_set, out, short_side=options.get("short_side"), samples=options.get("samples", 4)
        )

    monkeypatch.setattr(write_shards, "write_manifest", lambda *_: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        prepare_folder(source, out)
    monkeypatch.undo()
    for state, removable in (
        ("an unfinished set", f"{out}/.preparing and the shards"),
        ("a finished set", "this set"),
    ):
        before = file_sums(out)
        with pytest.raises(DataError) as caught:
            prepare_with_options()
        assert str(caught.value) == (
            f"{out} contains {state} with other settings {text}; use another folder or remove {removable}"
        )
        assert file_sums(out) == before
        prepare_folder(source, out)


def test_an_existing_set_with_other_classes_is_refused(source, out, tmp_path):
    prepare_folder(source, out)
    own = copy_folder(source, tmp_path / "mine" / "animals")
    for split in ("train", "test"):
        (own / split / "bee").rename(own / split / "cow")
    assert_prepare_refused("a finished set with other settings (different classes)", own, out)
