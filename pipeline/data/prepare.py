"""From pictures to a prepared set: shards, index and manifest (see shards.py), made by several threads.

A shard is written beside, read back, brought to its place, and only then noted in `.preparing/` (`preparing/` on a
server). After a kill the same call goes on from the notes; the manifest comes last, then the notes go. The same
pictures and options give the same bytes, whatever the number of threads and however often it was interrupted.

Threads, not processes: decoding, resizing, hashing and writing let each other run, and a kill leaves none behind.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data import jpeg
from pipeline.data.images import DataError
from pipeline.data.order import generator
from pipeline.data.originals import Drawn, Original, Originals, picture_kind
from pipeline.data.shards import (
    MANIFEST,
    RECORD,
    SPLITS,
    Resized,
    Shard,
    ShardManifest,
    Split,
    content_hash,
    open_shards,
    sample_digest,
    sha256_of,
)
from pipeline.data.store import MissingError, Place

ORDER = 'a fixed permutation of the source\'s order: torch.randperm(n, generator=generator(0, "shards"))'
SAMPLES = 1000  # a shard: some 100 MB of photographs
QUALITY = 95  # of resized JPEGs
NOTES, PLAN, LOCK = "preparing", "plan.json", "lock"
LEFTOVER = re.compile(r"\.[a-z.\d-]+\.[0-9a-f]{32}")  # Place.put's own names, left by a kill
SHARD = re.compile(r"(train|test)-\d{5,}\.tar")
NOTE, TEMPORARY = ".note", ".tmp"
NAMED = 20  # broken pictures; where there are so many, no more are looked for
LARGEST = 65_500  # pixels a side: what libjpeg writes
BLOCK = 512  # bytes: what tar rounds up to

Progress = Callable[[int, int], None]  # pictures done, pictures in all; called by any thread, by one at a time


def prepare(
    originals: Originals,
    out: Place,
    *,
    short_side: int | None = None,
    samples: int = SAMPLES,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> ShardManifest:
    """Make the shards of `originals` at `out`, going on from what an earlier call left there.

    `short_side`: pixels to which every picture is resized (it changes the data); None: the files' own bytes.
    `samples`: pictures a shard. Where the same set is there already its manifest is returned, without a call of
    `progress`. DataError: a picture that cannot be decoded, another set at `out`, no room, no access.
    """
    if min(samples, short_side or 1, workers) < 1:
        raise DataError(
            f"{samples} pictures a shard, a short side of {short_side}, {workers} workers: use numbers from 1"
        )
    for name, pictures in originals.splits.items():
        if not len(pictures):
            raise DataError(
                f"{originals.name} has no pictures in its {name} part; add some, or leave that part out"
            )
    if out.http:
        raise DataError(f"{out}: http is for reading; write to a folder or to s3://")
    plan = Plan(originals, short_side, samples)
    with workshop(out) as (bench, notes):
        manifest = finished(plan, out)
        if manifest is None:
            begin(plan, out, bench, notes)
            Making(plan, out, bench, notes, progress).all(workers)
            manifest = conclude(plan, out, bench)
        clear(bench, notes, workers)
    return manifest


# --- what is to be made ------------------------------------------------------------------------------------


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
        digest = hashlib.sha256(f"{self.first} {short_side}".encode())
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
            "set": self.originals.name,
            "pictures": counts,
            "classes": list(self.originals.classes),
            "short side": self.short_side,
            "pictures a shard": {split: min(self.samples, count) for split, count in counts.items()},
        }


def header_of(manifest: ShardManifest) -> dict[str, Any]:
    """Plan.header of the plan that a finished set was made by."""
    return {
        "set": manifest.name,
        "pictures": {name: manifest.splits[name].samples for name in SPLITS if name in manifest.splits},
        "classes": list(manifest.classes),
        "short side": manifest.resized.short_side if manifest.resized else None,
        "pictures a shard": {
            name: manifest.splits[name].shards[0].samples for name in SPLITS if name in manifest.splits
        },
    }


def refuse_another(there: dict[str, Any], wanted: dict[str, Any], out: Place, what: str) -> None:
    """DataError if the two headers differ, naming the first difference."""
    for key, new in wanted.items():
        old = there.get(key)
        if old != new:
            differs = f"other {key}" if key == "classes" else f"{key} {said(old)}, where {said(new)} is asked for"
            raise DataError(f"{out} holds {what} of another kind ({differs}); use another folder, or remove that")


def said(value: Any) -> str:
    """A header's value in words: '21 train + 12 test'."""
    if isinstance(value, dict):
        return " + ".join(f"{count} {name}" for name, count in value.items())
    return "none" if value is None else str(value)


