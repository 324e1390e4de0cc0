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
from pipeline.data.order import generator
from pipeline.data.prepare.originals import Original, Originals
from pipeline.data.shard_manifest import MANIFEST, SPLITS, Resized, Shard, ShardManifest
from pipeline.data.shards import RECORD
from pipeline.data.store import MissingError, Place, scratch

QUALITY = 95  # of resized JPEGs

NOTES, PLAN, LOCK, TRIAL = "preparing", "plan.json", "lock", "trial"

BY = "by"  # in the plan on a server: which call goes on with it

LEFTOVER = re.compile(r"\.[a-z.\d-]+\.[0-9a-f]{32}")  # Place.put's own names, left by a kill

SHARD = re.compile(r"(train|test)-\d{5,}\.tar")

NOTE, TEMPORARY = ".note", ".tmp"

VERSION = 1  # of how shards are made: it rises when that changes, so that a half-made set never mixes both


@dataclass(frozen=True)
class Job:
    """One shard to make."""

    split: str
    number: int  # of the shard
    first: int  # number of its first sample
    originals: Sequence[Original]

    @property
    def name(self) -> str:
        """The shard's file."""
        return f"{self.split}-{self.number:05d}.tar"

    @property
    def note(self) -> str:
        """The file that says it is finished."""
        return f"{self.name}{NOTE}"

    def fingerprint(self, short_side: int | None) -> str:
        """What the shard depends on; it changes when a picture's file does."""
        digest = hashlib.sha256(f"{VERSION} {self.first} {resizing(short_side)}".encode())
        for one in self.originals:
            try:
                facts = str(one.facts())
            except DataError:
                facts = "gone"  # named when it is read
            digest.update(f"\0{one.label} {clean(one.stem)} {one.offset} {facts}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Plan:
    """What a call makes."""

    originals: Originals
    short_side: int | None
    samples: int

    @property
    def resized(self) -> Resized | None:
        """As the manifest says it."""
        return Resized(short_side=self.short_side, quality=QUALITY) if self.short_side else None

    @property
    def total(self) -> int:
        """Pictures."""
        return sum(map(len, self.originals.splits.values()))

    def in_order(self, split: str) -> Iterator[Original]:
        """A split's pictures as they follow each other in the shards."""
        pictures = self.originals.splits[split]
        for index in torch.randperm(len(pictures), generator=generator(0, "shards")).numpy():
            yield pictures[int(index)]

    def jobs(self) -> Iterator[Job]:
        """Every shard, one after the other."""
        for split in self.splits():
            pictures = self.in_order(split)
            for number in range(self.shards(split)):
                here = list(itertools.islice(pictures, self.samples))
                yield Job(split, number, number * self.samples, here)

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


def header_of(manifest: ShardManifest) -> dict[str, Any]:
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


def refuse_another(there: dict[str, Any], wanted: dict[str, Any], out: Place, what: str, those: str) -> None:
    """DataError if the two headers differ, naming the first difference. `those`: what lies in the way."""
    for key, new in wanted.items():
        old = there.get(key)
        if old != new:
            differs = f"other {key}" if key == "classes" else f"{key} {said(old)}, where {said(new)} is asked for"
            raise DataError(
                f"{out} holds {what} of another kind ({differs}); use another folder, or remove {those}"
            )


def said(value: Any) -> str:
    """A header's value in words: '21 train + 12 test'."""
    if isinstance(value, dict):
        return " + ".join(f"{count} {name}" for name, count in value.items())
    return "none" if value is None else str(value)


def resizing(short: int | None) -> str:
    """All that resized JPEGs depend on, besides the picture."""
    import PIL

    return f"{short} {QUALITY} {PIL.__version__}" if short else ""


def clean(stem: str) -> str:
    """A name's stem as a tar member's: no dot, where WebDataset ends the key, and no more than fits."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]


@contextlib.contextmanager
def workshop(out: Place) -> Iterator[tuple[Path, Place]]:
    """A folder on this machine to work in, and the place of the notes; nobody else's meanwhile.

    For a local `out` both are its `.preparing/`, on the same disk. For a server the folder is a private one below
    the system's for temporary files, always the same for the same address.
    """
    from filelock import FileLock, Timeout

    if out.http:
        raise DataError(f"{out}: http is for reading; write to a folder or to s3://")
    if out.local:
        bench = out.local / f".{NOTES}"
        notes = Place(str(bench))
    else:
        key = hashlib.sha256(out.address.encode()).hexdigest()[:16]
        bench = scratch() / f"repro-prepare-{os.getuid()}" / key
        notes = Place(f"{out.address}/{NOTES}")
    lock = bench / LOCK
    with on_disk(out.local or bench):
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
            with on_disk(bench):
                foreign(out, out.local)
        yield bench, notes
    finally:
        with contextlib.suppress(OSError):
            if not any(path for path in bench.iterdir() if path != lock):  # nothing to go on from: leave no trace
                shutil.rmtree(bench)
                for path in made[1:]:
                    path.rmdir()
        holder.release()


def foreign(out: Place, folder: Path) -> None:
    """DataError if a folder holds what was not prepared there."""
    known = {f".{NOTES}", MANIFEST}
    begun = (folder / f".{NOTES}" / PLAN).is_file() or (folder / MANIFEST).is_file()
    strange = [path.name for path in folder.iterdir() if path.name not in known]
    if strange and not begun:
        raise DataError(
            f"{out} holds other files ({min(strange)}); use an empty folder, or one that is not there yet"
        )


def writable(out: Place) -> None:
    """DataError now, and not after hours of reading, where `out` is taken or cannot be written."""
    with workshop(out) as (bench, notes):
        if not out.local and not out.exists(MANIFEST):
            planned(out, notes)
            first(b"", out, bench, notes, TRIAL)
            notes.remove(TRIAL)


def planned(out: Place, notes: Place) -> dict[str, Any] | None:
    """The plan that is written down at `out`, if any; DataError where none is, and a server holds other files."""
    if notes.exists(PLAN):
        return dict(json.loads(notes.read(PLAN)))  # written whole or not at all
    if not out.local and out.names():
        raise DataError(f"{out} holds other files ({out.names()[0]}); use another address")
    return None


def begin(
    plan: Plan, out: Place, bench: Path, notes: Place, warn: Callable[[str], None] = lambda _: None
) -> Callable[[], None]:
    """Make sure that what lies at `out` is of this plan, sweep up after a kill, and write the plan down.

    A folder's lock keeps others out. On a server the last to begin goes on: what is returned raises DataError
    where that is another call.
    """
    header, there = plan.header(), planned(out, notes)
    by = (there or {}).pop(BY, None)
    changed = there not in (None, header)
    if there and changed and (by or any(name.endswith(NOTE) for name in notes.names())):
        if not plan.is_like(there):
            refuse_another(there, header, out, "a set half made", f"{notes} and the shards")
        before, now = said(there["pictures"]), said(header["pictures"])
        warn(f"{out} was half made of other pictures ({before}, and now {now}); it is begun anew")
    with on_disk(bench):
        for path in bench.iterdir():
            kept = notes.local or path.name == LOCK  # of a server's notes, copies are made
            if path.suffix == TEMPORARY or LEFTOVER.fullmatch(path.name) or not kept:
                path.unlink()
        for path in out.local.iterdir() if out.local else ():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
    if changed:
        for name in notes.names():
            if name.endswith(NOTE):
                notes.remove(name)
        for name in filter(SHARD.fullmatch, out.names()):
            out.remove(name)
    mine = json.dumps(header if notes.local else header | {BY: uuid.uuid4().hex}).encode()
    if changed or there is None or not notes.local:
        first(mine, out, bench, notes, PLAN)

    def still() -> None:
        with contextlib.suppress(MissingError):
            if notes.local or notes.read(PLAN) == mine:
                return
        raise DataError(
            f"another command has begun to prepare into {out} and goes on there; wait for it to end, or use"
            " another address"
        )

    return still


def first(content: bytes, out: Place, bench: Path, notes: Place, name: str) -> None:
    """`deliver` what is written before anything else."""
    try:
        deliver(content, bench, notes, name)
    except MissingError:
        raise DataError(f"{out} cannot be written: there is no such bucket; create it first") from None


def deliver(content: bytes, bench: Path, where: Place, name: str) -> None:
    """Write a small file whole or not at all."""
    file = bench / f"{name}{TEMPORARY}"
    with on_disk(bench):
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


def clear(bench: Path, notes: Place, workers: int) -> None:
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
def on_disk(path: Path) -> Iterator[None]:
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
class Noted:
    """A finished shard."""

    plan: str  # Job.fingerprint
    shard: Shard
    rows: np.ndarray  # of the index
    digests: bytes  # sample_digest of each


def note_of(plan: str, name: str, file: Path, rows: np.ndarray, digests: bytes) -> bytes:
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


def read_note(file: Path) -> Noted | None:
    """A note; None if there is none, or a damaged one."""
    try:
        line, _, content = file.read_bytes().partition(b"\n")
        head = json.loads(line)
        if hashlib.sha256(content).hexdigest() != head["sha256"]:
            return None
        shard = Shard.model_validate(head["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    cut = shard.samples * RECORD.itemsize
    return Noted(head["plan"], shard, np.frombuffer(content[:cut], RECORD), content[cut:])
