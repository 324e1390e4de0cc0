"""Make one derived run, from its inputs to its record."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.provenance import commit, hardware_name, library_versions, lock_hash
from pipeline.data.manifest import Manifest
from pipeline.data.prefetch import StopRequested
from pipeline.derive.compression import run_compression
from pipeline.derive.context import AnyImageSet, DerivedContext, DerivedResult
from pipeline.derive.ensemble import run_ensemble
from pipeline.derive.transfer import run_transfer
from pipeline.plan.expand import DerivedRun
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder, explain_disk_errors
from pipeline.train.inputs import ReadOptions, require_counts
from pipeline.train.process import prepare_process

COMPRESSED_FILE = "compressed.bin"  # in a compression's folder


def make_derived(
    step: DerivedRun,
    *,
    identity: str,
    folder: RunFolder,
    members: Sequence[RunFolder],
    images: AnyImageSet,
    manifest: Manifest,
    code: str,
    other: AnyImageSet | None = None,
    threads: int = 1,
    readers: int = 1,
    cache: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    warn: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Do `step` with the networks in the folders `members` and write its record; None where `stop()` came true.

    `images` are those its runs learnt from; `other` those that a transfer learns from. `manifest` is of what the
    step is judged on. UserError for a run that has not ended well, or whose network is not here.
    """
    require_counts(images if other is None else other, manifest)
    prepare_process(threads)
    folder.path.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    bench = DerivedContext(
        step, images, other, folder.evaluation_cache(identity), ReadOptions(readers, cache, warn, stop)
    )
    try:
        bench.load(members)
        done = HANDLERS[step.spec.kind](bench)
    except StopRequested:
        return None
    except ValueError as error:  # networks, images and protocols that do not fit
        if isinstance(error, UserError):
            raise
        raise UserError(f"{step.title}: {error}") from error
    record = Record(
        identity=identity,
        experiment=step.experiment,
        scale=step.scale,
        variant=step.variant,
        seed=step.seed,
        status=done.status,
        ended=done.ended,
        changes=step.changes,
        declaration=step.declaration,
        manifest=manifest.sha256[:16],
        code=code,
        lock=lock_hash(),
        commit=commit(),
        data=manifest.name,
        metrics=done.metrics,
        precision="bf16" if bench.bf16 else "fp32",
        compiled=False,
        threads=threads,
        hardware=hardware_name(),
        libraries=library_versions(),
        seconds=bench.earlier_seconds + time.monotonic() - began,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        members=tuple(bench.identities),
    )
    if done.content is not None:
        with explain_disk_errors(folder.path):
            write_atomically(folder.path / COMPRESSED_FILE, done.content)
    folder.finish(record, None)
    return record


HANDLERS: dict[str, Callable[[DerivedContext], DerivedResult]] = {
    "ensemble": run_ensemble,
    "protocol": run_ensemble,
    "transfer": run_transfer,
    "compression": run_compression,
}
