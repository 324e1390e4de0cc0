"""Progress of runs: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence

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

from pipeline.declare.sentences import metric_words
from pipeline.declare.transfer import is_score
from pipeline.plan.expand import DerivedRun, Run
from pipeline.plan.task import Task
from pipeline.report.derived_text import derived_text
from pipeline.schedule.local import Event
from pipeline.track.record import FINISHED
from pipeline.track.run_folder import RunFolder

TEST_ERROR, LOCALISATION_ERROR = "test/top1_error_pct", "test/localisation_error_pct"
LINE_SECONDS = 30.0  # between progress lines without a terminal


class ProgressDisplay:
    """Context manager that shows the progress of a list of tasks."""

    def __init__(self, tasks: Sequence[Task], console: Console, *, quietly: bool = False) -> None:
        self.tasks, self.console, self.quietly = tasks, console, quietly
        self.is_live = console.is_terminal and not console.is_dumb_terminal
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
            disable=quietly or not self.is_live,
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
            self.console.print(f"{self.before} of {len(self.tasks)} runs are already finished")
        steps = sum(step_count(task.run) for task in self.tasks if task.identity not in self.ended)
        self.total = self.bars.add_task("all runs, steps", total=steps, speed="", visible=bool(steps))
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bars."""
        self.bars.stop()

    def on_event(self, event: Event) -> None:
        """Show an event of a task."""
        run, name, title = event.task.run, event.task.identity, title_among(event.task, self.tasks)
        if event.kind == "started" and name not in self.bar_of:
            self.bar_of[name] = self.bars.add_task(title, total=step_count(run) or None, speed="")
            if not self.is_live:
                self.say(f"{title}: {derived_text(run.spec) if isinstance(run, DerivedRun) else 'training'}")
        if event.kind == "stopping" and not self.stopping:
            self.stopping = True
            self.say(
                "Stopping at the next step and saving checkpoints. Press Ctrl-C again to end at once", "yellow"
            )
        if event.kind in ("waiting", "note", "stopped"):
            self.say(f"{title}: {event.text}", "yellow")
        if event.kind == "skipped":
            self.say(f"{title} skipped: {event.text}", "yellow")
        if event.kind == "failed":
            self.bars.console.print(f"{title}: {event.text}", style="red", markup=False, soft_wrap=True)
        if event.kind == "ended" and event.record:
            self.ended.add(name)
            record = event.record
            if record.status == FINISHED:
                verb = "trained" if isinstance(run, Run) else "done"
                result = result_text(record.metrics)
                self.say(f"{title}: {result}{', ' * bool(result)}{verb} in {record.seconds:,.0f} s")
            else:
                self.say(f"{title}: did not converge: {record.ended}", "yellow")
        if event.kind in ("ended", "stopped", "failed") and name in self.bar_of:
            self.bars.update(self.bar_of[name], visible=False)
        self.tick()

    def tick(self) -> None:
        """Update the bars from the runs' progress files."""
        done = 0.0
        for name, bar in self.bar_of.items():
            steps = self.bars.tasks[bar].total or 0
            progress = {} if name in self.ended else self.folders[name].read_progress()
            step = steps if name in self.ended else progress.get("step", 0)
            done += step
            rate = progress.get("images_per_second")
            speed = f"{rate:,.0f} images/s" if rate else ""
            self.bars.update(bar, completed=step, speed=speed)
        self.bars.update(self.total, completed=done)
        if not self.is_live and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            total = self.bars.tasks[self.total].total or 1
            self.say(f"{100 * done / total:.0f} % of all steps")

    def say(self, text: str, style: str = "") -> None:
        """Print one line above the bars."""
        if not self.quietly:
            self.bars.console.print(text, style=style, markup=False, soft_wrap=True)


def title_among(task: Task, tasks: Sequence[Task]) -> str:
    """Return the title of a run, after the experiment's name where the tasks are of several experiments."""
    return task.title if any(other.run.experiment != task.run.experiment for other in tasks) else task.run.title


def step_count(run: Run | DerivedRun) -> int:
    """Return the number of optimizer steps of a run; 0 for a derived run."""
    return run.recipe.train.steps if isinstance(run, Run) else 0


def result_text(metrics: Mapping[str, float]) -> str:
    """Return the test error of a finished run, or the scores of a transfer; "" for a timing, which has neither."""
    for name, words in ((TEST_ERROR, "test error"), (LOCALISATION_ERROR, "localisation error")):
        if name in metrics:
            return f"{words} {metrics[name]:.2f} %"
    scores = {name: value for name, value in metrics.items() if is_score(name)}
    return ", ".join(f"{metric_words({'metric': name})} {value:.2f} %" for name, value in scores.items())
