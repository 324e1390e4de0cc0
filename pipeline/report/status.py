"""Tables and sentences of `repro status`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.cluster.status import NEEDS_ATTENTION, RUN_STATUS_NAMES, ClusterStatus, LaunchStatus, RunStatus
from pipeline.common.words import duration, plural

FEWEST_ROWS = 2  # for each kind of runs, whatever the height

PIPED_ROWS = 60

MAX_FOLDED_REASONS = 5  # reasons

STATUS_COLOURS: dict[str, str] = {
    "training": "green",
    "failed": "red",
    "did not converge": "yellow",
    "stopped": "yellow",
}


def render_status(status: ClusterStatus, *, rows: int) -> RenderableType:
    """All of it, with about so many lines for runs."""
    parts: list[RenderableType] = [Text(line, style=style) for line, style in cluster_lines(status)]
    for one in (one for one in status.launches if not one.over):
        parts += ["", *launch_lines(one, status.time)]
    parts += run_tables(status, rows)
    past = [one for one in status.launches if one.over]
    if past:
        parts += ["", Text("ended launches", style="bold")]
        parts += [line for one in past for line in launch_lines(one, status.time)]
    if status.earlier:
        parts.append(Text(f"and {plural(status.earlier, 'earlier one')}", style="dim"))
    said = [Text(line) for line in hints(status)]
    return Group(*parts, *([""] if parts and said else []), *said)


def cluster_lines(status: ClusterStatus) -> Iterator[tuple[str, str]]:
    """Lines on the cluster, each with its style."""
    if status.alive and any(not one.over for one in status.launches):
        kind = {"GPU": "GPU", "CPU": "processor"}.get(status.devices.get("kind", ""), "device")
        many, free = status.devices.get("all", 0), status.devices.get("free", 0)
        pages = f"; Ray's pages: {status.dashboard}" if status.dashboard else ""
        yield f"The cluster is at work: {free} of {plural(many, kind)} free{pages}", ""
    elif any(not one.over for one in status.launches):
        last = "" if status.heard is None else f"; last heard of {duration(status.heard)} ago"
        where = f" (its pages: {status.dashboard})" if status.dashboard else ""
        if status.cluster:
            yield f"A cluster runs on this machine{where}, but nothing is supervised on it{last}", "yellow"
        else:
            yield f"No cluster is at work for {status.home}{last}", "yellow"
    elif status.cluster:
        yield f"The cluster on this machine has nothing to do{f'; its pages: {status.dashboard}'}", ""
    if status.trouble:
        yield f"Trouble: {status.trouble}", "yellow"
    for why in status.damaged:
        yield f"Left out: {why}", "yellow"


def launch_lines(one: LaunchStatus, now: float) -> Iterator[RenderableType]:
    """A launch: what, by whom, when; how far it is, on what terms."""
    ago = duration(max(0.0, now - datetime.fromisoformat(one.created).timestamp()))
    yield Text.assemble((one.words, "bold"), f", by {one.by} {ago} ago")
    states = [f"{one.counts[state]:,} {state}" for state in RUN_STATUS_NAMES if one.counts.get(state)]
    used = f"{one.spent:,.2f}" + (f" of {one.budget:g}" if one.budget else "")
    terms = [f"{used} device hours used"]
    terms += [f"{one.devices} devices a run"] if one.devices > 1 else []
    terms += [f"at most {one.max_concurrent} at a time"] if one.max_concurrent else []
    total = plural(sum(one.counts.values()), "run")
    yield Padding(Text(f"{total}: {', '.join(states)}; {', '.join(terms)}"), (0, 0, 0, 2), expand=False)


def run_tables(status: ClusterStatus, rows: int) -> Iterator[RenderableType]:
    """What is trained now; then what needs a look; then what waits: the first of each, the rest counted."""
    of = len({run.of for run in status.runs}) > 1  # else it is in the launch's line
    here = {state: [run for run in status.runs if run.state == state] for state in RUN_STATUS_NAMES}
    look = [run for state in NEEDS_ATTENTION for run in here[state]]
    waiting = [*here["waiting"], *here["not begun"]]
    for_look = min(len(look), max(FEWEST_ROWS, rows // 3))
    for_waiting = min(len(waiting), max(FEWEST_ROWS, rows // 5))
    training = sorted(here["training"], key=lambda run: (run.seconds_left is None, run.seconds_left or 0.0))
    most = max(FEWEST_ROWS, rows - for_look - for_waiting)
    if training:
        table = new_table("training", *(["of"] if of else []), "step", "%", "images/s", "left", "where")
        for run in training[:most]:
            table.add_row(*training_cells(run, of=of))
        yield ""
        yield table
        yield from folded_lines(training[most:])
    if look or waiting:
        table = new_table("not training", *(["of"] if of else []), "state", "why")
        cut = len(look) > MAX_FOLDED_REASONS  # the whole sentence is in the run's log
        for run in [*look[:for_look], *waiting[:for_waiting]]:
            first = "".join(run.why.strip().splitlines()[:1])
            why = Text(first, no_wrap=cut, overflow="ellipsis" if cut else "fold")
            state = Text(run.state, style=STATUS_COLOURS.get(run.state, ""))
            table.add_row(escape(run.title), *([run.of] if of else []), state, why)
        yield ""
        yield table
        yield from folded_lines([*look[for_look:], *waiting[for_waiting:]])


def new_table(first: str, *others: str) -> Table:
    """Words to the left, numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for head in others:
        right = head in ("step", "%", "images/s", "left")
        table.add_column(head, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table


def training_cells(run: RunStatus, *, of: bool) -> list[str]:
    """A run that is trained: how far, how fast, until when, where."""
    percent = f"{100 * run.step / run.steps:.0f}" if run.steps else ""
    speed = f"{run.images_per_second:,.0f}" if run.images_per_second else ""
    left = "" if run.seconds_left is None else duration(run.seconds_left)
    again = f"attempt {run.attempt}" if run.attempt > 1 else ""
    where = ", ".join(filter(None, (run.node, again, run.why)))
    step = f"{run.step:,}/{run.steps:,}" if run.steps else ""
    return [escape(run.title), *([run.of] if of else []), step, percent, speed, left, escape(where)]


def folded_lines(runs: Sequence[RunStatus]) -> Iterator[Text]:
    """A line on runs that have none of their own."""
    counts = Counter(run.state for run in runs)
    if counts:
        said = ", ".join(f"{counts[state]:,} {state}" for state in RUN_STATUS_NAMES if counts[state])
        yield Text(f"… and {said}", style="dim")


def hints(status: ClusterStatus) -> Iterator[str]:
    """What to do next."""
    states = Counter(run.state for run in status.runs)
    if not status.launches and not status.damaged:
        yield "Nothing was launched yet; start with: repro launch EXPERIMENT --dry-run"
    elif not status.alive and any(not one.over for one in status.launches):
        yield "To go on where it stopped: repro resume"
    elif status.launches and all(one.over for one in status.launches):
        yield "All launches have ended; the verdicts: repro verify EXPERIMENT"
    if states["failed"] or any(one.counts.get("failed") for one in status.launches):
        yield "What happened to a run: repro logs RUN, as in: repro logs resnet-20/0"
    if any(one.counts.get(state) for one in status.launches for state in ("failed", "cancelled", "over-budget")):
        yield "To try anew what failed, was cancelled or is at its budget's end: launch it again"
