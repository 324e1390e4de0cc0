"""Runs on this machine: a few worker processes, each training one run after the other.

The parent trains nothing; it hands out runs, passes on what happens, and lets workers end their step and
checkpoint when the user presses Ctrl-C. A worker whose parent is gone does the same by itself.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from pipeline.mistakes import UserError
from pipeline.record import Record
from pipeline.runs import RunFolder
from pipeline.schedule.task import Task

POLL_SECONDS = 0.25
MOST_READERS = 16  # four times what a ResNet-50 on one GPU learns from
LOCK_POLL_SECONDS = 0.5

Ending = Literal["ended", "stopped", "failed"]  # of all runs: every one ended, Ctrl-C came, some failed


@dataclass(frozen=True)
class Event:
    """Something that happened to a run."""

    kind: Literal["started", "waiting", "note", "stopping", "ended", "stopped", "failed"]
    task: Task
    text: str = ""
    record: Record | None = None


def worker_count(runs: int, threads: int) -> int:
    """How many runs at a time: one a GPU, else one for every `threads` cores."""
    import torch

    if torch.cuda.is_available():
        return max(1, min(runs, torch.cuda.device_count()))
    return max(1, min(runs, cores() // threads))


def run_all(
    tasks: Sequence[Task],
    *,
    workers: int,
    threads: int,
    happened: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> Ending:
    """Train all `tasks` and say how that went.

    `happened` hears of every event, `tick` is called a few times a second. Ctrl-C (or SIGTERM) stops the runs at
    their next step, with checkpoints; a second one raises KeyboardInterrupt and ends the workers at once.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(tasks))
    kinds: set[str] = set()  # of the events
    readers = reader_count(workers)
    pool = [Worker(context, threads, readers, number) for number in range(workers)]
    with interruptible() as interrupted:
        try:
            while True:
                for worker in pool:
                    if worker.task is None and waiting and not interrupted():
                        worker.give(waiting.pop())
                busy = [worker for worker in pool if worker.task is not None]
                if not busy:
                    break
                if interrupted() and "stopping" not in kinds:
                    events = [event for worker in busy for event in worker.stop()]
                else:
                    wait([worker.connection for worker in busy], timeout=POLL_SECONDS)
                    events = [event for worker in busy for event in worker.events()]
                for event in events:
                    kinds.add(event.kind)
                    happened(event)
                tick()
        finally:
            for worker in pool:
                worker.close()
    if waiting or "stopped" in kinds:
        return "stopped"
    return "failed" if "failed" in kinds else "ended"


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within: whether Ctrl-C or SIGTERM came. It interrupts nothing by itself, but for a second one."""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reader_count(workers: int) -> int:
    """Threads of each worker that read photographs: its share of the cores; on a CPU one, training needs them."""
    import torch

    if not torch.cuda.is_available():
        return 1
    return max(1, min(MOST_READERS, cores() // workers))


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One process, started when there is a run for it, and the run it is training."""

    def __init__(self, context: Any, threads: int, readers: int, number: int) -> None:
        self.context, self.threads, self.readers, self.number = context, threads, readers, number
        self.process: Any = None
        self.connection: Any = None
        self.task: Task | None = None

    def start(self) -> None:
        """A new process. It is born deaf to Ctrl-C, which a terminal sends to it too: the parent passes it on."""
        self.connection, other = self.context.Pipe()
        words = (other, self.threads, self.readers, self.number)
        self.process = self.context.Process(target=work, args=words, name=f"repro-{self.number}", daemon=True)
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        other.close()

    def give(self, task: Task) -> None:
        """Hand over a run."""
        if self.process is None or not self.process.is_alive():
            self.close()
            self.start()
        self.task = task
        with contextlib.suppress(OSError):  # it died in this moment: `events` will say so
            self.connection.send(task)

    def stop(self) -> list[Event]:
        """Ask for the run to be left at its next step, resumable."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        return [Event("stopping", self.task)] if self.task else []

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
        if self.process is None:
            return
        self.connection.close()
        self.process.join(2 if self.task is None else 0.1)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def work(connection: Connection, threads: int, readers: int, number: int) -> None:
    """A worker's life: train the runs that come through `connection` until it closes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says that there is no GPU
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = [str(number)] * (number + 1) if gpus is None else gpus.split(",")
    if number < len(
        allowed
    ):  # one GPU each, of those the user allows; on a machine without any it does not matter
        os.environ["CUDA_VISIBLE_DEVICES"] = allowed[number]
    asked_to_stop = connection.poll  # while a run trains, all that can come is "stop", or the parent's end
    while True:
        try:
            task: Task | None = connection.recv()
        except (EOFError, OSError):
            return
        if task is None:
            continue

        def say(kind: str, text: str = "", record: Record | None = None) -> None:
            with contextlib.suppress(OSError):  # the parent is gone, which `asked_to_stop` hears too
                connection.send((kind, text, record))

        try:
            record = train_task(task, threads=threads, readers=readers, stop=asked_to_stop, say=say)
            say("ended" if record else "stopped", "" if record else "stopped; resumable", record)
        except UserError as error:
            say("failed", str(error))
        except Exception:  # noqa: BLE001 - whatever it is, the user sees it and the other runs go on
            say("failed", traceback.format_exc())


def train_task(
    task: Task, *, threads: int, readers: int = 1, stop: Callable[[], bool], say: Callable[..., None]
) -> Record | None:
    """Train one run under its lock; another process that trains it already is waited for."""
    from filelock import FileLock, Timeout

    folder = RunFolder(task.folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.lock_file)
    told = False
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_SECONDS)  # longer than `RunFolder.is_training` holds it
            break
        except Timeout:
            if not told:
                say("waiting", "another repro command trains it already; waiting for its result")
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

        images, sha256 = images_of(
            task.run.recipe.data.name, task.data_root, task.run.recipe.data.crop is not None
        )
        if sha256 != task.manifest["sha256"]:
            raise UserError(f"{images.name}: the images changed since the command began; start it again")

        return train(
            task.run,
            identity=task.identity,
            folder=folder,
            images=images,
            manifest=from_dict(task.manifest),
            code=task.code,
            threads=threads,
            readers=readers,
            stop=stop,
            warn=lambda text: say("note", text),
            cache=task.data_root / ".cache",
        )
    finally:
        lock.release()


@lru_cache(maxsize=1)
def images_of(name: str, root: Path, photographs: bool) -> tuple[Any, str]:
    """A data set, read once a process, and the sha256 of its manifest."""
    from pipeline.data.manifest import manifest_of
    from pipeline.data.sources import load

    images = load(name, root, photographs=photographs)
    return images, manifest_of(images).sha256
