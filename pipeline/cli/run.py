"""`repro run`: train on this machine, track, and judge the claims."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import options
from pipeline.cli.leaderboard import print_leaderboard
from pipeline.cli.selection import collect_with_warnings, read_changes, select_experiments, warn_of_precision
from pipeline.cli.tables import TableFormat, column_names, print_rows, with_table_formats
from pipeline.cli.terminal import STOPPED, err, out, print_warning_line, spinner
from pipeline.cli.verdicts import print_outcome
from pipeline.common.environment import env_integer
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment
    from pipeline.report.publish import ExperimentReport

RUN_FAILED = 1  # exit code


@with_table_formats
def run(
    experiments: options.Names = None,
    suite: options.TrainedSuite = None,
    scale: options.ScaleOption = "laptop",
    variants: options.Variants = None,
    seeds: options.SeedCount = None,
    changes: options.Changes = None,
    precision: options.Precision = None,
    data: options.DataSet = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and exit.")] = False,
    *,
    shape: TableFormat,
) -> None:
    """Train the runs that are not finished, track them and judge the claims. Ctrl-C stops them, resumable.

    --csv and --markdown print the leaderboard; with --dry-run, the runs.
    """
    from pipeline.plan.expand import plan_runs, title_of

    declared = select_experiments(experiments or [], suite, scale)
    if variants and len(declared) > 1:
        raise UserError(f"--variant names a variant of one experiment, but {len(declared)} are selected")
    changed = read_changes(changes, precision=precision, data=data)
    planned = {  # a run that another experiment consumes or starts from is planned by both
        title_of(one): one
        for experiment in declared
        for one in plan_runs(experiment, scale=scale, variants=variants or (), seeds=seeds, changes=changed)
    }
    runs = list(planned.values())
    warn_of_precision(runs, changed)
    threads = thread_count()
    with spinner("Reading data and code …"):
        from pipeline.schedule.task_cache import TaskCache
        from pipeline.schedule.tasks import finished_tasks, make_tasks, planned_tasks

        cache = TaskCache()
        tasks = planned_tasks(runs, cache) if dry_run else finished_tasks(runs, cache) or make_tasks(runs, cache)
    if dry_run:
        from pipeline.report.run_plan import PlannedRun, plan_lines, planned_runs

        rows = planned_runs(tasks, {record.identity for record in collect_with_warnings().records})
        if shape.is_text:
            for line in plan_lines(rows):
                out.print(line, markup=False, soft_wrap=True)
        else:
            print_rows([row.to_dict() for row in rows], shape, column_names(PlannedRun))
        return
    from pipeline.judge.collect import FinishedRuns, collect_runs
    from pipeline.report.progress import ProgressDisplay
    from pipeline.report.publish import make_reports
    from pipeline.schedule.reproduce import run_tasks
    from pipeline.track.sync import local_records

    try:
        with ProgressDisplay(tasks, err, quietly=not shape.is_text) as progress:
            outcome = run_tasks(tasks, threads=threads, on_event=progress.on_event, tick=progress.tick)
    except KeyboardInterrupt:  # the second one
        print_warning_line("Interrupted. Run the same command again to resume from the last checkpoints.")
        raise typer.Exit(STOPPED) from None
    cache.write()
    if outcome.untracked:
        print_warning_line(f"Not tracked yet: {outcome.untracked}.")
        print_warning_line("The runs are kept on this machine; the next repro command sends them.")
    if outcome.ending == "stopped":
        print_warning_line("Stopped. Finished runs are kept. Run the same command again to resume.")
        raise typer.Exit(STOPPED)
    finished = FinishedRuns(local_records(), None) if outcome.untracked else collect_runs()
    if finished.trouble:
        print_warning_line(f"{finished.trouble[0].upper()}{finished.trouble[1:]}.")
    records = list({record.identity: record for record in [*outcome.records, *finished.records]}.values())
    made, troubles = make_reports([(experiment, scale) for experiment in declared], records, finished.tracker)
    for trouble in troubles:
        print_warning_line(f"{trouble[0].upper()}{trouble[1:]}.")
    reports = list(zip(declared, made, strict=True))
    if shape.is_text:
        print_reports(reports)
    else:
        from pipeline.report.leaderboard import LeaderboardRow

        rows_of_all = [row.to_dict() for _, report in reports for row in report.rows]
        value = [report_json(report) for _, report in reports]
        print_rows(rows_of_all, shape, column_names(LeaderboardRow), value=value if len(reports) > 1 else value[0])
    if outcome.ending == "failed":
        print_warning_line(
            "Some runs failed. Finished runs are kept. Run the same command again to resume the rest."
        )
        raise typer.Exit(RUN_FAILED)


def report_json(report: "ExperimentReport") -> dict[str, Any]:
    """Return leaderboard, verdicts and files of one experiment as plain data."""
    board, verdicts = [row.to_dict() for row in report.rows], [entry.to_dict() for entry in report.entries]
    files = {"figure": report.figure, "page": report.page}
    return {"leaderboard": board, "verdicts": verdicts} | {k: str(v) for k, v in files.items() if v}


def print_reports(reports: "Sequence[tuple[Experiment, ExperimentReport]]") -> None:
    """Print leaderboard, verdicts and files of each experiment."""
    for experiment, report in reports:
        print_leaderboard(report.rows)
        print_outcome(report.entries, experiment.name)
        for kind, path in {"figure": report.figure, "page": report.page}.items():
            if path:
                out.print(f"{kind:<8} {escape(str(path))}", soft_wrap=True)
    out.print("MLflow   leaderboard, curves and verdicts in a browser: [bold]repro ui[/]")


def thread_count() -> int | None:
    """Return the threads of one run on a CPU, from OMP_NUM_THREADS; None if it is not set."""
    return env_integer("OMP_NUM_THREADS", 1, minimum=1) if "OMP_NUM_THREADS" in os.environ else None
