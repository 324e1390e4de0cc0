"""Verify a prepared set: compare every byte with the manifest, decode every image, and describe each problem."""

import contextlib
import hashlib
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common.words import printable
from pipeline.data.boxes import BOXES_NAME, box_file, read_box_manifest, read_rows
from pipeline.data.images import DataError
from pipeline.data.prefetch import prefetch
from pipeline.data.prepare.shard_damage import (
    REPAIR_HINT,
    ShardCheck,
    damage_reasons,
    forbidden_member,
    image_problem,
    sample_problem,
    tar_headers,
)
from pipeline.data.shard_manifest import MANIFEST_NAME, ShardInfo, ShardManifest, read_manifest, sample_digest
from pipeline.data.shards import open_index
from pipeline.data.store import MissingFileError, Store, scratch_folder

SCAN_CHUNK = 2**20  # bytes read at a time after the last sample


@dataclass(frozen=True)
class ShardReport:
    """Problems found in one shard."""

    check: ShardCheck
    problems: list[str]
    digests: bytes  # sample_digest of each sample, concatenated; meaningless if there are problems


def verify_shards(
    where: Store, *, threads: int, decoding: bool = True, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Return all problems of the set at `where`, a sentence each; an empty list if there are none.

    `decoding`: also decode every image. Without it, verifying takes a fifth of the time, but does not find images
    that were broken before the set was prepared. `progress(done, total)` counts bytes. Remote shards are copied
    one by one to a temporary folder. Raise DataError if the manifest is missing or damaged: nothing else can be
    checked then.
    """
    manifest = read_manifest(where)
    if not where.local:
        scratch_folder()  # raises DataError if there is none
    problems: list[str] = []
    checks: list[ShardCheck] = []
    for name, split in manifest.splits.items():
        index = None
        try:
            index = open_index(where, manifest, split)
        except DataError as error:
            problems.append(str(error))
        first = 0
        for number, shard in enumerate(split.shards):
            rows = None if index is None else index[first : first + shard.samples]
            if rows is not None and not _rows_cover(rows, number, shard):
                problems.append(f"{where}/{split.index} has wrong rows for {shard.name}; {REPAIR_HINT}")
                rows = None
            checks.append(ShardCheck(name, shard, first, rows))
            first += shard.samples
    expected = {
        MANIFEST_NAME,
        *(split.index for split in manifest.splits.values()),
        *(check.shard.name for check in checks),
    }
    if where.exists(BOXES_NAME):
        expected |= {BOXES_NAME, *(box_file(name) for name in manifest.splits)}
        problems += box_problems(where, manifest)
    foreign = [name for name in where.names(folders=True) if name not in expected]
    problems += [f"{where}/{printable(name)} is not part of the set; remove it" for name in foreign]

    content = {str(name): hashlib.sha256() for name in manifest.splits}
    clean = {check.split: check.rows is not None for check in reversed(checks)}
    done, total = 0, sum(split.bytes for split in manifest.splits.values())
    for report in prefetch(
        checks, lambda check: _check_shard(where, check, decoding), threads=threads, depth=2 * threads
    ):
        problems += report.problems
        content[report.check.split].update(report.digests)
        clean[report.check.split] &= not report.problems and report.check.rows is not None
        done += report.check.shard.bytes
        if progress:
            progress(done, total)
    for name, split in manifest.splits.items():
        if clean[name] and content[name].hexdigest() != split.sha256:
            problems.append(
                f"{where}/{MANIFEST_NAME}: the sha256 of {name!r} does not match its images and labels;"
                f" {REPAIR_HINT}"
            )
    return problems


def box_problems(where: Store, manifest: ShardManifest) -> list[str]:
    """Return all problems of the bounding boxes of a set."""
    problems = []
    try:
        boxes = read_box_manifest(where, manifest)
    except DataError as error:
        return [str(error)]
    for name, split in manifest.splits.items():
        try:
            read_rows(where, boxes, name, split.samples)
        except DataError as error:
            problems.append(str(error))
    return problems


def _rows_cover(rows: np.ndarray, number: int, shard: ShardInfo) -> bool:
    """Return True if index rows belong to this shard and cover it without gap or overlap."""
    ends = rows["offset"] + rows["size"]
    return (
        len(rows) == shard.samples
        and bool((rows["shard"] == number).all())
        and int(rows["offset"][0]) == 0
        and bool((rows["offset"][1:] == ends[:-1]).all())
        and int(ends[-1]) == shard.bytes
    )


def _check_shard(where: Store, check: ShardCheck, decoding: bool) -> ShardReport:
    """Check one shard; a missing or unreadable file is a problem too."""
    shown = f"{where}/{check.shard.name}"
    try:
        with _local_file(where, check.shard.name) as file:
            return _check_file(file, check, shown, decoding)
    except MissingFileError:
        return ShardReport(check, [f"{shown} is missing; {REPAIR_HINT}"], b"")
    except DataError as error:
        return ShardReport(check, [str(error)], b"")


@contextlib.contextmanager
def _local_file(where: Store, name: str) -> Iterator[Path]:
    """Yield a local file: the file itself, or a temporary copy of a remote one."""
    if where.local:
        with where.translate_errors(name):
            if not (where.local / name).is_file():
                raise MissingFileError(f"{where}/{name} not found")
            yield where.local / name
        return
    with tempfile.TemporaryDirectory(prefix="repro-verify-", dir=scratch_folder()) as folder:
        where.fetch(name, Path(folder) / name)
        yield Path(folder) / name


def _check_file(file: Path, check: ShardCheck, shown: str, decoding: bool) -> ShardReport:
    """Check a shard's sha256 and each of its samples; if the sha256 differs, find out why."""
    whole, digests = hashlib.sha256(), bytearray()
    problems: list[str] = []
    damaged: list[int] = []  # samples whose CRC-32 differs
    rows = [] if check.rows is None else check.rows.tolist()
    with file.open("rb") as opened:
        for number, row in enumerate(rows, check.first):
            sample = opened.read(row[2])
            whole.update(sample)
            if len(sample) != row[2] or zlib.crc32(sample) != row[3]:
                damaged.append(number)
                continue
            problem = sample_problem(sample, number, row, last=number == check.first + len(rows) - 1)
            if decoding and not problem:
                problem = image_problem(sample, row, f"sample {number}")
            if problem:
                problems.append(f"{shown}, sample {number} {problem}; {REPAIR_HINT}")
            digests += sample_digest(row[6], sample[row[4] : row[4] + row[5]])
        while chunk := opened.read(SCAN_CHUNK):
            whole.update(chunk)
    size = file.stat().st_size
    if damaged or size != check.shard.bytes or whole.hexdigest() != check.shard.sha256:
        reasons = "; ".join(damage_reasons(file, check, damaged, size))
        problems.insert(0, f"{shown} is damaged: {reasons}; {REPAIR_HINT}")
    elif check.rows is None:
        members = [forbidden_member(header) for _, header in tar_headers(file)]
        problems += [f"{shown} has {member}; {REPAIR_HINT}" for member in members if member]
    return ShardReport(check, problems, bytes(digests))
