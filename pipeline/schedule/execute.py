"""Execute one task in this process while holding its lock: train a run or make a derived run."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.declare.transfer import TransferSpec, is_transfer_set
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.track.system_metrics import system_metrics
from pipeline.train.ranks import current_ranks

LOCK_POLL_SECONDS = 0.5


def execute_task(
    task: Task,
    *,
    threads: int,
    readers: int = 1,
    stop: Callable[[], bool],
    on_event: Callable[..., None],
) -> Record | None:
    """Train the task's run or make its derived run, and return its record; None if `stop()` ended it, resumable.

    Waits for a task that another process executes. Every rank of a distributed run calls this function and gets
    the same result; rank 0 holds the lock and calls `on_event(kind, text)`.
    """
    from filelock import FileLock

    ranks = current_ranks()
    if ranks.rank:
        on_event = ignore_event
    folder = RunFolder(task.folder)
    lock = FileLock(folder.lock_file)
    try:
        if not ranks.on_rank_zero(lambda stop: acquire_lock(folder, lock, stop, on_event), stop):
            return None
        record = ranks.on_rank_zero(lambda _: folder.result())
        if record:
            return record
        on_event("started")
        if isinstance(task.run, DerivedRun) and task.run.networks:
            from pipeline.derive.timing import make_timing

            report = partial(on_event, "note")
            return ranks.on_rank_zero(
                lambda stop: make_timing(task, threads=threads, stop=stop, report=report), stop
            )
        images, other = ranks.on_all_ranks(lambda _: task_images(task))
        report = partial(on_event, "note")
        if isinstance(task.run, Run):
            from pipeline.train.train import train

            with system_metrics(folder) if ranks.rank == 0 else nullcontext():
                record = train(task, images, threads=threads, readers=readers, stop=stop, report=report)
            if record:
                from pipeline.derive.export_model import export_finished

                ranks.on_rank_zero(lambda _: export_finished(task, record, images, report))
            return record
        from pipeline.derive.run import make_derived

        return make_derived(task, images, other, threads=threads, readers=readers, stop=stop, report=report)
    finally:
        lock.release()


def ignore_event(*_: object) -> None:
    """Discard an event, on all ranks but 0."""


def acquire_lock(folder: RunFolder, lock: Any, stop: Callable[[], bool], on_event: Callable[..., None]) -> bool:
    """Wait for the run's lock and hold it; return False once `stop()` is true."""
    from filelock import Timeout

    folder.path.mkdir(parents=True, exist_ok=True)
    reported = False
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_SECONDS)  # longer than `RunFolder.is_training` holds it
            return True
        except Timeout:
            if not reported:
                on_event("waiting", "another repro command is training this run; waiting for its result")
                reported = True
            if stop():
                return False


def task_images(task: Task) -> tuple[Any, Any]:
    """Return the data set of a run or its members, and the data set of a transfer's classifier or None.

    Raises UserError if the images changed since the task was made.
    """
    run = task.run.members[0] if isinstance(task.run, DerivedRun) else task.run
    data = run.recipe.data
    boxes = task.run.needs_boxes if isinstance(task.run, DerivedRun) else data.boxes
    images, sha256 = load_cached_images(data.name, task.data_root, data.crop is not None, boxes)
    other: Any = None
    if isinstance(task.run, DerivedRun) and isinstance(task.run.spec, TransferSpec):
        from pipeline.data.manifest import manifest_of
        from pipeline.data.sources import load_images
        from pipeline.data.transfer_sets.load import load_transfer_set

        name = task.run.spec.data
        if is_transfer_set(name):
            transfer_set = load_transfer_set(name, task.data_root)
            other, sha256 = transfer_set, transfer_set.sha256
        else:
            prepared = load_images(name, task.data_root, sharded=data.crop is not None)
            other, sha256 = prepared, manifest_of(prepared).sha256
    if sha256 != task.manifest["sha256"]:
        name = (other or images).name
        raise UserError(f"{name}: the images changed since the command began; run the same command again")
    return images, other


@lru_cache(maxsize=1)
def load_cached_images(name: str, root: Path, is_sharded: bool, boxes: bool = False) -> tuple[Any, str]:
    """Return a data set, read once per process, and the sha256 of its manifest."""
    from pipeline.data.manifest import manifest_of
    from pipeline.data.sources import load_images

    images = load_images(name, root, sharded=is_sharded, boxes=boxes)
    return images, manifest_of(images).sha256
