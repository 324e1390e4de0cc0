"""The cache of remote shards: its limit, evictions, damaged copies, and concurrent processes."""

import os
import re
import signal

import pytest

from pipeline.common.errors import UserError
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import ShardSplit, open_shards
from pipeline.data.store import open_store
from tests.support.error_messages import error_message
from tests.support.servers import TruncatingHandler, WholeFileHandler, serve
from tests.support.shard_sets import read_all

NAMES = ["train-00000.tar", "train-00001.tar", "train-00002.tar"]


def with_cache(shards, address, folder, limit=10**9):
    """Return the training part on a server with a cache of its own, and that cache."""
    cache = ShardCache(folder, limit, open_store(address), shards.manifest.sha256[:16])
    train = open_shards(address).train
    return ShardSplit(train.store, "train", train.split, train.index, cache), cache


def cached_files(folder):
    """Return the sorted names of the files in a cache folder."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and file.name != ".lock")


def test_cached_shards_are_not_requested_again(shards, tmp_path):
    requests = []
    with serve(shards.store.local, requests=requests) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache")
        cache.fill(split.split.shards)
        assert cached_files(tmp_path / "cache") == NAMES
        requests.clear()
        assert read_all(split) == read_all(shards.train)
        assert requests == []
        second, cache = with_cache(shards, address, tmp_path / "cache")  # another process
        requests.clear()
        cache.fill(split.split.shards)
        assert read_all(second) == read_all(shards.train)
        assert requests == []


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_limit_is_kept_and_other_shards_are_read_from_the_server(shards, tmp_path, fitting):
    sizes = [shard.bytes for shard in shards.train.split.shards]
    limit = sum(sizes[:fitting]) + min(sizes) - 1
    with serve(shards.store.local) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache", limit)
        for _ in range(2):
            cache.fill(split.split.shards)
            assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar")) <= limit
            assert len(cached_files(tmp_path / "cache")) == fitting
        assert read_all(split) == read_all(shards.train)


def test_both_parts_share_one_limit(shards, tmp_path):
    limit = sum(shard.bytes for shard in shards.train.split.shards)
    with serve(shards.store.local) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache", limit)
        _, other = with_cache(shards, address, tmp_path / "cache", limit)
        cache.fill(split.split.shards)
        other.fill(shards.test.split.shards)
        assert cached_files(tmp_path / "cache") == NAMES


def test_least_recently_used_sets_are_evicted_first(shards, tmp_path):
    first = shards.train.split.shards[0]
    for age, name in enumerate(("new", "old")):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "train-00000.tar").write_bytes(bytes(first.bytes))
        os.utime(tmp_path / "cache" / name, (1e9 - age, 1e9 - age))
    with serve(shards.store.local) as address:
        _, cache = with_cache(shards, address, tmp_path / "cache", 2 * first.bytes)
        cache.fill([first])
    assert {file.parent.name for file in (tmp_path / "cache").glob("*/*.tar")} == {"new", cache.folder.name}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "longer"])
def test_damaged_copy_is_not_used(shards, tmp_path, damage):
    requests = []
    with serve(shards.store.local, requests=requests) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache")
        cache.fill(split.split.shards)
        copy = cache.folder / NAMES[1]
        content = bytearray(copy.read_bytes())
        content[1000] ^= 1
        copy.write_bytes({"cut": content[:1000], "empty": b"", "longer": content + b"x"}.get(damage, content))
        if damage == "gone":
            copy.unlink()
        requests.clear()
        assert read_all(split) == read_all(shards.train)
        assert {path.rpartition("/")[2] for path in requests} == {NAMES[1]}
        assert not copy.exists()
        cache.fill(split.split.shards)  # the next time
        assert cached_files(tmp_path / "cache") == NAMES
        requests.clear()
        assert read_all(split) == read_all(shards.train)
        assert requests == []


def test_damaged_shard_is_not_cached(shards, tmp_path):
    file = shards.store.local / NAMES[1]
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with serve(shards.store.local) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache")
        error_message(lambda: cache.fill(split.split.shards), f"{address}/{NAMES[1]} is damaged", "sha256")
    assert cached_files(tmp_path / "cache") == NAMES[:1]


def test_interrupted_copy_leaves_no_partial_file(shards, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**9, open_store("http://nowhere.invalid"), "one")
    with serve(shards.store.local, TruncatingHandler) as address:
        cache.source = open_store(address)
        error_message(lambda: cache.fill(shards.train.split.shards), f"{address}/{NAMES[0]}")
    assert cached_files(tmp_path / "cache") == []
    for name in (f".{NAMES[0]}.copied", f"..{NAMES[0]}.copied.0123", f".{NAMES[1]}.4567"):  # after a kill
        (cache.folder / name).write_bytes(b"half")
    with serve(shards.store.local) as address:
        cache.source = open_store(address)
        cache.fill(shards.train.split.shards)
    assert cached_files(tmp_path / "cache") == NAMES


def test_server_without_ranges_works_with_the_cache(shards, tmp_path):
    with serve(shards.store.local, WholeFileHandler) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache")
        error_message(lambda: read_all(split), "whole files", "ranges")
        cache.fill(split.split.shards)
        assert read_all(split) == read_all(shards.train)


def test_filling_stops_on_request(shards, tmp_path):
    with serve(shards.store.local) as address:
        split, cache = with_cache(shards, address, tmp_path / "cache")
        cache.fill(split.split.shards, stop=lambda: len(cache.available) == 1)
        assert cached_files(tmp_path / "cache") == NAMES[:1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_fill_one_cache(shards, tmp_path):
    requests = []
    with serve(shards.store.local, requests=requests) as address:
        limit = sum(shard.bytes for shard in shards.train.split.shards)
        split, cache = with_cache(shards, address, tmp_path / "cache", limit)
        requests.clear()
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:  # pragma: no cover
                signal.alarm(20)  # ends a child that hangs
                cache.fill(split.split.shards)
                os._exit(0 if cache.available == {*NAMES} else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert sorted(requests) == [f"/{name}" for name in NAMES]  # each shard once
        assert cached_files(tmp_path / "cache") == NAMES


@pytest.mark.parametrize("value", ["-1", "many", "nan", "inf", "1e300", ""])
def test_invalid_limit_is_reported(shards, monkeypatch, value):
    monkeypatch.setenv("REPRO_SHARD_CACHE_GB", value)
    error_message(
        lambda: open_shards(shards.store), "REPRO_SHARD_CACHE_GB", repr(value), "gigabytes", kind=UserError
    )


def test_unwritable_cache_folder_is_reported(shards, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    cache = ShardCache(tmp_path / "cache", 10**9, open_store("http://nowhere.invalid"), "one")
    message = error_message(lambda: cache.fill(shards.train.split.shards), str(tmp_path / "cache"))
    assert re.search("exists|Not a directory", message)
