"""Run tasks on this machine: execute those that are not finished, track all, return their records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.common.environment import available_cpus
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.paths import home, runs_folder, tracking_uri
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.task import Task
from pipeline.schedule.local import BatchOutcome, Event, run_all, worker_count
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import BackgroundSync


@dataclass(frozen=True)
class JobOutcome:
    """Outcome of `run_tasks`."""

    ending: BatchOutcome
    records: list[Record]  # of all tasks that ended
    untracked: str = ""  # error of the tracking server; "" if there was none


def run_tasks(
    tasks: Sequence[Task],
    *,
    threads: int | None,
    on_event: Callable[[Event], None],
    tick: Callable[[], None] = lambda: None,
) -> JobOutcome:
    """Execute the tasks that have not ended, sync all to the tracking server, and return the records.

    `threads`: of each run on a CPU; None: see `threads_of_each`.
    """
    with explain_write_errors(home()):
        runs_folder().mkdir(parents=True, exist_ok=True)
    tracking_uri()  # a wrong address is an error before anything is trained
    syncing = BackgroundSync()
    records, missing = split_finished(tasks, syncing)
    for task in tasks:
        syncing.watch(task.folder)
    require_precision(missing)
    for task in missing:
        RunFolder(task.folder).clear_unfinished()

    def handle(event: Event) -> None:
        if event.record:
            records[event.task.identity] = event.record
        on_event(event)

    ending: BatchOutcome = "ended"
    if missing:
        with syncing:
            workers = worker_count(len(missing), threads or 1)
            each = threads or threads_of_each(missing, workers)
            ending = run_all(missing, workers=workers, threads=each, on_event=handle, tick=tick)
    syncing.sync()
    ordered = [records[task.identity] for task in tasks if task.identity in records]
    return JobOutcome(ending, ordered, syncing.trouble)


def threads_of_each(tasks: Sequence[Task], workers: int) -> int:
    """Return the threads of each worker: 1, which gives the same bits on any number of CPUs.

    If all runs may choose their execution settings, their rounding differs between machines anyway, and a worker
    gets its share of the CPUs; not beside a GPU, which computes instead.
    """
    import torch

    runs = [
        run for task in tasks for run in (task.run.members if isinstance(task.run, DerivedRun) else (task.run,))
    ]
    measures = any(isinstance(task.run, DerivedRun) and not task.run.members for task in tasks)
    if measures or torch.cuda.is_available() or not all(run.tunable for run in runs):
        return 1
    return max(1, available_cpus() // workers)


def require_precision(tasks: Sequence[Task]) -> None:
    """Raise UserError, before any worker starts, if a run declares a precision that this machine lacks."""
    if any(isinstance(task.run, Run) and task.run.recipe.train.precision == "tf32" for task in tasks):
        from pipeline.train.process import NO_TF32, has_tf32

        if not has_tf32():
            raise UserError(NO_TF32)


def split_finished(tasks: Sequence[Task], syncing: BackgroundSync) -> tuple[dict[str, Record], list[Task]]:
    """Return the records of ended tasks by identity, and the other tasks.

    The records are those on this machine and, if some are missing, on the tracking server.
    """
    records = {}
    for task in tasks:
        record = RunFolder(task.folder).result()
        if record:
            records[task.identity] = record
    if len(records) < len(tasks):
        identities = {task.identity for task in tasks}
        for record in syncing.records():
            if record.identity in identities:
                records.setdefault(record.identity, record)
    return records, [task for task in tasks if task.identity not in records]
