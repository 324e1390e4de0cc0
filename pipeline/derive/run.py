"""Make one derived run, from its inputs to its record."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.provenance import commit, hardware, libraries, lock_hash
from pipeline.data.manifest import Manifest
from pipeline.data.prefetch import Stopped
from pipeline.derive.compression import compress_one
from pipeline.derive.context import Bench, Done, Images
from pipeline.derive.ensemble import judge_together
from pipeline.derive.transfer import transfer_one
from pipeline.plan.expand import Step
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder, full_disk_named
from pipeline.train.inputs import Ways, require_counted
from pipeline.train.process import prepare_process

COMPRESSED = "compressed.bin"  # in a compression's folder


def run_step(
    step: Step,
    *,
    identity: str,
    folder: RunFolder,
    members: Sequence[RunFolder],
    images: Images,
    manifest: Manifest,
    code: str,
    other: Images | None = None,
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
    require_counted(images if other is None else other, manifest)
    prepare_process(threads)
    folder.path.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    bench = Bench(step, images, other, folder.judged(identity), Ways(readers, cache, warn, stop))
    try:
        bench.load(members)
        done = DO[step.step.kind](bench)
    except Stopped:
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
        hardware=hardware(),
        libraries=libraries(),
        seconds=bench.before + time.monotonic() - began,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        members=tuple(bench.identities),
    )
    if done.content is not None:
        with full_disk_named(folder.path):
            write_atomically(folder.path / COMPRESSED, done.content)
    folder.finish(record, None)
    return record


DO: dict[str, Callable[[Bench], Done]] = {
    "ensemble": judge_together,
    "protocol": judge_together,
    "transfer": transfer_one,
    "compression": compress_one,
}
