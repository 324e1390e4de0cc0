"""Progress of a long command on standard error: a bar on a terminal, lines in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from pipeline.cli.terminal import err, is_live

ProgressCallback = Callable[[int, int], None]  # receives what is done and the total

LOG_INTERVAL = 30  # seconds between two lines


@contextmanager
def show_progress(title: str, unit: Literal["images", "bytes"]) -> Iterator[ProgressCallback]:
    """Yield a callback that shows a bar with speed and remaining time; without a terminal, log lines."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class ImagesPerSecond(ProgressColumn):
        """Speed in images per second."""

        def render(self, task: Task) -> Text:
            """Return the speed as text."""
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f}/s" if speed else "")

    if not is_live(err):
        yield LogProgress(title, unit).update
        return
    columns = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), ImagesPerSecond()]
    )
    with Progress(
        TextColumn(title), BarColumn(), *columns, TimeRemainingColumn(), console=err, transient=True
    ) as bar:
        task = bar.add_task(title, total=None, visible=False)

        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class LogProgress:
    """Progress lines for a log file, at most one per LOG_INTERVAL."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self.started = self.reported = time.monotonic()
        self.first: int | None = None  # of `done` in the first call: the work of an earlier command

    def update(self, done: int, total: int) -> None:
        """Print a line with speed and remaining time, if the last one is old enough."""
        self.first = done if self.first is None else self.first
        now = time.monotonic()
        if now - self.reported < LOG_INTERVAL:
            return
        self.reported = now
        speed = (done - self.first) / max(now - self.started, 1e-9)
        seconds = (total - done) / speed if speed else 0
        remaining = f"{seconds / 60:,.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
        left = f", {remaining} left" if speed else ""
        err.print(f"{self.title}: {done:,} of {total:,} {self.unit}, {speed:,.0f}/s{left}", soft_wrap=True)
