"""Cache of checked declarations, so that a command that lists all experiments parses and checks no YAML.

One file, beside the run folders. It is valid for the exact bytes of all experiment files and of the code that
loads and checks them, and for the versions of Python, pydantic and PyYAML. A damaged file counts as an empty one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.files import edited_since_start, write_atomically
from pipeline.common.hashing import source_digest
from pipeline.common.paths import ROOT, runs_folder
from pipeline.declare.experiment import Experiment

# Source files that decide what a valid declaration is, as globs below the checkout.
LOADING_CODE = ("pipeline/common/*.py", "pipeline/declare/*.py", "lightning_modules/names.py")

PARSING_LIBRARIES = ("pydantic", "pydantic-core", "PyYAML")


@dataclass(frozen=True)
class CachedDeclaration:
    """One experiment with its tables expanded, and the names of the experiments that it refers to."""

    declaration: Mapping[str, Any]
    consumed: tuple[str, ...]  # experiments whose variants its derived runs consume, or its runs start from
    claimed: tuple[str, ...]  # experiments whose variants its claims name

    @classmethod
    def of(cls, experiment: Experiment, consumed: Iterable[str], claimed: Iterable[str]) -> "CachedDeclaration":
        """Return what to store of a checked experiment."""
        return cls(experiment.model_dump(mode="json", exclude_unset=True), tuple(consumed), tuple(claimed))

    def experiment(self) -> Experiment:
        """Return the experiment, without the other ones that it names."""
        return Experiment.model_validate(self.declaration)


class DeclarationCache:
    """The cached declarations of a folder of experiments; none if one of its files or the code has changed."""

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.key = declarations_key(folder, files)

    @cached_property
    def declarations(self) -> dict[str, CachedDeclaration]:
        """Valid declarations by experiment."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = declarations_file().stat()
            cached = read_cache(declarations_file(), about.st_mtime_ns, about.st_size)
            if cached["key"] == self.key:
                return {
                    name: CachedDeclaration(one["declaration"], tuple(one["consumed"]), tuple(one["claimed"]))
                    for name, one in cached["experiments"].items()
                }
        return {}

    @property
    def is_outdated(self) -> bool:
        """True if there are no valid declarations."""
        return not self.declarations

    def write(self, declarations: Mapping[str, CachedDeclaration]) -> None:
        """Write the file, if this home has runs and the code was not edited after this process started.

        Ignores OSError: without the cache, commands only take longer.
        """
        with suppress(OSError):
            if runs_folder().is_dir() and not edited_since_start(loading_files()):
                experiments = {name: asdict(one) for name, one in declarations.items()}
                content = {"key": self.key, "experiments": experiments}
                write_atomically(declarations_file(), json.dumps(content), durable=False)


def declarations_file() -> Path:
    """Path of the cache, beside the run folders."""
    return runs_folder() / ".declarations.json"


@lru_cache(maxsize=1)
def read_cache(path: Path, _mtime: int, _size: int) -> Any:
    """Return the content of the cache file. Raises OSError or ValueError if it cannot be read."""
    return json.loads(path.read_text(encoding="utf-8"))


def declarations_key(folder: Path, files: Iterable[str]) -> str:
    """Return the hash of the experiment files' names and bytes, and of the code that loads them."""
    hashed = hashlib.sha256(loading_code().encode())
    for name in files:
        with suppress(OSError):  # reading the experiment reports it
            content = (folder / name).read_bytes()
            hashed.update(f"\n{name} {len(content)}\n".encode() + content)
    return hashed.hexdigest()


@cache
def loading_code() -> str:
    """Hash of the bytes of LOADING_CODE and of the versions of Python and PARSING_LIBRARIES."""
    return source_digest(ROOT, LOADING_CODE, PARSING_LIBRARIES)


@cache
def loading_files() -> tuple[Path, ...]:
    """Return the files of LOADING_CODE."""
    return tuple(path for pattern in LOADING_CODE for path in ROOT.glob(pattern))
