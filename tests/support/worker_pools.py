"""Tasks and events for tests of the worker pool and of `execute_task`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data import manifest, sources
from pipeline.declare.derived import DerivedSpec, EnsembleSpec
from pipeline.plan.expand import DerivedRun
from pipeline.plan.identity import identity
from pipeline.plan.task import Task
from pipeline.schedule.local import Event, run_all
from tests.support.smoke_runs import smoke_run


def run_tasks_in_pool(
    tasks: Sequence[Task],
    workers: int = 2,
    on_event: Callable[[Event], object] = lambda event: None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[str, list[Event]]:
    """Execute the tasks; return the outcome and all events."""
    events: list[Event] = []

    def record_event(event: Event) -> None:
        events.append(event)
        on_event(event)

    outcome = run_all(tasks, workers=workers, threads=1, on_event=record_event, tick=tick)
    return outcome, events


def kinds_of(events: Sequence[Event], task: Task) -> list[str]:
    """Return the kinds of a task's events, in order."""
    return [event.kind for event in events if event.task is task]


def derived_task(root: Path, tasks: Sequence[Task], spec: DerivedSpec | None = None) -> Task:
    """Return the task of a derived run, by default an ensemble, of the runs of other tasks."""
    spec = spec or EnsembleSpec(kind="ensemble", members={tasks[0].run.variant: len(tasks)})
    runs: tuple[Any, ...] = tuple(task.run for task in tasks)
    derived = DerivedRun(runs[0].experiment, runs[0].scale, "together", runs[0].seed, spec, runs)
    needs = tuple(task.identity for task in tasks)
    name = identity(derived, manifest="m", code="code", members=needs)
    return replace(tasks[0], run=derived, identity=name, folder=root / name, needs=needs)


def write_shades(root: Path) -> None:
    """Write the set "shades" in class folders: two classes, eight training and eight test images each."""
    for split in ("train", "test"):
        for number, name in enumerate(("dark", "light")):
            folder = root / "shades" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (16, 16), (100 * number + i,) * 3).save(folder / f"{i}.png")


def shades_task(data: Path, folder: Path) -> Task:
    """Return the task of a run on the set "shades" in `data`, with the run folder `folder`."""
    run = smoke_run(changes={"data.name": "shades", "data.augment": [], "train.batch_size": 4})
    values = manifest.manifest_to_dict(manifest.manifest_of(sources.load_images("shades", data)))
    return Task(run, folder.name, "code", values, folder, data)
