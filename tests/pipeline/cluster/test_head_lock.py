"""The lock of a cluster's only head: heads side by side, and what dead heads leave behind."""

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from pipeline.cluster import head_lock, token
from pipeline.cluster.head_lock import heartbeat_age, heartbeat_file, hold_head_lock
from pipeline.common.errors import UserError
from tests.support.clusters import wait_until


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Wait a moment, not 15 seconds."""
    monkeypatch.setattr(head_lock, "HEAD_END_SECONDS", 0.1)


def make_older(folder, seconds):
    """Move the last heartbeat into the past."""
    moment = heartbeat_file(folder).stat().st_mtime - seconds
    os.utime(heartbeat_file(folder), (moment, moment))


def test_a_head_has_a_heartbeat_until_it_ends(cluster_home, monkeypatch):
    monkeypatch.setattr(head_lock, "HEAD_BEAT_SECONDS", 0.01)
    folder = token.cluster_folder()
    with hold_head_lock():
        make_older(folder, 100)
        for _ in range(500):
            if heartbeat_age(folder) < 50:
                break
            head_lock.threading.Event().wait(0.01)
        assert heartbeat_age(folder) < 50
    assert heartbeat_age(folder) is None
    with hold_head_lock():
        pass


def test_a_second_head_of_a_cluster_is_refused(cluster_home):
    with hold_head_lock(), pytest.raises(UserError, match=r"another head of the cluster .* runs but does not"):
        hold_head_lock().__enter__()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "8"}),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),  # requeued
        ({"REPRO_CLUSTER": "a"}, {"REPRO_CLUSTER": "b"}),
        ({}, {"REPRO_CLUSTER": "a"}),
    ],
)
def test_clusters_side_by_side_have_heads_and_tokens_of_their_own(cluster_home, monkeypatch, first, second):
    tokens = set()
    with contextlib.ExitStack() as stack:
        for variables in (first, second):
            with monkeypatch.context() as patch:
                for name, value in variables.items():
                    patch.setenv(name, value)
                stack.enter_context(hold_head_lock())
                tokens.add(token.ensure_token_file().read_text())
    assert len(tokens) == 2


def write_node(host, pid, began):
    (token.cluster_folder() / "node.json").write_text(json.dumps({"host": host, "pid": pid, "began": began}))


def test_the_lock_of_a_machine_that_died_is_taken_over(cluster_home):
    """The file server may keep the lock of a machine that is gone."""
    folder = token.cluster_folder()
    with FileLock(folder / "head.lock"):
        heartbeat_file(folder).touch()
        write_node("another-machine", os.getpid(), 0.0)
        with pytest.raises(UserError, match="runs but does not respond"):  # it was alive a moment ago
            hold_head_lock().__enter__()
        make_older(folder, head_lock.LOST_SECONDS + 1)
        with hold_head_lock():
            assert heartbeat_age(folder) < 5


def test_the_lock_of_a_process_of_this_machine_is_never_taken_over(cluster_home):
    folder, process = token.cluster_folder(), psutil.Process()
    with FileLock(folder / "head.lock"):
        heartbeat_file(folder).touch()
        make_older(folder, 10 * head_lock.LOST_SECONDS)
        write_node(socket.gethostname(), process.pid, process.create_time())
        with pytest.raises(UserError, match="runs but does not respond"):
            hold_head_lock().__enter__()


def lose_head_of_another_machine(folder):
    """Write the files of a head that another machine ran, and whose heartbeat stopped."""
    heartbeat_file(folder).touch()
    make_older(folder, head_lock.LOST_SECONDS + 1)
    write_node("another-machine", os.getpid(), 0.0)
    assert head_lock.is_lost(folder)


@pytest.mark.parametrize("file", ["heartbeat", "node.json"])
def test_a_file_system_that_does_not_answer_says_nothing_of_the_head(cluster_home, monkeypatch, file):
    """A stale NFS handle is no sign of a dead head."""
    folder = token.cluster_folder()
    with FileLock(folder / "head.lock"):
        lose_head_of_another_machine(folder)
        for name in ("stat", "read_text"):
            works = getattr(Path, name)

            def answer(path, *args, works=works, **options):
                if path.name == file:
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                return works(path, *args, **options)

            monkeypatch.setattr(Path, name, answer)
        with pytest.raises(UserError, match="runs but does not respond"):
            hold_head_lock().__enter__()


def test_without_the_file_systems_clock_a_head_is_not_taken_for_dead(cluster_home, monkeypatch):
    """The clock of this machine may be ahead of the server's."""
    folder = token.cluster_folder()
    with FileLock(folder / "head.lock"):
        lose_head_of_another_machine(folder)

        def no_space(**_):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr("pipeline.common.files.tempfile.TemporaryFile", no_space)
        with pytest.raises(UserError, match="runs but does not respond"):
            hold_head_lock().__enter__()


def test_a_head_that_has_the_lock_but_no_heartbeat_yet_is_not_dead(cluster_home):
    """The node.json is of an earlier head, which was killed."""
    with FileLock(token.cluster_folder() / "head.lock"):
        write_node("another-machine", os.getpid(), 0.0)
        with pytest.raises(UserError, match="runs but does not respond"):
            hold_head_lock().__enter__()


def test_a_head_that_was_cut_off_learns_that_it_was_replaced(cluster_home, monkeypatch):
    """The first head does not reach the file server for a while; its machine and process live on."""
    monkeypatch.setattr(head_lock, "HEAD_BEAT_SECONDS", 0.01)
    folder = token.cluster_folder()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(hold_head_lock())
        write_node("another-machine", os.getpid(), 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(head_lock.Heartbeat, "_beat", lambda self: None)
            make_older(folder, head_lock.LOST_SECONDS + 1)
            assert not first.is_replaced()
            second = stack.enter_context(hold_head_lock())
        assert first.replaced.wait(5)
        assert not second.replaced.wait(0.1)
        first.stop()
        assert heartbeat_age(folder) < 5  # the heartbeat of the second head remains
    assert heartbeat_age(folder) is None


def test_a_heartbeat_that_was_deleted_is_written_again(cluster_home, monkeypatch):
    monkeypatch.setattr(head_lock, "HEAD_BEAT_SECONDS", 0.01)
    folder = token.cluster_folder()
    with hold_head_lock() as heartbeat:
        heartbeat_file(folder).unlink()
        wait_until(lambda: heartbeat_age(folder) is not None, "the file is there again", seconds=5)
        assert not heartbeat.replaced.wait(0.1)


def test_folders_of_slurm_jobs_that_ended_long_ago_are_removed(cluster_home):
    kept = {"slurm-1", "slurm-login1", "other", "slurm-4"}
    for name, age in (("slurm-3", 2 * head_lock.KEPT_SECONDS), ("slurm-4", 60)):  # ended in order
        folder = token.clusters_folder() / name
        folder.mkdir()
        (folder / "token").touch()
        moment = folder.stat().st_mtime - age
        os.utime(folder, (moment, moment))
    for name, age in (
        ("slurm-1", 60),
        ("slurm-2", 2 * head_lock.KEPT_SECONDS),
        ("slurm-login1", 1e6),
        ("other", 1e6),
    ):
        folder = token.clusters_folder() / name
        folder.mkdir()
        heartbeat_file(folder).touch()
        make_older(folder, age)
    with hold_head_lock():
        assert {path.name for path in token.clusters_folder().iterdir()} == {*kept, token.cluster_name()}
