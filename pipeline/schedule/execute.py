"""Execute one task in this process while holding its lock: train a run or make a derived run."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, Timeout

from pipeline.common.errors import UserError
from pipeline.common.locks import explain_lock_errors, file_lock
from pipeline.declare.transfer import TransferSpec, is_transfer_set
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder, explain_disk_errors
from pipeline.track.system_metrics import system_metrics
from pipeline.train.ranks import RankGroup, current_ranks

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
    ranks = current_ranks()
    if ranks.rank:
        on_event = ignore_event
    folder = RunFolder(task.folder)
    ranks.on_rank_zero(lambda _: create_folder(folder))
    lock = file_lock(folder.lock_file)
    with explain_lock_errors(task.folder, task.data_root):  # of timings and of caches in the data folder
        try:
            if not ranks.on_rank_zero(lambda stop: acquire_lock(lock, stop, on_event), stop):
                return None
            record = ranks.on_rank_zero(lambda _: folder.result())
            if record:
                return record
            on_event("started")
            return execute_locked(task, ranks, threads=threads, readers=readers, stop=stop, on_event=on_event)
        finally:
            lock.release()


def execute_locked(
    task: Task,
    ranks: RankGroup,
    *,
    threads: int,
    readers: int,
    stop: Callable[[], bool],
    on_event: Callable[..., None],
) -> Record | None:
    """Execute a task whose lock rank 0 holds, and which has no record yet; see `execute_task`."""
    report = partial(on_event, "note")
    if isinstance(task.run, DerivedRun) and task.run.networks:
        from pipeline.derive.timing import make_timing

        return ranks.on_rank_zero(lambda stop: make_timing(task, threads=threads, stop=stop, report=report), stop)
    images, other = ranks.on_all_ranks(lambda _: task_images(task))
    if isinstance(task.run, Run):
        from pipeline.train.train import train

        with system_metrics(RunFolder(task.folder)) if ranks.rank == 0 else nullcontext():
            record = train(task, images, threads=threads, readers=readers, stop=stop, report=report)
        if record:
            from pipeline.derive.export_model import export_finished

            ranks.on_rank_zero(lambda _: export_finished(task, record, images, report))
        return record
    from pipeline.derive.run import make_derived

    return make_derived(task, images, other, threads=threads, readers=readers, stop=stop, report=report)


def ignore_event(*_: object) -> None:
    """Discard an event, on all ranks but 0."""


def create_folder(folder: RunFolder) -> None:
    """Create a run's folder if it does not exist."""
    with explain_disk_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)


def acquire_lock(lock: BaseFileLock, stop: Callable[[], bool], on_event: Callable[..., None]) -> bool:
    """Wait for the run's lock and hold it; return False once `stop()` is true."""
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
