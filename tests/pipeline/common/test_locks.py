"""Locks on file systems with and without flock(2)."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time

import pytest
from filelock import FileLock, SoftFileLease, Timeout

from pipeline.common import locks
from pipeline.common.errors import UserError
from pipeline.common.locks import explain_lock_errors, file_lock, has_flock, is_locked

NO_FLOCK = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture(params=NO_FLOCK, ids=errno.errorcode.get)
def without_flock(request, monkeypatch):
    """A file system without flock, as NFS without a lock service (ENOLCK) or Lustre (ENOSYS)."""

    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "devices_with_flock", {})


def test_the_lock_is_one_of_the_operating_system_where_there_is_flock(tmp_path):
    assert isinstance(file_lock(tmp_path / "lock"), FileLock)
    assert [path.name for path in tmp_path.iterdir()] == []  # the probe is gone


def test_without_flock_the_lock_excludes_others(tmp_path, without_flock):
    path = tmp_path / "lock"
    with file_lock(path):
        assert [file.name for file in tmp_path.iterdir()] == ["lock.lease"]
        with pytest.raises(Timeout):
            file_lock(path).acquire(timeout=0)
    with file_lock(path, timeout=0):
        pass
    assert [*tmp_path.iterdir()] == []


def test_without_hard_links_too(tmp_path, without_flock, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    test_without_flock_the_lock_excludes_others(tmp_path, without_flock)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(tmp_path, without_flock):
    code = "import sys, os; from filelock import SoftFileLease\n"
    code += f"lock = SoftFileLease(sys.argv[1], lease_duration={locks.LEASE_SECONDS}); lock.acquire(); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "lock.lease")], check=False)
    assert (tmp_path / "lock.lease").is_file()
    with file_lock(tmp_path / "lock", timeout=2):
        pass


def test_the_lease_of_a_dead_machine_is_taken_over_once_it_is_not_refreshed(tmp_path, without_flock, monkeypatch):
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.3)
    marker = tmp_path / "lock.lease"
    other = SoftFileLease(marker, lease_duration=0.3)
    other.acquire(timeout=0)
    content = marker.read_text(encoding="utf-8").replace(f"host={socket.gethostname()}", "host=another")
    other.release()
    marker.write_text(content, encoding="utf-8")
    lock, began = file_lock(tmp_path / "lock"), time.monotonic()
    with pytest.raises(Timeout):
        lock.acquire(timeout=0)
    lock.acquire(timeout=5)
    assert time.monotonic() - began >= 0.3
    lock.release()


def test_a_lock_is_held_until_it_is_released(tmp_path):
    assert not is_locked(tmp_path / "lock")
    assert [*tmp_path.iterdir()] == []  # asking makes no file, which fails on a full disk
    with file_lock(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")


def test_a_lease_is_held_until_it_is_no_longer_refreshed(tmp_path, without_flock):
    """The process of a dead machine cannot be asked; its lease stays until another process waits for it."""
    marker = tmp_path / "lock.lease"
    assert not is_locked(tmp_path / "lock")
    with file_lock(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")
        content = marker.read_text(encoding="utf-8").replace(f"host={socket.gethostname()}", "host=another")
    marker.write_text(content, encoding="utf-8")
    assert is_locked(tmp_path / "lock")
    before = time.time() - locks.LEASE_SECONDS - 1
    os.utime(marker, (before, before))
    assert not is_locked(tmp_path / "lock")
    assert marker.is_file()


def test_a_folder_that_cannot_be_probed_counts_as_one_with_flock(tmp_path, without_flock):
    assert has_flock(tmp_path / "missing")
    assert not has_flock(tmp_path)


def test_an_error_of_flock_names_the_folder_and_what_to_do(tmp_path, without_flock):
    with pytest.raises(UserError) as error, explain_lock_errors(tmp_path / "missing", tmp_path):
        fcntl.flock(0, fcntl.LOCK_EX)
    assert str(error.value).startswith(f"the file system of {tmp_path} does not support file locks (")
    assert str(error.value).endswith("or use a folder on another file system")


def test_other_errors_propagate(tmp_path):
    with pytest.raises(FileNotFoundError), explain_lock_errors(tmp_path):
        (tmp_path / "missing").read_text()


@pytest.mark.parametrize("number", NO_FLOCK, ids=errno.errorcode.get)
def test_the_same_error_of_another_call_propagates_where_flock_works(tmp_path, number):
    with pytest.raises(OSError, match="of another call") as error, explain_lock_errors(tmp_path):
        raise OSError(number, "of another call")
    assert error.value.errno == number
