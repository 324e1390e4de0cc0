"""Run an experiment on this machine: train what is not finished, track it, return its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.common.errors import explain_write_errors
from pipeline.common.paths import home, runs_folder
from pipeline.schedule.local import BatchOutcome, Event, run_all, worker_count
from pipeline.plan.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import BackgroundSync


@dataclass(frozen=True)
class JobOutcome:
    """The outcome of `run_tasks`."""

    ending: BatchOutcome
    records: list[Record]  # of all tasks that ended
    untracked: str = ""  # why the tracking server could not be used; "" if it could


def run_tasks(
    tasks: Sequence[Task],
    *,
    threads: int,
    on_event: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> JobOutcome:
    """Execute the tasks that are not finished, sync all to the tracking server, and return the records."""
    with explain_write_errors(home()):
        runs_folder().mkdir(parents=True, exist_ok=True)
    syncing = BackgroundSync()
    found, missing = split_finished(tasks, syncing)
    for task in tasks:
        syncing.watch(task.folder)
    for task in missing:
        RunFolder(task.folder).clear_unfinished()
    records = dict(found)

    def note(event: Event) -> None:
        if event.record:
            records[event.task.identity] = event.record
        on_event(event)

    ending: BatchOutcome = "ended"
    if missing:
        with syncing:
            workers = worker_count(len(missing), threads)
            ending = run_all(missing, workers=workers, threads=threads, on_event=note, tick=tick)
    syncing.sync()
    ordered = [records[task.identity] for task in tasks if task.identity in records]
    return JobOutcome(ending, ordered, syncing.trouble)


def split_finished(tasks: Sequence[Task], syncing: BackgroundSync) -> tuple[dict[str, Record], list[Task]]:
    """Records of the tasks already ended, here or on the tracking server, and the tasks that are left."""
    found = {}
    for task in tasks:
        record = RunFolder(task.folder).result()
        if record:
            found[task.identity] = record
    if len(found) < len(tasks):
        wanted = {task.identity for task in tasks}
        for record in syncing.records():
            if record.identity in wanted:
                found.setdefault(record.identity, record)
    return found, [task for task in tasks if task.identity not in found]
