"""Cache of the measured values of networks, so that a command whose values are all known does not import torch.

Each network has one file, in a folder beside the run folders. A value is valid for the exact bytes of the source
files that measure it and for the versions of Python and torch. A damaged file counts as an empty one.
"""

import json
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.files import edited_since_start, write_atomically
from pipeline.common.hashing import digest, source_digest
from pipeline.common.paths import ROOT, runs_folder

# Source files that a measured value may depend on, as globs below the checkout.
MEASURING_CODE = ("lightning_modules/**/*.py", "pipeline/analyse/*.py", "pipeline/declare/claim_tables.py")


def cached_value(network: tuple[Any, ...], metric: str) -> Any:
    """Return the value of `metric` of a network. Raises KeyError if no valid one is cached.

    `network` is plain data that determines the network and its input.
    """
    return read_values(network)[metric]


def cache_value(network: tuple[Any, ...], metric: str, value: Any) -> None:
    """Add a value that this process has measured to the network's file.

    Does nothing for a value that JSON would change, such as a tuple, and if a source file was edited after this
    process started: the value may come from the code before the edit. Ignores OSError: without the cache, commands
    only take longer.
    """
    if not is_json(value):
        return
    with suppress(OSError):
        if edited_since_start(measuring_files(ROOT)):
            return
        values = read_values(network) | {metric: value}
        file = value_file(network)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"network": network, "sources": measuring_code(), "values": values}
        write_atomically(file, json.dumps(content), durable=False)


def read_values(network: tuple[Any, ...]) -> dict[str, Any]:
    """Return the valid values of a network by metric; none if its file is missing, outdated or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        file = value_file(network)
        about = file.stat()
        cached = read_value_file(file, about.st_ino, about.st_mtime_ns, about.st_size)
        if cached["sources"] == measuring_code():
            return {**cached["values"]}
    return {}


@lru_cache(maxsize=512)
def read_value_file(path: Path, _inode: int, _mtime: int, _size: int) -> Any:
    """Return the content of a file, read again once it was replaced. Raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"))


def value_file(network: tuple[Any, ...]) -> Path:
    """Path of the file with the values of a network."""
    return value_folder() / f"{digest(network)}.json"


def value_folder() -> Path:
    """Path of the cache, beside the run folders."""
    return runs_folder() / ".values"


@cache
def measuring_code() -> str:
    """Hash of the bytes of MEASURING_CODE and of the versions of Python and torch."""
    return source_digest(ROOT, MEASURING_CODE, ("torch",))


@cache
def measuring_files(root: Path) -> tuple[Path, ...]:
    """Return the files of MEASURING_CODE."""
    return tuple(path for pattern in MEASURING_CODE for path in root.glob(pattern))


def is_json(value: Any) -> bool:
    """Return True for a value that JSON returns unchanged, its types included."""
    if type(value) is list:
        return all(map(is_json, value))
    return type(value) in (bool, int, float, str)
