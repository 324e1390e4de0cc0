"""Atomic writes and file hashes."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace the content of `path`. At every moment the file has either its old or its new content.

    `durable`: also after a crash of the operating system. False saves milliseconds for a cache.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            with suppress(OSError):  # some file systems, such as CIFS, have no permissions
                os.fchmod(file.fileno(), 0o644)  # mkstemp makes it readable for its owner only
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def probed_time(folder: Path) -> float:
    """Return the Unix time by the clock that gives the files of `folder` their times. Raises OSError.

    The clock of a file server and that of this machine may differ.
    """
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def file_system_time(folder: Path) -> float:
    """Return `probed_time`, or the time of this machine if no file can be made in `folder`."""
    try:
        return probed_time(folder)
    except OSError:
        return time.time()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits, without reading the file into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """Return the first 16 hex digits of a file's sha256."""
    return file_sha256(path)[:16]


def edited_since_start(files: Iterable[Path]) -> bool:
    """Return True if one of these source files was modified after this process started."""
    import psutil

    start: float = psutil.Process().create_time()
    return any(path.stat().st_mtime > start for path in files)
