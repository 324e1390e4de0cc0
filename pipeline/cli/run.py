"""`repro run`: train on this machine, track, and judge the claims."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipeline.cli import cluster as cli_cluster
from pipeline.cli.tables import print_leaderboard, print_outcome
from pipeline.cli.terminal import STOPPED, AsJson, err, out, print_json, print_warning_line
from pipeline.common.environment import env_integer
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment
    from pipeline.report.publish import ExperimentReport

RUN_FAILED = 1  # exit code

Suite = Annotated[str | None, typer.Option(help="cs231n: all experiments of the lecture.")]


def run(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT…", help="Names from `repro list`, or paths of .yaml files."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="cs231n: all experiments of the lecture that train at the scale.")
    ] = None,
    scale: Annotated[str, typer.Option(help="A scale of the experiments: paper, laptop, …")] = "laptop",
    variant: Annotated[
        list[str] | None, typer.Option(help="Run only this variant of one experiment (repeatable).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds. Default: the declared seeds.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a setting of the recipe, as in train.lr=0.05. Such runs count for no claim."
        ),
    ] = None,
    precision: cli_cluster.Precision = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Train on another data set; short for --set data.name=NAME. Such runs count for no claim.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the runs that are not finished, track them and judge the claims. Ctrl-C stops them, resumable."""
    from pipeline.plan.expand import plan_runs, title_of

    declared = select_experiments(experiments or [], suite, scale)
    if variant and len(declared) > 1:
        raise UserError(f"--variant names a variant of one experiment, but {len(declared)} are selected")
    shorthands = {"--precision": ("train.precision", precision), "--data": ("data.name", data)}
    changed = with_shorthands(parse_changes(changes or []), shorthands)
    planned = {  # a run that another experiment consumes or starts from is planned by both
        title_of(one): one
        for experiment in declared
        for one in plan_runs(experiment, scale=scale, variants=variant or (), seeds=seeds, changes=changed)
    }
    runs = list(planned.values())
    threads = thread_count()
    with err.status("reading the data and the code …") if err.is_terminal else nullcontext():
        from pipeline.judge.collect import FinishedRuns, collect_runs
        from pipeline.report.progress import ProgressDisplay, plan_lines
        from pipeline.report.publish import make_report
        from pipeline.schedule.reproduce import run_tasks
        from pipeline.schedule.task_cache import TaskCache
        from pipeline.schedule.tasks import finished_tasks, make_tasks
        from pipeline.track.sync import local_records

        cache = TaskCache()
        tasks = finished_tasks(runs, cache) or make_tasks(runs, cache)
    if dry_run:
        plan_lines(tasks, out)
        return
    try:
        with ProgressDisplay(tasks, err, quietly=as_json) as progress:
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
    records = list({record.identity: record for record in [*outcome.records, *finished.records]}.values())
    reports = [(experiment, make_report(experiment, scale, records, finished.tracker)) for experiment in declared]
    if finished.tracker and any(report.published for _, report in reports):
        from pipeline.report.mlflow_overview import publish_overview

        try:
            publish_overview(records, finished.tracker)
        except UserError as error:
            print_warning_line(f"The tables of all papers in MLflow are not up to date: {error}.")
    for _, report in reports:
        if report.trouble:
            print_warning_line(f"{report.trouble[0].upper()}{report.trouble[1:]}.")
    if as_json:
        print_json(
            [report_json(report) for _, report in reports] if len(reports) > 1 else report_json(reports[0][1])
        )
    else:
        print_reports(reports)
    if outcome.ending == "failed":
        print_warning_line(
            "Some runs failed. Finished runs are kept. Run the same command again to resume the rest."
        )
        raise typer.Exit(RUN_FAILED)


def select_experiments(names: Sequence[str], suite: str | None, scale: str) -> "list[Experiment]":
    """Return the named experiments and those of a suite with the scale. Raises UserError if there are none."""
    from pipeline.declare.load import load_experiment
    from pipeline.declare.suites import suite_at

    found = {one.name: one for one in map(load_experiment, names)}
    if suite:
        found |= {one.name: one for one in suite_at(suite, scale).experiments if one.name not in found}
    if not found:
        raise UserError(
            "nothing to run; name an experiment, as in repro run resnet/cifar10_depth, or use --suite cs231n"
        )
    return list(found.values())


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


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """Parse the values of --set: ["train.lr=0.05"] -> {"train.lr": 0.05}; values are YAML."""
    import yaml

    from pipeline.declare.yaml_loader import parse_yaml

    result = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise UserError(f"--set {change}: give a key and a value, as in train.lr=0.05")
        try:
            result[key] = parse_yaml(text)
        except yaml.YAMLError:
            raise UserError(f"--set {change}: {text!r} is not a YAML value") from None
    return result


def with_shorthands(changes: dict[str, Any], shorthands: dict[str, tuple[str, str | None]]) -> dict[str, Any]:
    """Return the changes of --set and of options that are short for it: option -> (setting, value).

    Raises UserError if both change the same setting.
    """
    found = dict(changes)
    for option, (setting, value) in shorthands.items():
        if value is None:
            continue
        if setting in changes:
            raise UserError(f"{option} and --set {setting} change the same setting; give one of them")
        found[setting] = value
    return found


def thread_count() -> int:
    """Return the threads of one run on a CPU: OMP_NUM_THREADS, or 1, which gives the same bits everywhere."""
    return env_integer("OMP_NUM_THREADS", 1, minimum=1)
