"""Writing shards: what they contain, resuming after an interruption, errors."""

import gc
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from pipeline.common.paths import ROOT
from pipeline.data.images import DataError, fingerprint
from pipeline.data.order import seeded_generator
from pipeline.data.prepare import (
    write_shards,
)
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.source_images import SourceSet, source_from_named_set
from pipeline.data.prepare.write_shards import ShardWriter, prepare_shards, run_threads
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import open_shards
from pipeline.data.sources import decode_shards, load_images
from pipeline.data.store import Store, open_store
from tests.support.image_sets import prepare_random_set, write_class_folders
from tests.support.preparing import (
    assert_prepare_refused,
    copy_folder,
    file_sums,
    prepare_folder,
    s3_objects,
)


def test_images_are_read_back_in_the_order_of_the_manifest(source, out):
    assert 'torch.randperm(n, generator=generator(0, "shards"))' in prepare_folder(source, out).order
    opened = open_shards(out)
    for name, count in (("train", 10), ("test", 6)):
        files = sorted((source / name).rglob("*.jpg"))
        order = torch.randperm(count, generator=seeded_generator(0, "shards")).tolist()
        assert opened.splits[name].read(range(count)) == [files[number].read_bytes() for number in order]
        labels = [0 if files[number].parent.name == "ant" else 1 for number in order]
        assert opened.splits[name].labels.tolist() == labels


