"""`repro launch` and what goes with it: runs on a cluster, or on this machine as if it were one.

All that these commands know is in the files of the home, so each of them also works when no cluster does. With an
address the same command is run as a job on that cluster, and what comes back is shown here.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli import terminal
from pipeline.cli.terminal import STOPPED, AsJson, print_json, print_warning_line, say
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.cluster.launch import LaunchPlan
    from pipeline.cluster.local_head import ClusterAddress
    from pipeline.cluster.status import ClusterStatus
    from pipeline.judge.collect import FinishedRuns

PANEL = "on a cluster"

OTHER_LINES = 14  # of `repro status`

LEFT_ALIGNED = {"cancelled": "cancelled", "over-budget": "at their budget's end", "failed": "failed"}

REFRESH_SECONDS, REMOTE_REFRESH_SECONDS = (
    1.0,
    5.0,
)  # between looks at files, and between questions to a cluster elsewhere

Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
        help="A cluster's job API, as in http://HOST:8265; this machine's own cluster without.",
    ),
]

GpusPerRun = Annotated[
    int | None,
    typer.Option(metavar="N", help="Devices that train a run together: GPUs, or processes where there is none."),
]

RunName = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN", help="As in resnet-20/0 (variant and seed), or the first digits of its identity."
    ),
]


def launch(
    experiments: Annotated[
        list[str] | None, typer.Argument(metavar="EXPERIMENT…", help="As `repro list` shows them.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="cs231n: all experiments of the lecture that train at the scale.")
    ] = None,
    scale: Annotated[str, typer.Option(help="A scale of the experiments: paper, laptop, …")] = "laptop",
    address: Address = None,
    gpus_per_run: GpusPerRun = None,
    device_batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images on a device at a time, at most; all of its share without."),
    ] = None,
    max_gpu_hours: Annotated[
        float | None,
        typer.Option(metavar="H", help="Device hours of all runs together; at their end runs stop, resumable."),
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(metavar="N", help="Runs at a time.")] = None,
    price: Annotated[
        float | None, typer.Option(metavar="P", help="Of one device for an hour: shows what it will cost.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")] = False,
) -> None:
    """Train on a cluster what is not finished, after showing what it needs. The terminal may be closed any time.

    Without an address a cluster is started on this machine, which ends by itself some minutes after the last run.
    """
    from pipeline.cluster.code_copy import copy_code
    from pipeline.cluster.launch import LaunchRequest, mark_left_out, plan_launch, select_runs, start_launch

    asked = LaunchRequest(
        experiments=tuple(dict.fromkeys(experiments or [])),
        scale=scale,
        suite=suite,
        devices=1 if gpus_per_run is None else gpus_per_run,
        device_batch=device_batch,
        max_device_hours=max_gpu_hours,
        max_concurrent=max_concurrent,
        price=price,
    )
    what = select_runs(asked)
    elsewhere = remote_cluster(address)
    if elsewhere:
        words = [*asked.to_argv(), *(["--dry-run"] if dry_run else [])]
        raise typer.Exit(relay_command(elsewhere, words, upload=copy_code()))
    with terminal.err.status("reading the data and the code …") if terminal.err.is_terminal else nullcontext():
        made = plan_launch(asked, what, collect_with_warnings().records, print_warning_line)
    print_launch_plan(made)
    if dry_run:
        return
    if not made.todo:
        mark_left_out(made)
        what_is_left = "nothing that can be done here" if made.left_out else "nothing left to do"
        say(f"There is {what_is_left}; the verdicts: {verify_hint(made)}")
        raise typer.Exit(int(bool(made.left_out)))
    cluster = None if is_cluster_job() else local_cluster()
    begun = start_launch(made, copy_code())
    code = run_and_follow([begun.id], Path(begun.code), cluster) or int(bool(made.left_out))
    if code not in (0, STOPPED):
        print_warning_line("Not all of it ended well; what and why: repro status")
    if code != STOPPED:
        say(f"The verdicts: {verify_hint(made)}")
    raise typer.Exit(code)


def verify_hint(made: "LaunchPlan") -> str:
    """The command that judges what was asked for."""
    experiments = list(dict.fromkeys(group.experiment for group in made.groups))
    return f"repro verify {experiments[0]}" if len(experiments) == 1 else "repro verify"


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it, until Ctrl-C.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Launches and their runs: what is trained, how far, how fast, where; what waits or failed, and why."""
    from pipeline.cluster.status import StatusReader
    from pipeline.report.status import PIPED_ROWS, render_status

    elsewhere = remote_cluster(address)
    reader = StatusReader()

    def look() -> "ClusterStatus":
        return remote_status(elsewhere) if elsewhere else reader.status()

    if as_json:
        print_json(look().to_dict())
    elif watch and terminal.out.is_terminal:
        live_table(look, REMOTE_REFRESH_SECONDS if elsewhere else REFRESH_SECONDS)
    else:
        rows = rows_for_runs() if terminal.out.is_terminal else PIPED_ROWS
        terminal.out.print(render_status(look(), rows=rows), soft_wrap=not terminal.out.is_terminal)


