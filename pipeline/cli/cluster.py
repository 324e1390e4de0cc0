"""`repro launch`, `status`, `logs`, `cancel`, `resume` and `node`: runs on a cluster, or on a local one.

These commands read and write the files under REPRO_HOME, so each also works while no cluster runs. With --address,
the same command runs as a job on that cluster, and its output is shown here.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli import terminal
from pipeline.cli.terminal import STOPPED, AsJson, print_json, print_warning_line, say
from pipeline.common.errors import UserError
from pipeline.common.words import plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.cluster.launch import LaunchPlan
    from pipeline.cluster.local_head import ClusterAddress
    from pipeline.cluster.status import ClusterStatus
    from pipeline.judge.collect import FinishedRuns

PANEL = "Cluster commands"

OTHER_LINES = 14  # lines of `repro status` that are not rows of runs

MAX_LISTED_STOPS = 20  # runs listed by `repro cancel`

UNFINISHED_TEXTS = {"cancelled": "cancelled", "over-budget": "out of budget", "failed": "failed"}

REFRESH_SECONDS = 1.0  # of --watch and --follow, which read files

REMOTE_REFRESH_SECONDS = 5.0  # with --address: each refresh is a job on the cluster

Precision = Annotated[
    Literal["fp32", "bf16", "tf32"] | None,
    typer.Option(
        help="Compute in this precision; short for --set train.precision=…. Unless it is the declared one, such"
        " runs count for no claim. tf32: NVIDIA GPUs only."
    ),
]

Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        metavar="URL",
        help="Job API of the cluster, as in http://HOST:8265. Default: this machine's own cluster.",
    ),
]

GpusPerRun = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Devices per run: GPUs, or CPU processes on a cluster without GPUs. 0.25 or 1/4: four runs share a"
        " device.",
    ),
]

RunName = Annotated[
    list[str],
    typer.Argument(metavar="RUN", help="VARIANT/SEED, as in resnet-20/0, or the first digits of its identity."),
]


def launch(
    experiments: Annotated[
        list[str] | None, typer.Argument(metavar="EXPERIMENT…", help="Names from `repro list`.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="cs231n: all experiments of the lecture that train at the scale.")
    ] = None,
    scale: Annotated[str, typer.Option(help="A scale of the experiments: paper, laptop, …")] = "laptop",
    address: Address = None,
    gpus_per_run: GpusPerRun = None,
    device_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Images in a micro-batch, at most. Default: the device's whole share of the batch."
        ),
    ] = None,
    max_gpu_hours: Annotated[
        float | None,
        typer.Option(metavar="H", help="Budget of all runs in device hours; when used up, runs stop resumable."),
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(metavar="N", help="Runs at the same time, at most.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(metavar="P", help="Price of one device hour, to show the cost.")
    ] = None,
    precision: Precision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and exit.")] = False,
) -> None:
    """Train unfinished runs on a cluster, after showing the plan. The terminal may be closed at any time.

    Without --address, a cluster is started on this machine; it shuts down some minutes after the last run.
    """
    from pipeline.cluster.code_copy import copy_code
    from pipeline.cluster.launch import LaunchRequest, mark_left_out, plan_launch, select_runs, start_launch
    from pipeline.cluster.sharing import parse_devices

    devices, runs_per_device = parse_devices(gpus_per_run or "1")
    request = LaunchRequest(
        experiments=tuple(dict.fromkeys(experiments or [])),
        scale=scale,
        suite=suite,
        devices=devices,
        runs_per_device=runs_per_device,
        device_batch=device_batch,
        max_device_hours=max_gpu_hours,
        max_concurrent=max_concurrent,
        price=price,
        precision=precision,
    )
    selection = select_runs(request)
    remote = remote_cluster(address)
    if remote:
        argv = [*request.to_argv(), *(["--dry-run"] if dry_run else [])]
        raise typer.Exit(relay_command(remote, argv, upload=copy_code()))
    with terminal.err.status("Reading data and code …") if terminal.err.is_terminal else nullcontext():
        plan = plan_launch(request, selection, collect_with_warnings().records, print_warning_line)
    print_launch_plan(plan)
    if dry_run:
        return
    if not plan.todo:
        mark_left_out(plan)
        where = " on this machine" if plan.left_out else ""
        say(f"Nothing left to do{where}. Verdicts: {verify_command(plan)}")
        raise typer.Exit(int(bool(plan.left_out)))
    cluster = None if is_cluster_job() else local_cluster()
    started = start_launch(plan, copy_code())
    code = run_and_follow([started.id], Path(started.code), cluster) or int(bool(plan.left_out))
    if code not in (0, STOPPED):
        print_warning_line("Some runs failed. Details: repro status")
    if code != STOPPED:
        say(f"Verdicts: {verify_command(plan)}")
    raise typer.Exit(code)


def verify_command(plan: "LaunchPlan") -> str:
    """Return the command that judges the experiments of a plan."""
    experiments = list(dict.fromkeys(variant.experiment for variant in plan.variants))
    return f"repro verify {experiments[0]}" if len(experiments) == 1 else "repro verify"


def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until Ctrl-C; with --json, print a line of JSON each time.")
    ] = False,
    every: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Interval of --watch. Default: 1, with --address 5."),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show launches and their runs: progress, speed, node, and why a run waits or failed."""
    from pipeline.cluster.status import StatusReader
    from pipeline.report.status import PIPED_ROWS, render_status

    if every is not None and not watch:
        raise UserError("--every is the interval of --watch; add --watch")
    remote = remote_cluster(address)
    reader = StatusReader()

    def read() -> "ClusterStatus":
        return remote_status(remote) if remote else reader.status()

    seconds = every or (REMOTE_REFRESH_SECONDS if remote else REFRESH_SECONDS)
    if as_json and watch:
        print_json_lines(read, seconds)
    elif as_json:
        print_json(read().to_dict())
    elif watch and terminal.out.is_terminal:
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
    except BrokenPipeError:  # Python would report it again when it closes standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    name, remote = " ".join(run), remote_cluster(address)

    def read() -> dict[str, Any]:
        return run_for_json(remote, ["logs", name, "--json"]) if remote else read_logs(name)

    found = read()
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
            time.sleep(REMOTE_REFRESH_SECONDS if remote else REFRESH_SECONDS)
            found = read()
    outcome = found["outcome"] or ("" if found["lines"] else "no log yet; the run has not started")
    if outcome:
        say(f"{found['title']} ({found['of']}): {outcome}")


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


