"""Verification of prepared sets: no problem in an intact one, every problem reported, local or remote."""

import hashlib
import io
import json
import shutil

import numpy as np
import pytest

from pipeline.data import store
from pipeline.data.images import DataError
from pipeline.data.prepare.verify import verify_shards
from pipeline.data.shard_manifest import MANIFEST_NAME, with_checksum
from pipeline.data.store import open_store
from tests.support.image_sets import prepare_random_set
from tests.support.servers import ForbiddenHandler, WholeFileHandler, s3_server, serve, use_s3


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory):
    """A prepared set of 3 classes with 5 training and 2 test images each."""
    return prepare_random_set(tmp_path_factory.mktemp("prepared"), classes=3, train=5, test=2, samples=4)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Retry requests without waiting."""
    monkeypatch.setattr(store, "RETRY_PAUSES", ())


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_intact_set_has_no_problems(shards, threads):
    reports = []
    assert verify_shards(shards.store, threads=threads, progress=lambda done, of: reports.append((done, of))) == []
    total = sum(split.bytes for split in shards.manifest.splits.values())
    assert reports[-1] == (total, total)
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert len(reports) == 4 + 2  # shards of four samples: 15 and 6 images


def test_verifying_changes_no_file(shards):
    before = {file.name: file.read_bytes() for file in shards.store.local.iterdir()}
    verify_shards(shards.store, threads=2)
    assert {file.name: file.read_bytes() for file in shards.store.local.iterdir()} == before


def test_all_problems_are_reported_together(shards):
    folder = shards.store.local
    (folder / "train-00000.tar").unlink()
    (folder / "train-00002.tar").write_bytes(b"")
    (folder / "test-00001.tar").write_bytes((folder / "test-00001.tar").read_bytes()[:-1])
    (folder / "notes.txt").write_text("x")
    (folder / ".train-00000.tar.0123").write_text("x")
    (folder / "two\nlines").mkdir()
    found = verify_shards(shards.store, threads=2)
    assert len(found) == 6
    for name, text in [
        ("train-00000.tar", "is missing"),
        ("train-00002.tar", "it is empty"),
        ("test-00001.tar", "1 of its"),
        ("notes.txt", "is not part of the set; remove it"),
        (".train-00000.tar.0123", "is not part of the set"),
        ("two\ufffdlines", "is not part of the set"),
    ]:
        assert any(problem.startswith(f"{folder}/{name} ") and text in problem for problem in found), (name, found)


def test_shards_are_checked_without_an_index(shards):
    folder = shards.store.local
    (folder / "train.index.npy").unlink()
    (problem,) = verify_shards(shards.store, threads=2)
    assert "not found" in problem
    assert "train.index.npy" in problem
    content = bytearray((folder / "train-00001.tar").read_bytes())
    (folder / "train-00001.tar").write_bytes(content[:1024])
    found = verify_shards(shards.store, threads=2)
    assert len(found) == 2
    assert "train-00001.tar is damaged" in found[1]
    assert "samples 5 to 7 are missing" in found[1]


def test_an_index_with_gaps_is_reported(shards):
    index = np.array(shards.train.index)
    index["size"][2] -= 512
    file = io.BytesIO()
    np.save(file, index)
    (shards.store.local / "train.index.npy").write_bytes(file.getvalue())
    values = json.loads((shards.store.local / MANIFEST_NAME).read_text())
    values["splits"]["train"]["index_sha256"] = hashlib.sha256(file.getvalue()).hexdigest()
    (shards.store.local / MANIFEST_NAME).write_text(with_checksum(values))
    (problem,) = verify_shards(shards.store, threads=1)
    assert "train.index.npy has wrong rows for train-00000.tar" in problem


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"/manifest\.json not found"):
        verify_shards(open_store(tmp_path), threads=1)


def test_a_remote_set_has_the_same_problems_as_a_local_one(shards, monkeypatch, tmp_path):
    folder = shards.store.local
    (folder / "train-00000.tar").unlink()
    content = bytearray((folder / "train-00001.tar").read_bytes())
    content[600] ^= 1
    (folder / "train-00001.tar").write_bytes(content)
    local = verify_shards(shards.store, threads=2)
    assert len(local) == 2
    for handler in (None, WholeFileHandler):  # also without range requests
        with serve(folder, handler or WholeFileHandler) as address:
            remote = verify_shards(open_store(address), threads=2)
            assert [problem.replace(address, str(folder)) for problem in remote] == local
    with s3_server() as address:
        use_s3(monkeypatch, address)
        bucket = open_store("s3://bucket/set")
        for file in folder.iterdir():
            bucket.put(shutil.copyfile(file, tmp_path / "copy"), file.name)
        bucket.put(shutil.copyfile(folder / MANIFEST_NAME, tmp_path / "copy"), "foreign.txt")
        remote = verify_shards(bucket, threads=2)
        assert "s3://bucket/set/foreign.txt is not part of the set" in remote[0]
        assert [problem.replace("s3://bucket/set", str(folder)) for problem in remote[1:]] == local


def test_a_remote_set_needs_a_temporary_folder(shards, monkeypatch):
    def no_temporary_folder():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", no_temporary_folder)
    with (
        serve(shards.store.local) as address,
        pytest.raises(DataError, match="no folder for temporary files is writable"),
    ):
        verify_shards(open_store(address), threads=1)


def test_a_refusing_server_is_reported(shards):
    with serve(shards.store.local, ForbiddenHandler) as address, pytest.raises(DataError, match="refuses access"):
        verify_shards(open_store(address), threads=2)
