"""Write a source set as WebDataset shards with an index and a manifest (see shards.py), in several threads.

A shard is written to a temporary file, read back, moved to its place, and then recorded (see shard_record.py).
After an interruption the same call resumes from the records. The manifest is written last; then the records are
removed. The same images and options give the same bytes, whatever the number of threads and interruptions.

Threads suffice, since decoding, resizing, hashing and writing release the GIL, and a killed call leaves no child
processes.
"""

import contextlib
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.data.images import DataError
from pipeline.data.prepare.encode_sample import encode_sample
from pipeline.data.prepare.shard_plan import ShardJob, ShardPlan, clean_stem
from pipeline.data.prepare.shard_record import build_record, read_record
from pipeline.data.prepare.source_images import SourceSet
from pipeline.data.prepare.workspace import (
    TEMPORARY_SUFFIX,
    Workspace,
    claim_output,
    explain_os_errors,
    open_workspace,
    remove_records,
    write_small_file,
)
from pipeline.data.prepare.write_boxes import check_boxes, write_boxes
from pipeline.data.prepare.write_manifest import finished_manifest, size_of, write_manifest
from pipeline.data.shard_manifest import ShardManifest, sample_digest
from pipeline.data.shards import INDEX_DTYPE
from pipeline.data.store import Store

SAMPLES_PER_SHARD = 1000  # about 100 MB of ImageNet's images

MAX_ERRORS = 20  # unusable images; after that many the call stops

FULL_ERRORS = 3  # of which the whole message is shown; the others are only located


def prepare_shards(
    source: SourceSet,
    out: Store,
    *,
    short_side: int | None = None,
    samples: int = SAMPLES_PER_SHARD,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda _: None,
) -> ShardManifest:
    """Write `source` as shards to `out`, or resume an interrupted call, and return the manifest.

    `short_side`: resize every image to this short side in pixels, which makes it another set; None: copy the
    source's bytes. `samples`: images per shard. `workers`: threads. `progress(done, total)` receives the images
    written and to be written by this call, from any thread, one call at a time; it is not called if the set is
    already finished. `report` receives a line if an unfinished set is discarded. Bounding boxes of the source are
    written beside the shards, also of a finished set. Raise DataError if an image cannot be decoded, a box is
    faulty, `out` contains another set, or `out` cannot be written.
    """
    if min(samples, short_side or 1, workers) < 1:
        raise DataError(
            f"samples {samples}, short side {short_side}, workers {workers}: each must be an integer >= 1"
        )
    if not source.splits:
        raise DataError(f"{source.name} has no images; give a set with a train or a test split")
    for name, images in source.splits.items():
        if not len(images):
            raise DataError(f"{source.name} has no images in its {name} split; add some, or omit this split")
    if short_side:  # other data gets another name, so that it is never taken for the source
        source = replace(source, name=f"{source.name}-short{short_side}")
    plan = ShardPlan(source, short_side, samples)
    boxes = check_boxes(plan, source.boxes) if source.boxes else None  # before hours of writing
    with open_workspace(out) as workspace:
        manifest = finished_manifest(plan, out)
        if manifest is None:
            check_owner = claim_output(plan, workspace, report)
            ShardWriter(plan, workspace, check_owner, progress).write_all(workers)
            manifest = write_manifest(plan, workspace, check_owner)
        if boxes and source.boxes:
            archives = " and ".join(source.boxes.archives[name] for name in boxes)
            write_boxes(boxes, archives, workspace, manifest.sha256)
        remove_records(workspace, workers)
    return manifest