def resume(gpus_per_run: GpusPerRun = None, address: Address = None) -> None:
    """Resume all launches that have not ended, for example after a cluster was lost. Exit 1 if a run failed."""
    from pipeline.cluster import launches
    from pipeline.cluster.launch import is_task_over, with_devices
    from pipeline.cluster.sharing import parse_devices
    from pipeline.cluster.state_file import launches_elsewhere, supervisor_is_alive
    from pipeline.track.run_folder import RunFolder

    per_run = None if gpus_per_run is None else parse_devices(gpus_per_run)
    remote = remote_cluster(address)
    if remote:
        options = [] if gpus_per_run is None else ["--gpus-per-run", gpus_per_run]
        raise typer.Exit(relay_command(remote, ["resume", *options]))
    elsewhere = launches_elsewhere()
    unfinished = []
    for one in launches.unfinished_launches(print_warning_line):
        if one.id in elsewhere:
            say(f"Runs on another cluster of this REPRO_HOME: {one.words}, launched by {one.by}.")
        else:
            unfinished.append(one)
    resumed = [one for one in unfinished if not all(map(is_task_over, one.tasks))]
    if per_run and any((one.terms.devices, one.terms.runs_per_device) != per_run for one in resumed):
        if supervisor_is_alive():
            raise UserError(
                f"--gpus-per-run {gpus_per_run}: running launches keep their devices; stop them with repro cancel"
                " all, and launch again"
            )
        resumed = [with_devices(one, *per_run) for one in resumed]
    ended = [launch_id for launch_id in launches.launch_ids() if launches.is_over(launch_id)]
    # Without an unfinished launch, report on the last one: its runs may have stopped at the end of the budget.
    reported = unfinished or [launches.read_launch(launch_id) for launch_id in ended[-1:]]
    folders = [RunFolder(task.folder) for one in reported for task in one.tasks]
    reasons = [folder.unfinished().get("why") for folder in folders if not folder.result_file.is_file()]
    for reason, text in UNFINISHED_TEXTS.items():
        if reason in reasons:
            say(f"{plural(reasons.count(reason), 'run')} {text}; to retry, launch again.")
    if not resumed:
        say("Nothing to resume.")
        raise typer.Exit(int("failed" in reasons))
    for one in resumed:
        say(f"Resuming {one.words}, launched by {one.by}.")
    cluster = None if is_cluster_job() else local_cluster()
    raise typer.Exit(run_and_follow([one.id for one in resumed], Path(resumed[-1].code), cluster))


def run_launches(launch_ids: Annotated[list[str], typer.Argument(metavar="LAUNCH…")]) -> None:
    """Pass launches to the supervisor and print their news until they end; the command of a job on the cluster."""
    raise typer.Exit(run_and_follow(launch_ids, Path(), None))


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


def is_cluster_job() -> bool:
    """Return whether this command runs as a job on the cluster."""
    from pipeline.cluster.jobs import INSIDE_VARIABLE

    return bool(os.environ.get(INSIDE_VARIABLE))


