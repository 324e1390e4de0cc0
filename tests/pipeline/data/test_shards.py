"""Prepared sets, opened: manifest and index checked, samples read by number, near and far, through the cache."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import threading

import numpy as np
import pytest

from pipeline.common.errors import UserError
from pipeline.data import store
from pipeline.data.images import DataError
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shard_manifest import MANIFEST_NAME, read_manifest, with_checksum
from pipeline.data.shards import ShardSet, open_shards
from pipeline.data.store import MissingFileError, open_store
from tests.support.making import prepared
from tests.support.servers import Dying, Whole, s3_server, serve, use_s3

TRAIN, TEST = 12, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("made"), classes=3, train=TRAIN // 3, test=TEST // 3, samples=4)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(store, "RETRY_PAUSES", ())
    monkeypatch.delenv("REPRO_SHARD_CACHE_GB", raising=False)


def refused(call, *said, kind=DataError):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert all(words in message for words in said), message
    assert "\n" not in message
    return message


def everything(split):
    return split.read(range(len(split)))


# --- reading -----------------------------------------------------------------------------------------------


def test_every_picture_is_there_once_with_its_class(shards, made):
    source = made.store.local.parent / "photographs"
    for name, split in (("train", shards.train), ("test", shards.test)):
        want = sorted((file.parent.name, file.read_bytes()) for file in (source / name).rglob("*.jpg"))
        labels = [shards.classes[label] for label in split.labels.tolist()]
        assert sorted(zip(labels, everything(split), strict=True)) == want


def test_any_order_and_repeats_may_be_read(shards):
    all_of_them = everything(shards.train)
    wanted = [5, 0, 11, 5, 3]
    assert shards.train.read(wanted) == [all_of_them[i] for i in wanted]
    assert shards.train.read(np.array(wanted)) == [all_of_them[i] for i in wanted]
    assert shards.train.read([]) == []


def test_where_names_shard_and_sample(shards):
    assert shards.train.where(5) == f"{shards.store}/train-00001.tar, sample 5 of train"


def test_threads_read_at_the_same_time(shards):
    want, found = everything(shards.train), []
    threads = [threading.Thread(target=lambda: found.append(everything(shards.train))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [want] * 8


def test_a_missing_part_is_named(shards):
    bare = ShardSet(shards.store, shards.manifest, {"train": shards.train})
    refused(lambda: bare.test, f"{shards.store} has no test part")


# --- the manifest ------------------------------------------------------------------------------------------


def test_no_manifest(tmp_path):
    refused(lambda: open_shards(tmp_path), f"there is no {tmp_path}/manifest.json", "repro data prepare")
    refused(lambda: open_shards(tmp_path / "x"), "there is no", kind=MissingFileError)


def changed(folder, change):
    """Write the manifest anew after `change` of its values."""
    file = folder / MANIFEST_NAME
    values = json.loads(file.read_text())
    change(values)
    file.write_text(with_checksum(values))


MISTAKES = {
    "format": (lambda m: m.update(format=2), "format"),
    "a name that climbs": (lambda m: m.update(name="a/../b"), "name: 'a/../b' is no name for a set"),
    "a hidden name": (lambda m: m.update(name=".bashrc"), "'.bashrc' is no name for a set"),
    "a name that rings": (lambda m: m.update(name="a\x07"), "'a\\x07' is no name for a set"),
    "unknown key": (lambda m: m.update(clases=[]), "unknown key"),
    "missing key": (lambda m: m.pop("order"), "order: this key is required"),
    "text for a number": (lambda m: m["splits"]["train"].update(samples="12"), "splits.train.samples"),
    "another name": (lambda m: m["splits"].update(val=m["splits"].pop("test")), "splits"),
    "a climbing shard": (lambda m: m["splits"]["train"]["shards"][0].update(name="../a-00000.tar"), "name"),
    "an absolute index": (lambda m: m["splits"]["train"].update(index="/train.index.npy"), "index"),
    "a class more": (lambda m: m["classes"].append("dodo"), "its sha256 is not that of what it lists"),
    "another content": (lambda m: m["splits"]["test"].update(sha256="0" * 64), "its sha256 is not"),
    "resized": (lambda m: m.update(resized={"short_side": 256, "quality": 95}), "its sha256 is not"),
    "a sample moved": (
        lambda m: m["splits"]["train"].update(per_class=[4, 4, 5]),
        "the counts of 'train' do not fit",
    ),
    "a shard less": (lambda m: m["splits"]["test"]["shards"].pop(), "the counts of 'test' do not fit"),
    "a shard twice": (
        lambda m: m["splits"]["train"]["shards"][0].update(name="train-00001.tar"),
        "lists a shard twice",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_changed_manifest_is_refused(shards, mistake):
    change, said = MISTAKES[mistake]
    changed(shards.store.local, change)
    refused(lambda: open_shards(shards.store), f"{shards.store}/manifest.json", said)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"format": 1}'])
def test_what_is_no_manifest_is_refused(shards, content):
    (shards.store.local / MANIFEST_NAME).write_bytes(content)
    refused(lambda: open_shards(shards.store), f"{shards.store}/manifest.json")


def test_the_manifest_reads_as_it_was_written(shards):
    assert read_manifest(shards.store).to_json() == (shards.store.local / MANIFEST_NAME).read_text()


# --- the index ---------------------------------------------------------------------------------------------


def resigned(folder, content):
    """Put another index in place, and its sum into the manifest: as one who means harm, or a bug, would."""
    (folder / "train.index.npy").write_bytes(content)
    changed(folder, lambda m: m["splits"]["train"].update(index_sha256=hashlib.sha256(content).hexdigest()))


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def with_column(index, column, value):
    array = np.array(index)
    array[column][3] = value
    return saved(array)


def test_a_missing_or_damaged_index_is_named(shards):
    file = shards.store.local / "train.index.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    refused(lambda: open_shards(shards.store), f"{file} is damaged", "sha256")
    file.unlink()
    refused(lambda: open_shards(shards.store), f"there is no {file}")


@pytest.mark.parametrize("far", [False, True])
def test_an_index_that_does_not_fit_is_refused_though_its_sum_is_right(shards, far):
    index = shards.train.index
    wrong = {
        "cut": saved(np.array(index))[:-7],
        "short": saved(np.array(index[:-1])),
        "other columns": saved(np.zeros(TRAIN, "<i8")),
        "objects": saved(np.array([{}] * TRAIN), allow_pickle=True),
        "no array": b"x" * 100,
        "huge": saved(np.array(index)).replace(b"(12,)", b"(9999999999999,)"),
        "another shard": with_column(index, "shard", 3),
        "another class": with_column(index, "label", 3),
        "no class": with_column(index, "label", -1),
        "other counts": with_column(index, "label", (int(index["label"][3]) + 1) % 3),
        "a class of two thousand million": with_column(index, "label", 2**31 - 1),
        "beyond every shard": with_column(index, "offset", 2**64 - 1),
        "longer than every shard": with_column(index, "size", 2**32 - 1),
        "a header that does not end": saved(np.array(index))[:10] + b"{'descr': (".ljust(118),
    }
    with serve(shards.store.local) as address:
        for content in wrong.values():
            resigned(shards.store.local, content)
            refused(lambda: open_shards(address if far else shards.store), "train.index.npy", "prepare")


def test_a_sample_beyond_its_shard_is_cut_off(shards):
    end = max(shard.bytes for shard in shards.manifest.splits["train"].shards)
    resigned(shards.store.local, with_column(shards.train.index, "offset", end))
    split = open_shards(shards.store).train
    refused(lambda: everything(split), "sample 3 of train is cut off: 0 of")


# --- far away ----------------------------------------------------------------------------------------------


def test_http_gives_the_same_bytes(shards):
    with serve(shards.store.local) as address:
        far = open_shards(address)
        assert everything(far.train) == everything(shards.train)
        assert far.train.labels.equal(shards.train.labels)
        assert far.train.where(5) == f"{address}/train-00001.tar, sample 5 of train"


def test_s3_gives_the_same_bytes(shards, monkeypatch, tmp_path):
    with s3_server() as address:
        use_s3(monkeypatch, address)
        there = open_store("s3://bucket/sets/one")
        for file in shards.store.local.glob("*.*"):
            there.put(shutil.copyfile(file, tmp_path / "copy"), file.name)
        assert everything(open_shards("s3://bucket/sets/one").train) == everything(shards.train)


def test_damage_far_away_is_named(shards):
    file = shards.store.local / "train-00001.tar"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with serve(shards.store.local) as address:
        split = open_shards(address).train
        assert len(split.read([0, 1, 2, 3, 8])) == 5
        refused(
            lambda: split.read([3, 4, 5]), f"{address}/train-00001.tar, sample 4 of train is damaged", "verify"
        )
        file.write_bytes(content[:2000])
        refused(lambda: split.read([5]), f"{address}/train-00001.tar, sample 5 of train is cut off")
        file.unlink()
        refused(lambda: split.read([5]), f"there is no {address}/train-00001.tar")


# --- the cache ---------------------------------------------------------------------------------------------


def cached(shards, address, folder, limit=10**9):
    """The training part far away, with a cache of its own, and the cache."""
    cache = ShardCache(folder, limit, open_store(address), shards.manifest.sha256[:16])
    far = open_shards(address)
    return type(far.train)(far.store, "train", far.train.split, far.train.index, cache), cache


def kept(folder):
    return sorted(file.name for file in folder.rglob("*") if file.is_file() and file.name != ".lock")


NAMES = ["train-00000.tar", "train-00001.tar", "train-00002.tar"]


def test_what_is_cached_is_not_asked_for_again(shards, tmp_path):
    asked = []
    with serve(shards.store.local, asked=asked) as address:
        split, cache = cached(shards, address, tmp_path / "cache")
        cache.fill(split.split.shards)
        assert kept(tmp_path / "cache") == NAMES
        asked.clear()
        assert everything(split) == everything(shards.train)
        assert asked == []
        again, cache = cached(shards, address, tmp_path / "cache")  # another process
        asked.clear()
        cache.fill(split.split.shards)
        assert everything(again) == everything(shards.train)
        assert asked == []


@pytest.mark.parametrize("fitting", [0, 1, 2])
def test_the_bound_is_kept_and_the_rest_read_from_afar(shards, tmp_path, fitting):
    sizes = [shard.bytes for shard in shards.train.split.shards]
    limit = sum(sizes[:fitting]) + min(sizes) - 1
    with serve(shards.store.local) as address:
        split, cache = cached(shards, address, tmp_path / "cache", limit)
        for _ in range(2):
            cache.fill(split.split.shards)
            assert sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*.tar")) <= limit
            assert len(kept(tmp_path / "cache")) == fitting
        assert everything(split) == everything(shards.train)


def test_both_parts_share_one_bound(shards, tmp_path):
    limit = sum(shard.bytes for shard in shards.train.split.shards)
    with serve(shards.store.local) as address:
        split, cache = cached(shards, address, tmp_path / "cache", limit)
        _, other = cached(shards, address, tmp_path / "cache", limit)
        cache.fill(split.split.shards)
        other.fill(shards.test.split.shards)
        assert kept(tmp_path / "cache") == NAMES


def test_other_sets_make_room_those_first_that_were_not_used_for_longest(shards, tmp_path):
    first = shards.train.split.shards[0]
    for age, name in enumerate(("new", "old")):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "train-00000.tar").write_bytes(bytes(first.bytes))
        os.utime(tmp_path / "cache" / name, (1e9 - age, 1e9 - age))
    with serve(shards.store.local) as address:
        _, cache = cached(shards, address, tmp_path / "cache", 2 * first.bytes)
        cache.fill([first])
    assert {file.parent.name for file in (tmp_path / "cache").glob("*/*.tar")} == {"new", cache.folder.name}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "longer"])
def test_a_damaged_copy_is_never_used(shards, tmp_path, damage):
    asked = []
    with serve(shards.store.local, asked=asked) as address:
        split, cache = cached(shards, address, tmp_path / "cache")
        cache.fill(split.split.shards)
        copy = cache.folder / NAMES[1]
        content = bytearray(copy.read_bytes())
        content[1000] ^= 1
        copy.write_bytes({"cut": content[:1000], "empty": b"", "longer": content + b"x"}.get(damage, content))
        if damage == "gone":
            copy.unlink()
        asked.clear()
        assert everything(split) == everything(shards.train)
        assert {path.rpartition("/")[2] for path in asked} == {NAMES[1]}
        assert not copy.exists()
        cache.fill(split.split.shards)  # the next time
        assert kept(tmp_path / "cache") == NAMES
        asked.clear()
        assert everything(split) == everything(shards.train)
        assert asked == []


def test_a_damaged_shard_does_not_get_into_the_cache(shards, tmp_path):
    file = shards.store.local / NAMES[1]
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with serve(shards.store.local) as address:
        split, cache = cached(shards, address, tmp_path / "cache")
        refused(lambda: cache.fill(split.split.shards), f"{address}/{NAMES[1]} is damaged", "sha256")
    assert kept(tmp_path / "cache") == NAMES[:1]


def test_a_copy_that_breaks_off_leaves_nothing_half(shards, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**9, open_store("http://nowhere.invalid"), "one")
    with serve(shards.store.local, Dying) as address:
        cache.source = open_store(address)
        refused(lambda: cache.fill(shards.train.split.shards), f"{address}/{NAMES[0]}")
    assert kept(tmp_path / "cache") == []
    for name in (f".{NAMES[0]}.copied", f"..{NAMES[0]}.copied.0123", f".{NAMES[1]}.4567"):  # after a kill
        (cache.folder / name).write_bytes(b"half")
    with serve(shards.store.local) as address:
        cache.source = open_store(address)
        cache.fill(shards.train.split.shards)
    assert kept(tmp_path / "cache") == NAMES


def test_a_server_without_ranges_serves_through_the_cache(shards, tmp_path):
    with serve(shards.store.local, Whole) as address:
        split, cache = cached(shards, address, tmp_path / "cache")
        refused(lambda: everything(split), "whole files", "ranges")
        cache.fill(split.split.shards)
        assert everything(split) == everything(shards.train)


def test_filling_stops_when_told_to(shards, tmp_path):
    with serve(shards.store.local) as address:
        split, cache = cached(shards, address, tmp_path / "cache")
        cache.fill(split.split.shards, stop=lambda: len(cache.have) == 1)
        assert kept(tmp_path / "cache") == NAMES[:1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_fill_one_cache(shards, tmp_path):
    asked = []
    with serve(shards.store.local, asked=asked) as address:
        limit = sum(shard.bytes for shard in shards.train.split.shards)
        split, cache = cached(shards, address, tmp_path / "cache", limit)
        asked.clear()
        children = []
        for _ in range(2):
            child = os.fork()
            if not child:  # pragma: no cover
                signal.alarm(20)  # it would hang
                cache.fill(split.split.shards)
                os._exit(0 if cache.have == {*NAMES} else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        assert sorted(asked) == [f"/{name}" for name in NAMES]  # each once
        assert kept(tmp_path / "cache") == NAMES


def test_a_set_opened_with_a_cache_keeps_its_index_and_fills_what_it_is_told(shards, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("REPRO_SHARD_CACHE_GB", "0.5")
    with serve(shards.store.local, asked=asked) as address:
        for _ in range(2):
            far = open_shards(address, cache=tmp_path / "cache")
            far.train.cache.fill(far.train.split.shards)
            assert far.train.cache.limit == 500_000_000
            assert everything(far.train) == everything(shards.train)
        assert sorted(asked) == sorted(
            ["/manifest.json"] * 2 + ["/test.index.npy", "/train.index.npy"] + [f"/{name}" for name in NAMES]
        )
        index = far.train.cache.folder / "train.index.npy"
        index.write_bytes(index.read_bytes()[:-1])
        assert len(open_shards(address, cache=tmp_path / "cache").train) == TRAIN  # fetched anew
    assert open_shards(shards.store, cache=tmp_path / "cache").train.cache is None  # it is near already


@pytest.mark.parametrize("value", ["-1", "many", "nan", "inf", "1e300", ""])
def test_a_wrong_size_of_the_cache_is_named(shards, monkeypatch, value):
    monkeypatch.setenv("REPRO_SHARD_CACHE_GB", value)
    refused(lambda: open_shards(shards.store), "REPRO_SHARD_CACHE_GB", repr(value), "gigabytes", kind=UserError)


def test_a_cache_that_cannot_be_written_is_named(shards, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    cache = ShardCache(tmp_path / "cache", 10**9, open_store("http://nowhere.invalid"), "one")
    message = refused(lambda: cache.fill(shards.train.split.shards), str(tmp_path / "cache"))
    assert re.search("exists|Not a directory", message)


def test_the_index_says_where_each_picture_begins(shards):
    for row in shards.train.index:
        shard = shards.store.local / shards.train.split.shards[row["shard"]].name
        begin = int(row["offset"] + row["image"])
        assert shard.read_bytes()[begin:].startswith(b"\xff\xd8\xff")