# --- the place where it is made ----------------------------------------------------------------------------


@contextlib.contextmanager
def workshop(out: Place) -> Iterator[tuple[Path, Place]]:
    """A folder on this machine to work in, and the place of the notes; nobody else's meanwhile.

    For a local `out` both are its `.preparing/`, on the same disk. For a server the folder is a private one below
    the system's for temporary files, always the same for the same address.
    """
    from filelock import FileLock, Timeout

    if out.local:
        bench = out.local / f".{NOTES}"
        notes = Place(str(bench))
    else:
        key = hashlib.sha256(out.address.encode()).hexdigest()[:16]
        bench = Path(tempfile.gettempdir()) / f"repro-prepare-{os.getuid()}" / key
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


def begin(plan: Plan, out: Place, bench: Path, notes: Place) -> None:
    """Make sure that what lies at `out` is of this plan, sweep up after a kill, and write the plan down."""
    header = plan.header()
    if notes.exists(PLAN):
        there = json.loads(notes.read(PLAN))  # written whole or not at all
        if there != header and any(name.endswith(NOTE) for name in notes.names()):
            refuse_another(there, header, out, "a set half made")
        if there != header:  # nothing of it was finished
            for name in filter(SHARD.fullmatch, out.names()):
                out.remove(name)
            notes.remove(PLAN)
    elif not out.local and out.names():
        raise DataError(f"{out} holds other files ({out.names()[0]}); use another address")
    with on_disk(bench):
        for folder in filter(None, (bench, out.local)):
            for path in folder.iterdir():
                kept = notes.local or folder != bench or path.name == LOCK  # of a server's notes, copies are made
                if path.suffix == TEMPORARY or LEFTOVER.fullmatch(path.name) or not kept:
                    path.unlink()
    if not notes.exists(PLAN):
        deliver(json.dumps(header).encode(), bench, notes, PLAN)


def deliver(content: bytes, bench: Path, where: Place, name: str) -> None:
    """Write a small file whole or not at all."""
    file = bench / f"{name}{TEMPORARY}"
    with on_disk(file):
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
        why = error.strerror or str(error)
        raise DataError(
            f"{path} cannot be written ({why}); mend that and start again, what is finished stays"
        ) from None


# --- making ------------------------------------------------------------------------------------------------


