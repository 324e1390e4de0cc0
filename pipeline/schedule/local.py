"""Execute tasks on this machine, in a pool of worker processes.

The parent process assigns tasks and forwards events. On Ctrl-C it lets the workers write checkpoints after their
current step. A worker whose parent has died also writes a checkpoint and exits.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from pipeline.common.environment import available_cpus
from pipeline.common.errors import UserError
from pipeline.common.signals import count_stop_signals
from pipeline.plan.expand import member_title
from pipeline.plan.task import Task
from pipeline.schedule.execute import execute_task
from pipeline.schedule.stop import StopSignal
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import RunFolder

POLL_SECONDS = 0.25

MAX_READERS = 16  # per worker: four times as many as a ResNet-50 on one GPU needs

BatchOutcome = Literal["ended", "stopped", "failed"]  # all tasks ended; Ctrl-C stopped some; some failed


@dataclass(frozen=True)
class Event:
    """An event of a task. "skipped": a derived run that cannot be made, because a run that it needs failed."""

    kind: Literal["started", "waiting", "note", "stopping", "ended", "stopped", "failed", "skipped"]
    task: Task
    text: str = ""
    record: Record | None = None


def worker_count(runs: int, threads: int) -> int:
    """Return the number of workers: one per GPU or, without GPUs, one per `threads` CPUs; at most `runs`."""
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
    """Execute all `tasks` and return the outcome. A task waits for the runs that it needs.

    `on_event` is called for every event, `tick` a few times per second. Ctrl-C or SIGTERM stops the runs after
    their current step, with checkpoints. A second one raises KeyboardInterrupt and kills the workers.
    """
    context = multiprocessing.get_context("spawn")
    queue = TaskQueue(tasks)
    kinds: set[str] = set()  # of the events so far
    readers = reader_count(workers)
    pool = [Worker(context, threads, readers, number) for number in range(workers)]
    with count_stop_signals(raise_on_second=True) as interrupted:
        try:
            while True:
                for event in queue.skip_unreachable():
                    on_event(event)
                for worker in pool:
                    if worker.task is None and not interrupted() and (task := queue.next()):
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
                    queue.handle(event)
                    on_event(event)
                tick()
        finally:
            for worker in pool:
                worker.close()
    if queue.waiting or "stopped" in kinds:
        return "stopped"
    return "failed" if "failed" in kinds else "ended"


class TaskQueue:
    """Tasks in order. A task is assigned once the runs that it needs have ended."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.waiting = list(tasks)
        self.pending = {task.identity for task in tasks}  # identities of tasks that have not ended
        self.elsewhere: set[str] = set()  # identities of tasks that another process executed when they came first
        self.unusable: dict[str, str] = {}  # identity of a run that no derived run can use -> reason
        for task in tasks:
            for need in task.needs:
                if need not in self.pending:
                    self.task_ended(need, RunFolder(task.folder.parent / need).result())

    def task_ended(
        self, identity: str, record: Record | None, reason: str = "has not been trained on this machine"
    ) -> None:
        """Register that a task ended with this record, or without one for this reason."""
        self.pending.discard(identity)
        if record is None:
            self.unusable[identity] = reason
        elif record.status != FINISHED:
            self.unusable[identity] = f"did not converge: {record.ended}"

    def handle(self, event: Event) -> None:
        """Register the end of an assigned task."""
        if event.kind == "ended":
            self.task_ended(event.task.identity, event.record)
        elif event.kind == "failed":
            lines = event.text.strip().splitlines() or [""]
            self.task_ended(event.task.identity, None, f"failed: {lines[-1]}")  # the last line of a traceback

    def next(self) -> Task | None:
        """Remove and return the first task whose needs have all ended; None if there is none.

        A task that another process executes comes after the others, so that two commands share the tasks. If none
        is left but these, the first of them is returned: its worker waits for the other process.
        """
        unmet = self.pending | self.unusable.keys()
        ready = [task for task in self.waiting if unmet.isdisjoint(task.needs)]
        if not ready:
            return None
        chosen = next((task for task in ready if not self.was_elsewhere(task)), ready[0])
        self.waiting.remove(chosen)
        return chosen

    def was_elsewhere(self, task: Task) -> bool:
        """Return True if another process executed a task when it was first in the queue."""
        if task.identity not in self.elsewhere and RunFolder(task.folder).is_training():
            self.elsewhere.add(task.identity)
        return task.identity in self.elsewhere

    def skip_unreachable(self) -> list[Event]:
        """Remove the tasks that need an unusable run, mark their folders, and return their events."""
        unreachable = [task for task in self.waiting if any(need in self.unusable for need in task.needs)]
        for task in unreachable:
            self.waiting.remove(task)
            self.task_ended(task.identity, None, "could not be made")
        return [mark_skipped(task, self.unusable) for task in unreachable]


