"""The plan of `repro run --dry-run`: the runs of a request, and the state of each."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.common.words import plural
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.task import Task
from pipeline.report.derived_text import derived_text
from pipeline.track.run_folder import RunFolder


@dataclass(frozen=True)
class PlannedRun:
    """One run or derived run, and what is left to do for it."""

    experiment: str
    scale: str
    variant: str
    seed: int
    kind: Literal["run", "derived run"]
    state: Literal["finished", "to resume", "to do"]
    step: int  # of the last checkpoint; 0 without one
    steps: int  # optimizer steps in all; 0 for a derived run
    identity: str
    needs: tuple[str, ...]  # identities of the runs that must finish first
    what: str  # how a derived run is made; "" for a run

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON and tables."""
        return asdict(self)


def planned_runs(tasks: Sequence[Task], ended: Collection[str] = ()) -> list[PlannedRun]:
    """Return the state of every task from its run folder. `ended`: identities of runs that the server has."""
    return [planned_run(task, is_ended=task.identity in ended) for task in tasks]


def planned_run(task: Task, *, is_ended: bool) -> PlannedRun:
    """Return the state of one task. `is_ended`: the server has its run."""
    run, folder = task.run, RunFolder(task.folder)
    finished = is_ended or bool(folder.result())
    checkpoint = None if finished or isinstance(run, DerivedRun) else folder.last_checkpoint(lambda _: None)
    return PlannedRun(
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        seed=run.seed,
        kind="run" if isinstance(run, Run) else "derived run",
        state="finished" if finished else "to resume" if checkpoint else "to do",
        step=checkpoint[0] if checkpoint else 0,
        steps=run.recipe.train.steps if isinstance(run, Run) else 0,
        identity=task.identity,
        needs=task.needs,
        what=derived_text(run.spec) if isinstance(run, DerivedRun) else "",
    )


def plan_lines(rows: Sequence[PlannedRun]) -> Iterator[str]:
    """Yield a line for each run, the same words as in the progress of `repro run`, and one with their numbers."""
    several = len({row.experiment for row in rows}) > 1
    titles = [f"{row.experiment} " * several + f"{row.variant} seed {row.seed}" for row in rows]
    width = max(map(len, titles))
    for row, title in zip(rows, titles, strict=True):
        yield f"{title:<{width}}  {state_text(row)}"
    unfinished = sum(row.state != "finished" for row in rows)
    runs = sum(row.kind == "run" for row in rows)
    derived = f" and {plural(len(rows) - runs, 'derived run')}" if runs < len(rows) else ""
    yield (
        f"{plural(runs, 'run')}{derived}, {len(rows) - unfinished} finished,"
        f" {unfinished} to {'do' if derived else 'train'}"
    )


def state_text(row: PlannedRun) -> str:
    """Return the state of a run: "to train, 440 steps", "to resume at step 200 of 440", "finished"."""
    if row.state == "finished":
        return row.state
    if row.kind == "derived run":
        return f"to do{' after its runs' if row.needs else ''}: {row.what}"
    if row.state == "to resume":
        return f"to resume at step {row.step:,} of {row.steps:,}"
    return f"to train, {row.steps:,} steps"
