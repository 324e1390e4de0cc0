"""`repro launch` and `resume`: start runs on a cluster."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import options, terminal
from pipeline.cli.remote import is_cluster_job, local_cluster, relay_command, remote_cluster, run_and_follow
from pipeline.cli.selection import collect_with_warnings, read_changes, warn_of_precision
from pipeline.cli.tables import TableFormat, print_rows, print_table, with_table_formats
from pipeline.cli.terminal import STOPPED, print_warning_line, say
from pipeline.common.errors import UserError
from pipeline.common.words import plural

if TYPE_CHECKING:
    from pipeline.cluster.launch import LaunchPlan

UNFINISHED_TEXTS = {"cancelled": "cancelled", "over-budget": "out of budget", "failed": "failed"}


@with_table_formats
def launch(
    experiments: options.Names = None,
    suite: options.TrainedSuite = None,
    scale: options.ScaleOption = "laptop",
    variants: options.Variants = None,
    seeds: options.SeedCount = None,
    changes: options.Changes = None,
    precision: options.Precision = None,
    data: options.DataSet = None,
    address: options.Address = None,
    gpus_per_run: options.GpusPerRun = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and exit.")] = False,
    *,
    shape: TableFormat,
) -> None:
    """Train unfinished runs on a cluster, after showing the plan. The terminal may be closed at any time.

    Without --address, a cluster is started on this machine; it shuts down some minutes after the last run.
    """
    from pipeline.cluster.code_copy import copy_code
    from pipeline.cluster.launch import mark_left_out, plan_launch, start_launch
    from pipeline.cluster.launch_request import LaunchRequest, select_runs
    from pipeline.cluster.sharing import parse_devices

    if not shape.is_text and not dry_run:
        raise UserError(f"{shape} prints the plan of --dry-run; add it, or omit {shape}")
    devices, runs_per_device = parse_devices(gpus_per_run or "1")
    request = LaunchRequest(
        experiments=tuple(dict.fromkeys(experiments or [])),
        scale=scale,
        suite=suite,
        variants=tuple(dict.fromkeys(variants or [])),
        seeds=seeds,
        changes=read_changes(changes, precision=precision, data=data),
        devices=devices,
        runs_per_device=runs_per_device,
        device_batch=device_batch,
        max_device_hours=max_gpu_hours,
        max_concurrent=max_concurrent,
        price=price,
    )
    selection = select_runs(request)
    remote = remote_cluster(address)
    if remote:
        argv = [*request.to_argv(), *(["--dry-run"] if dry_run else []), *([] if shape.is_text else [str(shape)])]
        raise typer.Exit(relay_command(remote, argv, upload=copy_code()))
    warn_of_precision(selection.runs, request.changes)
    with terminal.spinner("Reading data and code …"):
        records = collect_with_warnings().records
        plan = plan_launch(request, selection, records, print_warning_line, is_shown_only=dry_run)
    if not shape.is_text:
        for task, why in plan.left_out:
            print_warning_line(f"Skipped: {task.title} {why}.")
        print_rows(plan_data(plan), shape, PLAN_COLUMNS)
        return
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


def resume(gpus_per_run: options.GpusPerRun = None, address: options.Address = None) -> None:
    """Resume all launches that have not ended, for example after a cluster was lost. Exit 1 if a run failed.

    A batch job that is restarted resumes its own launch only.
    """
    from pipeline.cluster import launches
    from pipeline.cluster.launch import is_task_over, with_devices
    from pipeline.cluster.sharing import parse_devices
    from pipeline.cluster.state_file import launches_elsewhere, supervisor_is_alive
    from pipeline.track.run_folder import RunFolder

    per_run = None if gpus_per_run is None else parse_devices(gpus_per_run)
    remote = remote_cluster(address)
    if remote:
        given = [] if gpus_per_run is None else ["--gpus-per-run", gpus_per_run]
        raise typer.Exit(relay_command(remote, ["resume", *given]))
    elsewhere, own = launches_elsewhere(), launches.noted_launch()
    unfinished = []
    for one in launches.unfinished_launches(print_warning_line):
        if own and one.id != own:  # of another batch job, which resumes it itself
            continue
        if one.id in elsewhere:
            say(f"Runs on another cluster of this REPRO_HOME: {one.words}, launched by {one.by}.")
        else:
            unfinished.append(one)
    resumed = [one for one in unfinished if not all(map(is_task_over, one.tasks))]
    for one in unfinished:
        if one not in resumed:  # its last runs were finished by another command
            launches.mark_ended(one.id)
    if per_run and any((one.terms.devices, one.terms.runs_per_device) != per_run for one in resumed):
        if supervisor_is_alive():
            raise UserError(
                f"--gpus-per-run {gpus_per_run}: running launches keep their devices; stop them with repro cancel"
                " all, and launch again"
            )
        resumed = [with_devices(one, *per_run) for one in resumed]
    ended = [launch_id for launch_id in launches.launch_ids() if launches.is_over(launch_id)]
    # Without an unfinished launch, report on the last one: its runs may have stopped at the end of the budget.
    reported = unfinished or [launches.read_launch(launch_id) for launch_id in ([own] if own else ended[-1:])]
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


PLAN_COLUMNS = (
    *("experiment", "scale", "variant", "kind", "data", "runs", "finished", "resumed"),
    *("devices", "images", "hours", "cost"),
)


def plan_data(plan: "LaunchPlan") -> list[dict[str, Any]]:
    """Return a row for each variant with the columns PLAN_COLUMNS; hours and cost are None without an estimate."""
    price = plan.request.price
    rows = []
    for variant in plan.variants:
        cost = None if price is None or variant.hours is None else price * variant.hours
        row = asdict(variant) | {"resumed": len(variant.resumed), "cost": cost}
        rows.append({name: row[name] for name in PLAN_COLUMNS})
    return rows


def print_launch_plan(plan: "LaunchPlan") -> None:
    """Print a table for each experiment, and a summary."""
    from pipeline.report.launch_plan import plan_rows, plan_summary
    from pipeline.report.order import order_lines

    for experiment, scale in dict.fromkeys((variant.experiment, variant.scale) for variant in plan.variants):
        of = (experiment, scale)
        variants = [variant for variant in plan.variants if (variant.experiment, variant.scale) == of]
        data = ", ".join(dict.fromkeys(variant.data for variant in variants))
        terminal.out.print(f"[bold]{experiment}[/] at {scale} scale on {data}")
        print_table(plan_rows(variants, plan.request.price), left=("variant", "runs"))
        for line in order_lines([task.run for task in plan.tasks if (task.run.experiment, task.run.scale) == of]):
            terminal.out.print(escape(line), soft_wrap=True)
        terminal.out.print()
    for sentence in plan_summary(plan):
        say(sentence)
