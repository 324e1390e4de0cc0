"""`repro status`, `logs`, `cancel` and `node`: look at the runs of a cluster, stop them, start a node.

These commands read and write the files under REPRO_HOME, so each also works while no cluster runs. With --address,
the same command runs as a job on that cluster, and its output is shown here.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.cli import terminal
from pipeline.cli.launch import launch, resume, run_launches
from pipeline.cli.options import Address, AsJson
from pipeline.cli.remote import relay_command, remote_cluster, remote_status, run_for_json
from pipeline.cli.tables import TableFormat, column_names, print_rows, with_table_formats
from pipeline.cli.terminal import print_json, print_warning_line, say
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.cluster.status import ClusterStatus

PANEL = "Cluster commands"

OTHER_LINES = 14  # lines of `repro status` that are not rows of runs

MAX_LISTED_STOPS = 20  # runs listed by `repro cancel`

REFRESH_SECONDS = 1.0  # of --watch and --follow, which read files

REMOTE_REFRESH_SECONDS = 5.0  # with --address: each refresh is a job on the cluster

RunName = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help="VARIANT/SEED, as in resnet-20/0, or the first digits of its identity."),
]


@with_table_formats
def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until Ctrl-C; with --json, print a line of JSON each time.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Interval of --watch. Default: 1, with --address 5."),
    ] = None,
    address: Address = None,
    *,
    shape: TableFormat,
) -> None:
    """Show launches and their runs: progress, speed, node, and why a run waits or failed."""
    from pipeline.cluster.status import RunStatus, StatusReader
    from pipeline.report.status import PIPED_ROWS, render_status

    if every is not None and not watch:
        raise UserError("--every is the interval of --watch; add --watch")
    remote = remote_cluster(address)
    reader = StatusReader()

    def read() -> "ClusterStatus":
        return remote_status(remote) if remote else reader.status()

    seconds = every or (REMOTE_REFRESH_SECONDS if remote else REFRESH_SECONDS)
    if watch and not shape.is_text and shape is not TableFormat.JSON:
        raise UserError(f"--watch with {shape}: a time series is JSON; use --json")
    if watch and shape is TableFormat.JSON:
        print_json_lines(read, seconds)
    elif not shape.is_text:
        found = read().to_dict()
        print_rows(found["runs"], shape, column_names(RunStatus), value=found)
    elif watch and terminal.is_live(terminal.out):
        live_table(read, seconds)
    else:
        rows = rows_for_runs() if terminal.out.is_terminal else PIPED_ROWS
        terminal.out.print(render_status(read(), rows=rows), soft_wrap=not terminal.out.is_terminal)


def print_json_lines(read: Callable[[], "ClusterStatus"], seconds: float) -> None:
    """Print the status as one line of JSON every `seconds`, until Ctrl-C or the reader of the lines ends."""
    try:
        while True:
            print(json.dumps(read().to_dict(), default=str), flush=True)
            time.sleep(seconds)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        terminal.discard_output()


def live_table(read: Callable[[], "ClusterStatus"], seconds: float) -> None:
    """Show the status and refresh it every `seconds` until Ctrl-C."""
    from rich.live import Live

    from pipeline.report.status import render_status

    def render() -> "RenderableType":
        return render_status(read(), rows=rows_for_runs())

    with suppress(KeyboardInterrupt), Live(render(), console=terminal.out, auto_refresh=False) as screen:
        while True:
            time.sleep(seconds)
            screen.update(render(), refresh=True)


def rows_for_runs() -> int:
    """Return the number of runs that fit on the terminal beside the other lines of `repro status`."""
    return max(0, terminal.out.height - OTHER_LINES)


def logs(
    run: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the run ends, or Ctrl-C.")
    ] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show a run's log and measurements in order of time."""
    if follow and as_json:
        raise UserError("--follow prints lines as they come; omit it, or --json")
    name, remote = " ".join(run), remote_cluster(address)

    def read() -> dict[str, Any]:
        return run_for_json(remote, ["logs", name, "--json"]) if remote else read_logs(name)

    found = read()
    if as_json:
        print_json(found)
        return
    printed: list[str] = []
    with suppress(KeyboardInterrupt):
        while True:
            for line in lines_beyond(found["lines"], printed):
                terminal.out.print(line, markup=False, soft_wrap=True)
            printed = found["lines"]
            if not follow or found["outcome"]:
                break
            time.sleep(REMOTE_REFRESH_SECONDS if remote else REFRESH_SECONDS)
            found = read()
    outcome = found["outcome"] or ("" if found["lines"] else "no log yet; the run has not started")
    if outcome:
        say(f"{found['title']} ({found['of']}): {outcome}")