def remote_cluster(address: str | None) -> "ClusterAddress | None":
    """Return the cluster at an address; None without an address, and in a job, which uses its own cluster."""
    if not address or is_cluster_job():
        return None
    from pipeline.cluster import jobs

    cluster = jobs.cluster_at(address)
    print_warning_line(f"Using the cluster at {cluster.dashboard}")
    return cluster


def local_cluster() -> "ClusterAddress":
    """Return this machine's cluster; start it if it does not run."""
    from pipeline.cluster import local_head

    return local_head.find_local_cluster() or local_head.ensure_local_cluster(report=print_warning_line)


def run_and_follow(launch_ids: Sequence[str], code: Path, cluster: "ClusterAddress | None") -> int:
    """Run launches and print their news, directly in a job on the cluster (None) or else through such a job."""
    if cluster is None:
        from pipeline.cluster.connect import follow_launches

        return follow_launches(launch_ids, print_event)
    from pipeline.cluster import jobs

    try:
        job = jobs.submit_job(cluster, ["carry", *launch_ids], code=code)
    except UserError as error:
        raise UserError(f"{error}; the launch is saved: start it with repro resume") from error
    say(f"Running in the background; you can close this terminal. Ray dashboard: {cluster.dashboard}")
    return show_job(cluster, job, "")


def relay_command(cluster: "ClusterAddress", argv: Sequence[str], upload: Path | None = None) -> int:
    """Run a command as a job on the cluster and show its output; return its exit code."""
    from pipeline.cluster import jobs

    width = {"COLUMNS": str(terminal.out.width)} if terminal.out.is_terminal else {}
    return show_job(cluster, jobs.submit_job(cluster, argv, upload=upload, settings=width), cluster.dashboard)


def show_job(cluster: "ClusterAddress", job: str, address: str) -> int:
    """Show a job's output until it ends; return its exit code. Ctrl-C ends the output, not the job."""
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
        print_warning_line(f"The runs continue in the background. Status: repro status{where}")
        print_warning_line(f"To stop them: repro cancel all{where}")
        return STOPPED


def run_for_json(cluster: "ClusterAddress", argv: Sequence[str]) -> dict[str, Any]:
    """Run a command that prints JSON on the cluster and return the JSON; else UserError with its last line."""
    from pipeline.cluster import jobs

    chunks: list[str] = []
    code = jobs.follow_job(cluster, jobs.submit_job(cluster, argv), chunks.append)
    text = "".join(chunks)
    start = text.find("\n{") + 1 if not text.startswith("{") else 0
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:])
        return dict(found)
    except (ValueError, TypeError):
        last = (text.strip().splitlines() or [f"exit code {code}"])[-1].removeprefix("error: ")
        raise UserError(f"the cluster at {cluster.dashboard} reports: {last}") from None


def remote_status(cluster: "ClusterAddress") -> "ClusterStatus":
    """Return the status of a cluster at an address."""
    from pipeline.cluster.status import ClusterStatus

    return ClusterStatus.from_dict(run_for_json(cluster, ["status", "--json"]))


def print_event(text: str) -> None:
    """Print a line of news."""
    terminal.out.print(text, markup=False, soft_wrap=True)


def collect_with_warnings() -> "FinishedRuns":
    """Return all finished runs; warn where runs cannot be sent to the tracking server or read from it."""
    from pipeline.judge.collect import collect_runs

    found = collect_runs()
    if found.trouble:
        print_warning_line(
            found.trouble if found.tracker else f"{found.trouble}.\nUsing only the runs on this machine."
        )
    return found


def print_launch_plan(plan: "LaunchPlan") -> None:
    """Print a table for each experiment, and a summary."""
    from pipeline.report.launch_plan import plan_rows, plan_summary
    from pipeline.report.order import order_lines

    for experiment, scale in dict.fromkeys((variant.experiment, variant.scale) for variant in plan.variants):
        of = (experiment, scale)
        variants = [variant for variant in plan.variants if (variant.experiment, variant.scale) == of]
        data = ", ".join(dict.fromkeys(variant.data for variant in variants))
        rows = plan_rows(variants, plan.request.price)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in rows[0]:
            table.add_column(header, justify="left" if header in ("variant", "runs") else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row.values()))
        terminal.out.print(f"[bold]{experiment}[/] at {scale} scale on {data}")
        terminal.out.print(table)
        for line in order_lines([task.run for task in plan.tasks if (task.run.experiment, task.run.scale) == of]):
            terminal.out.print(escape(line), soft_wrap=True)
        terminal.out.print()
    for sentence in plan_summary(plan):
        say(sentence)
