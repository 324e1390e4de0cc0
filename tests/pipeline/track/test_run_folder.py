"""Run folders: whatever stops a run, what is there stays readable."""

import errno
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.common import files
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.track import run_folder
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import smoke_run, journal_metrics, stop_after, train_in, weights


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.create({"identity": "x"})
    return made


def entry(step):
    return {"step": step, "time": 1.5, "metrics": {"train/loss": 1 / step}}


def steps(folder, start=0):
    return [found["step"] for found, _ in folder.journal(start)]


# The journal


def test_journal_goes_on_where_it_was_read_to(folder):
    assert list(folder.journal()) == []
    folder.append(entry(1))
    [(first, end)] = folder.journal()
    assert first == entry(1)
    folder.append(entry(2))
    assert [found for found, _ in folder.journal(end)] == [entry(2)]


def test_half_written_last_line_is_left_out_and_then_dropped(folder):
    folder.append(entry(1))
    whole = folder.journal_file.read_bytes()
    for cut in (1, 10, len(whole) - 1):
        folder.journal_file.write_bytes(whole + whole[:cut])
        assert steps(folder) == [1]
        assert folder.mend_journal() == 1
        assert folder.journal_file.read_bytes() == whole
    folder.append(entry(2))
    assert steps(folder) == [1, 2]


def test_journal_with_nothing_but_half_a_line_is_empty(folder):
    folder.journal_file.write_bytes(b'{"step": 1, "ti')
    assert folder.mend_journal() == -1
    assert folder.journal_file.read_bytes() == b""


# Checkpoints


def save(folder, step, content=b"weights"):
    folder.save_checkpoint(step, lambda path: path.write_bytes(content))


def test_the_newest_two_checkpoints_are_kept(folder):
    for step in (2, 10, 9, 100):
        save(folder, step)
    assert [path.name[:15] for path in folder.checkpoint_files()] == ["step-0000000100", "step-0000000010"]
    assert folder.last_checkpoint(pytest.fail) == (100, folder.checkpoint_files()[0])


def test_a_checkpoint_that_fails_half_way_leaves_the_others_and_no_debris(folder):
    save(folder, 1)

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="no space left on device; nothing is lost: make room"):
        folder.save_checkpoint(2, half)
    assert folder.last_checkpoint(pytest.fail)[0] == 1
    assert len(list(folder.checkpoints.iterdir())) == 1


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_goes_away(folder):
    save(folder, 1)
    (folder.checkpoints / ".writing").write_bytes(b"half")
    assert folder.last_checkpoint(pytest.fail)[0] == 1
    save(folder, 2)
    assert [path.suffix for path in folder.checkpoints.iterdir()] == [".ckpt", ".ckpt"]


def truncated(content):
    return content[:-1]


def emptied(content):
    return b""


def bit_flipped(content):
    return content[:3] + bytes([content[3] ^ 1]) + content[4:]


@pytest.mark.parametrize("damage", [truncated, emptied, bit_flipped])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(folder, damage):
    save(folder, 1, b"the first")
    save(folder, 2, b"the second")
    newest, before = folder.checkpoint_files()
    newest.write_bytes(damage(newest.read_bytes()))
    said = []
    assert folder.last_checkpoint(said.append) == (1, before)
    assert said == [f"checkpoint {newest.name} is damaged; using the one before"]


def test_with_every_checkpoint_damaged_a_run_starts_anew_and_says_so(folder):
    save(folder, 1)
    save(folder, 2)
    for path in folder.checkpoint_files():
        path.write_bytes(b"")
    said = []
    assert folder.last_checkpoint(said.append) is None
    assert [line.rpartition("; ")[2] for line in said] == [
        "using the one before",
        "starting from the first update",
    ]


# Files


def test_write_atomically_replaces_whole(tmp_path):
    write_atomically(tmp_path / "a", "näh")
    assert (tmp_path / "a").read_bytes() == "näh".encode()
    write_atomically(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_atomically_that_fails_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_progress_that_cannot_be_written_stops_nothing(folder, monkeypatch):
    assert folder.progress() == {}
    folder.report(7, 12.5)
    where = {"host": socket.gethostname(), "pid": os.getpid()}
    assert folder.progress() == {"step": 7, "images_per_second": 12.5} | where
    (folder.path / "progress.json").write_text('{"step"')
    assert folder.progress() == {}
    monkeypatch.setattr(run_folder, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError()))
    folder.report(8, 12.5)


