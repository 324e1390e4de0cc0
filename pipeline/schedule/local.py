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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from pipeline.common.environment import available_cpus
from pipeline.common.errors import UserError
from pipeline.plan.expand import DerivedRun
from pipeline.schedule.execute import execute_task
from pipeline.schedule.task import Task
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import RunFolder

POLL_SECONDS = 0.25

MOST_READERS = 16  # four times what a ResNet-50 on one GPU learns from

BatchOutcome = Literal["ended", "stopped", "failed"]  # of all runs: every one ended, Ctrl-C came, some failed


@dataclass(frozen=True)
class Event:
    """Something that happened to a run. "left": a step that cannot be done, since a run it needs is of no use."""

    kind: Literal["started", "waiting", "note", "stopping", "ended", "stopped", "failed", "left"]
    task: Task
    text: str = ""
    record: Record | None = None


def worker_count(runs: int, threads: int) -> int:
    """How many runs at a time: one a GPU, else one for every `threads` cores."""
    import torch

    if torch.cuda.is_available():
        return max(1, min(runs, torch.cuda.device_count()))
    return max(1, min(runs, available_cpus() // threads))


def run_all(
    tasks: Sequence[Task],
    *,
    workers: int,
    threads: int,
    on_event: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> BatchOutcome:
    """Train all `tasks` and say how that went; a step waits for the runs that it needs.

    `happened` hears of every event, `tick` is called a few times a second. Ctrl-C (or SIGTERM) stops the runs at
    their next step, with checkpoints; a second one raises KeyboardInterrupt and ends the workers at once.
    """
    context = multiprocessing.get_context("spawn")
    line = TaskQueue(tasks)
    kinds: set[str] = set()  # of the events
    readers = reader_count(workers)
    pool = [Worker(context, threads, readers, number) for number in range(workers)]
    with catch_interrupts() as interrupted:
        try:
            while True:
                for event in line.unreachable():
                    on_event(event)
                for worker in pool:
                    if worker.task is None and not interrupted() and (task := line.next()):
                        worker.assign(task)
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
                    line.note(event)
                    on_event(event)
                tick()
        finally:
            for worker in pool:
                worker.close()
    if line.waiting or "stopped" in kinds:
        return "stopped"
    return "failed" if "failed" in kinds else "ended"


class TaskQueue:
    """Tasks in their order; each is handed out once what it needs has ended."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.waiting = list(tasks)
        self.open = {task.identity for task in tasks}  # not ended yet
        self.useless: dict[str, str] = {}  # ended, but no step can use it: why
        for task in tasks:
            for need in task.needs:
                if need not in self.open:
                    self.task_ended(need, RunFolder(task.folder.parent / need).result())

    def task_ended(
        self, identity: str, record: Record | None, why: str = "has not been trained on this machine"
    ) -> None:
        """It has ended with this record; with None, `why` there is none."""
        self.open.discard(identity)
        if record is None:
            self.useless[identity] = why
        elif record.status != FINISHED:
            self.useless[identity] = f"did not converge: {record.ended}"

    def note(self, event: Event) -> None:
        """What happened to a task that was handed out."""
        if event.kind == "ended":
            self.task_ended(event.task.identity, event.record)
        elif event.kind == "failed":
            lines = event.text.strip().splitlines() or [""]
            self.task_ended(event.task.identity, None, f"failed: {lines[-1]}")  # of a traceback what it ends with

    def next(self) -> Task | None:
        """The first task that needs nothing any more, if there is one."""
        for place, task in enumerate(self.waiting):
            if not any(need in self.open or need in self.useless for need in task.needs):
                return self.waiting.pop(place)
        return None

    def unreachable(self) -> list[Event]:
        """The tasks that can never be done, taken out of the line; their folders say why."""
        found = [task for task in self.waiting if any(need in self.useless for need in task.needs)]
        for task in found:
            self.waiting.remove(task)
            self.task_ended(task.identity, None, "could not be done")
        return [mark_unreachable(task, self.useless) for task in found]


def mark_unreachable(task: Task, useless: Mapping[str, str]) -> Event:
    """Leave a step in its folder as one that cannot be done: "needs resnet-56 seed 1, which did not converge"."""
    assert isinstance(task.run, DerivedRun)
    titles = [member.title for member in task.run.members]
    reasons = [
        f"{title}, which {useless[need]}"
        for title, need in zip(titles, task.needs, strict=True)
        if need in useless
    ]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    text = f"needs {reasons[0]}{more}"
    folder = RunFolder(task.folder)
    folder.create(task.description())
    folder.mark_unfinished("failed", text)
    return Event("left", task, text)


@contextmanager
def catch_interrupts() -> Iterator[Callable[[], bool]]:
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
    return max(1, min(MOST_READERS, available_cpus() // workers))


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
        self.process = self.context.Process(
            target=worker_main, args=words, name=f"repro-{self.number}", daemon=True
        )
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        other.close()

    def assign(self, task: Task) -> None:
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


def worker_main(connection: Connection, threads: int, readers: int, number: int) -> None:
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
            record = execute_task(task, threads=threads, readers=readers, stop=asked_to_stop, say=say)
            say("ended" if record else "stopped", "" if record else "stopped; resumable", record)
        except UserError as error:
            say("failed", str(error))
        except Exception:  # noqa: BLE001 - whatever it is, the user sees it and the other runs go on
            say("failed", traceback.format_exc())
