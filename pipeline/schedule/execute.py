"""Execute one task in this process, under its lock."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.declare.derived import TransferSpec
from pipeline.plan.expand import DerivedRun, Run
from pipeline.schedule.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.train.ranks import current_ranks

LOCK_POLL_SECONDS = 0.5


def execute_task(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Train a run or do a step, in this process; None where `stop()` asked for it to be left."""
    do = execute_run if isinstance(task.run, Run) else execute_derived
    return do(task, threads=threads, readers=readers, stop=stop, say=say)


def execute_derived(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Do one step under its lock, as `train_task` trains a run."""
    from filelock import FileLock

    step, folder = task.run, RunFolder(task.folder)
    assert isinstance(step, DerivedRun)
    lock = FileLock(folder.lock_file)
    try:
        if not acquire_lock(folder, lock, stop, say):
            return None
        record = folder.result()
        if record:
            return record
        say("started")
        from pipeline.data.manifest import manifest_from_dict, manifest_of
        from pipeline.data.sources import load_images
        from pipeline.derive.run import make_derived

        folder.create(task.description())
        data = step.members[0].recipe.data
        images, sha256 = load_cached_images(data.name, task.data_root, data.crop is not None)
        other = None
        if isinstance(step.spec, TransferSpec):
            other = load_images(step.spec.data, task.data_root, photographs=data.crop is not None)
            sha256 = manifest_of(other).sha256
        if sha256 != task.manifest["sha256"]:
            name = (other or images).name
            raise UserError(f"{name}: the images changed since the command began; start it again")
        return make_derived(
            step,
            identity=task.identity,
            folder=folder,
            members=[RunFolder(task.folder.parent / need) for need in task.needs],
            images=images,
            manifest=manifest_from_dict(task.manifest),
            code=task.code,
            other=other,
            threads=threads,
            readers=readers,
            cache=task.data_root / ".cache",
            stop=stop,
            warn=lambda text: say("note", text),
        )
    finally:
        lock.release()


def execute_run(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Train one run under its lock; another process that trains it already is waited for.

    Called by every rank of a group, on each of which it returns the same; rank 0 holds the lock, and speaks.
    """
    from filelock import FileLock

    assert isinstance(task.run, Run)
    group = current_ranks()
    if group.rank:
        say = ignore_event
    folder = RunFolder(task.folder)
    lock = FileLock(folder.lock_file)
    try:
        if not group.on_rank_zero(lambda stop: acquire_lock(folder, lock, stop, say), stop):
            return None
        record = group.on_rank_zero(lambda _: folder.result())
        if record:
            return record
        say("started")
        from pipeline.data.manifest import manifest_from_dict
        from pipeline.train.train import train

        return train(
            task.run,
            identity=task.identity,
            folder=folder,
            images=group.on_all_ranks(lambda _: task_images(task)),
            manifest=manifest_from_dict(task.manifest),
            code=task.code,
            threads=threads,
            readers=readers,
            device_batch=task.device_batch,
            stop=stop,
            warn=lambda text: say("note", text),
            cache=task.data_root / ".cache",
        )
    finally:
        lock.release()


def ignore_event(*_: object) -> None:
    """What the first rank of a group says already."""


def acquire_lock(folder: RunFolder, lock: Any, stop: Callable[[], bool], say: Callable[..., None]) -> bool:
    """Wait for the run's lock, and hold it; or give up once `stop()` is true."""
    from filelock import Timeout

    folder.path.mkdir(parents=True, exist_ok=True)
    told = False
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_SECONDS)  # longer than `RunFolder.is_training` holds it
            return True
        except Timeout:
            if not told:
                say("waiting", "another repro command trains it already; waiting for its result")
                told = True
            if stop():
                return False


def task_images(task: Task) -> Any:
    """A task's data set; UserError where it is no longer the one that the task was made for."""
    assert isinstance(task.run, Run)
    data = task.run.recipe.data
    images, sha256 = load_cached_images(data.name, task.data_root, data.crop is not None)
    if sha256 != task.manifest["sha256"]:
        raise UserError(f"{images.name}: the images changed since the command began; start it again")
    return images


@lru_cache(maxsize=1)
def load_cached_images(name: str, root: Path, photographs: bool) -> tuple[Any, str]:
    """A data set, read once a process, and the sha256 of its manifest."""
    from pipeline.data.manifest import manifest_of
    from pipeline.data.sources import load_images

    images = load_images(name, root, photographs=photographs)
    return images, manifest_of(images).sha256