def test_result_is_the_record_written(tmp_path, experiment, record):
    folder = RunFolder(tmp_path / "run")
    folder.create({})
    save(folder, 1)
    assert folder.result() is None
    made = record(experiment, "plain-20", 0, 9.5)
    folder.finish(made, b"the network")
    assert folder.result() == made
    assert folder.network_file.read_bytes() == b"the network"
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize("content", ["", '{"identity": "x"', '{"identity": "x"}', "[1]"])
def test_a_damaged_record_is_one_sentence_and_not_passed_over(folder, content):
    folder.result_file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json is not a run's record .*; move its folder away"):
        folder.result()


def test_local_records_are_those_of_ended_runs(tmp_path, monkeypatch, experiment, record):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    assert run_folder.local_records() == []
    made = [record(experiment, "plain-20", seed, 9.5) for seed in (0, 1)]
    for one in made:
        folder = RunFolder(tmp_path / "runs" / one.identity)
        folder.create({})
        folder.finish(one, None)
    RunFolder(tmp_path / "runs" / "unfinished").create({})
    assert sorted(run_folder.local_records(), key=lambda found: found.seed) == made


# A full disk, for real


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of six megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can make a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place, leave):
    """Take all but `leave` bytes."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    (place / "filler").write_bytes(b"\0" * (free - leave))


SENTENCE = (
    r"^cannot write to .*: no space left on device; nothing is lost: make room \(or mend the folder\) and start "
    r"the same command again, which resumes$"
)


@pytest.mark.skipif(os.name != "posix", reason="mounts a file system")
@pytest.mark.parametrize("leave", [0, 4096 * 4, 2_000_000])
def test_a_full_disk_is_one_sentence_and_the_run_resumes(tmp_path, tiny_disk, leave, monkeypatch):
    """It is full at the start; with the journal; with the checkpoint (2.2 MB for ResNet-20)."""
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    place, run = tiny_disk / "run", smoke_run()
    train_in(tmp_path / "never-stopped", run)
    fill(tiny_disk, leave)
    with pytest.raises(UserError, match=SENTENCE):
        train_in(place, run)
    assert not list(place.glob("checkpoints/*"))
    (tiny_disk / "filler").unlink()
    monkeypatch.delenv("REPRO_CHECKPOINT_SECONDS")
    record = train_in(place, run)
    assert record.status == "finished"
    assert weights(place) == weights(tmp_path / "never-stopped")
    assert journal_metrics(place) == journal_metrics(tmp_path / "never-stopped")


@pytest.mark.skipif(os.name != "posix", reason="mounts a file system")
def test_a_disk_full_at_the_very_end_loses_nothing(tmp_path, tiny_disk):
    """The checkpoint at step 10 just fits; the network and the record do not."""
    place, run = tiny_disk / "run", smoke_run()
    train_in(tmp_path / "never-stopped", run)
    assert train_in(place, run, stop=stop_after(10)) is None
    fill(tiny_disk, 8192)
    with pytest.raises(UserError, match=SENTENCE):
        train_in(place, run)
    assert RunFolder(place).result() is None
    (tiny_disk / "filler").unlink()
    assert train_in(place, run).status == "finished"
    assert weights(place) == weights(tmp_path / "never-stopped")
    assert json.loads((place / "result.json").read_text())["ended"] == "12 steps"


def test_a_request_to_stop_is_heard_by_whoever_has_the_folder_until_it_is_answered(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert (folder.stop_reason(), folder.unfinished()) == ("", {})
    folder.request_stop("cancelled")
    assert RunFolder(tmp_path / "run").stop_reason() == "cancelled"
    folder.mark_unfinished("cancelled", "cancelled by a test")
    assert folder.stop_reason() == ""
    left = folder.unfinished()
    assert (left["why"], left["text"]) == ("cancelled", "cancelled by a test")
    assert abs(left["asked"] - time.time()) < 60
    folder.clear_unfinished()
    assert (folder.stop_reason(), folder.unfinished()) == ("", {})
    folder.clear_unfinished()  # nothing to forget


def test_every_line_of_a_log_has_its_time(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.log("started")
    folder.log("two\nlines")
    lines = folder.log_file.read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["started", "two", "lines"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*", line) for line in lines)


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be", encoding="utf-8")
    RunFolder(tmp_path / "run").log("started")