class Making:
    """Making all shards: what the threads share."""

    def __init__(self, plan: Plan, out: Place, bench: Path, notes: Place, progress: Progress) -> None:
        self.plan, self.out, self.bench, self.notes, self.progress = plan, out, bench, notes, progress
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.done, self.shown = 0, 0.0  # pictures; when that was last told
        self.broken: list[tuple[str, str]] = []  # where, what is wrong

    def all(self, workers: int) -> None:
        """Every shard; DataError when it is over if pictures could not be used: they are named together."""
        run(self.plan.jobs(), self.one, workers, self.stop)
        if self.broken:
            where, first = min(self.broken)
            others = sorted(one for one, _ in self.broken if one != where)
            more = f"; so it is with {len(others)} more: {', '.join(others)}" if others else ""
            raise DataError(first + more)
        self.progress(self.plan.total, self.plan.total)

    def one(self, job: Job) -> None:
        """Make a shard, unless it is noted as made; quietly nothing once `stop` is set."""
        if self.stop.is_set():
            return
        plan = job.fingerprint(self.plan.short_side)
        if self.is_made(job, plan):
            self.tick(len(job.originals))
            return
        file = self.bench / f"{job.name}{TEMPORARY}"
        try:
            with on_disk(self.bench):
                note = self.write(job, file, plan)
            if note is not None:
                self.out.put(file, job.name)
                deliver(note, self.bench, self.notes, job.note)
                if not self.notes.local:
                    deliver(note, self.bench, Place(str(self.bench)), job.note)
        finally:
            file.unlink(missing_ok=True)

    def is_made(self, job: Job, plan: str) -> bool:
        """Whether the shard is there, of the right size, and noted as made of these pictures."""
        file = self.bench / job.note
        if not self.notes.local and self.notes.exists(job.note):
            self.notes.fetch(job.note, file)
        noted = read_note(file)
        if noted is None or noted.plan != plan:
            return False
        return size_at(self.out, job.name) == noted.shard.bytes

    def write(self, job: Job, file: Path, plan: str) -> bytes | None:
        """The shard as `file`, on the disk; its note. None if it was stopped, or a picture could not be used."""
        rows = np.zeros(len(job.originals), RECORD)
        digests = bytearray()
        whole = True
        with file.open("wb") as stream, shard_writer(stream) as writer:
            for i, original in enumerate(job.originals):
                if self.stop.is_set():
                    return None
                try:
                    content, kind, height, width = ready(original, self.plan.short_side)
                except DataError as error:
                    self.trouble(original.where, error)
                    whole = False
                    continue
                begin = writer.tarstream.offset
                name = f"{job.first + i:08d}-{clean(original.stem)}"
                writer.write({"__key__": name, "cls": str(original.label).encode(), kind: content})
                end = writer.tarstream.offset
                image = end - begin - -(-len(content) // BLOCK) * BLOCK
                rows[i] = (job.number, begin, end - begin, 0, image, len(content), original.label, height, width)
                digests += sample_digest(original.label, content)
                self.tick(1)
        return note_of(plan, job.name, file, rows, bytes(digests)) if whole else None

    def trouble(self, where: str, error: DataError) -> None:
        """Remember a picture that cannot be used."""
        with self.lock:
            self.broken.append((where, str(error)))
            if len(self.broken) >= NAMED:
                self.stop.set()

    def tick(self, count: int) -> None:
        """So many more pictures are done; told ten times a second."""
        with self.lock:
            self.done += count
            if time.monotonic() - self.shown > 0.1:
                self.shown = time.monotonic()
                self.progress(self.done, self.plan.total)


def run(jobs: Iterable[Job], work: Callable[[Job], None], workers: int, stop: threading.Event) -> None:
    """`work` on every job, by threads. What one raises, or Ctrl-C, stops them all within a picture."""
    waiting: set[Future[None]] = set()
    with ThreadPoolExecutor(workers, "prepare") as pool:
        try:
            for job in jobs:
                waiting.add(pool.submit(work, job))
                if len(waiting) > workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for one in done:
                        one.result()
                if stop.is_set():
                    break
            for one in as_completed(waiting):
                one.result()
        except BaseException:
            stop.set()
            for one in waiting:
                one.cancel()
            raise


class Sink:
    """A stream that can be told to swallow what comes: a tar file given up still writes its end."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.dead = stream, False

    def write(self, content: bytes) -> int:
        """Pass it on."""
        return len(content) if self.dead else self.stream.write(content)


@contextlib.contextmanager
def shard_writer(stream: Any) -> Iterator[Any]:
    """WebDataset's TarWriter on an open file, without time or user; at the end the file is on the disk."""
    from webdataset import TarWriter

    sink = Sink(stream)
    writer = TarWriter(sink, encoder=False, mtime=0, user="repro", group="repro", mode=0o444)
    try:
        yield writer
        writer.close()
        stream.flush()
        os.fsync(stream.fileno())
    except BaseException:
        sink.dead = True
        writer.close()
        raise


def ready(original: Original, short: int | None) -> tuple[bytes, str, int, int]:
    """A picture's file as it goes into the shard, its kind, height and width; DataError names a broken one."""
    content = original.read()
    pixels = jpeg.decode(content, original.where)
    kind = picture_kind(content)
    if kind is None:
        raise DataError(f"{original.where} is neither a JPEG nor a PNG; convert it to one of these, or remove it")
    height, width = pixels.shape[:2]
    if short and min(height, width) != short:
        height, width = jpeg.short_side(height, width, short)
        if max(height, width) > LARGEST:
            raise DataError(
                f"{original.where} would become {width} x {height} pixels, more than a JPEG holds; remove it"
            )
        content, kind = resized(pixels, height, width), "jpg"
    return content, kind, height, width


def resized(pixels: np.ndarray, height: int, width: int) -> bytes:
    """uint8 (H, W, 3) -> a JPEG of that size."""
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)  # with anti-aliasing
    picture.save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return stream.getvalue()


