"""What is to be prepared, where, and what is noted of it, so that a call goes on where an earlier one was ended.

In `.preparing/` (`preparing/` on a server) lie the plan, and a note for each shard that is finished: of which
pictures it was made, its sums, its rows of the index. A note is written after its shard.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.images import DataError
from pipeline.data.order import seeded_generator
from pipeline.data.prepare.originals import SourceImage, SourceSet
from pipeline.data.shard_manifest import MANIFEST_NAME, SPLITS, ResizeInfo, ShardInfo, ShardManifest
from pipeline.data.shards import INDEX_DTYPE
from pipeline.data.store import MissingFileError, Store, scratch_folder

QUALITY = 95  # of resized JPEGs

NOTES, PLAN, LOCK, TRIAL = "preparing", "plan.json", "lock", "trial"

CREATED_BY = "by"  # in the plan on a server: which call goes on with it

LEFTOVER = re.compile(r"\.[a-z.\d-]+\.[0-9a-f]{32}")  # Place.put's own names, left by a kill

SHARD_NAME = re.compile(r"(train|test)-\d{5,}\.tar")

NOTE_SUFFIX, TEMPORARY = ".note", ".tmp"

VERSION = 1  # of how shards are made: it rises when that changes, so that a half-made set never mixes both


@dataclass(frozen=True)
class ShardJob:
    """One shard to make."""

    split: str
    number: int  # of the shard
    first: int  # number of its first sample
    originals: Sequence[SourceImage]

    @property
    def name(self) -> str:
        """The shard's file."""
        return f"{self.split}-{self.number:05d}.tar"

    @property
    def note(self) -> str:
        """The file that says it is finished."""
        return f"{self.name}{NOTE_SUFFIX}"

    def fingerprint(self, short_side: int | None) -> str:
        """What the shard depends on; it changes when a picture's file does."""
        digest = hashlib.sha256(f"{VERSION} {self.first} {resizing(short_side)}".encode())
        for one in self.originals:
            try:
                facts = str(one.facts())
            except DataError:
                facts = "gone"  # named when it is read
            digest.update(f"\0{one.label} {clean_stem(one.stem)} {one.offset} {facts}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardPlan:
    """What a call makes."""

    originals: SourceSet
    short_side: int | None
    samples: int

    @property
    def resized(self) -> ResizeInfo | None:
        """As the manifest says it."""
        return ResizeInfo(short_side=self.short_side, quality=QUALITY) if self.short_side else None

    @property
    def total(self) -> int:
        """Pictures."""
        return sum(map(len, self.originals.splits.values()))

    def in_order(self, split: str) -> Iterator[SourceImage]:
        """A split's pictures as they follow each other in the shards."""
        pictures = self.originals.splits[split]
        for index in torch.randperm(len(pictures), generator=seeded_generator(0, "shards")).numpy():
            yield pictures[int(index)]

    def jobs(self) -> Iterator[ShardJob]:
        """Every shard, one after the other."""
        for split in self.splits():
            pictures = self.in_order(split)
            for number in range(self.shards(split)):
                here = list(itertools.islice(pictures, self.samples))
                yield ShardJob(split, number, number * self.samples, here)

    def splits(self) -> list[str]:
        """Those that there are."""
        return [split for split in SPLITS if split in self.originals.splits]

    def shards(self, split: str) -> int:
        """How many a split has."""
        return -(-len(self.originals.splits[split]) // self.samples)

    def header(self) -> dict[str, Any]:
        """What tells one plan from another, in words and as JSON values."""
        counts = {split: len(self.originals.splits[split]) for split in self.splits()}
        return {
            "short side": self.short_side,
            "set": self.originals.name,
            "pictures": counts,
            "classes": list(self.originals.classes),
            "pictures a shard": {split: min(self.samples, count) for split, count in counts.items()},
        }

    def is_like(self, header: dict[str, Any]) -> bool:
        """Whether a header is of this plan before pictures were added or removed."""
        counts = header["pictures"]
        shards = {split: min(self.samples, count) for split, count in counts.items()}
        same = self.header() | {"pictures": counts, "pictures a shard": shards}
        return list(counts) == self.splits() and header == same


def plan_header(manifest: ShardManifest) -> dict[str, Any]:
    """Plan.header of the plan that a finished set was made by."""
    return {
        "short side": manifest.resized.short_side if manifest.resized else None,
        "set": manifest.name,
        "pictures": {name: manifest.splits[name].samples for name in SPLITS if name in manifest.splits},
        "classes": list(manifest.classes),
        "pictures a shard": {
            name: manifest.splits[name].shards[0].samples for name in SPLITS if name in manifest.splits
        },
    }


def refuse_another(there: dict[str, Any], wanted: dict[str, Any], out: Store, what: str, those: str) -> None:
    """DataError if the two headers differ, naming the first difference. `those`: what lies in the way."""
    for key, new in wanted.items():
        old = there.get(key)
        if old != new:
            differs = (
                f"other {key}"
                if key == "classes"
                else f"{key} {format_value(old)}, where {format_value(new)} is asked for"
            )
            raise DataError(
                f"{out} holds {what} of another kind ({differs}); use another folder, or remove {those}"
            )


def format_value(value: Any) -> str:
    """A header's value in words: '21 train + 12 test'."""
    if isinstance(value, dict):
        return " + ".join(f"{count} {name}" for name, count in value.items())
    return "none" if value is None else str(value)


def resizing(short: int | None) -> str:
    """All that resized JPEGs depend on, besides the picture."""
    import PIL

    return f"{short} {QUALITY} {PIL.__version__}" if short else ""


def clean_stem(stem: str) -> str:
    """A name's stem as a tar member's: no dot, where WebDataset ends the key, and no more than fits."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]


@contextlib.contextmanager
def open_workspace(out: Store) -> Iterator[tuple[Path, Store]]:
    """A folder on this machine to work in, and the place of the notes; nobody else's meanwhile.

    For a local `out` both are its `.preparing/`, on the same disk. For a server the folder is a private one below
    the system's for temporary files, always the same for the same address.
    """
    from filelock import FileLock, Timeout

    if out.http:
        raise DataError(f"{out}: http is for reading; write to a folder or to s3://")
    if out.local:
        bench = out.local / f".{NOTES}"
        notes = Store(str(bench))
    else:
        key = hashlib.sha256(out.address.encode()).hexdigest()[:16]
        bench = scratch_folder() / f"repro-prepare-{os.getuid()}" / key
        notes = Store(f"{out.address}/{NOTES}")
    lock = bench / LOCK
    with explain_os_errors(out.local or bench):
        if out.local and out.local.exists() and not out.local.is_dir():
            raise DataError(f"{out} is a file; give a folder")
        if not out.local:
            bench.parent.mkdir(mode=0o700, exist_ok=True)
            if bench.parent.stat().st_uid != os.getuid():
                raise DataError(f"{bench.parent} belongs to somebody else; set TMPDIR to a folder of your own")
        made = [path for path in (bench, *bench.parents) if not path.exists()]
        bench.mkdir(parents=True, exist_ok=True)
        holder = FileLock(lock)
        try:
            holder.acquire(timeout=0)
        except Timeout:
            raise DataError(f"another command is preparing into {out}; wait for it to end") from None
    try:
        if out.local:
            with explain_os_errors(bench):
                refuse_foreign_files(out, out.local)
        yield bench, notes
    finally:
        with contextlib.suppress(OSError):
            if not any(path for path in bench.iterdir() if path != lock):  # nothing to go on from: leave no trace
                shutil.rmtree(bench)
                for path in made[1:]:
                    path.rmdir()
        holder.release()


def refuse_foreign_files(out: Store, folder: Path) -> None:
    """DataError if a folder holds what was not prepared there."""
    known = {f".{NOTES}", MANIFEST_NAME}
    begun = (folder / f".{NOTES}" / PLAN).is_file() or (folder / MANIFEST_NAME).is_file()
    strange = [path.name for path in folder.iterdir() if path.name not in known]
    if strange and not begun:
        raise DataError(
            f"{out} holds other files ({min(strange)}); use an empty folder, or one that is not there yet"
        )


def check_writable(out: Store) -> None:
    """DataError now, and not after hours of reading, where `out` is taken or cannot be written."""
    with open_workspace(out) as (bench, notes):
        if not out.local and not out.exists(MANIFEST_NAME):
            read_plan(out, notes)
            deliver_first(b"", out, bench, notes, TRIAL)
            notes.remove(TRIAL)


def read_plan(out: Store, notes: Store) -> dict[str, Any] | None:
    """The plan that is written down at `out`, if any; DataError where none is, and a server holds other files."""
    if notes.exists(PLAN):
        return dict(json.loads(notes.read(PLAN)))  # written whole or not at all
    if not out.local and out.names():
        raise DataError(f"{out} holds other files ({out.names()[0]}); use another address")
    return None


def prepare_output(
    plan: ShardPlan, out: Store, bench: Path, notes: Store, warn: Callable[[str], None] = lambda _: None
) -> Callable[[], None]:
    """Make sure that what lies at `out` is of this plan, sweep up after a kill, and write the plan down.

    A folder's lock keeps others out. On a server the last to begin goes on: what is returned raises DataError
    where that is another call.
    """
    header, there = plan.header(), read_plan(out, notes)
    by = (there or {}).pop(CREATED_BY, None)
    changed = there not in (None, header)
    if there and changed and (by or any(name.endswith(NOTE_SUFFIX) for name in notes.names())):
        if not plan.is_like(there):
            refuse_another(there, header, out, "a set half made", f"{notes} and the shards")
        before, now = format_value(there["pictures"]), format_value(header["pictures"])
        warn(f"{out} was half made of other pictures ({before}, and now {now}); it is begun anew")
    with explain_os_errors(bench):
        for path in bench.iterdir():
            kept = notes.local or path.name == LOCK  # of a server's notes, copies are made
            if path.suffix == TEMPORARY or LEFTOVER.fullmatch(path.name) or not kept:
                path.unlink()
        for path in out.local.iterdir() if out.local else ():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
    if changed:
        for name in notes.names():
            if name.endswith(NOTE_SUFFIX):
                notes.remove(name)
        for name in filter(SHARD_NAME.fullmatch, out.names()):
            out.remove(name)
    mine = json.dumps(header if notes.local else header | {CREATED_BY: uuid.uuid4().hex}).encode()
    if changed or there is None or not notes.local:
        deliver_first(mine, out, bench, notes, PLAN)

    def still() -> None:
        with contextlib.suppress(MissingFileError):
            if notes.local or notes.read(PLAN) == mine:
                return
        raise DataError(
            f"another command has begun to prepare into {out} and goes on there; wait for it to end, or use"
            " another address"
        )

    return still


def deliver_first(content: bytes, out: Store, bench: Path, notes: Store, name: str) -> None:
    """`deliver` what is written before anything else."""
    try:
        deliver_file(content, bench, notes, name)
    except MissingFileError:
        raise DataError(f"{out} cannot be written: there is no such bucket; create it first") from None


def deliver_file(content: bytes, bench: Path, where: Store, name: str) -> None:
    """Write a small file whole or not at all."""
    file = bench / f"{name}{TEMPORARY}"
    with explain_os_errors(bench):
        try:
            with file.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    where.put(file, name)
    file.unlink(missing_ok=True)


def remove_notes(bench: Path, notes: Store, workers: int) -> None:
    """Remove the notes of a finished set: the plan last, so that a kill meanwhile leaves nothing strange."""
    if not notes.local:
        names = [name for name in notes.names() if name != PLAN]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(notes.remove, names))
        notes.remove(PLAN)
    for path in bench.iterdir():
        if path.name != LOCK:
            path.unlink()


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Within: what the file system raises becomes one sentence."""
    try:
        yield
    except OSError as error:
        path = path.parent if path.name == f".{NOTES}" else path
        why = error.strerror or str(error)
        raise DataError(
            f"{path} cannot be written ({why}); mend that and start again, what is finished stays"
        ) from None


@dataclass(frozen=True)
class ShardNote:
    """A finished shard."""

    plan: str  # Job.fingerprint
    shard: ShardInfo
    rows: np.ndarray  # of the index
    digests: bytes  # sample_digest of each


def make_note(plan: str, name: str, file: Path, rows: np.ndarray, digests: bytes) -> bytes:
    """The note of a shard that is now read back from the disk."""
    length = file.stat().st_size
    rows["size"][-1] = length - rows["offset"][-1]  # the last record takes the tar's end
    whole = hashlib.sha256()
    with file.open("rb") as stream:
        for row in rows:
            record = stream.read(row["size"])
            row["crc32"] = zlib.crc32(record)
            whole.update(record)
    content = rows.tobytes() + digests
    head = {
        "plan": plan,
        "shard": {"name": name, "bytes": length, "sha256": whole.hexdigest(), "samples": len(rows)},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return json.dumps(head).encode() + b"\n" + content


def read_note(file: Path) -> ShardNote | None:
    """A note; None if there is none, or a damaged one."""
    try:
        line, _, content = file.read_bytes().partition(b"\n")
        head = json.loads(line)
        if hashlib.sha256(content).hexdigest() != head["sha256"]:
            return None
        shard = ShardInfo.model_validate(head["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    cut = shard.samples * INDEX_DTYPE.itemsize
    return ShardNote(head["plan"], shard, np.frombuffer(content[:cut], INDEX_DTYPE), content[cut:])