def live_table(look: Callable[[], "ClusterStatus"], seconds: float) -> None:
    """A table that follows what happens, until Ctrl-C."""
    from rich.live import Live

    from pipeline.report.status import render_status

    def picture() -> Any:
        return render_status(look(), rows=rows_for_runs())

    with suppress(KeyboardInterrupt), Live(picture(), console=terminal.out, auto_refresh=False) as screen:
        while True:
            time.sleep(seconds)
            screen.update(picture(), refresh=True)


def rows_for_runs() -> int:
    """Lines of this terminal that are left for runs, beside those on the cluster, the launches and what to do."""
    return max(0, terminal.out.height - OTHER_LINES)


def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends, or Ctrl-C.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """What happened to a run, and what it measured, in the order of time."""
    name, elsewhere = " ".join(run), remote_cluster(address)

    def look() -> dict[str, Any]:
        return run_for_json(elsewhere, ["logs", name, "--json"]) if elsewhere else read_logs(name)

    found = look()
    if as_json:
        print_json(found)
        return
    printed = 0
    with suppress(KeyboardInterrupt):
        while True:
            for line in found["lines"][printed:]:
                terminal.out.print(line, markup=False, soft_wrap=True)
            printed = max(printed, len(found["lines"]))
            if not follow or found["outcome"]:
                break
            time.sleep(REMOTE_REFRESH_SECONDS if elsewhere else REFRESH_SECONDS)
            found = look()
    ended = found["outcome"] or ("" if found["lines"] else "nothing happened to it yet; it waits its turn")
    if ended:
        say(f"{found['title']} ({found['of']}): {ended}")


def read_logs(name: str) -> dict[str, Any]:
    """A launched run's history and outcome, from the files of this home."""
    from pipeline.cluster.status import StatusReader, find_run, run_history, run_outcome

    reader = StatusReader()
    known = reader.all()
    for why in reader.damaged.values():
        print_warning_line(f"Left out: {why}")
    run = find_run(name, known)
    return {
        "identity": run.identity,
        "title": run.title,
        "of": run.of,
        "lines": run_history(run.identity),
        "outcome": run_outcome(run.identity),
    }


def cancel(run: RunName, address: Address = None) -> None:
    """Stop a run, or all: what is trained stops at its next step, resumable; what waits is not begun."""
    from pipeline.cluster import launches
    from pipeline.cluster.launch import cancel_runs as ask_to_stop
    from pipeline.cluster.status import StatusReader, find_run

    name, elsewhere = " ".join(run), remote_cluster(address)
    if elsewhere:
        raise typer.Exit(relay_command(elsewhere, ["cancel", name]))
    reader = StatusReader()
    unfinished = reader.open()
    damaged = list(reader.damaged.values())
    given = []
    for one in unfinished:
        try:
            given.append(launches.read_launch(one.id))
        except UserError as error:  # whole, but of another version
            damaged.append(str(error))
    for why in damaged:
        print_warning_line(f"Left out: {why}")
    now = reader.status()
    only = None
    if name != "all":
        try:
            only = find_run(name, unfinished).identity
        except UserError:
            find_run(name, reader.all())
            say(f"{name} has ended already.")
            return
    training = {one.identity for one in now.runs if one.state == "training"}
    tasks = ask_to_stop(given, only, supervised=now.alive, training=training)
    stopping = [task for task in tasks if task.identity in training]
    if damaged and not tasks:
        raise UserError(f"nothing was cancelled, as {damaged[0]}")
    if not tasks:
        say("Nothing to cancel: no launch waits or is trained." if only is None else f"{name} has ended already.")
    for task in stopping[:20]:
        say(f"{task.title}: asked to stop at its next step, resumable")
    if len(stopping) > 20:
        say(f"… and {len(stopping) - 20:,} more")
    rest = [task for task in tasks if task.identity not in training]
    if len(rest) == 1:
        say(f"{rest[0].title}: will not be trained")
    elif rest:
        say(f"{len(rest):,} runs that waited will not be trained")
    if tasks:
        say("Launched again, they go on where they stopped.")


