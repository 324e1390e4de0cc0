"""Sets in shards: samples read by number, the index verified, and reading over http and from S3."""

import hashlib
import io
import shutil
import threading

import numpy as np
import pytest

from pipeline.data.shards import ShardSet, copy_in_background, open_shards
from pipeline.data.store import open_store
from tests.support.error_messages import error_message
from tests.support.servers import s3_server, serve, use_s3
from tests.support.shard_sets import TRAIN, edit_manifest, read_all

# --- reading ------------------------------------------------------------------------------------------------


def test_every_image_is_read_once_with_its_class(shards, prepared_set):
    source = prepared_set.store.local.parent / "photographs"
    for name, split in (("train", shards.train), ("test", shards.test)):
        expected = sorted((file.parent.name, file.read_bytes()) for file in (source / name).rglob("*.jpg"))
        labels = [shards.classes[label] for label in split.labels.tolist()]
        assert sorted(zip(labels, read_all(split), strict=True)) == expected


def test_samples_are_read_in_any_order_and_repeatedly(shards):
    files = read_all(shards.train)
    indices = [5, 0, 11, 5, 3]
    assert shards.train.read(indices) == [files[i] for i in indices]
    assert shards.train.read(np.array(indices)) == [files[i] for i in indices]
    assert shards.train.read([]) == []


def test_where_names_shard_and_sample(shards):
    assert shards.train.where(5) == f"{shards.store}/train-00001.tar, sample 5 of train"


