"""Runs on this machine: a few worker processes, each training one run after the other.

The parent imports no torch and trains nothing; it hands out runs, passes on what happens, and lets workers end
their step and checkpoint when the user presses Ctrl-C. A worker whose parent is gone does the same by itself.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from pipeline.mistakes import UserError
from pipeline.plan import Run
from pipeline.record import Record
from pipeline.runs import RunFolder

POLL_SECONDS = 0.25
LOCK_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Task:
    """A run to train, with what its identity was made from."""

    run: Run
    identity: str
    code: str
    manifest: dict[str, Any]
    folder: Path
    data_root: Path


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    kind: Literal["started", "waiting", "note", "ended", "stopped", "failed"]
    task: Task
    text: str = ""
    record: Record | None = None


def worker_count(runs: int, threads: int) -> int:
    """How many runs at a time: one a GPU, else one for every `threads` cores."""
    import torch

    if torch.cuda.is_available():
        return max(1, min(runs, torch.cuda.device_count()))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(runs, cores // threads))


def run_all(
    tasks: Sequence[Task],
    *,
    workers: int,
    threads: int,
    happened: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> bool:
    """Train all `tasks`; True when every one ended, False when some were stopped or failed.

    `happened` hears of every event, `tick` is called a few times a second. KeyboardInterrupt stops the runs at
    their next step, with checkpoints, and is not passed on; a second one ends the workers at once.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(tasks))
    pool = [Worker(context, threads, number) for number in range(workers)]
    whole, stopping = True, False
    try:
        while True:
            try:
                for worker in pool:
                    if worker.task is None and waiting and not stopping:
                        worker.give(waiting.pop())
                busy = [worker for worker in pool if worker.task is not None]
                if not busy:
                    break
                for worker in busy:
                    for event in worker.events():
                        whole = whole and event.kind not in ("stopped", "failed")
                        happened(event)
                    if not worker.process.is_alive() and worker.task is None and waiting:
                        pool[pool.index(worker)] = Worker(context, threads, worker.number)
                wait([worker.connection for worker in busy if worker.task], timeout=POLL_SECONDS)
                tick()
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                for worker in pool:
                    if worker.task is not None:
                        worker.stop()
                        happened(Event("note", worker.task, "stopping at the next step, with a checkpoint"))
    finally:
        for worker in pool:
            worker.close()
    return whole and not waiting


class Worker:
    """One process and the run it is training."""

    def __init__(self, context: Any, threads: int, number: int) -> None:
        self.connection, other = context.Pipe()
        self.number = number
        self.process = context.Process(
            target=work, args=(other, threads, number), name=f"repro-worker-{number}", daemon=True
        )
        self.process.start()
        other.close()
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Hand over a run."""
        self.task = task
        self.connection.send(task)

    def stop(self) -> None:
        """Ask for the run to be left at its next step, resumable."""
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def events(self) -> list[Event]:
        """What has happened since the last call; the worker is free again after the last event of a run."""
        found: list[Event] = []
        try:
            while self.task is not None and self.connection.poll():
                kind, text, record = self.connection.recv()
                found.append(Event(kind, self.task, text, record))
                if kind in ("ended", "stopped", "failed"):
                    self.task = None
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            code = self.process.exitcode
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            text = f"its process was ended {how}; start the same command again to resume"
            found.append(Event("failed", self.task, text))  # type: ignore[arg-type]
            self.task = None
        return found

    def close(self) -> None:
        """End the process; it holds nothing that a checkpoint does not."""
        self.connection.close()
        self.process.join(2 if self.task is None else 0.1)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def work(connection: Connection, threads: int, number: int) -> None:
    """A worker's life: train the runs that come through `connection` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
    asked_to_stop = connection.poll  # while a run trains, all that can come is "stop", or the parent's end
    while True:
        try:
            task: Task | None = connection.recv()
        except (EOFError, OSError):
            return
        if task is None:
            continue

        def say(kind: str, text: str = "", record: Record | None = None) -> None:
            connection.send((kind, text, record))

        try:
            record = train_task(task, threads=threads, stop=asked_to_stop, say=say)
            say("ended" if record else "stopped", "" if record else "stopped; resumable", record)
        except UserError as error:
            say("failed", str(error))
        except BrokenPipeError:
            return
        except Exception:  # noqa: BLE001 - whatever it is, the user sees it and the other runs go on
            say("failed", traceback.format_exc())


def train_task(task: Task, *, threads: int, stop: Callable[[], bool], say: Callable[..., None]) -> Record | None:
    """Train one run under its lock; another process that trains it already is waited for."""
    from filelock import FileLock, Timeout

    folder = RunFolder(task.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.lock_file)
    told = False
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_SECONDS if told else 0)
            break
        except Timeout:
            if not told:
                process = folder.progress().get("pid", "unknown")
                say("waiting", f"another repro trains it already (process {process}); waiting for its result")
                told = True
            if stop():
                return None
    try:
        record = folder.result()
        if record:
            return record
        say("started")
        from pipeline.data.manifest import from_dict
        from pipeline.train import train

        return train(
            task.run,
            identity=task.identity,
            folder=folder,
            images=images_of(task.run.recipe.data.name, task.data_root),
            manifest=from_dict(task.manifest),
            code=task.code,
            threads=threads,
            stop=stop,
            warn=lambda text: say("note", text),
        )
    finally:
        lock.release()


def images_of(name: str, root: Path) -> Any:
    """A data set, read once a process."""
    from pipeline.data.sources import load

    if (name, root) not in _IMAGES:
        _IMAGES.clear()
        _IMAGES[name, root] = load(name, root)
    return _IMAGES[name, root]


_IMAGES: dict[tuple[str, Path], Any] = {}