def resume(gpus_per_run: GpusPerRun = None, address: Address = None) -> None:
    """Go on with every launch that has not ended, after a cluster was lost. Exit 1 if a run failed."""
    from pipeline.cluster import launches
    from pipeline.cluster.launch import is_task_over, with_devices
    from pipeline.cluster.status import supervisor_is_alive
    from pipeline.track.run_folder import RunFolder

    elsewhere = remote_cluster(address)
    if elsewhere:
        more = [] if gpus_per_run is None else ["--gpus-per-run", str(gpus_per_run)]
        raise typer.Exit(relay_command(elsewhere, ["resume", *more]))
    if gpus_per_run is not None and gpus_per_run < 1:
        raise UserError(f"--gpus-per-run {gpus_per_run}: a number from 1 on is needed")
    unfinished = list(launches.unfinished_launches(print_warning_line))
    going = [one for one in unfinished if not all(map(is_task_over, one.tasks))]
    if gpus_per_run is not None and any(one.terms.devices != gpus_per_run for one in going):
        if supervisor_is_alive():
            raise UserError(
                "these launches are at work, and keep their devices until they end; repro cancel all stops them"
            )
        going = [with_devices(one, gpus_per_run) for one in going]
    over = sorted(path.stem for path in launches.launches_folder().glob("*.json") if launches.is_over(path.stem))
    looked_at = unfinished or [
        launches.read_launch(name) for name in over[-1:]
    ]  # the last may have ended at its budget
    folders = [RunFolder(task.folder) for one in looked_at for task in one.tasks]
    left = [folder.unfinished().get("why") for folder in folders if not folder.result_file.is_file()]
    for why, words in LEFT_ALIGNED.items():
        if why in left:
            count = left.count(why)
            what = "1 run stays" if count == 1 else f"{count:,} runs stay"
            say(f"{what} {words}; to try anew, launch again.")
    if not going:
        say("There is nothing to resume.")
        raise typer.Exit(int("failed" in left))
    for one in going:
        say(f"Going on with {one.words}, by {one.by}.")
    cluster = None if is_cluster_job() else local_cluster()
    raise typer.Exit(run_and_follow([one.id for one in going], Path(going[-1].code), cluster))


def run_launches(names: Annotated[list[str], typer.Argument(metavar="LAUNCH…")]) -> None:
    """What a job on the cluster does: hand launches over, and tell what happens until they are over."""
    raise typer.Exit(run_and_follow(names, Path(), None))


def node(
    head: Annotated[bool, typer.Option("--head", help="The first node of a cluster.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Of the head, to join its cluster.")
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="ADDR", help="The address others reach this node at; needs a token.")
    ] = "127.0.0.1",
    cpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="Processors to give; all without.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="GPUs to give; all without.")] = None,
    grace: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For runs to write checkpoints when it is ended.")
    ] = 30.0,
    until_idle: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="A head ends itself after so long with nothing to do."),
    ] = None,
) -> None:
    """Be a node of a cluster, until SIGTERM or Ctrl-C: the head, or one that joins it."""
    if head == (address is not None):
        raise UserError("a node is either the first, as in repro node --head, or joins one: --address HOST:6379")
    from pipeline.cluster.node import run_node

    raise typer.Exit(
        run_node(
            head=head, address=address, listen=listen, cpus=cpus, gpus=gpus, grace=grace, until_idle=until_idle
        )
    )


def add_commands(app: typer.Typer) -> None:
    """Make these commands of `app`."""
    for command in (launch, status, logs, cancel, resume, node):
        app.command(rich_help_panel=PANEL)(command)
    app.command("carry", hidden=True)(run_launches)


def is_cluster_job() -> bool:
    """Whether this command runs on the cluster itself, as a job."""
    from pipeline.cluster.jobs import INSIDE_VARIABLE

    return bool(os.environ.get(INSIDE_VARIABLE))


def remote_cluster(address: str | None) -> "ClusterAddress | None":
    """The cluster at an address, if one is given; a job on it means the cluster that it is on."""
    if not address or is_cluster_job():
        return None
    from pipeline.cluster import jobs

    cluster = jobs.cluster_at(address)
    print_warning_line(f"on the cluster at {cluster.dashboard}")
    return cluster


