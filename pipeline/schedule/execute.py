"""Execute one task in this process, under its lock."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.declare.derived import TransferStep
from pipeline.plan.expand import Run, Step
from pipeline.schedule.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.train.ranks import current

LOCK_POLL_SECONDS = 0.5


def carry_out(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Train a run or do a step, in this process; None where `stop()` asked for it to be left."""
    do = train_task if isinstance(task.run, Run) else do_step
    return do(task, threads=threads, readers=readers, stop=stop, say=say)


def do_step(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Do one step under its lock, as `train_task` trains a run."""
    from filelock import FileLock

    step, folder = task.run, RunFolder(task.folder)
    assert isinstance(step, Step)
    lock = FileLock(folder.lock_file)
    try:
        if not has_turn(folder, lock, stop, say):
            return None
        record = folder.result()
        if record:
            return record
        say("started")
        from pipeline.data.manifest import from_dict, manifest_of
        from pipeline.data.sources import load
        from pipeline.derive.run import run_step

        folder.create(task.description())
        data = step.members[0].recipe.data
        images, sha256 = images_of(data.name, task.data_root, data.crop is not None)
        other = None
        if isinstance(step.step, TransferStep):
            other = load(step.step.data, task.data_root, photographs=data.crop is not None)
            sha256 = manifest_of(other).sha256
        if sha256 != task.manifest["sha256"]:
            name = (other or images).name
            raise UserError(f"{name}: the images changed since the command began; start it again")
        return run_step(
            step,
            identity=task.identity,
            folder=folder,
            members=[RunFolder(task.folder.parent / need) for need in task.needs],
            images=images,
            manifest=from_dict(task.manifest),
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


def train_task(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Train one run under its lock; another process that trains it already is waited for.

    Called by every rank of a group, on each of which it returns the same; rank 0 holds the lock, and speaks.
    """
    from filelock import FileLock

    assert isinstance(task.run, Run)
    group = current()
    if group.rank:
        say = unheard
    folder = RunFolder(task.folder)
    lock = FileLock(folder.lock_file)
    try:
        if not group.led(lambda stop: has_turn(folder, lock, stop, say), stop):
            return None
        record = group.led(lambda _: folder.result())
        if record:
            return record
        say("started")
        from pipeline.data.manifest import from_dict
        from pipeline.train.train import train

        return train(
            task.run,
            identity=task.identity,
            folder=folder,
            images=group.each(lambda _: images_for(task)),
            manifest=from_dict(task.manifest),
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


def unheard(*_: object) -> None:
    """What the first rank of a group says already."""


def has_turn(folder: RunFolder, lock: Any, stop: Callable[[], bool], say: Callable[..., None]) -> bool:
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


def images_for(task: Task) -> Any:
    """A task's data set; UserError where it is no longer the one that the task was made for."""
    assert isinstance(task.run, Run)
    data = task.run.recipe.data
    images, sha256 = images_of(data.name, task.data_root, data.crop is not None)
    if sha256 != task.manifest["sha256"]:
        raise UserError(f"{images.name}: the images changed since the command began; start it again")
    return images


@lru_cache(maxsize=1)
def images_of(name: str, root: Path, photographs: bool) -> tuple[Any, str]:
    """A data set, read once a process, and the sha256 of its manifest."""
    from pipeline.data.manifest import manifest_of
    from pipeline.data.sources import load

    images = load(name, root, photographs=photographs)
    return images, manifest_of(images).sha256
