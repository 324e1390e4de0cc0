"""Make one derived run from finished runs, and write its record."""

import time
from collections.abc import Callable

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.data.images import DataError
from pipeline.data.manifest import Manifest, manifest_from_dict
from pipeline.data.prefetch import StopRequested, never_stop
from pipeline.data.transfer_sets.images import TransferSet
from pipeline.derive.column import run_column
from pipeline.derive.compression import run_compression
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.derive.ensemble import run_ensemble
from pipeline.derive.ensemble_sizes import run_ensemble_sizes
from pipeline.derive.localisation import run_localisation
from pipeline.derive.transfer import run_transfer
from pipeline.plan.expand import DerivedRun
from pipeline.plan.task import Task
from pipeline.track.record import Record, make_record
from pipeline.track.run_folder import RunFolder, explain_disk_errors
from pipeline.train.inputs import AnyImageSet, ReadOptions, require_counts
from pipeline.train.process import allow_tf32, prepare_process

COMPRESSED_FILE = "compressed.bin"  # in a compression's folder
HANDLERS: dict[str, Callable[[DerivedContext], DerivedResult]] = {
    "ensemble": run_ensemble,
    "ensemble-sizes": run_ensemble_sizes,
    "protocol": run_ensemble,
    "column": run_column,
    "transfer": run_transfer,
    "compression": run_compression,
    "localisation": run_localisation,
}


def make_derived(
    task: Task,
    images: AnyImageSet,
    other: AnyImageSet | TransferSet | None = None,
    *,
    threads: int = 1,
    readers: int = 1,
    stop: Callable[[], bool] = never_stop,
    report: Callable[[str], None] = lambda _: None,
) -> Record | None:
    """Make the task's derived run from its finished members and write its record; None once `stop()` is true.

    `images` is the data set of the members, `other` that of a transfer's classifier. The members' folders are
    beside the task's own. Raises UserError for a member that has not finished or whose network file is missing.
    """
    derived, folder = task.run, RunFolder(task.folder)
    assert isinstance(derived, DerivedRun)
    expected = manifest_from_dict(task.manifest)
    if isinstance(other, TransferSet):
        require_same_manifest(other, expected)
    else:
        require_counts(images if other is None else other, expected)
    prepare_process(threads)
    allow_tf32(False)
    folder.create(task.description())
    began = time.monotonic()
    options = ReadOptions(readers=readers, cache=task.data_root / ".cache", report=report, stop=stop)
    context = DerivedContext(derived, images, other, folder, folder.evaluation_cache(task.identity), options)
    try:
        context.load([RunFolder(task.folder.parent / need) for need in task.needs])
        result = HANDLERS[derived.spec.kind](context)
    except StopRequested:
        return None
    except UserError:
        raise
    except ValueError as error:  # networks, images and protocols that do not fit
        raise UserError(f"{derived.title}: {error}") from error
    record = make_record(
        task,
        status=result.status,
        ended=result.ended,
        metrics=result.metrics,
        precision="bf16" if context.bf16 else "fp32",
        compiled=False,
        threads=threads,
        seconds=context.earlier_seconds + time.monotonic() - began,
        members=tuple(context.identities),
    )
    if result.content is not None:
        with explain_disk_errors(folder.path):
            write_atomically(folder.path / COMPRESSED_FILE, result.content)
    folder.finish(record)
    return record


def require_same_manifest(other: TransferSet, expected: Manifest) -> None:
    """Raise DataError unless a set for transfers is the one that the task was made for."""
    if other.manifest != expected:
        raise DataError(f"{other.name}: its images changed since the command began; run the same command again")
