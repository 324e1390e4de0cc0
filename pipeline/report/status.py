"""Tables and sentences of `repro status`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.cluster.metrics import SERVICE_DISCOVERY
from pipeline.cluster.status import NEEDS_ATTENTION, RUN_STATUS_NAMES, ClusterStatus, LaunchStatus, RunStatus
from pipeline.common.words import duration, plural

MIN_ROWS = 2  # for each kind of runs, on a terminal of any height

PIPED_ROWS = 60  # rows of runs without a terminal

MAX_FOLDED_REASONS = 5  # with more unsuccessful runs, each reason is cut to one line

STATUS_COLOURS: dict[str, str] = {
    "training": "green",
    "failed": "red",
    "did not converge": "yellow",
    "stopped": "yellow",
}


def render_status(status: ClusterStatus, *, rows: int) -> RenderableType:
    """Return the whole status, with about `rows` lines for runs."""
    parts: list[RenderableType] = [Text(line, style=style) for line, style in cluster_lines(status)]
    for launch in (launch for launch in status.launches if not launch.over):
        parts += ["", *launch_lines(launch, status.time)]
    parts += run_tables(status, rows)
    ended = [launch for launch in status.launches if launch.over]
    if ended:
        parts += ["", Text("ended launches", style="bold")]
        parts += [line for launch in ended for line in launch_lines(launch, status.time)]
    if status.earlier:
        parts.append(Text(f"and {plural(status.earlier, 'earlier one')}", style="dim"))
    next_steps = [Text(line) for line in hints(status)]
    return Group(*parts, *([""] if parts and next_steps else []), *next_steps)


def cluster_lines(status: ClusterStatus) -> Iterator[tuple[str, str]]:
    """Yield lines on the cluster, each with its style."""
    unfinished = any(not launch.over for launch in status.launches)
    dashboard = f"Ray dashboard: {status.dashboard}" if status.dashboard else ""
    if status.alive and unfinished:
        kind = {"GPU": "GPU", "CPU": "CPU"}.get(status.devices.get("kind", ""), "device")
        total, free = status.devices.get("all", 0), status.devices.get("free", 0)
        requested = status.devices.get("requested", 0)
        more = f" The autoscaler was asked for {plural(requested, kind)}." if requested > total else ""
        text = f"Cluster running: {free:g} of {plural(total, kind)} free.{more}"
        yield f"{text} {dashboard}" if dashboard else text, ""
    elif unfinished:
        age = "" if status.heard is None else f"; last report {duration(status.heard)} ago"
        if status.cluster:
            where = f" ({dashboard})" if dashboard else ""
            yield f"A cluster runs on this machine{where}, but no supervisor runs on it{age}.", "yellow"
        else:
            yield f"No cluster is running for {status.home}{age}.", "yellow"
    elif status.cluster:
        yield f"The cluster on this machine is idle. {dashboard}", ""
    if status.cluster and status.dashboard:
        yield f"Prometheus finds the metrics at {status.dashboard}{SERVICE_DISCOVERY} (requires the token).", "dim"
    if status.trouble:
        yield f"Warning: {status.trouble}", "yellow"
    for error in status.damaged:
        yield f"Skipped: {error}", "yellow"


def launch_lines(launch: LaunchStatus, now: float) -> Iterator[RenderableType]:
    """Yield two lines on a launch: title, user and age; runs by state, device hours and limits."""
    ago = duration(max(0.0, now - datetime.fromisoformat(launch.created).timestamp()))
    yield Text.assemble((launch.words, "bold"), f", launched by {launch.by} {ago} ago")
    states = [f"{launch.counts[state]:,} {state}" for state in RUN_STATUS_NAMES if launch.counts.get(state)]
    used = f"{launch.spent:,.2f}" + (f" of {launch.budget:g}" if launch.budget else "")
    terms = [f"{used} device hours used"]
    terms += [f"{launch.devices} devices per run"] if launch.devices > 1 else []
    terms += [f"{launch.runs_per_device} runs per device"] if launch.runs_per_device > 1 else []
    terms += [f"at most {plural(launch.max_concurrent, 'run')} at a time"] if launch.max_concurrent else []
    total = plural(sum(launch.counts.values()), "run")
    yield Padding(Text(f"{total}: {', '.join(states)}; {', '.join(terms)}"), (0, 0, 0, 2), expand=False)


def run_tables(status: ClusterStatus, rows: int) -> Iterator[RenderableType]:
    """Yield tables of training, unsuccessful and waiting runs: the first of each, and a count of the others."""
    of = len({run.of for run in status.runs}) > 1  # a single experiment is in the launch's line
    by_state = {state: [run for run in status.runs if run.state == state] for state in RUN_STATUS_NAMES}
    unsuccessful = [run for state in NEEDS_ATTENTION for run in by_state[state]]
    waiting = [*by_state["waiting"], *by_state["not begun"]]
    unsuccessful_rows = min(len(unsuccessful), max(MIN_ROWS, rows // 3))
    waiting_rows = min(len(waiting), max(MIN_ROWS, rows // 5))
    training = sorted(by_state["training"], key=lambda run: (run.seconds_left is None, run.seconds_left or 0.0))
    training_rows = max(MIN_ROWS, rows - unsuccessful_rows - waiting_rows)
    if training:
        table = new_table("training", *(["of"] if of else []), "step", "%", "images/s", "left", "node")
        for run in training[:training_rows]:
            table.add_row(*training_cells(run, of=of))
        yield ""
        yield table
        yield from folded_lines(training[training_rows:])
    if unsuccessful or waiting:
        table = new_table("not training", *(["of"] if of else []), "state", "why")
        cut = len(unsuccessful) > MAX_FOLDED_REASONS  # the run's log has the full text
        for run in [*unsuccessful[:unsuccessful_rows], *waiting[:waiting_rows]]:
            first = "".join(run.why.strip().splitlines()[:1])
            why = Text(first, no_wrap=cut, overflow="ellipsis" if cut else "fold")
            state = Text(run.state, style=STATUS_COLOURS.get(run.state, ""))
            table.add_row(escape(run.title), *([run.of] if of else []), state, why)
        yield ""
        yield table
        yield from folded_lines([*unsuccessful[unsuccessful_rows:], *waiting[waiting_rows:]])


def new_table(first: str, *others: str) -> Table:
    """Return a table with these headers; columns of numbers are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for header in others:
        right = header in ("step", "%", "images/s", "left")
        table.add_column(header, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table


def training_cells(run: RunStatus, *, of: bool) -> list[str]:
    """Return the cells of a training run."""
    percent = f"{100 * run.step / run.steps:.0f}" if run.steps else ""
    speed = f"{run.images_per_second:,.0f}" if run.images_per_second else ""
    left = "" if run.seconds_left is None else duration(run.seconds_left)
    attempt = f"attempt {run.attempt}" if run.attempt > 1 else ""
    node = ", ".join(filter(None, (run.node, attempt, run.why)))
    step = f"{run.step:,}/{run.steps:,}" if run.steps else ""
    return [escape(run.title), *([run.of] if of else []), step, percent, speed, left, escape(node)]


def folded_lines(runs: Sequence[RunStatus]) -> Iterator[Text]:
    """Yield a line with the number of runs, by state, that are not listed."""
    counts = Counter(run.state for run in runs)
    if counts:
        text = ", ".join(f"{counts[state]:,} {state}" for state in RUN_STATUS_NAMES if counts[state])
        yield Text(f"… and {text}", style="dim")


def hints(status: ClusterStatus) -> Iterator[str]:
    """Yield the commands to run next."""
    states = Counter(run.state for run in status.runs)
    unfinished = any(not launch.over for launch in status.launches)
    if not status.launches and not status.damaged:
        yield "No launches yet. Preview one with: repro launch EXPERIMENT --dry-run"
    elif not status.alive and unfinished:
        yield "To continue: repro resume"
    elif status.launches and not unfinished:
        yield "All launches have ended. Verdicts: repro verify EXPERIMENT"
    if states["failed"] or any(launch.counts.get("failed") for launch in status.launches):
        yield "Log of a run: repro logs RUN, for example repro logs resnet-20/0"
    retryable = ("failed", "cancelled", "over-budget")
    if any(launch.counts.get(state) for launch in status.launches for state in retryable):
        yield "To retry runs that failed, were cancelled or ran out of budget, launch them again."