def test_threads_read_concurrently(shards):
    expected, results = read_all(shards.train), []
    threads = [threading.Thread(target=lambda: results.append(read_all(shards.train))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 8


def test_missing_part_is_named(shards):
    without_test = ShardSet(shards.store, shards.manifest, {"train": shards.train})
    error_message(lambda: without_test.test, f"{shards.store} has no test part")


# --- the index ----------------------------------------------------------------------------------------------


def replace_index(folder, content):
    """Replace the index and its sha256 in the manifest, as an attacker or a bug would."""
    (folder / "train.index.npy").write_bytes(content)
    edit_manifest(folder, lambda m: m["splits"]["train"].update(index_sha256=hashlib.sha256(content).hexdigest()))


def npy_bytes(array, **options):
    """Return an array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_column(index, column, value):
    """Return an index as .npy bytes, with another value for sample 3."""
    array = np.array(index)
    array[column][3] = value
    return npy_bytes(array)


def test_missing_or_damaged_index_is_named(shards):
    file = shards.store.local / "train.index.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    error_message(lambda: open_shards(shards.store), f"{file} is damaged", "sha256")
    file.unlink()
    error_message(lambda: open_shards(shards.store), f"{file} not found")


@pytest.mark.parametrize("remote", [False, True])
def test_index_that_does_not_fit_is_rejected_despite_its_checksum(shards, remote):
    index = shards.train.index
    contents = {
        "cut": npy_bytes(np.array(index))[:-7],
        "short": npy_bytes(np.array(index[:-1])),
        "other columns": npy_bytes(np.zeros(TRAIN, "<i8")),
        "objects": npy_bytes(np.array([{}] * TRAIN), allow_pickle=True),
        "no array": b"x" * 100,
        "huge": npy_bytes(np.array(index)).replace(b"(12,)", b"(9999999999999,)"),
        "another shard": with_column(index, "shard", 3),
        "another class": with_column(index, "label", 3),
        "no class": with_column(index, "label", -1),
        "other counts": with_column(index, "label", (int(index["label"][3]) + 1) % 3),
        "the largest class": with_column(index, "label", 2**31 - 1),
        "offset beyond every shard": with_column(index, "offset", 2**64 - 1),
        "longer than every shard": with_column(index, "size", 2**32 - 1),
        "a header that does not end": npy_bytes(np.array(index))[:10] + b"{'descr': (".ljust(118),
    }
    with serve(shards.store.local) as address:
        for content in contents.values():
            replace_index(shards.store.local, content)
            error_message(lambda: open_shards(address if remote else shards.store), "train.index.npy", "prepare")


def test_sample_beyond_its_shard_is_truncated(shards):
    end = max(shard.bytes for shard in shards.manifest.splits["train"].shards)
    replace_index(shards.store.local, with_column(shards.train.index, "offset", end))
    split = open_shards(shards.store).train
    error_message(lambda: read_all(split), "sample 3 of train is truncated: 0 of")


def test_index_has_the_offset_of_each_image(shards):
    for row in shards.train.index:
        shard = shards.store.local / shards.train.split.shards[row["shard"]].name
        begin = int(row["offset"] + row["image"])
        assert shard.read_bytes()[begin:].startswith(b"\xff\xd8\xff")


# --- sets on a server ---------------------------------------------------------------------------------------


def test_http_returns_the_same_bytes(shards):
    with serve(shards.store.local) as address:
        remote = open_shards(address)
        assert read_all(remote.train) == read_all(shards.train)
        assert remote.train.labels.equal(shards.train.labels)
        assert remote.train.where(5) == f"{address}/train-00001.tar, sample 5 of train"


def test_s3_returns_the_same_bytes(shards, monkeypatch, tmp_path):
    with s3_server() as address:
        use_s3(monkeypatch, address)
        remote = open_store("s3://bucket/sets/one")
        for file in shards.store.local.glob("*.*"):
            remote.put(shutil.copyfile(file, tmp_path / "copy"), file.name)
        assert read_all(open_shards("s3://bucket/sets/one").train) == read_all(shards.train)


def test_damage_on_a_server_is_named(shards):
    file = shards.store.local / "train-00001.tar"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with serve(shards.store.local) as address:
        split = open_shards(address).train
        assert len(split.read([0, 1, 2, 3, 8])) == 5
        error_message(
            lambda: split.read([3, 4, 5]), f"{address}/train-00001.tar, sample 4 of train is damaged", "verify"
        )
        file.write_bytes(content[:2000])
        error_message(lambda: split.read([5]), f"{address}/train-00001.tar, sample 5 of train is truncated")
        file.unlink()
        error_message(lambda: split.read([5]), f"{address}/train-00001.tar not found")


def test_open_with_a_cache_stores_the_index_and_limits_the_shard_cache(shards, tmp_path, monkeypatch):
    requests = []
    monkeypatch.setenv("REPRO_SHARD_CACHE_GB", "0.5")
    with serve(shards.store.local, requests=requests) as address:
        for _ in range(2):
            remote = open_shards(address, cache=tmp_path / "cache")
            remote.train.cache.fill(remote.train.split.shards)
            assert remote.train.cache.limit == 500_000_000
            assert read_all(remote.train) == read_all(shards.train)
        assert sorted(requests) == sorted(
            ["/manifest.json"] * 2
            + ["/test.index.npy", "/train.index.npy"]
            + [f"/train-0000{number}.tar" for number in range(3)]
        )
        index = remote.train.cache.folder / "train.index.npy"
        index.write_bytes(index.read_bytes()[:-1])
        assert len(open_shards(address, cache=tmp_path / "cache").train) == TRAIN  # fetched again
    assert open_shards(shards.store, cache=tmp_path / "cache").train.cache is None  # a local set needs none


# --- copies in the background ------------------------------------------------------------------------------


def test_shards_are_copied_in_the_background(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_SHARD_CACHE_GB", "0.5")
    with serve(shards.store.local) as address:
        train = open_shards(address, cache=tmp_path / "cache").train
        with copy_in_background(train):
            assert read_all(train) == read_all(shards.train)
    assert train.cache.available <= {f"train-0000{number}.tar" for number in range(3)}


def test_error_while_copying_is_reported_and_ends_the_thread(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_SHARD_CACHE_GB", "0.5")
    reported = threading.Event()
    messages = []

    def report(message):
        messages.append(message)
        reported.set()

    with serve(shards.store.local) as address:
        train = open_shards(address, cache=tmp_path / "cache").train
    threads = threading.active_count()
    with copy_in_background(train, report):  # the server is gone
        assert reported.wait(20)
    assert threading.active_count() == threads
    assert len(messages) == 1
    assert messages[0].startswith(f"stopped copying shards to this machine: {address}/train-00000.tar")


def test_local_shards_are_not_copied(shards):
    threads = threading.active_count()
    with copy_in_background(shards.train):
        assert threading.active_count() == threads
