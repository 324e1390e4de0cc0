"""From pictures to a prepared set: shards, index and manifest (see shards.py), made by several threads.

A shard is written beside, read back, brought to its place, and only then noted (see notes.py). After a kill the
same call goes on from the notes; the manifest comes last, then the notes go. The same pictures and options give
the same bytes, whatever the number of threads and however often it was interrupted.

Threads, not processes: decoding, resizing, hashing and writing let each other run, and a kill leaves none behind.
"""

import contextlib
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import jpeg
from pipeline.data.images import DataError
from pipeline.data.prepare.originals import InMemorySourceImage, SourceImage, SourceSet, image_kind
from pipeline.data.prepare.workspace import (
    QUALITY,
    TEMPORARY,
    ShardJob,
    ShardPlan,
    clean_stem,
    deliver_file,
    explain_os_errors,
    make_note,
    open_workspace,
    plan_header,
    prepare_output,
    read_note,
    refuse_another,
    remove_notes,
)
from pipeline.data.shard_cache import file_sha256
from pipeline.data.shard_manifest import (
    MANIFEST_NAME,
    ShardInfo,
    ShardManifest,
    SplitManifest,
    content_hash,
    sample_digest,
)
from pipeline.data.shards import INDEX_DTYPE, open_shards
from pipeline.data.store import MissingFileError, Store

ORDER = 'a fixed permutation of the source\'s order: torch.randperm(n, generator=generator(0, "shards"))'

SAMPLES = 1000  # a shard: some 100 MB of photographs

NAMED_ERRORS = 20  # broken pictures; where there are so many, no more are looked for

SHOWN = 3  # of them all is said, of the others where they are

MAX_SHARD_BYTES = 65_500  # pixels a side: what libjpeg writes

TAR_BLOCK = 512  # bytes: what tar rounds up to

PrepareProgress = Callable[
    [int, int], None
]  # pictures made, and to be made, by this call; by any thread, one at a time


def prepare_shards(
    originals: SourceSet,
    out: Store,
    *,
    short_side: int | None = None,
    samples: int = SAMPLES,
    workers: int = 1,
    progress: PrepareProgress = lambda done, total: None,
    warn: Callable[[str], None] = lambda _: None,
) -> ShardManifest:
    """Make the shards of `originals` at `out`, going on from what an earlier call left there.

    `short_side`: pixels to which every picture is resized (it changes the data); None: the files' own bytes.
    `samples`: pictures a shard. Where the same set is there already its manifest is returned, without a call of
    `progress`. `warn` is told where a half-made set is begun anew. DataError: a picture that cannot be decoded,
    another set at `out`, no room, no access.
    """
    if min(samples, short_side or 1, workers) < 1:
        raise DataError(
            f"{samples} pictures a shard, a short side of {short_side}, {workers} workers: use numbers from 1"
        )
    if not originals.splits:
        raise DataError(f"{originals.name} has no pictures; give a set with a training or a test part")
    for name, pictures in originals.splits.items():
        if not len(pictures):
            raise DataError(
                f"{originals.name} has no pictures in its {name} part; add some, or leave that part out"
            )
    if short_side:  # other data, under another name: never taken for the source's own
        originals = replace(originals, name=f"{originals.name}-short{short_side}")
    plan = ShardPlan(originals, short_side, samples)
    with open_workspace(out) as (bench, notes):
        manifest = finished_manifest(plan, out)
        if manifest is None:
            still = prepare_output(plan, out, bench, notes, warn)
            ShardMaking(plan, out, bench, notes, still, progress).all(workers)
            manifest = write_manifest(plan, out, bench, still)
        remove_notes(bench, notes, workers)
    return manifest


