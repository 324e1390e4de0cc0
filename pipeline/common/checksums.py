"""MD5 sums of large files, kept so that a file is not read again while it is unchanged."""

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path

CHECKSUM_CACHE = "archives.json"  # in the cache folder: MD5 sums of files that were read before

HASH_CHUNK = 1 << 23  # bytes read at a time


def cached_md5(file: Path, cache: Path, count: Callable[[int], None]) -> str:
    """Return the MD5 sum of a file, from the folder `cache` if path, size and times are unchanged.

    `count` receives the number of bytes whenever some were hashed, or the file's size at once.
    """
    stat = file.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    key, cache_file = str(file.resolve()), cache / CHECKSUM_CACHE
    known = read_checksum_cache(cache_file).get(key)
    if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
        count(stat.st_size)
        return known[-1]
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(HASH_CHUNK):
            digest.update(chunk)
            count(len(chunk))
    temporary = cache_file.with_name(f".{cache_file.name}.{uuid.uuid4().hex}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        entries = read_checksum_cache(cache_file) | {key: [*stamp, digest.hexdigest()]}
        temporary.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        temporary.replace(cache_file)
    except OSError:  # a read-only or full disk: the next call only takes longer
        with contextlib.suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()


def read_checksum_cache(file: Path) -> dict[str, object]:
    """Return the cached MD5 sums; an unreadable cache is empty."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
