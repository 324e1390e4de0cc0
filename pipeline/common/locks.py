"""Locks between processes, also of several machines that share a folder."""

import errno
import fcntl
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from pipeline.common.errors import UserError
from pipeline.common.files import file_system_time

# Errors of flock(2) on file systems without locks: NFS without a lock service, Lustre mounted without `flock`.
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

LEASE_SECONDS = 30.0  # without a refresh, after which others take a lease; its holder refreshes it every 10 s

devices_with_flock: dict[int, bool] = {}  # by st_dev; a probe writes to the disk


def file_lock(path: Path, *, timeout: float = -1) -> BaseFileLock:
    """Return a lock on `path`, whose folder exists. `acquire` raises filelock.Timeout after `timeout` seconds.

    It is a lock of the operating system, which ends with its process. Where the file system has none, it is a
    lease in the file `path`.lease: a process of this machine takes over that of a dead one at once; a process of
    another machine does so when it has seen no refresh for LEASE_SECONDS, in calls of `acquire` of the same lock.
    """
    if has_flock(path.parent):
        return FileLock(path, timeout=timeout)
    return SoftFileLease(path.with_name(f"{path.name}.lease"), lease_duration=LEASE_SECONDS, timeout=timeout)


def is_locked(path: Path) -> bool:
    """Return True while a process holds `file_lock(path)`. The folder of `path` exists."""
    lock = file_lock(path, timeout=0)
    if not Path(lock.lock_file).exists():  # on a full disk it cannot be made
        return False
    try:
        with lock:
            return False
    except Timeout:
        return not isinstance(lock, SoftFileLease) or is_refreshed(Path(lock.lock_file))


def is_refreshed(lease: Path) -> bool:
    """Return True if a lease was refreshed in the last LEASE_SECONDS, by the clock of its file server."""
    try:
        return file_system_time(lease.parent) - lease.stat().st_mtime < LEASE_SECONDS
    except FileNotFoundError:  # released in the meantime
        return False


def has_flock(folder: Path) -> bool:
    """Return False if the folder's file system has no flock(2); True if that cannot be tried there."""
    try:
        device = folder.stat().st_dev
        if device not in devices_with_flock:
            with tempfile.TemporaryFile(dir=folder) as probe:
                devices_with_flock[device] = can_lock(probe.fileno())
        return devices_with_flock[device]
    except OSError:  # no such folder, read-only or full: the lock itself raises a better error
        return True


def can_lock(descriptor: int) -> bool:
    """Return whether flock(2) works on a file that no other process has opened."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        warnings.filterwarnings("ignore", message="flock not supported")  # of filelock, in other libraries
        return False
    return True


@contextmanager
def explain_lock_errors(*folders: Path) -> Iterator[None]:
    """Turn an error of flock(2) within the block, on a file system without it, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        without = [str(folder) for folder in folders if not has_flock(folder)]
        if not without:  # of another call than flock(2)
            raise
        raise UserError(
            f"the file system of {without[0]} does not support file locks ({os.strerror(error.errno).lower()});"
            " mount it with locks (Lustre: -o flock), or use a folder on another file system"
        ) from error
