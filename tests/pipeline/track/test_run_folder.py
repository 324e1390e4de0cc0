"""Run folders stay readable whatever stops a run."""

import errno
import json
import os
import re
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.common.errors import UserError
from pipeline.track import run_folder
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import journal_metrics, smoke_run, stop_after, train_in, weights


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


def test_journal_is_read_from_an_offset(folder):
    assert list(folder.journal()) == []
    folder.append_journal(entry(1))
    [(first, end)] = folder.journal()
    assert first == entry(1)
    folder.append_journal(entry(2))
    assert [found for found, _ in folder.journal(end)] == [entry(2)]


def test_half_written_last_line_is_skipped_and_repair_removes_it(folder):
    folder.append_journal(entry(1))
    whole = folder.journal_file.read_bytes()
    for cut in (1, 10, len(whole) - 1):
        folder.journal_file.write_bytes(whole + whole[:cut])
        assert steps(folder) == [1]
        assert folder.repair_journal() == 1
        assert folder.journal_file.read_bytes() == whole
    folder.append_journal(entry(2))
    assert steps(folder) == [1, 2]


def test_journal_with_only_half_a_line_is_empty(folder):
    folder.journal_file.write_bytes(b'{"step": 1, "ti')
    assert folder.repair_journal() == -1
    assert folder.journal_file.read_bytes() == b""


# Checkpoints


def save(folder, step, content=b"weights"):
    folder.save_checkpoint(step, lambda path: path.write_bytes(content))


def test_the_newest_two_checkpoints_are_kept(folder):
    for step in (2, 10, 9, 100):
        save(folder, step)
    assert [path.name[:15] for path in folder.checkpoint_files()] == ["step-0000000100", "step-0000000010"]
    assert folder.last_checkpoint(pytest.fail) == (100, folder.checkpoint_files()[0])


def test_the_last_step_is_that_of_the_newest_checkpoint_file(folder):
    assert folder.last_step() == 0
    for step in (9, 10):
        save(folder, step)
    folder.checkpoint_files()[0].write_bytes(b"damaged")  # only the name counts
    assert folder.last_step() == 10


def test_a_failed_checkpoint_leaves_the_others_and_no_partial_file(folder):
    save(folder, 1)

    def half(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="no space left on device; nothing is lost: free some space"):
        folder.save_checkpoint(2, half)
    assert folder.last_checkpoint(pytest.fail)[0] == 1
    assert len(list(folder.checkpoints.iterdir())) == 1


def test_a_partial_checkpoint_of_a_killed_process_is_ignored_and_replaced(folder):
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
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(folder, damage):
    save(folder, 1, b"the first")
    save(folder, 2, b"the second")
    newest, before = folder.checkpoint_files()
    newest.write_bytes(damage(newest.read_bytes()))
    reports = []
    assert folder.last_checkpoint(reports.append) == (1, before)
    assert reports == [f"checkpoint {newest.name} is damaged; using the one before"]


def test_if_every_checkpoint_is_damaged_each_is_reported(folder):
    save(folder, 1)
    save(folder, 2)
    for path in folder.checkpoint_files():
        path.write_bytes(b"")
    reports = []
    assert folder.last_checkpoint(reports.append) is None
    assert [line.rpartition("; ")[2] for line in reports] == [
        "using the one before",
        "starting from the first step",
    ]


def test_progress_that_cannot_be_written_raises_nothing(folder, monkeypatch):
    assert folder.read_progress() == {}
    folder.write_progress(7, 12.5)
    where = {"host": socket.gethostname(), "pid": os.getpid()}
    assert folder.read_progress() == {"step": 7, "images_per_second": 12.5} | where
    (folder.path / "progress.json").write_text('{"step"')
    assert folder.read_progress() == {}
    monkeypatch.setattr(run_folder, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError()))
    folder.write_progress(8, 12.5)


def test_result_is_the_written_record(tmp_path, experiment, record):
    folder = RunFolder(tmp_path / "run")
    folder.create({})
    save(folder, 1)
    assert folder.result() is None
    made = record(experiment, "plain-20", 0, 9.5)
    folder.finish(made, {"network.safetensors": b"the network"})
    assert folder.result() == made
    assert folder.network_file.read_bytes() == b"the network"
    assert not folder.checkpoints.exists()


@pytest.mark.parametrize("content", ["", '{"identity": "x"', '{"identity": "x"}', "[1]"])
def test_a_damaged_record_is_an_error_of_one_sentence(folder, content):
    folder.result_file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"result\.json is not a run's record .*; move its folder away"):
        folder.result()


# A full disk


@pytest.fixture
def tiny_disk(tmp_path):
    """Path of a file system of six megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place, leave):
    """Fill the disk up to `leave` free bytes."""
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    (place / "filler").write_bytes(b"\0" * (free - leave))


SENTENCE = (
    r"^cannot write to .*: no space left on device; nothing is lost: free some space or fix the folder, and run "
    r"the same command again to resume$"
)


@pytest.mark.skipif(os.name != "posix", reason="mounts a file system")
@pytest.mark.parametrize("leave", [0, 4096 * 4, 2_000_000])
def test_a_full_disk_is_one_sentence_and_the_run_resumes(tmp_path, tiny_disk, leave, monkeypatch):
    """The disk is full at the start, with the journal, or with the checkpoint (2.2 MB for ResNet-20)."""
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
def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, tiny_disk):
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


def test_a_request_to_stop_is_read_from_the_folder_until_the_run_is_marked_unfinished(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.track.run_folder.time", SimpleNamespace(time=lambda: 1_700_000_000.0))
    folder = RunFolder(tmp_path / "run")
    assert (folder.stop_reason(), folder.unfinished()) == ("", {})
    folder.request_stop("cancelled")
    assert RunFolder(tmp_path / "run").stop_reason() == "cancelled"
    folder.mark_unfinished("cancelled", "cancelled by a test")
    assert folder.stop_reason() == ""
    left = folder.unfinished()
    assert (left["why"], left["text"]) == ("cancelled", "cancelled by a test")
    assert left["asked"] == 1_700_000_000.0
    folder.clear_unfinished()
    assert (folder.stop_reason(), folder.unfinished()) == ("", {})
    folder.clear_unfinished()  # nothing to clear


def test_every_line_of_the_log_has_its_time(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.log("started")
    folder.log("two\nlines")
    lines = folder.log_file.read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["started", "two", "lines"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*", line) for line in lines)


def test_a_log_that_cannot_be_written_raises_nothing(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be", encoding="utf-8")
    RunFolder(tmp_path / "run").log("started")


def test_cached_errors_are_those_of_one_model(tmp_path):
    folder = RunFolder(tmp_path)
    folder.evaluation_cache("a").add("test/x", {"test/loss": 1.0})
    folder.evaluation_cache("a").add("test/y", {"test/loss": 2.0})
    assert set(folder.evaluation_cache("a").read()) == {"test/x", "test/y"}
    assert folder.evaluation_cache("b").read() == {}
    (tmp_path / "checkpoints" / "judged.json").write_text("{", encoding="utf-8")
    assert folder.evaluation_cache("a").read() == {}