class ShardMaking:
    """Making all shards: what the threads share."""

    def __init__(
        self,
        plan: ShardPlan,
        out: Store,
        bench: Path,
        notes: Store,
        still: Callable[[], None],
        progress: PrepareProgress,
    ) -> None:
        self.plan, self.out, self.bench, self.notes = plan, out, bench, notes
        self.still, self.progress = still, progress
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.done, self.shown = 0, 0.0  # pictures; when that was last told
        self.total = plan.total  # less those that an earlier call made
        self.broken: list[tuple[str, str]] = []  # where, what is wrong

    def all(self, workers: int) -> None:
        """Every shard; DataError when it is over if pictures could not be used: they are named together."""
        run_threads(self.plan.jobs(), self.one, workers, self.stop)
        if self.broken:
            raise DataError(join_errors(sorted({*self.broken})))
        self.progress(self.total, self.total)

    def one(self, job: ShardJob) -> None:
        """Make a shard, unless it is noted as made; quietly nothing once `stop` is set."""
        if self.stop.is_set():
            return
        plan = job.fingerprint(self.plan.short_side)
        if self.is_made(job, plan):
            with self.lock:
                self.total -= len(job.originals)
            return
        file = self.bench / f"{job.name}{TEMPORARY}"
        try:
            with explain_os_errors(self.bench):
                note = self.write(job, file, plan)
            if note is not None:
                self.still()
                self.out.put(file, job.name)
                self.still()
                deliver_file(note, self.bench, self.notes, job.note)
                if not self.notes.local:
                    deliver_file(note, self.bench, Store(str(self.bench)), job.note)
        finally:
            file.unlink(missing_ok=True)

    def is_made(self, job: ShardJob, plan: str) -> bool:
        """Whether the shard is there, of the right size, and noted as made of these pictures."""
        file = self.bench / job.note
        if not self.notes.local and self.notes.exists(job.note):
            self.notes.fetch(job.note, file)
        noted = read_note(file)
        if noted is None or noted.plan != plan:
            return False
        return size_of(self.out, job.name) == noted.shard.bytes

    def write(self, job: ShardJob, file: Path, plan: str) -> bytes | None:
        """The shard as `file`, on the disk; its note. None if it was stopped, or a picture could not be used."""
        rows = np.zeros(len(job.originals), INDEX_DTYPE)
        digests = bytearray()
        whole = True
        with file.open("wb") as stream, shard_writer(stream) as writer:
            for i, original in enumerate(job.originals):
                if self.stop.is_set():
                    return None
                try:
                    content, kind, height, width = encode_for_shard(original, self.plan.short_side)
                except DataError as error:
                    self.trouble(original.where, error)
                    whole = False
                    continue
                begin = writer.tarstream.offset
                name = f"{job.first + i:08d}-{clean_stem(original.stem)}"
                writer.write({"__key__": name, "cls": str(original.label).encode(), kind: content})
                end = writer.tarstream.offset
                image = end - begin - -(-len(content) // TAR_BLOCK) * TAR_BLOCK
                rows[i] = (job.number, begin, end - begin, 0, image, len(content), original.label, height, width)
                digests += sample_digest(original.label, content)
                self.tick(1)
        return make_note(plan, job.name, file, rows, bytes(digests)) if whole else None

    def trouble(self, where: str, error: DataError) -> None:
        """Remember a picture that cannot be used."""
        with self.lock:
            self.broken.append((where, str(error)))
            if len(self.broken) >= NAMED_ERRORS:
                self.stop.set()

    def tick(self, count: int) -> None:
        """So many more pictures are done; told ten times a second."""
        with self.lock:
            self.done += count
            if time.monotonic() - self.shown > 0.1:
                self.shown = time.monotonic()
                self.progress(self.done, self.total)


def join_errors(broken: Sequence[tuple[str, str]]) -> str:
    """One sentence of where pictures are and what is wrong with each."""
    if len(broken) == 1:
        return broken[0][1]
    least = "at least " if len(broken) >= NAMED_ERRORS else ""
    texts = [text for _, text in broken[:SHOWN]]
    others = [f"nor can {', '.join(where for where, _ in broken[SHOWN:])}"] if broken[SHOWN:] else []
    return f"{least}{len(broken)} pictures cannot be used: {'; '.join(texts + others)}"


def run_threads(
    jobs: Iterable[ShardJob], work: Callable[[ShardJob], None], workers: int, stop: threading.Event
) -> None:
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


class CancellableStream:
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

    sink = CancellableStream(stream)
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


def encode_for_shard(original: SourceImage, short: int | None) -> tuple[bytes, str, int, int]:
    """A picture's file as it goes into the shard, its kind, height and width; DataError names a broken one."""
    content = original.read()
    pixels = jpeg.decode(content, original.where)
    kind = image_kind(content)
    if kind is None:
        raise DataError(f"{original.where} is neither a JPEG nor a PNG; convert it to one of these, or remove it")
    height, width = pixels.shape[:2]
    if short and min(height, width) != short:
        height, width = jpeg.size_for_short_side(height, width, short)
        if max(height, width) > MAX_SHARD_BYTES or height * width > jpeg.MAX_PIXELS:
            raise DataError(
                f"{original.where} would become {width} x {height} pixels, too many to be read again; remove it"
            )
        content, kind = encode_resized(pixels, height, width), "jpg"
    return content, kind, height, width


def encode_resized(pixels: np.ndarray, height: int, width: int) -> bytes:
    """uint8 (H, W, 3) -> a JPEG of that size."""
    from PIL import Image

    stream = io.BytesIO()
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)  # with anti-aliasing
    picture.save(stream, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return stream.getvalue()


def write_manifest(plan: ShardPlan, out: Store, bench: Path, still: Callable[[], None]) -> ShardManifest:
    """Write the indexes and, last, the manifest."""
    still()
    splits: dict[Any, SplitManifest] = {name: join_split(plan, name, out, bench) for name in plan.splits()}
    still()
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
    deliver_file(manifest.to_json().encode(), bench, out, MANIFEST_NAME)
    return manifest


def join_split(plan: ShardPlan, split: str, out: Store, bench: Path) -> SplitManifest:
    """A split from its notes, one after the other; its index goes to `out`."""
    count = len(plan.originals.splits[split])
    shards: list[ShardInfo] = []
    per_class = np.zeros(len(plan.originals.classes), np.int64)
    content = hashlib.sha256()
    index = f"{split}.index.npy"
    file = bench / f"{index}{TEMPORARY}"
    try:
        with explain_os_errors(bench):
            with file.open("wb") as stream:
                shape = {
                    "descr": np.lib.format.dtype_to_descr(INDEX_DTYPE),
                    "fortran_order": False,
                    "shape": (count,),
                }
                np.lib.format.write_array_header_1_0(stream, shape)
                for number in range(plan.shards(split)):
                    noted = read_note(bench / ShardJob(split, number, 0, ()).note)
                    if noted is None:
                        raise OSError(f"the note of shard {number} of {split} is damaged")
                    shards.append(noted.shard)
                    per_class += np.bincount(noted.rows["label"], minlength=len(per_class))
                    content.update(noted.digests)
                    stream.write(noted.rows.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            found = file_sha256(file)
        out.put(file, index)
    finally:
        file.unlink(missing_ok=True)
    return SplitManifest(
        samples=count,
        per_class=tuple(per_class.tolist()),
        sha256=content.hexdigest(),
        index=index,
        index_sha256=found,
        shards=tuple(shards),
    )


def finished_manifest(plan: ShardPlan, out: Store) -> ShardManifest | None:
    """The manifest that is at `out`, if there is one; DataError if it is not of this plan and these pictures.

    Without reading a picture: by classes, counts, labels, and the files' sizes and times.
    """
    if not out.exists(MANIFEST_NAME):
        return None
    there = open_shards(out)
    refuse_another(plan_header(there.manifest), plan.header(), out, "a finished set", "that")
    written = out.modified(MANIFEST_NAME) * 1e9
    for name in plan.splits():
        labels, sizes = (np.array(there.splits[name].index[key]) for key in ("label", "bytes"))
        content = hashlib.sha256()
        for label, size, one in zip(labels, sizes, plan.in_order(name), strict=True):
            length, changed = one.facts()
            same = one.label == label and (plan.short_side is not None or length == size)
            if isinstance(one, InMemorySourceImage):
                content.update(sample_digest(one.label, one.read()))
            elif changed > written:
                same = False
            if not same:
                raise source_changed(out, one.where)
        drawn = isinstance(plan.originals.splits[name][0], InMemorySourceImage) and plan.short_side is None
        if drawn and content.hexdigest() != there.splits[name].split.sha256:
            raise source_changed(out, f"the {name} part of {plan.originals.name}")
        for shard in there.splits[name].split.shards:
            if size_of(out, shard.name) != shard.bytes:
                raise DataError(
                    f"{out} holds a finished set whose {shard.name} is damaged; remove {MANIFEST_NAME} and the shards,"
                    " and start again"
                )
    return there.manifest


def size_of(out: Store, name: str) -> int | None:
    """A file's bytes; None where there is no such file."""
    try:
        return out.size(name)
    except MissingFileError:
        return None


def source_changed(out: Store, what: str) -> DataError:
    """For a set that was finished from other pictures."""
    return DataError(
        f"{out} holds a finished set, but {what} was changed since; use another folder, or remove that"
    )
