"""What is seen while runs train: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from pipeline.common.words import plural
from pipeline.plan.expand import DerivedRun, Run
from pipeline.report.describe import derived_text
from pipeline.schedule.local import Event
from pipeline.plan.task import Task
from pipeline.track.record import FINISHED
from pipeline.track.run_folder import RunFolder

TEST_ERROR = "test/top1_error_pct"
LINE_SECONDS = 30.0  # between lines on progress where there is no terminal


class ProgressDisplay:
    """Bars or lines for a list of tasks; a context manager."""

    def __init__(self, tasks: Sequence[Task], console: Console, *, quietly: bool = False) -> None:
        self.tasks, self.console, self.quietly = tasks, console, quietly
        self.folders = {task.identity: RunFolder(task.folder) for task in tasks}
        self.ended = {name for name, folder in self.folders.items() if folder.result()}
        self.before = len(self.ended)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quietly or not console.is_terminal,
            transient=True,
            expand=True,
        )
        self.stopping = False
        self.bar_of: dict[str, TaskID] = {}
        self.last_line = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        """Start the bars."""
        self.bars.start()
        if self.before and not self.quietly:
            self.console.print(f"{self.before} of {len(self.tasks)} runs are finished already")
        steps = sum(step_count(task.run) for task in self.tasks if task.identity not in self.ended)
        self.total = self.bars.add_task("all runs, updates", total=steps, speed="", visible=bool(steps))
        return self

    def __exit__(self, *error: object) -> None:
        """Take them away."""
        self.bars.stop()

    def happened(self, event: Event) -> None:
        """Show an event."""
        run, name = event.task.run, event.task.identity
        if event.kind == "started" and name not in self.bar_of:
            self.bar_of[name] = self.bars.add_task(run.title, total=step_count(run) or None, speed="")
            if not self.console.is_terminal:
                self.say(f"{run.title}: {derived_text(run.spec) if isinstance(run, DerivedRun) else 'training'}")
        if event.kind == "stopping" and not self.stopping:
            self.stopping = True
            self.say("Stopping at the next step, with checkpoints; Ctrl-C once more ends at once", "yellow")
        if event.kind in ("waiting", "note", "stopped"):
            self.say(f"{run.title}: {event.text}", "yellow")
        if event.kind == "skipped":
            self.say(f"{run.title} cannot be done: {event.text}", "yellow")
        if event.kind == "failed":
            self.bars.console.print(f"{run.title}: {event.text}", style="red", markup=False, soft_wrap=True)
        if event.kind == "ended" and event.record:
            self.ended.add(name)
            record = event.record
            if record.status == FINISHED:
                error = f"test error {record.metrics[TEST_ERROR]:.2f} %"
                how = "trained" if isinstance(run, Run) else "done"
                self.say(f"{run.title}: {error}, {how} in {record.seconds:,.0f} s")
            else:
                self.say(f"{run.title}: did not converge: {record.ended}", "yellow")
        if event.kind in ("ended", "stopped", "failed") and name in self.bar_of:
            self.bars.update(self.bar_of[name], visible=False)
        self.tick()

    def tick(self) -> None:
        """Move the bars to where the runs are."""
        done = 0.0
        for name, bar in self.bar_of.items():
            steps = self.bars.tasks[bar].total or 0
            where = {} if name in self.ended else self.folders[name].read_progress()
            step = steps if name in self.ended else where.get("step", 0)
            done += step
            speed = f"{where['images_per_second']:,.0f} images/s" if where.get("images_per_second") else ""
            self.bars.update(bar, completed=step, speed=speed)
        self.bars.update(self.total, completed=done)
        if not self.console.is_terminal and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            total = self.bars.tasks[self.total].total or 1
            self.say(f"{100 * done / total:.0f} % of all updates")

    def say(self, text: str, style: str = "") -> None:
        """One line above the bars."""
        if not self.quietly:
            self.bars.console.print(text, style=style, markup=False, soft_wrap=True)


def step_count(run: Run | DerivedRun) -> int:
    """How many a run makes; a step makes none."""
    return run.recipe.train.steps if isinstance(run, Run) else 0


def plan_lines(tasks: Sequence[Task], console: Console) -> None:
    """What there is to do, a line a run or a step."""
    width = max(len(task.run.title) for task in tasks)
    left = 0
    for task in tasks:
        folder = RunFolder(task.folder)
        steps = f"{step_count(task.run):,}"
        checkpoint = folder.last_checkpoint(lambda _: None)
        left += not folder.result()
        state = f"to train, {steps} steps"
        if folder.result():
            state = "finished"
        elif isinstance(task.run, DerivedRun):
            state = f"to do when its runs have ended: {derived_text(task.run.spec)}"
        elif checkpoint:
            state = f"to resume at step {checkpoint[0]:,} of {steps}"
        console.print(f"{task.run.title:<{width}}  {state}", soft_wrap=True)
    runs = sum(isinstance(task.run, Run) for task in tasks)
    steps = f" and {plural(len(tasks) - runs, 'step')}" if runs < len(tasks) else ""
    console.print(
        f"{plural(runs, 'run')}{steps}, {len(tasks) - left} finished, {left} to {'do' if steps else 'train'}"
    )
