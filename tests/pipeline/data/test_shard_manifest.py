"""The manifest of a set in shards: read as it was written; faults and edits are rejected."""

import pytest

from pipeline.data.shard_manifest import MANIFEST_NAME, read_manifest
from pipeline.data.shards import open_shards
from pipeline.data.store import MissingFileError
from tests.support.error_messages import error_message
from tests.support.shard_sets import edit_manifest


def test_missing_manifest_says_how_shards_are_made(tmp_path):
    error_message(lambda: open_shards(tmp_path), f"{tmp_path}/manifest.json not found", "repro data prepare")
    error_message(lambda: open_shards(tmp_path / "x"), "not found", kind=MissingFileError)


FAULTS = {
    "format": (lambda m: m.update(format=2), "format"),
    "a name with a path": (lambda m: m.update(name="a/../b"), "name: 'a/../b' is not a valid name for a set"),
    "a hidden name": (lambda m: m.update(name=".bashrc"), "'.bashrc' is not a valid name for a set"),
    "a name with a control character": (
        lambda m: m.update(name="a\x07"),
        "'a\\x07' is not a valid name for a set",
    ),
    "unknown key": (lambda m: m.update(clases=[]), "unknown key"),
    "missing key": (lambda m: m.pop("order"), "order: this key is required"),
    "text for a number": (lambda m: m["splits"]["train"].update(samples="12"), "splits.train.samples"),
    "an unknown split": (lambda m: m["splits"].update(val=m["splits"].pop("test")), "splits"),
    "a shard in another folder": (
        lambda m: m["splits"]["train"]["shards"][0].update(name="../a-00000.tar"),
        "name",
    ),
    "an absolute index": (lambda m: m["splits"]["train"].update(index="/train.index.npy"), "index"),
    "an extra class": (lambda m: m["classes"].append("dodo"), "its sha256 does not match its splits"),
    "another content": (lambda m: m["splits"]["test"].update(sha256="0" * 64), "its sha256 does not match"),
    "resized": (lambda m: m.update(resized={"short_side": 256, "quality": 95}), "its sha256 does not match"),
    "a sample moved": (
        lambda m: m["splits"]["train"].update(per_class=[4, 4, 5]),
        "the counts of 'train' contradict",
    ),
    "a missing shard": (lambda m: m["splits"]["test"]["shards"].pop(), "the counts of 'test' contradict"),
    "a shard twice": (
        lambda m: m["splits"]["train"]["shards"][0].update(name="train-00001.tar"),
        "lists a shard twice",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_inconsistent_manifest_is_rejected(shards, fault):
    change, text = FAULTS[fault]
    edit_manifest(shards.store.local, change)
    error_message(lambda: open_shards(shards.store), f"{shards.store}/manifest.json", text)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"format": 1}'])
def test_file_that_is_not_a_manifest_is_rejected(shards, content):
    (shards.store.local / MANIFEST_NAME).write_bytes(content)
    error_message(lambda: open_shards(shards.store), f"{shards.store}/manifest.json")


def test_manifest_is_read_as_it_was_written(shards):
    assert read_manifest(shards.store).to_json() == (shards.store.local / MANIFEST_NAME).read_text()


def test_edited_manifest_is_rejected(shards):
    file = shards.store.local / MANIFEST_NAME
    file.write_text(file.read_text().replace('"order": "', '"order": "not '))
    error_message(lambda: open_shards(shards.store), f"{file} was edited", "restore it")