def test_index_rows_cover_a_shard_without_a_gap_and_locate_the_images(source, out):
    manifest = prepare_folder(source, out)
    opened = open_shards(out).train
    for number, shard in enumerate(manifest.splits["train"].shards):
        content = (out.local / shard.name).read_bytes()
        rows = opened.index[opened.index["shard"] == number]
        assert rows["offset"].tolist() == [0, *np.cumsum(rows["size"])[:-1].tolist()]
        assert rows["offset"][-1] + rows["size"][-1] == len(content)
        for row in rows:
            sample = content[row["offset"] : row["offset"] + row["size"]]
            assert zlib.crc32(sample) == row["crc32"]
            with Image.open(io.BytesIO(sample[row["image"] : row["image"] + row["bytes"]])) as image:
                assert (image.height, image.width) == (row["height"], row["width"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset does not close the files it reads
def test_webdataset_streams_the_same_samples(source, out):
    manifest = prepare_folder(source, out)
    urls = [str(out.local / shard.name) for shard in manifest.splits["train"].shards]
    streamed = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()
    opened = open_shards(out).train
    assert [sample["jpg"] for sample in streamed] == opened.read(range(10))
    assert [int(sample["cls"]) for sample in streamed] == opened.labels.tolist()
    files = sorted((source / "train").rglob("*.jpg"))
    order = torch.randperm(10, generator=seeded_generator(0, "shards")).tolist()
    assert [sample["__key__"] for sample in streamed] == [
        f"{i:08d}-{files[number].stem}" for i, number in enumerate(order)
    ]


def test_members_have_no_time_and_no_user(source, out):
    prepare_folder(source, out)
    with tarfile.open(out.local / "train-00000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 8
    for member in members:
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
        assert (member.uname, member.gname) == ("repro", "repro")
        assert re.fullmatch(r"\d{8}-[A-Za-z0-9_-]{1,60}\.(cls|jpg)", member.name)


def test_a_set_may_have_one_split(source, out):
    manifest = prepare_shards(source_from_folders(source, "test"), out, samples=4)
    assert set(manifest.splits) == {"test"}
    with pytest.raises(DataError, match="has no train "):
        open_shards(out).train  # noqa: B018


# --- the same bytes -------------------------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_threads_folders_and_times(source, out, tmp_path):
    prepare_folder(source, out, workers=1)
    moved = copy_folder(source, tmp_path / "far" / "animals")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    other = Store(str(tmp_path / "elsewhere" / "deep"))
    prepare_folder(moved, other, workers=3)
    assert file_sums(out) == file_sums(other)


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_no_partial_file_and_resumes_to_the_same_bytes(tmp_path, every):
    source = write_class_folders(tmp_path / "animals", classes=2, train=3, test=2)
    command = [
        sys.executable,
        str(ROOT / "tests" / "support" / "kill_and_resume.py"),
        source,
        tmp_path / "out",
        every,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(argument) for argument in command], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 60 // every  # number of kills


def test_finished_shards_are_not_written_again(source, out, monkeypatch):
    write, left = ShardWriter.write_file, [3]

    def fail_later(self, job, file, fingerprint):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(self, job, file, fingerprint)

    monkeypatch.setattr(ShardWriter, "write_file", fail_later)
    assert_prepare_refused("No space left on device", source, out)
    before = file_sums(out)
    assert [name for name in before if name.endswith(".tar")] != []
    assert MANIFEST_NAME not in before
    left[0], reports = 2, []  # of five shards, two are left
    prepare_folder(source, out, progress=lambda done, total: reports.append((done, total)))
    assert left == [0]
    assert reports[-1] == (6, 6)  # images of finished shards are not counted
    assert {name: found for name, found in file_sums(out).items() if name in before} == {
        name: found for name, found in before.items() if not name.startswith(".preparing")
    }


def test_s3_gets_the_same_bytes_as_a_folder(source, out, s3, tmp_path):
    far = open_store("s3://shop/sets/animals")
    manifest = prepare_folder(source, far, workers=2)
    assert prepare_folder(source, out) == manifest
    expected = {f"sets/animals/{path.name}": path.read_bytes() for path in out.local.iterdir()}
    assert s3_objects(s3) == expected
    assert prepare_folder(source, far, progress=lambda *_: pytest.fail("nothing to do")) == manifest
    assert open_shards(far).train.read([0, 9]) == open_shards(out).train.read([0, 9])
    assert not list(tmp_path.glob("repro-prepare-*/*"))  # no local files remain


def test_finished_shards_on_s3_are_not_written_again(source, out, s3, tmp_path, monkeypatch):
    far = open_store("s3://shop/animals")
    put = Store.put

    def fail(self, file, name):
        if name == "test-00000.tar":
            raise KeyboardInterrupt
        put(self, file, name)

    monkeypatch.setattr(Store, "put", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_folder(source, far)
    monkeypatch.setattr(Store, "put", put)
    assert f"animals/{MANIFEST_NAME}" not in s3_objects(s3)
    shutil.rmtree(next(tmp_path.glob("repro-prepare-*")))  # as on another machine
    written, write = [], ShardWriter.write_file
    monkeypatch.setattr(
        ShardWriter, "write_file", lambda self, job, *rest: written.append(job.name) or write(self, job, *rest)
    )
    prepare_folder(source, far)
    assert "train-00000.tar" not in written
    assert "test-00000.tar" in written
    prepare_folder(source, out)
    assert s3_objects(s3) == {f"animals/{path.name}": path.read_bytes() for path in out.local.iterdir()}


# --- interrupted ----------------------------------------------------------------------------------------------


def test_ctrl_c_ends_all_threads(source, out, tmp_path):
    interrupted = []

    def interrupt(done, total):
        if not interrupted:
            interrupted.append(done)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)

    many = SourceSet(
        "many", "", ("ant", "bee"), {"train": list(source_from_folders(source).splits["train"]) * 500}
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores SIGINT
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(many, out, samples=2500, workers=2, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
    assert [path.name for path in out.local.rglob("*") if path.is_file() and path.name != "lock"] == ["plan.json"]
    assert (
        prepare_folder(source, out).splits["train"].samples == 10
    )  # no shard was finished, so another set is accepted


def test_a_full_disk_is_reported_and_the_same_call_resumes(source, out, tmp_path):
    prepare_folder(source, Store(str(tmp_path / "whole")))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))  # the kernel refuses longer files
    try:
        message = assert_prepare_refused("cannot be written (File too large)", source, out, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.endswith("fix this and run again to resume")
    assert not [path for path in out.local.rglob("*") if path.name.endswith((".tmp", "00000.tar"))]
    prepare_folder(source, out)
    assert file_sums(out) == file_sums(tmp_path / "whole")


@pytest.mark.parametrize("name", ["train-00001.tar", "train.index.npy", MANIFEST_NAME, "test-00000.tar.note"])
def test_a_full_disk_is_reported_for_every_kind_of_file(source, out, tmp_path, monkeypatch, name):
    prepare_folder(source, Store(str(tmp_path / "whole")))
    fsync = os.fsync

    def fail(file):
        if name in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", fail)
    assert_prepare_refused("No space left on device", source, out)
    monkeypatch.undo()
    assert not (out.local / name).exists()
    prepare_folder(source, out)
    assert file_sums(out) == file_sums(tmp_path / "whole")


def test_a_bug_is_not_swallowed(source, out, monkeypatch):
    monkeypatch.setattr(write_shards, "encode_sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare_folder(source, out, workers=2)


def test_jobs_are_created_only_shortly_before_they_run():
    created, pending, done = [], [], []

    def jobs():
        for number in range(50):
            created.append(number)
            yield number

    def work(number):
        pending.append(len(created) - len(done))
        done.append(number)

    run_threads(jobs(), work, 2, threading.Event())
    assert sorted(done) == list(range(50))
    assert max(pending) <= 4  # two running, one waiting, one counted late


# --- unusable images ------------------------------------------------------------------------------------------


def test_broken_images_are_reported_together_and_later_only_their_shards_are_written(source, out, tmp_path):
    own = copy_folder(source, tmp_path / "mine" / "animals")
    files = [own / "train" / "ant" / "ant_00001.jpg", own / "test" / "bee" / "bee_00002.jpg"]
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(contents[0][: len(contents[0]) // 2])
    files[1].write_bytes(b"no image at all!!")
    message = assert_prepare_refused(
        f"{files[1]} is not a readable image (its 17 bytes are not an image); restore or remove it", own, out
    )
    assert message.startswith("2 images cannot be used: ")
    assert f"; {files[0]} is not a readable image (" in message
    assert MANIFEST_NAME not in file_sums(out)
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    before = {name: (out.local / name).stat().st_mtime_ns for name in out.names()}
    prepare_folder(own, out)
    assert len(before) == 3  # of five shards
    assert {name: (out.local / name).stat().st_mtime_ns for name in before} == before
    prepare_folder(source, Store(str(tmp_path / "whole")))
    assert file_sums(out) == file_sums(tmp_path / "whole")


def test_writing_stops_after_twenty_broken_images(tmp_path, out):
    folder = tmp_path / "bad" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(200):
        (folder / f"{number:03d}.jpg").write_bytes(b"none")
    message = assert_prepare_refused("at least 20 images cannot be used: ", tmp_path / "bad", out, samples=10)
    assert message.count(".jpg") == 20
    assert message.count("its 4 bytes are not an image") == 3
    assert "; also " in message


# --- small sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise", "digits"])
def test_a_small_set_is_lossless_in_shards(tmp_path, out, name):
    images = load_images(name, tmp_path)
    manifest = prepare_shards(source_from_named_set(name, tmp_path), out, samples=500)
    assert (manifest.name, manifest.source) == (name, images.source)
    again = decode_shards(open_shards(out))
    assert fingerprint(again.classes, again.train, again.test) == fingerprint(
        images.classes, images.train, images.test
    )
    assert prepare_shards(source_from_named_set(name, tmp_path), out, samples=500) == manifest


def test_the_helper_of_other_tests_prepares_a_set(tmp_path):
    opened = prepare_random_set(tmp_path, classes=2, train=2, test=1, short_side=16)
    assert (len(opened.train), len(opened.test), opened.manifest.resized.short_side) == (4, 2, 16)