def clean(stem: str) -> str:
    """A name's stem as a tar member's: no dot, where WebDataset ends the key, and no more than fits."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]


# --- notes, and what is made of them -----------------------------------------------------------------------


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


def conclude(plan: Plan, out: Place, bench: Path) -> ShardManifest:
    """Write the indexes and, last, the manifest."""
    splits: dict[Any, Split] = {name: joined(plan, name, out, bench) for name in plan.splits()}
    manifest = ShardManifest(
        format=1,
        name=plan.originals.name,
        source=plan.originals.source,
        classes=plan.originals.classes,
        order=ORDER,
        resized=plan.resized,
        splits=splits,
        sha256=content_hash(plan.originals.classes, plan.resized, splits),
    )
    deliver(manifest.to_json().encode(), bench, out, MANIFEST)
    return manifest


def joined(plan: Plan, split: str, out: Place, bench: Path) -> Split:
    """A split from its notes, one after the other; its index goes to `out`."""
    count = len(plan.originals.splits[split])
    shards: list[Shard] = []
    per_class = np.zeros(len(plan.originals.classes), np.int64)
    content = hashlib.sha256()
    index = f"{split}.index.npy"
    file = bench / f"{index}{TEMPORARY}"
    try:
        with on_disk(bench):
            with file.open("wb") as stream:
                shape = {"descr": np.lib.format.dtype_to_descr(RECORD), "fortran_order": False, "shape": (count,)}
                np.lib.format.write_array_header_1_0(stream, shape)
                for number in range(plan.shards(split)):
                    noted = read_note(bench / Job(split, number, 0, ()).note)
                    if noted is None:
                        raise OSError(f"the note of shard {number} of {split} is damaged")
                    shards.append(noted.shard)
                    per_class += np.bincount(noted.rows["label"], minlength=len(per_class))
                    content.update(noted.digests)
                    stream.write(noted.rows.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            found = sha256_of(file)
        out.put(file, index)
    finally:
        file.unlink(missing_ok=True)
    return Split(
        samples=count,
        per_class=tuple(per_class.tolist()),
        sha256=content.hexdigest(),
        index=index,
        index_sha256=found,
        shards=tuple(shards),
    )


def finished(plan: Plan, out: Place) -> ShardManifest | None:
    """The manifest that is at `out`, if there is one; DataError if it is not of this plan and these pictures.

    Without reading a picture: by classes, counts, labels, and the files' sizes and times.
    """
    if not out.exists(MANIFEST):
        return None
    there = open_shards(out)
    refuse_another(header_of(there.manifest), plan.header(), out, "a finished set")
    written = out.modified(MANIFEST) * 1e9
    for name in plan.splits():
        labels, sizes = (np.array(there.splits[name].index[key]) for key in ("label", "bytes"))
        content = hashlib.sha256()
        for label, size, one in zip(labels, sizes, plan.in_order(name), strict=True):
            length, changed = one.facts()
            same = one.label == label and (plan.short_side is not None or length == size)
            if isinstance(one, Drawn):
                content.update(sample_digest(one.label, one.read()))
            elif changed > written:
                same = False
            if not same:
                raise changed_since(out, one.where)
        drawn = isinstance(plan.originals.splits[name][0], Drawn) and plan.short_side is None
        if drawn and content.hexdigest() != there.splits[name].split.sha256:
            raise changed_since(out, f"the {name} part of {plan.originals.name}")
        for shard in there.splits[name].split.shards:
            if size_at(out, shard.name) != shard.bytes:
                raise DataError(
                    f"{out} holds a finished set whose {shard.name} is damaged; remove {MANIFEST} and the shards,"
                    " and start again"
                )
    return there.manifest


def size_at(out: Place, name: str) -> int | None:
    """A file's bytes; None where there is no such file."""
    try:
        return out.size(name)
    except MissingError:
        return None


def changed_since(out: Place, what: str) -> DataError:
    """For a set that was finished from other pictures."""
    return DataError(
        f"{out} holds a finished set, but {what} was changed since; use another folder, or remove that"
    )
