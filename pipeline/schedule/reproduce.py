"""Run an experiment on this machine: train what is not finished, track it, return its records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.common.errors import unwritable_named
from pipeline.common.paths import home, runs_folder
from pipeline.schedule.local import Ending, Event, run_all, worker_count
from pipeline.schedule.task import Task
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import Syncing


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    ending: Ending
    records: list[Record]  # of the runs asked for
    untracked: str = ""  # why the tracking server could not be used, if it could not


def carry_out(
    tasks: Sequence[Task],
    *,
    threads: int,
    happened: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> Outcome:
    """Train what is not finished, track everything, and return all records."""
    with unwritable_named(home()):
        runs_folder().mkdir(parents=True, exist_ok=True)
    syncing = Syncing()
    found, missing = finished(tasks, syncing)
    for task in tasks:
        syncing.watch(task.folder)
    for task in missing:
        RunFolder(task.folder).begin_anew()
    records = dict(found)

    def note(event: Event) -> None:
        if event.record:
            records[event.task.identity] = event.record
        happened(event)

    ending: Ending = "ended"
    if missing:
        with syncing:
            workers = worker_count(len(missing), threads)
            ending = run_all(missing, workers=workers, threads=threads, happened=note, tick=tick)
    syncing.sync()
    ordered = [records[task.identity] for task in tasks if task.identity in records]
    return Outcome(ending, ordered, syncing.trouble)


def finished(tasks: Sequence[Task], syncing: Syncing) -> tuple[dict[str, Record], list[Task]]:
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