def lines_beyond(lines: Sequence[str], printed: Iterable[str]) -> Iterator[str]:
    """Yield the lines that were not printed; by content, since a new one may come before others of its second."""
    left = Counter(printed)
    for line in lines:
        if left[line]:
            left[line] -= 1
        else:
            yield line


def read_logs(name: str) -> dict[str, Any]:
    """Return the history and outcome of a launched run from the files under REPRO_HOME."""
    from pipeline.cluster.status import StatusReader, find_run, run_history, run_outcome

    reader = StatusReader()
    outlines = reader.all()
    for error in reader.damaged.values():
        print_warning_line(f"Skipped: {error}")
    run = find_run(name, outlines)
    return {
        "identity": run.identity,
        "title": run.title,
        "of": run.of,
        "lines": run_history(run.identity),
        "outcome": run_outcome(run.identity),
    }


def cancel(run: RunName, address: Address = None) -> None:
    """Cancel a run, or `all`. A training run stops after its step, resumable; a waiting run never starts."""
    from pipeline.cluster import launches
    from pipeline.cluster.launch import cancel_runs
    from pipeline.cluster.status import StatusReader, find_run

    name, remote = " ".join(run), remote_cluster(address)
    if remote:
        raise typer.Exit(relay_command(remote, ["cancel", name]))
    reader = StatusReader()
    outlines = reader.unfinished()
    damaged = list(reader.damaged.values())
    selected = []
    for outline in outlines:
        try:
            selected.append(launches.read_launch(outline.id))
        except UserError as error:  # valid JSON, but written by another version
            damaged.append(str(error))
    for error_text in damaged:
        print_warning_line(f"Skipped: {error_text}")
    now = reader.status()
    only = None
    if name != "all":
        try:
            only = find_run(name, outlines).identity
        except UserError:
            find_run(name, reader.all())
            say(f"{name} has already ended.")
            return
    training = {status.identity for status in now.runs if status.state == "training"}
    tasks = cancel_runs(selected, only, supervised=now.alive, training=training)
    stopping = [task for task in tasks if task.identity in training]
    if damaged and not tasks:
        raise UserError(f"nothing was cancelled: {damaged[0]}")
    if not tasks:
        say("Nothing to cancel: no run is waiting or training." if only is None else f"{name} has already ended.")
    for task in stopping[:MAX_LISTED_STOPS]:
        say(f"{task.title}: stops after its current step, resumable")
    if len(stopping) > MAX_LISTED_STOPS:
        say(f"… and {len(stopping) - MAX_LISTED_STOPS:,} more")
    waiting = [task for task in tasks if task.identity not in training]
    if len(waiting) == 1:
        say(f"{waiting[0].title}: cancelled")
    elif waiting:
        say(f"{len(waiting):,} waiting runs cancelled")
    if tasks:
        say("To continue cancelled runs, launch them again.")


def node(
    head: Annotated[bool, typer.Option("--head", help="Start a cluster.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join the cluster of this head.")
    ] = None,
    listen: Annotated[
        str,
        typer.Option(metavar="ADDR", help="Address of this machine that other nodes connect to; auto finds it."),
    ] = "127.0.0.1",
    cpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="CPUs to offer. Default: all.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="GPUs to offer. Default: all.")] = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for runs to write checkpoints on a stop signal.")
    ] = 30.0,
    until_idle: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Shut down a head after so long without work."),
    ] = None,
    autoscaled: Annotated[
        Literal["gpu", "cpu"] | None,
        typer.Option(
            help="The devices of nodes that an autoscaler, as KubeRay's, adds. The head asks it for them."
        ),
    ] = None,
) -> None:
    """Start a cluster node, the head or one that joins a head. SIGTERM or Ctrl-C stops it."""
    from pipeline.cluster.node import run_node

    raise typer.Exit(
        run_node(
            head=head,
            address=address,
            listen=listen,
            cpus=cpus,
            gpus=gpus,
            grace=grace,
            until_idle=until_idle,
            autoscaled=autoscaled,
        )
    )


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    for command in (launch, status, logs, cancel, resume, node):
        app.command(rich_help_panel=PANEL)(command)
    app.command("carry", hidden=True)(run_launches)
