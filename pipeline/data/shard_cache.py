"""A local cache of shards that are read from a server."""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.data.images import DataError
from pipeline.data.shard_manifest import ShardInfo
from pipeline.data.store import Range, Store


class ShardCache:
    """Copies of remote shards on this machine: `limit` bytes below `root` in all, whatever sets they are of.

    What is there stays: with every sample drawn once an epoch, throwing out the oldest would throw out what comes
    next. Only the copies of other sets make room, those first that were not used for longest.
    """

    def __init__(self, root: Path, limit: int, source: Store, identity: str) -> None:
        self.root, self.limit, self.source = root, limit, source
        self.folder = root / identity
        self.near = Store(str(self.folder))
        self.have: set[str] = set()

    def read(self, wanted: Range, crc32: int) -> bytes | None:
        """A part of a shard, if a copy is there and undamaged; a damaged one is not used again."""
        if wanted[0] not in self.have:
            return None
        with contextlib.suppress(DataError):  # another set's process may have needed the room
            (record,) = self.near.ranges([wanted])
            if zlib.crc32(record) == crc32:
                return record
        self.have.discard(wanted[0])
        with contextlib.suppress(OSError):
            (self.folder / wanted[0]).unlink()
        return None

    def fill(self, shards: Sequence[ShardInfo], *, stop: Callable[[], bool] = lambda: False) -> None:
        """Copy what fits, one shard after the other; other processes may do the same at the same time.

        DataError where a shard cannot be had, or is not what the manifest says.
        """
        from filelock import FileLock, Timeout

        with self.near.trouble(""):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        for shard in shards:
            while not stop():
                with contextlib.suppress(Timeout), lock.acquire(timeout=1):
                    with self.near.trouble(""):
                        self._keep(shard)
                    break

    def _keep(self, shard: ShardInfo) -> None:
        """Have a copy of `shard`, if there is room. Only one process does this at a time."""
        file = self.folder / shard.name
        if not (file.is_file() and file.stat().st_size == shard.bytes):
            for half in self.root.glob("*/.*.tar.*"):  # of a process that was killed
                half.unlink()
            if not self._room(shard.bytes):
                return
            fresh = file.with_name(f".{file.name}.copied")
            self.source.fetch(shard.name, fresh)
            found = file_sha256(fresh)
            if found != shard.sha256:
                fresh.unlink()
                raise DataError(
                    f"{self.source}/{shard.name} is damaged: its sha256 is {found[:12]} where the manifest"
                    f" says {shard.sha256[:12]}; restore it, or prepare the set anew"
                )
            fresh.replace(file)
        os.utime(self.folder)
        self.have.add(shard.name)

    def _room(self, size: int) -> bool:
        """Whether `size` more bytes may be kept, after other sets' copies made room where that is enough."""
        files = {file: file.stat().st_size for file in self.root.glob("*/*.tar") if not file.name.startswith(".")}
        others = [file for file in files if file.parent != self.folder]
        over = sum(files.values()) + size - self.limit
        if over > sum(files[file] for file in others):
            return False
        for file in sorted(others, key=lambda file: (file.parent.stat().st_mtime, file)):
            if over <= 0:
                break
            over -= files[file]
            file.unlink()
        return True


def file_sha256(file: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def shard_cache_bytes() -> int:
    """Bytes of REPRO_SHARD_CACHE_GB; 0 without it."""
    said = os.environ.get("REPRO_SHARD_CACHE_GB", "0")
    try:
        limit = float(said)
    except ValueError:
        limit = -1
    if not 0 <= limit < 1e9:
        raise DataError(f"REPRO_SHARD_CACHE_GB is {said!r}; it should be a number of gigabytes, such as 200")
    return int(limit * 1e9)
