"""Cache of code hashes, data manifests and checked networks: commands without work to do read no images.

A code hash is valid for the exact bytes of the source files, and so is a check of a network; a manifest for the
names, sizes and times of the files of its data set. The cache is used only to find that all runs are finished, and
to show a plan; for runs that are to be trained, everything is read.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.common.files import edited_since_start, write_atomically
from pipeline.common.hashing import digest, source_digest
from pipeline.common.paths import ROOT, data_folder, runs_folder

# Source files that a code hash or a manifest may depend on, as globs below the checkout.
SOURCE_FILES = (
    "pipeline/common/*.py",
    "pipeline/declare/*.py",
    "pipeline/plan/*.py",
    "pipeline/data/*.py",
    "pipeline/data/transfer_sets/*.py",
    "pipeline/train/*.py",
    "pipeline/derive/*.py",
    "pipeline/schedule/*.py",
    "lightning_modules/*.py",
)

LIBRARIES_OF_DATA = ("numpy", "pillow", "scikit-learn", "scipy", "torch", "torchvision")

SHARD_MANIFEST = "manifest.json"  # `data.shard_manifest.MANIFEST_NAME`, whose import takes seconds

BUILT_IN = ("digits", "noise")  # sets that come with scikit-learn or are generated

DOWNLOADS = {  # data set -> folder of torchvision's files below the data folder
    "mnist": "MNIST/raw",
    "fashion-mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "SVHN/raw",
    "svhn-extra": "SVHN/raw",
}


class TaskCache:
    """Code hashes by network, manifests by data set, and checks, in a file. A damaged one counts as empty."""

    def __init__(self) -> None:
        self.codes: dict[str, str] = {}
        self.manifests: dict[str, tuple[str, dict[str, Any]]] = {}  # data set -> (manifest_key, manifest)
        self.checks: set[str] = set()  # hashes of recipes and data that fit each other
        self.changed = False
        # Before anything is computed: values of other sources than these are not stored under their hash.
        self.sources = source_digest(ROOT, SOURCE_FILES, LIBRARIES_OF_DATA)
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            cached = json.loads(cache_file().read_text(encoding="utf-8"))
            if cached["sources"] == self.sources:
                manifests = cached["manifests"].items()
                self.codes, self.checks = {**cached["codes"]}, {*cached["checks"]}
                self.manifests = {name: (key, {**manifest}) for name, (key, manifest) in manifests}

    def add_code(self, network: str, code: str) -> None:
        """Add the code hash of a network."""
        self.codes[network] = code
        self.changed = True

    def add_check(self, key: str) -> None:
        """Add the key of recipes and data that fit each other."""
        self.changed = self.changed or key not in self.checks
        self.checks.add(key)

    def require_check(self, key: str) -> None:
        """Raise KeyError for a key that was not added."""
        if key not in self.checks:
            raise KeyError(key)

    def manifest(self, name: str, *, is_sharded: bool, boxes: bool = False) -> dict[str, Any]:
        """Return the manifest of a data set. Raises KeyError if none is cached for its current files."""
        key, manifest = self.manifests[entry_name(name, is_sharded, boxes)]
        if key != manifest_key(name, is_sharded=is_sharded):
            raise KeyError(name)
        return manifest

    def add_manifest(
        self, name: str, key: str | None, manifest: dict[str, Any], *, is_sharded: bool, boxes: bool = False
    ) -> None:
        """Add a manifest; `key` is the data set's `manifest_key` from before its files were read."""
        if key is not None:
            self.manifests[entry_name(name, is_sharded, boxes)] = key, manifest
            self.changed = True

    def write(self) -> None:
        """Write the file if anything was added and no source was edited after this process started.

        Ignores OSError: without the cache, commands only take longer.
        """
        if self.changed and not edited_since_start(path for files in SOURCE_FILES for path in ROOT.glob(files)):
            content = {"sources": self.sources, "codes": self.codes, "manifests": self.manifests}
            content["checks"] = sorted(self.checks)
            with suppress(OSError):
                write_atomically(cache_file(), json.dumps(content))


def cache_file() -> Path:
    """Path of the cache, beside the run folders."""
    return runs_folder() / ".tasks.json"


def entry_name(name: str, is_sharded: bool, boxes: bool) -> str:
    """Return the key of a data set in the file. One set can be read from shards, with boxes, or into memory."""
    return f"{name}{', sharded' * is_sharded}{', boxes' * boxes}"


def manifest_key(name: str, *, is_sharded: bool) -> str | None:
    """Return a hash that changes whenever a file of the data set `name` does.

    Return None if no file is found or if the shards are in a remote store.
    """
    if "/" in name or "\\" in name or name.startswith("."):
        return None
    root, shards = data_folder(), os.environ.get("REPRO_SHARDS")
    folders = [root / name]  # shards or class folders
    if name in DOWNLOADS:
        folders.append(root / DOWNLOADS[name])
    elif shards and name not in BUILT_IN:
        folders.append(Path(shards) / name)
        if not (folders[-1] / SHARD_MANIFEST).is_file():
            return None
    if (Path(name) / SHARD_MANIFEST).is_file():  # shards in the current folder
        folders.append(Path(name).absolute())
    stamps = [stamp for folder in folders for stamp in file_stamps(folder)]
    if not stamps and name not in BUILT_IN:
        return None
    return digest({"name": name, "is_sharded": is_sharded, "files": stamps})


def file_stamps(folder: Path) -> Iterator[str]:
    """Yield path, size and times of every file below a folder, sorted; nothing if it does not exist."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            with suppress(OSError):  # removed in the meantime
                about = path.stat()
                yield f"{path} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