def mark_skipped(task: Task, unusable: Mapping[str, str]) -> Event:
    """Record in its folder why a task cannot be executed: "needs resnet-56 seed 1, which did not converge"."""
    titles = [member_title(task.run, member) for member in task.run.members]
    reasons = [
        f"{title}, which {unusable[need]}"
        for title, need in zip(titles, task.needs, strict=True)
        if need in unusable
    ]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    text = f"needs {reasons[0]}{more}"
    folder = RunFolder(task.folder)
    folder.create(task.description())
    folder.mark_unfinished("failed", text)
    return Event("skipped", task, text)


def reader_count(workers: int) -> int:
    """Return the reader threads per worker: its share of the CPUs if a GPU trains, 1 if the CPU trains."""
    import torch

    if not torch.cuda.is_available():
        return 1
    return max(1, min(MAX_READERS, available_cpus() // workers))


class Worker:
    """A worker process and the task that it executes. The process starts with the first task."""

    def __init__(self, context: Any, threads: int, readers: int, number: int) -> None:
        self.context, self.threads, self.readers, self.number = context, threads, readers, number
        self.process: Any = None
        self.connection: Any = None
        self.task: Task | None = None

    def start(self) -> None:
        """Start the process. It ignores SIGINT, which a terminal also sends to it; the parent forwards it."""
        self.connection, worker_end = self.context.Pipe()
        args = (worker_end, self.threads, self.readers, self.number)
        self.process = self.context.Process(
            target=worker_main, args=args, name=f"repro-{self.number}", daemon=True
        )
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        worker_end.close()

    def assign(self, task: Task) -> None:
        """Send a task to the process."""
        if self.process is None or not self.process.is_alive():
            self.close()
            self.start()
        self.task = task
        with contextlib.suppress(OSError):  # the process has died; `events` reports it
            self.connection.send(task)

    def stop(self) -> list[Event]:
        """Tell the process to stop its run after the current step, resumable."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        return [Event("stopping", self.task)] if self.task else []

    def events(self) -> list[Event]:
        """Return the events since the last call. After the last event of a task, `task` is None."""
        events: list[Event] = []
        try:
            while self.task is not None and self.connection.poll():
                kind, text, record = self.connection.recv()
                events.append(Event(kind, self.task, text, record))
                if kind in ("ended", "stopped", "failed"):
                    self.task = None
        except (EOFError, ConnectionResetError):
            self.process.join(5)
            code = self.process.exitcode
            cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            text = f"its process was ended {cause}; run the same command again to resume"
            events.append(Event("failed", self.task, text))  # type: ignore[arg-type]
            self.task = None
        return events

    def close(self) -> None:
        """End the process. Its checkpoints are complete at any moment."""
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
    """Execute the tasks that arrive through `connection` until it closes; main function of a worker process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns on machines without a GPU
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = [str(number)] * (number + 1) if gpus is None else gpus.split(",")
    if number < len(allowed):  # one GPU per worker, of those that the user allows
        os.environ["CUDA_VISIBLE_DEVICES"] = allowed[number]
    parent_stops = connection.poll  # while a task runs, the parent sends nothing but that, or the end of file
    while True:
        try:
            task: Task | None = connection.recv()
        except (EOFError, OSError):
            return
        if task is None:
            continue

        def on_event(kind: str, text: str = "", record: Record | None = None) -> None:
            with contextlib.suppress(OSError):  # the parent has died; `stop` returns True
                connection.send((kind, text, record))

        stop = StopSignal(RunFolder(task.folder), parent_stops, only="cancelled")
        try:
            record = execute_task(task, threads=threads, readers=readers, stop=stop, on_event=on_event)
            text = "cancelled by repro cancel; resumable" if stop.why else "stopped; resumable"
            on_event("ended" if record else "stopped", "" if record else text, record)
        except UserError as error:
            on_event("failed", str(error))
        except Exception:  # noqa: BLE001 - reported to the user; the other runs continue
            on_event("failed", traceback.format_exc())
