"""Helpers for tests of sets in shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.data.shard_manifest import MANIFEST_NAME, with_checksum
from pipeline.data.shards import ShardSplit

TRAIN, TEST = 12, 6  # images of the set of the fixture `shards`


def read_all(split: ShardSplit) -> list[bytes]:
    """Return all files of a split."""
    return split.read(range(len(split)))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the values of the manifest in `folder`, and write it with a valid checksum."""
    file = folder / MANIFEST_NAME
    values = json.loads(file.read_text())
    change(values)
    file.write_text(with_checksum(values))
