"""Preparing: shards, index and manifest say what was given; interrupted, refused and repeated."""

import dataclasses
import gc
import hashlib
import http.server
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
from pipeline.data.prepare.originals import SourceSet, source_from_folders, source_from_named_set
from pipeline.data.prepare.prepare import prepare_shards

from pipeline.data.images import DataError, fingerprint
from pipeline.data.order import seeded_generator
from pipeline.data.prepare import prepare as module
from pipeline.data.prepare.workspace import check_writable
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import open_shards
from pipeline.data.sources import decode_shards, load_images
from pipeline.data.store import Store, open_store
from tests.support.making import photograph, photographs, picture, prepared

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Class folders that no test changes: 2 x 5 and 2 x 3 pictures."""
    return photographs(tmp_path_factory.mktemp("source") / "animals", classes=2, train=5, test=3)


@pytest.fixture
def out(tmp_path):
    return Store(str(tmp_path / "shards"))


def make(source, out, **other):
    return prepare_shards(source_from_folders(source), out, **({"samples": 4} | other))


def sums(folder):
    files = [path for path in Path(str(folder)).rglob("*") if path.is_file()]
    return {str(path.relative_to(str(folder))): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(text, source, out, **other):
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        make(source, out, **other)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def copied(source, folder):
    return Path(shutil.copytree(source, folder))


# --- what is made ------------------------------------------------------------------------------------------


def test_the_manifest_counts_what_was_given(source, out):
    made = make(source, out)
    assert (made.name, made.classes, made.resized) == ("animals", ("ant", "bee"), None)
    assert {name: (split.samples, split.per_class) for name, split in made.splits.items()} == {
        "train": (10, (5, 5)),
        "test": (6, (3, 3)),
    }
    assert [shard.samples for shard in made.splits["train"].shards] == [4, 4, 2]
    assert [shard.name for shard in made.splits["test"].shards] == ["test-00000.tar", "test-00001.tar"]
    assert sorted(sums(out)) == sorted(
        [MANIFEST_NAME, "train.index.npy", "test.index.npy"]
        + [shard.name for split in made.splits.values() for shard in split.shards]
    )
    for split in made.splits.values():
        for shard in split.shards:
            content = (out.local / shard.name).read_bytes()
            assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_content_is_hashed_as_shards_say(source, out):
    made = make(source, out)
    files = sorted((source / "train").rglob("*.jpg"))
    order = torch.randperm(10, generator=seeded_generator(0, "shards")).tolist()
    whole = hashlib.sha256()
    for number in order:
        label = 0 if files[number].parent.name == "ant" else 1
        whole.update(label.to_bytes(8, "little") + hashlib.sha256(files[number].read_bytes()).digest())
    assert made.splits["train"].sha256 == whole.hexdigest()


def test_every_file_is_read_back_in_the_order_that_the_manifest_names(source, out):
    assert 'torch.randperm(n, generator=generator(0, "shards"))' in make(source, out).order
    opened = open_shards(out)
    for name, count in (("train", 10), ("test", 6)):
        files = sorted((source / name).rglob("*.jpg"))
        order = torch.randperm(count, generator=seeded_generator(0, "shards")).tolist()
        assert opened.splits[name].read(range(count)) == [files[number].read_bytes() for number in order]
        labels = [0 if files[number].parent.name == "ant" else 1 for number in order]
        assert opened.splits[name].labels.tolist() == labels


def test_records_cover_a_shard_without_a_gap_and_say_what_is_in_them(source, out):
    made = make(source, out)
    opened = open_shards(out).train
    for number, shard in enumerate(made.splits["train"].shards):
        content = (out.local / shard.name).read_bytes()
        rows = opened.index[opened.index["shard"] == number]
        assert rows["offset"].tolist() == [0, *np.cumsum(rows["size"])[:-1].tolist()]
        assert rows["offset"][-1] + rows["size"][-1] == len(content)
        for row in rows:
            record = content[row["offset"] : row["offset"] + row["size"]]
            assert zlib.crc32(record) == row["crc32"]
            with Image.open(io.BytesIO(record[row["image"] : row["image"] + row["bytes"]])) as image:
                assert (image.height, image.width) == (row["height"], row["width"])


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # WebDataset leaves the files it read to the collector
def test_webdataset_streams_the_same_samples(source, out):
    made = make(source, out)
    urls = [str(out.local / shard.name) for shard in made.splits["train"].shards]
    streamed = list(webdataset.WebDataset(urls, shardshuffle=False))
    gc.collect()
    opened = open_shards(out).train
    assert [one["jpg"] for one in streamed] == opened.read(range(10))
    assert [int(one["cls"]) for one in streamed] == opened.labels.tolist()
    files = sorted((source / "train").rglob("*.jpg"))
    order = torch.randperm(10, generator=seeded_generator(0, "shards")).tolist()
    assert [one["__key__"] for one in streamed] == [
        f"{i:08d}-{files[number].stem}" for i, number in enumerate(order)
    ]


def test_members_tell_neither_time_nor_user(source, out):
    make(source, out)
    with tarfile.open(out.local / "train-00000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 8
    for member in members:
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
        assert (member.uname, member.gname) == ("repro", "repro")
        assert re.fullmatch(r"\d{8}-[A-Za-z0-9_-]{1,60}\.(cls|jpg)", member.name)


def test_names_that_do_not_fit_a_tar_are_cleaned_and_a_png_is_called_so(tmp_path, out):
    folder = tmp_path / "odd" / "train" / "a"
    photograph(folder / "one.two \u732b\xe4.JPEG", 0)
    photograph(folder / ("long" * 50 + ".jpg"), 1)
    photograph(folder / "kind.png", 2)
    (folder / "kind.png").rename(folder / "kind.jpg")  # as one of ImageNet's
    make(tmp_path / "odd", out, samples=10)
    with tarfile.open(out.local / "train-00000.tar") as tar:
        names = sorted(name[9:] for name in tar.getnames() if not name.endswith(".cls"))
    assert names == sorted(["one_two_.jpg", "long" * 15 + ".jpg", "kind.png"])


def test_a_set_may_have_one_part_only(source, out):
    made = prepare_shards(source_from_folders(source, "test"), out, samples=4)
    assert set(made.splits) == {"test"}
    with pytest.raises(DataError, match="has no train part"):
        open_shards(out).train  # noqa: B018


# --- the same bytes ----------------------------------------------------------------------------------------


def test_threads_places_and_times_do_not_enter(source, out, tmp_path):
    make(source, out, workers=1)
    moved = copied(source, tmp_path / "far" / "animals")
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    other = Store(str(tmp_path / "elsewhere" / "deep"))
    make(moved, other, workers=3)
    assert sums(out) == sums(other)


def test_the_number_of_samples_in_a_shard_does_not_change_the_identity(source, out, tmp_path):
    few, many = make(source, out, samples=3), make(source, Store(str(tmp_path / "many")), samples=100)
    assert few.sha256 == many.sha256
    assert [split.sha256 for split in few.splits.values()] == [split.sha256 for split in many.splits.values()]
    resized = make(source, Store(str(tmp_path / "resized")), short_side=16)
    assert resized.sha256 != few.sha256


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_it_leaves_nothing_half_made_and_goes_on_to_the_same_bytes(tmp_path, every):
    source = photographs(tmp_path / "animals", classes=2, train=3, test=2)
    words = [sys.executable, str(Path(__file__).with_name("killing.py")), source, tmp_path / "out", every]
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], env=here, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 60 // every  # as many kills


def test_what_is_finished_is_not_made_again(source, out, monkeypatch):
    write, left = module.ShardMaking.write, [3]

    def fails_later(self, job, file, plan):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        return write(self, job, file, plan)

    monkeypatch.setattr(module.ShardMaking, "write", fails_later)
    refused("No space left on device", source, out)
    before = sums(out)
    assert [name for name in before if name.endswith(".tar")] != []
    assert MANIFEST_NAME not in before
    left[0], told = 2, []  # of five shards, two are left
    make(source, out, progress=lambda done, total: told.append((done, total)))
    assert left == [0]
    assert told[-1] == (6, 6)  # what was there already is no work of this call
    assert {name: found for name, found in sums(out).items() if name in before} == {
        name: found for name, found in before.items() if not name.startswith(".preparing")
    }


@pytest.mark.parametrize("damage", ["shard", "note", "picture"])
def test_a_shard_that_is_not_as_noted_is_made_again(source, out, tmp_path, damage, monkeypatch):
    expected = sums(out) if make(source, out) else {}
    shutil.rmtree(out.local)
    mine = copied(source, tmp_path / "mine" / "animals")
    monkeypatch.setattr(module, "write_manifest", lambda *_: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        make(mine, out)
    monkeypatch.undo()
    if damage == "shard":
        (out.local / "train-00001.tar").write_bytes(b"short")
    elif damage == "note":
        note = out.local / ".preparing" / "train-00001.tar.note"
        note.write_bytes(note.read_bytes()[:-1] + b"x")
    else:
        file = next((mine / "train" / "bee").iterdir())
        photograph(file, 12345)
    made = []
    write = module.ShardMaking.write
    monkeypatch.setattr(
        module.ShardMaking, "write", lambda self, job, *rest: made.append(job) or write(self, job, *rest)
    )
    make(mine, out)
    assert len(made) == 1
    if damage == "picture":
        assert any(one.file == str(file) for one in made[0].originals)
        assert file.read_bytes() in open_shards(out).train.read(range(10))
    else:
        assert made[0].name == "train-00001.tar"
        assert sums(out) == expected


# --- interrupted -------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_threads_at_once_and_what_is_finished_stays(source, out, tmp_path):
    asked = []

    def interrupt(done, total):
        if not asked:
            asked.append(done)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.1)

    many = SourceSet(
        "many", "", ("ant", "bee"), {"train": list(source_from_folders(source).splits["train"]) * 500}
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is deaf to it
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(many, out, samples=2500, workers=2, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
    assert [path.name for path in out.local.rglob("*") if path.is_file() and path.name != "lock"] == ["plan.json"]
    assert make(source, out).splits["train"].samples == 10  # nothing was finished: another set may be made here


def test_a_full_disk_is_one_sentence_and_the_same_call_goes_on_afterwards(source, out, tmp_path):
    make(source, Store(str(tmp_path / "whole")))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))  # the kernel refuses longer files
    try:
        said = refused("cannot be written (File too large)", source, out, workers=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert said.endswith("mend that and start again, what is finished stays")
    assert not [path for path in out.local.rglob("*") if path.name.endswith((".tmp", "00000.tar"))]
    make(source, out)
    assert sums(out) == sums(tmp_path / "whole")


@pytest.mark.parametrize("name", ["train-00001.tar", "train.index.npy", MANIFEST_NAME, "test-00000.tar.note"])
def test_no_room_for_any_of_the_files_is_one_sentence(source, out, tmp_path, monkeypatch, name):
    make(source, Store(str(tmp_path / "whole")))
    fsync = os.fsync

    def full(file):
        if name in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    refused("No space left on device", source, out)
    monkeypatch.undo()
    assert not (out.local / name).exists()
    make(source, out)
    assert sums(out) == sums(tmp_path / "whole")


def test_a_mistake_of_ours_is_not_swallowed(source, out, monkeypatch):
    monkeypatch.setattr(module, "encode_for_shard", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make(source, out, workers=2)


def test_shards_are_not_thought_of_long_before_they_are_made():
    drawn, most = [], []

    def jobs():
        for number in range(50):
            drawn.append(number)
            yield number

    done = []

    def work(number):
        most.append(len(drawn) - len(done))
        done.append(number)

    module.run_threads(jobs(), work, 2, threading.Event())
    assert sorted(done) == list(range(50))
    assert max(most) <= 4  # two in work, one waiting, one counted late


# --- what cannot be used -----------------------------------------------------------------------------------


def test_broken_pictures_are_named_together_and_once_restored_only_their_shard_is_made(source, out, tmp_path):
    mine = copied(source, tmp_path / "mine" / "animals")
    files = [mine / "train" / "ant" / "ant_00001.jpg", mine / "test" / "bee" / "bee_00002.jpg"]
    contents = [file.read_bytes() for file in files]
    files[0].write_bytes(contents[0][: len(contents[0]) // 2])
    files[1].write_bytes(b"no picture at all")
    said = refused(
        f"{files[1]} is no readable picture (17 bytes that are no picture); restore or remove it", mine, out
    )
    assert said.startswith("2 pictures cannot be used: ")
    assert f"; {files[0]} is no readable picture (" in said
    assert MANIFEST_NAME not in sums(out)
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    before = {name: (out.local / name).stat().st_mtime_ns for name in out.names()}
    make(mine, out)
    assert len(before) == 3  # of five shards
    assert {name: (out.local / name).stat().st_mtime_ns for name in before} == before
    make(source, Store(str(tmp_path / "whole")))
    assert sums(out) == sums(tmp_path / "whole")


def test_after_twenty_broken_pictures_no_more_are_looked_for(tmp_path, out):
    folder = tmp_path / "bad" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(200):
        (folder / f"{number:03d}.jpg").write_bytes(b"none")
    said = refused("at least 20 pictures cannot be used: ", tmp_path / "bad", out, samples=10)
    assert said.count(".jpg") == 20
    assert said.count("4 bytes that are no picture") == 3
    assert "; nor can " in said


def test_pictures_removed_since_a_set_was_half_made_are_told_and_it_is_begun_anew(tmp_path, out):
    folder, told = photographs(tmp_path / "animals", classes=2, train=5, test=3), []
    bad = folder / "train" / "bee" / "bee_00001.jpg"
    bad.write_bytes(b"none")
    refused("restore or remove it", folder, out, samples=2)
    assert list((out.local / ".preparing").glob("*.note"))
    bad.unlink()
    make(folder, out, samples=2, warn=told.append)
    assert told == [
        f"{out} was half made of other pictures (10 train + 6 test, and now 9 train + 6 test); it is begun anew"
    ]
    make(folder, Store(str(tmp_path / "whole")), samples=2)
    assert sums(out) == sums(tmp_path / "whole")


def test_a_file_of_the_users_own_in_a_half_made_set_stays(tmp_path, source, out, monkeypatch):
    monkeypatch.setattr(module, "write_manifest", lambda *_: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        make(source, out)
    monkeypatch.undo()
    (out.local / "mine.tmp").write_text("thesis")
    make(source, out)
    assert (out.local / "mine.tmp").read_text() == "thesis"


def test_other_kinds_of_pictures_are_named(tmp_path, out):
    for kind in ("bmp", "webp"):
        file = tmp_path / kind / "train" / "a" / f"x.{kind}"
        file.parent.mkdir(parents=True)
        Image.fromarray(picture(0)).save(file)
        refused(f"{file} is neither a JPEG nor a PNG; convert it", tmp_path / kind, out)


def test_an_empty_file_and_one_that_is_gone_are_named(source, out, tmp_path):
    mine = copied(source, tmp_path / "mine" / "animals")
    file = mine / "train" / "bee" / "bee_00004.jpg"
    file.write_bytes(b"")
    refused(f"{file} is no readable picture (0 bytes", mine, out)
    originals = source_from_folders(mine)
    file.unlink()
    with pytest.raises(DataError, match="No such file or directory"):
        prepare_shards(originals, out, samples=4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"short_side": 16}, "(short side none, where 16 is asked for)"),
        ({"samples": 3}, "(pictures a shard 4 train + 4 test, where 3 train + 3 test is asked for)"),
        ({"split": "test"}, "(pictures 10 train + 6 test, where 6 test is asked for)"),
        ({"name": "animals2"}, "(set animals, where animals2 is asked for)"),
    ],
)
def test_another_set_in_the_same_folder_is_refused(source, out, monkeypatch, options, text):
    def another():
        originals = source_from_folders(source, options.get("split"))
        originals = dataclasses.replace(originals, name=options.get("name", "animals"))
        return prepare_shards(
            originals, out, short_side=options.get("short_side"), samples=options.get("samples", 4)
        )

    monkeypatch.setattr(module, "write_manifest", lambda *_: pytest.fail("stop here"))
    with pytest.raises(pytest.fail.Exception):
        make(source, out)
    monkeypatch.undo()
    for state, those in (
        ("a set half made", f"{out}/.preparing and the shards"),
        ("a finished set", "that"),
    ):
        before = sums(out)
        with pytest.raises(DataError) as caught:
            another()
        assert str(caught.value) == (
            f"{out} holds {state} of another kind {text}; use another folder, or remove {those}"
        )
        assert sums(out) == before
        make(source, out)


def test_where_nothing_was_finished_another_set_may_be_made(source, out, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "deliver_file", lambda *_: pytest.fail("stop before the first note"))
    with pytest.raises(pytest.fail.Exception):
        make(source, out)
    monkeypatch.undo()
    assert (out.local / "train-00000.tar").is_file()
    (out.local / f".train-00001.tar.{'a' * 32}").write_bytes(b"as Place.put leaves it when killed")
    make(source, out, samples=50)
    make(source, Store(str(tmp_path / "whole")), samples=50)
    assert sums(out) == sums(tmp_path / "whole")


def test_other_classes_are_another_set(source, out, tmp_path):
    make(source, out)
    mine = copied(source, tmp_path / "mine" / "animals")
    for part in ("train", "test"):
        (mine / part / "bee").rename(mine / part / "cow")
    refused("a finished set of another kind (other classes)", mine, out)


def test_a_set_that_is_there_is_not_made_again(source, out):
    first = make(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.local.rglob("*")}
    again = make(source, out, progress=lambda *_: pytest.fail("nothing is to be done"))
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.local.rglob("*")} == before


@pytest.mark.parametrize("resize", [None, 16])
def test_a_picture_changed_since_is_noticed(source, out, tmp_path, resize):
    mine = copied(source, tmp_path / "mine" / "animals")
    make(mine, out, short_side=resize)
    file = mine / "test" / "ant" / "ant_00001.jpg"
    photograph(file, 99)
    later = (out.local / MANIFEST_NAME).stat().st_mtime + 5
    os.utime(file, (later, later))
    refused(
        f"holds a finished set, but {file} was changed since; use another folder", mine, out, short_side=resize
    )


def test_a_finished_set_with_a_damaged_shard_is_not_taken_for_whole(source, out):
    make(source, out)
    (out.local / "test-00001.tar").write_bytes(b"")
    refused("holds a finished set whose test-00001.tar is damaged", source, out)
    (out.local / "test-00001.tar").unlink()
    refused("holds a finished set whose test-00001.tar is damaged", source, out)


def test_two_classes_swapped_since_are_noticed(source, out, tmp_path):
    mine = copied(source, tmp_path / "mine" / "animals")
    make(mine, out)
    one = mine / "train" / "ant" / "ant_00000.jpg"
    one.rename(mine / "train" / "bee" / "bee_99999.jpg")  # the file's own time does not change
    (mine / "train" / "bee" / "bee_00000.jpg").rename(one)
    refused("was changed since", mine, out)


def test_a_folder_with_other_files_is_left_alone(source, out, tmp_path):
    out.local.mkdir()
    (out.local / "thesis.txt").write_text("mine")
    refused("holds other files (thesis.txt); use an empty folder", source, out)
    assert sums(out) == {"thesis.txt": hashlib.sha256(b"mine").hexdigest()}
    assert not (out.local / ".preparing").exists()
    refused("is a file; give a folder", source, Store(str(out.local / "thesis.txt")))
    refused("cannot be written (Not a directory)", source, Store(str(out.local / "thesis.txt" / "below")))


def test_what_is_refused_leaves_no_folder_behind(tmp_path, out):
    with pytest.raises(DataError, match="use numbers from 1"):
        prepare_shards(SourceSet("x", "", ("a",), {"train": []}), out, samples=0)
    with pytest.raises(DataError, match="x has no pictures in its train part"):
        prepare_shards(SourceSet("x", "", ("a",), {"train": []}), out)
    with pytest.raises(DataError, match="http is for reading"):
        prepare_shards(source_from_named_set("noise", tmp_path), open_store("http://user:pw@127.0.0.1:1/x"))
    assert list(tmp_path.iterdir()) == []


def test_two_commands_into_one_folder_do_not_mix(source, out):
    began, go_on, failed = threading.Event(), threading.Event(), []

    def slowly(done, total):
        began.set()
        go_on.wait(30)

    def first():
        try:
            make(source, out, progress=slowly)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert began.wait(30)
        refused("another command is preparing into", source, out)
    finally:
        go_on.set()
        thread.join()
    assert failed == []
    assert make(source, out).splits["train"].samples == 10


# --- resizing ----------------------------------------------------------------------------------------------


def test_resized_pictures_are_pillows_and_exactly_as_small_as_asked_for(tmp_path, out):
    folder = tmp_path / "sizes" / "train" / "a"
    sizes = {"wide": (30, 61), "tall": (77, 40), "exact": (24, 50), "small": (10, 12)}
    for number, (name, (height, width)) in enumerate(sizes.items()):
        photograph(folder / f"{name}.jpg", number, height=height, width=width)
    made = make(tmp_path / "sizes", out, short_side=24, samples=10)
    assert made.resized is not None
    assert (made.resized.short_side, made.resized.interpolation, made.resized.quality) == (24, "bilinear", 95)
    # 24 * 61 / 30 = 48.8, 24 * 77 / 40 = 46.2, 24 * 12 / 10 = 28.8: the long side is rounded down
    expected = {"wide": (24, 48), "tall": (46, 24), "exact": (24, 50), "small": (24, 28)}
    with tarfile.open(out.local / "train-00000.tar") as tar:
        found = {name[9:-4]: tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")}
    assert found["exact"] == (folder / "exact.jpg").read_bytes()
    for name, (height, width) in expected.items():
        with Image.open(io.BytesIO(found[name])) as image, Image.open(folder / f"{name}.jpg") as original:
            assert (image.height, image.width) == (height, width)
            if name != "exact":
                again = io.BytesIO()
                small = original.resize((width, height), Image.Resampling.BILINEAR)
                small.save(again, "JPEG", quality=95, subsampling=2)  # Pillow's number for 4:2:0
                assert again.getvalue() == found[name]
    opened = open_shards(out).train.index
    assert sorted(zip(opened["height"].tolist(), opened["width"].tolist(), strict=True)) == sorted(
        expected.values()
    )


@pytest.mark.parametrize(("height", "short", "size"), [(1, 256, "76800 x 256"), (20, 400, "6000 x 400")])
def test_a_picture_that_would_be_too_large_to_be_read_again_is_named(
    tmp_path, out, monkeypatch, height, short, size
):
    file = tmp_path / "thin" / "train" / "a" / "x.jpg"
    photograph(file, 0, height=height, width=300)
    monkeypatch.setattr(module.jpeg, "LARGEST", 2_000_000)
    said = f"{file} would become {size} pixels, too many to be read again; remove it"
    refused(said, tmp_path / "thin", out, short_side=short)


# --- small sets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noise", "digits"])
def test_a_small_set_comes_back_from_its_shards_without_loss(tmp_path, out, name):
    images = load_images(name, tmp_path)
    made = prepare_shards(source_from_named_set(name, tmp_path), out, samples=500)
    assert (made.name, made.source) == (name, images.source)
    again = decode_shards(open_shards(out))
    assert fingerprint(again.classes, again.train, again.test) == fingerprint(
        images.classes, images.train, images.test
    )
    assert prepare_shards(source_from_named_set(name, tmp_path), out, samples=500) == made


def test_a_small_set_with_a_changed_pixel_is_another(tmp_path, out):
    originals = source_from_named_set("noise", tmp_path)
    prepare_shards(originals, out)
    originals.splits["test"].images.pixels[3, 0, 0, 0] ^= 1
    with pytest.raises(DataError, match="but the test part of noise was changed since"):
        prepare_shards(originals, out)


def test_the_helper_of_other_tests_makes_whole_sets(tmp_path):
    opened = prepared(tmp_path, classes=2, train=2, test=1, short_side=16)
    assert (len(opened.train), len(opened.test), opened.manifest.resized.short_side) == (4, 2, 16)


# --- on a server -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(server, monkeypatch, tmp_path):
    """An empty bucket `shop`, and a secret that nobody may tell."""
    import boto3

    aws(monkeypatch, server, tmp_path)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shop")
    yield client
    for one in client.list_objects_v2(Bucket="shop").get("Contents", []):
        client.delete_object(Bucket="shop", Key=one["Key"])
    client.close()


def aws(monkeypatch, endpoint, tmp_path):
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def objects(client):
    found = client.list_objects_v2(Bucket="shop").get("Contents", [])
    return {one["Key"]: client.get_object(Bucket="shop", Key=one["Key"])["Body"].read() for one in found}


def test_on_s3_lie_the_same_bytes_as_in_a_folder(source, out, s3, tmp_path):
    far = open_store("s3://shop/sets/animals")
    made = make(source, far, workers=2)
    assert make(source, out) == made
    expected = {f"sets/animals/{path.name}": path.read_bytes() for path in out.local.iterdir()}
    assert objects(s3) == expected
    assert make(source, far, progress=lambda *_: pytest.fail("nothing is to be done")) == made
    assert open_shards(far).train.read([0, 9]) == open_shards(out).train.read([0, 9])
    assert not list(tmp_path.glob("repro-prepare-*/*"))  # nothing stays on this machine


def test_on_s3_too_what_is_finished_is_not_made_again(source, out, s3, tmp_path, monkeypatch):
    far = open_store("s3://shop/animals")
    put = Store.put

    def dies(self, file, name):
        if name == "test-00000.tar":
            raise KeyboardInterrupt
        put(self, file, name)

    monkeypatch.setattr(Store, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        make(source, far)
    monkeypatch.setattr(Store, "put", put)
    assert f"animals/{MANIFEST_NAME}" not in objects(s3)
    shutil.rmtree(next(tmp_path.glob("repro-prepare-*")))  # as on another machine
    made, write = [], module.ShardMaking.write
    monkeypatch.setattr(
        module.ShardMaking, "write", lambda self, job, *rest: made.append(job.name) or write(self, job, *rest)
    )
    make(source, far)
    assert "train-00000.tar" not in made
    assert "test-00000.tar" in made
    make(source, out)
    assert objects(s3) == {f"animals/{path.name}": path.read_bytes() for path in out.local.iterdir()}


@pytest.mark.parametrize("same", [True, False])
def test_of_two_machines_that_prepare_at_one_address_the_last_goes_on_and_the_first_is_told(
    source, s3, tmp_path, monkeypatch, same
):
    far, put, failed = open_store("s3://shop/animals"), Store.put, []
    theirs = source if same else photographs(tmp_path / "other", classes=2, train=5, test=3, seed=1)
    originals = dataclasses.replace(source_from_folders(theirs), name="animals")

    def late(self, file, name):
        """When the first has written its first note, another machine begins, and ends."""
        put(self, file, name)
        if name.endswith(".note"):
            monkeypatch.setattr(Store, "put", put)
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
            failed.append(prepare_shards(originals, far, samples=4))

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(Store, "put", late)
    refused("another command has begun to prepare into s3://shop/animals and goes on there", source, far)
    assert [one.splits["train"].samples for one in failed] == [10]
    prepare_shards(originals, Store(str(tmp_path / "whole")), samples=4)
    assert objects(s3) == {f"animals/{path.name}": path.read_bytes() for path in (tmp_path / "whole").iterdir()}


def test_the_plan_of_another_set_on_a_server_is_left_alone(source, s3, tmp_path, monkeypatch):
    far = open_store("s3://shop/animals")
    monkeypatch.setattr(module.ShardMaking, "all", lambda *_: pytest.fail("stop before the first shard"))
    with pytest.raises(pytest.fail.Exception):
        make(source, far)
    before = objects(s3)
    other = photographs(tmp_path / "other", classes=2, train=1, test=1)
    refused("or remove s3://shop/animals/preparing and the shards", other, far)
    assert objects(s3) == before
    assert list(before) == ["animals/preparing/plan.json"]


def test_whether_an_address_can_be_written_is_known_before_anything_is_read(s3, out, monkeypatch, tmp_path):
    check_writable(open_store("s3://shop/new"))
    check_writable(out)
    assert objects(s3) == {}
    assert not out.local.exists()
    with pytest.raises(DataError, match="s3://nowhere/x cannot be written: there is no such bucket"):
        check_writable(open_store("s3://nowhere/x"))
    out.local.write_text("a file")
    with pytest.raises(DataError, match="is a file; give a folder"):
        check_writable(out)

    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(DataError, match="no folder for temporary files can be written to"):
        check_writable(open_store("s3://shop/new"))


def test_a_folder_that_a_console_made_in_a_bucket_is_empty(source, s3):
    s3.put_object(Bucket="shop", Key="marked/", Body=b"")
    assert make(source, open_store("s3://shop/marked")).splits["train"].samples == 10


def test_a_prefix_with_other_objects_is_left_alone(source, s3):
    s3.put_object(Bucket="shop", Key="photos/thesis.txt", Body=b"mine")
    refused(
        "s3://shop/photos holds other files (thesis.txt); use another address",
        source,
        open_store("s3://shop/photos"),
    )
    assert set(objects(s3)) == {"photos/thesis.txt"}


def test_a_bucket_that_is_not_there_is_one_sentence(source, s3):
    said = refused(
        "s3://nowhere/x cannot be written: there is no such bucket", source, open_store("s3://nowhere/x")
    )
    assert SECRET not in said


def test_without_credentials_the_sentence_says_which_to_set(source, s3, monkeypatch):
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    refused(
        "no credentials for S3 were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        source,
        open_store("s3://shop/x"),
    )


class Refusing(http.server.BaseHTTPRequestHandler):
    """A bucket that answers every question with 403."""

    def do_GET(self):
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_bucket_that_refuses_is_one_sentence_without_the_secret(source, monkeypatch, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        thread = threading.Thread(target=refusing.serve_forever)
        thread.start()
        try:
            aws(monkeypatch, f"http://127.0.0.1:{refusing.server_port}", tmp_path)
            said = refused("s3://shop/x", source, open_store("s3://shop/x"))
        finally:
            refusing.shutdown()
            thread.join()
    assert "the server refuses access; check the credentials" in said
    assert SECRET not in said
    assert "AKIAEXAMPLE" not in said
