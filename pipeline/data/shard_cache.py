"""A cache on the local disk of shards that are read from a server."""

import contextlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.common.environment import env_number
from pipeline.common.files import file_sha256
from pipeline.data.images import DataError
from pipeline.data.shard_manifest import ShardInfo
from pipeline.data.store import Range, Store


class ShardCache:
    """Local copies of the remote shards of one set; all sets together take at most `limit` bytes below `root`.

    Copies of this set are never evicted: every sample is drawn once per epoch, so the oldest copy is the next to
    be read. Copies of other sets are evicted, least recently used sets first.
    """

    def __init__(self, root: Path, limit: int, source: Store, identity: str) -> None:
        self.root, self.limit, self.source = root, limit, source
        self.folder = root / identity
        self.copies = Store(str(self.folder))
        self.available: set[str] = set()  # names of shards with a copy

    def read(self, part: Range, crc32: int) -> bytes | None:
        """Return a part of a shard, or None without an undamaged copy; a damaged copy is deleted."""
        name = part[0]
        if name not in self.available:
            return None
        with contextlib.suppress(DataError):  # a process of another set may have evicted the copy
            (record,) = self.copies.read_ranges([part])
            if zlib.crc32(record) == crc32:
                return record
        self.available.discard(name)
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()
        return None

    def fill(self, shards: Sequence[ShardInfo], *, stop: Callable[[], bool] = lambda: False) -> None:
        """Copy the shards that fit, one after the other, until `stop()` is true; safe for concurrent processes.

        Raises DataError if a shard cannot be read or does not have the manifest's sha256.
        """
        from filelock import FileLock, Timeout

        with self.copies.translate_errors(""):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        for shard in shards:
            while not stop():
                with contextlib.suppress(Timeout), lock.acquire(timeout=1):
                    with self.copies.translate_errors(""):
                        self._copy(shard)
                    break

    def _copy(self, shard: ShardInfo) -> None:
        """Copy `shard` unless it is here or there is no room. The caller holds the lock."""
        file = self.folder / shard.name
        if not (file.is_file() and file.stat().st_size == shard.bytes):
            for partial in self.root.glob("*/.*.tar.*"):  # left by a process that was killed
                partial.unlink()
            if not self._make_room(shard.bytes):
                return
            copy = file.with_name(f".{file.name}.copied")
            self.source.fetch(shard.name, copy)
            sha256 = file_sha256(copy)
            if sha256 != shard.sha256:
                copy.unlink()
                raise DataError(damaged_file(f"{self.source}/{shard.name}", sha256, shard.sha256))
            copy.replace(file)
        os.utime(self.folder)
        self.available.add(shard.name)

    def _make_room(self, size: int) -> bool:
        """Evict copies of other sets until `size` more bytes fit; return False, and evict none, if they cannot."""
        files = {file: file.stat().st_size for file in self.root.glob("*/*.tar") if not file.name.startswith(".")}
        others = [file for file in files if file.parent != self.folder]
        excess = sum(files.values()) + size - self.limit
        if excess > sum(files[file] for file in others):
            return False
        for file in sorted(others, key=lambda file: (file.parent.stat().st_mtime, file)):
            if excess <= 0:
                break
            excess -= files[file]
            file.unlink()
        return True


def damaged_file(file: str, found: str, expected: str) -> str:
    """Return the message about a file whose sha256 is not that of the manifest."""
    return (
        f"{file} is damaged: its sha256 is {found[:12]}, but the manifest has {expected[:12]};"
        " restore it or prepare the set again"
    )


def shard_cache_bytes() -> int:
    """Return the size of the shard cache in bytes: REPRO_SHARD_CACHE_GB, 0 if it is not set."""
    return int(env_number("REPRO_SHARD_CACHE_GB", 0, unit="gigabytes", below=1e9) * 1e9)