class ShardWriter:
    """Writes the shards of a plan; holds the state that the threads share."""

    def __init__(
        self,
        plan: ShardPlan,
        workspace: Workspace,
        check_owner: Callable[[], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self.plan, self.out, self.folder, self.records = plan, workspace.out, workspace.folder, workspace.records
        self.check_owner, self.progress = check_owner, progress
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.done, self.reported = 0, 0.0  # images; time of the last progress report
        self.total = plan.total  # images, without those in shards of an earlier call
        self.errors: list[tuple[str, str]] = []  # location and message of each unusable image

    def write_all(self, workers: int) -> None:
        """Write every shard; at the end raise one DataError that lists all unusable images."""
        run_threads(self.plan.jobs(), self.write_shard, workers, self.stop)
        if self.errors:
            raise DataError(join_errors(sorted({*self.errors})))
        self.progress(self.total, self.total)

    def write_shard(self, job: ShardJob) -> None:
        """Write a shard and its record, unless it is finished or `stop` is set."""
        if self.stop.is_set():
            return
        fingerprint = job.fingerprint(self.plan.short_side)
        if self.is_finished(job, fingerprint):
            with self.lock:
                self.total -= len(job.images)
            return
        file = self.folder / f"{job.name}{TEMPORARY_SUFFIX}"
        try:
            with explain_os_errors(self.folder):
                record = self.write_file(job, file, fingerprint)
            if record is not None:
                self.check_owner()
                self.out.put(file, job.name)
                self.check_owner()
                write_small_file(record, self.folder, self.records, job.record)
                if not self.records.local:
                    write_small_file(record, self.folder, Store(str(self.folder)), job.record)
        finally:
            file.unlink(missing_ok=True)

    def is_finished(self, job: ShardJob, fingerprint: str) -> bool:
        """Return True if the shard exists with its recorded size, and its record has this fingerprint."""
        file = self.folder / job.record
        if not self.records.local and self.records.exists(job.record):
            self.records.fetch(job.record, file)
        record = read_record(file)
        if record is None or record.fingerprint != fingerprint:
            return False
        return size_of(self.out, job.name) == record.shard.bytes

    def write_file(self, job: ShardJob, file: Path, fingerprint: str) -> bytes | None:
        """Write the shard to `file` and return its record; None if stopped, or if an image is unusable."""
        rows = np.zeros(len(job.images), INDEX_DTYPE)
        digests = bytearray()
        complete = True
        with file.open("wb") as stream, open_tar_writer(stream) as writer:
            for i, image in enumerate(job.images):
                if self.stop.is_set():
                    return None
                try:
                    content, kind, height, width = encode_sample(image, self.plan.short_side)
                except DataError as error:
                    self.add_error(image.where, error)
                    complete = False
                    continue
                begin = writer.tarstream.offset
                name = f"{job.first + i:08d}-{clean_stem(image.stem)}"
                writer.write({"__key__": name, "cls": str(image.label).encode(), kind: content})
                end = writer.tarstream.offset
                offset = (
                    end - begin - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                )  # of the image in its sample
                rows[i] = (job.number, begin, end - begin, 0, offset, len(content), image.label, height, width)
                digests += sample_digest(image.label, content)
                self.count_image()
        return build_record(fingerprint, job.name, file, rows, bytes(digests)) if complete else None

    def add_error(self, where: str, error: DataError) -> None:
        """Keep the error of an unusable image; stop after MAX_ERRORS of them."""
        with self.lock:
            self.errors.append((where, str(error)))
            if len(self.errors) >= MAX_ERRORS:
                self.stop.set()

    def count_image(self) -> None:
        """Count a written image; report progress at most ten times a second."""
        with self.lock:
            self.done += 1
            if time.monotonic() - self.reported > 0.1:
                self.reported = time.monotonic()
                self.progress(self.done, self.total)


def join_errors(errors: Sequence[tuple[str, str]]) -> str:
    """Return one message for all unusable images, given the location and message of each."""
    if len(errors) == 1:
        return errors[0][1]
    at_least = "at least " if len(errors) >= MAX_ERRORS else ""
    texts = [text for _, text in errors[:FULL_ERRORS]]
    others = [f"also {', '.join(where for where, _ in errors[FULL_ERRORS:])}"] if errors[FULL_ERRORS:] else []
    return f"{at_least}{len(errors)} images cannot be used: {'; '.join(texts + others)}"


def run_threads(
    jobs: Iterable[ShardJob], work: Callable[[ShardJob], None], workers: int, stop: threading.Event
) -> None:
    """Call `work` on every job in threads. An exception or Ctrl-C sets `stop`, and all end within one image."""
    waiting: set[Future[None]] = set()
    with ThreadPoolExecutor(workers, "prepare") as pool:
        try:
            for job in jobs:
                waiting.add(pool.submit(work, job))
                if len(waiting) > workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                if stop.is_set():
                    break
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise


class DiscardableStream:
    """A stream that ignores writes once `discard` is set: closing a tar writer still writes its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.discard = stream, False

    def write(self, content: bytes) -> int:
        """Write `content`, or ignore it."""
        return len(content) if self.discard else self.stream.write(content)


@contextlib.contextmanager
def open_tar_writer(stream: IO[bytes]) -> Iterator[Any]:
    """Yield WebDataset's TarWriter on an open file, without times and users; sync the file at the end."""
    from webdataset import TarWriter

    output = DiscardableStream(stream)
    writer = TarWriter(output, encoder=False, mtime=0, user="repro", group="repro", mode=0o444)
    try:
        yield writer
        writer.close()
        stream.flush()
        os.fsync(stream.fileno())
    except BaseException:
        output.discard = True
        writer.close()
        raise