def local_cluster() -> "ClusterAddress":
    """This machine's cluster; started if there is none."""
    from pipeline.cluster import local_head

    return local_head.find_local_cluster() or local_head.ensure_local_cluster(tell=print_warning_line)


def run_and_follow(names: Sequence[str], code: Path, cluster: "ClusterAddress | None") -> int:
    """Hand launches over and follow them: from within the cluster (None), or through a job on it."""
    if cluster is None:
        from pipeline.cluster.connect import follow_launches

        return follow_launches(names, print_event)
    from pipeline.cluster import jobs

    try:
        job = jobs.submit_job(cluster, ["carry", *names], code=code)
    except UserError as error:
        raise UserError(f"{error}; what was asked is written down, and repro resume begins it") from error
    say(f"At work, also when this terminal is closed; Ray's pages: {cluster.dashboard}")
    return show_job(cluster, job, "")


def relay_command(cluster: "ClusterAddress", words: Sequence[str], upload: Path | None = None) -> int:
    """Run a command as a job on the cluster, with its output shown here; its exit code."""
    from pipeline.cluster import jobs

    width = {"COLUMNS": str(terminal.out.width)} if terminal.out.is_terminal else {}
    return show_job(cluster, jobs.submit_job(cluster, words, upload=upload, settings=width), cluster.dashboard)


def show_job(cluster: "ClusterAddress", job: str, address: str) -> int:
    """Show a job's output until it ends, or until Ctrl-C, which does not end it."""
    from pipeline.cluster import jobs

    last = "\n"

    def write(text: str) -> None:
        nonlocal last
        last = text[-1:] or last
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        code = jobs.follow_job(cluster, job, write)
        write("" if last == "\n" else "\n")
        return code
    except KeyboardInterrupt:
        where = f" --address {address}" if address else ""
        print_warning_line(f"It goes on without this terminal. To see it: repro status{where}")
        print_warning_line(f"To stop it: repro cancel all{where}")
        return STOPPED


def run_for_json(cluster: "ClusterAddress", words: Sequence[str]) -> dict[str, Any]:
    """What a command that prints JSON answers on the cluster; UserError with what it says instead."""
    from pipeline.cluster import jobs

    said: list[str] = []
    code = jobs.follow_job(cluster, jobs.submit_job(cluster, words), said.append)
    text = "".join(said)
    begin = text.find("\n{") + 1 if not text.startswith("{") else 0
    try:
        found, _ = json.JSONDecoder().raw_decode(text[begin:])
        return dict(found)
    except (ValueError, TypeError):
        last = (text.strip().splitlines() or [f"exit code {code}"])[-1].removeprefix("error: ")
        raise UserError(f"the cluster at {cluster.dashboard} says: {last}") from None


def remote_status(cluster: "ClusterAddress") -> "ClusterStatus":
    """How things stand on a cluster elsewhere."""
    from pipeline.cluster.status import ClusterStatus

    return ClusterStatus.from_dict(run_for_json(cluster, ["status", "--json"]))


def print_event(text: str) -> None:
    """A line on what happened."""
    terminal.out.print(text, markup=False, soft_wrap=True)


def collect_with_warnings() -> "FinishedRuns":
    """All ended runs that can be found; says so where some cannot be sent or the tracking server not be used."""
    from pipeline.judge.collect import collect_runs

    found = collect_runs()
    if found.trouble:
        print_warning_line(
            found.trouble if found.tracker else f"{found.trouble}.\nGoing by the runs on this machine alone."
        )
    return found


def print_launch_plan(made: "LaunchPlan") -> None:
    """A table for each experiment, and the whole in sentences."""
    from pipeline.report.launch_plan import plan_rows, plan_summary

    for of in dict.fromkeys((group.experiment, group.scale) for group in made.groups):
        groups = [group for group in made.groups if (group.experiment, group.scale) == of]
        data = ", ".join(dict.fromkeys(group.data for group in groups))
        rows = plan_rows(groups, made.asked.price)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in rows[0]:
            table.add_column(head, justify="left" if head in ("variant", "runs") else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row.values()))
        terminal.out.print(f"[bold]{of[0]}[/] at {of[1]} scale on {data}")
        terminal.out.print(table)
        terminal.out.print()
    for sentence in plan_summary(made):
        say(sentence)
