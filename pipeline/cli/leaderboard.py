"""`repro leaderboard` and `repro diff`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from pipeline.cli import cluster as cli_cluster
from pipeline.cli.tables import print_leaderboard, print_published, print_table
from pipeline.cli.terminal import AsCsv, AsJson, AsMarkdown, TableFormat, out, print_rows, table_format
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment
    from pipeline.track.record import Record


def leaderboard(
    paper: Annotated[
        str | None,
        typer.Argument(metavar="PAPER", help="A paper or an experiment from `repro list`. Default: all."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Only results on this data set.")] = None,
    scale: Annotated[str | None, typer.Option(help="Only results at this scale.")] = None,
    by: Annotated[Literal["top1", "top5"], typer.Option(help="Error to rank by.")] = "top1",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Rank networks by test error within a data set and protocol, with the paper's error beside ours."""
    from pipeline.analyse.measure import measure_claim
    from pipeline.declare.claims import MetricClaim
    from pipeline.judge.collect import judge_experiments
    from pipeline.report.leaderboard import build_leaderboard, ranked, with_sizes, with_verdicts
    from pipeline.track.published_results import load_results

    shape = table_format(as_json, as_csv, as_markdown)
    declared = experiments_of(paper)
    records = cli_cluster.collect_with_warnings().records
    rows = build_leaderboard(declared, records)
    published = [] if paper or scale else load_results()
    check_filters(data, scale, {row.data for row in rows} | {row.data for row in published}, declared)
    rows = [row for row in rows if data in (None, row.data) and scale in (None, row.scale)]
    with_runs = {row.experiment for row in rows}
    shown = [experiment for experiment in declared if experiment.name in with_runs]
    errors = [  # no other claim has a verdict in the table
        one.model_copy(update={"claims": tuple(claim for claim in one.claims if isinstance(claim, MetricClaim))})
        for one in shown
    ]
    rows = with_sizes(with_verdicts(rows, judge_experiments(errors, records)), shown, measure_claim)
    imported = [row for row in published if data in (None, row.data)]
    groups = ranked(rows, by)
    if shape is not TableFormat.TEXT:
        own = [{"kind": "trained here"} | row.to_dict() for group in groups for row in group]
        print_rows(own + [{"kind": "published weights"} | row.to_dict() for row in imported], shape)
        return
    print_leaderboard(rows, by)
    print_published(imported)
    if not rows and not imported:
        out.print("No finished runs. Start some: [bold]repro run EXPERIMENT --scale laptop[/]")


def experiments_of(name: str | None) -> "list[Experiment]":
    """Return the experiments of a paper, or the named one; all if no name is given."""
    from pipeline.declare.load import load_all, load_experiment

    if name is None:
        return load_all()
    of_paper = [experiment for experiment in load_all() if experiment.folder == name] if "/" not in name else []
    return of_paper or [load_experiment(name)]


def check_filters(data: str | None, scale: str | None, known: set[str], declared: "list[Experiment]") -> None:
    """Raise UserError for a data set without results, or a scale that no experiment has."""
    from lightning_modules.names import nearest

    if data and data not in known and known:
        raise UserError(f"--data {data}: no results on this data set{nearest(data, sorted(known))}")
    scales = sorted({name for experiment in declared for name in experiment.scales})
    if scale and scale not in scales:
        raise UserError(f"--scale {scale}: unknown scale{nearest(scale, scales)}")


RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="[PAPER/FILE/]VARIANT/SEED, as in resnet-20/0, or the first digits of its identity."
    ),
]


def diff(
    first: RunArgument,
    second: RunArgument,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Show what differs between two finished runs: declaration, data, code, environment, results."""
    from pipeline.report.run_diff import compare_runs, find_record, run_name

    shape = table_format(as_json, as_csv, as_markdown)
    records = cli_cluster.collect_with_warnings().records
    one, other = find_record(first, records), find_record(second, records)
    found = compare_runs(one, other, (recipe_of(one), recipe_of(other)))
    if shape is not TableFormat.TEXT:
        print_rows([difference.to_dict() for difference in found], shape)
        return
    for label, record in (("first", one), ("second", other)):
        out.print(f"{label:<7} {record.identity[:8]}  {escape(run_name(record))}", soft_wrap=True)
    out.print()
    if not found:
        out.print("No differences: declaration, data, code, environment and results are equal.")
        return
    cells = [{key: value_text(value) for key, value in difference.to_dict().items()} for difference in found]
    print_table(cells, left=tuple(cells[0]))


def recipe_of(record: "Record") -> dict[str, Any] | None:
    """Return the resolved recipe of a run on this machine; None for one that was trained elsewhere."""
    from pipeline.common.paths import runs_folder
    from pipeline.track.run_folder import RunFolder

    try:
        recipe: dict[str, Any] = RunFolder(runs_folder() / record.identity).description()["recipe"]
    except (OSError, ValueError, KeyError):
        return None
    return recipe


def value_text(value: object) -> str:
    """Return a value as text; numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
