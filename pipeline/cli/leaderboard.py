"""`repro leaderboard` and `repro diff`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from pipeline.cli.selection import collect_with_warnings, experiments_of
from pipeline.cli.tables import TableFormat, column_names, print_rows, print_table, with_table_formats
from pipeline.cli.terminal import out, say
from pipeline.common.errors import UserError
from pipeline.common.garbage import no_garbage_collection
from pipeline.common.words import plural

if TYPE_CHECKING:
    from pipeline.declare.experiment import Experiment
    from pipeline.judge.counting import RecordIndex
    from pipeline.report.leaderboard import Error, LeaderboardRow
    from pipeline.report.winners import Winner
    from pipeline.track.published_results import PublishedResult
    from pipeline.track.record import Record

HEADS = {  # column of the leaderboard -> short name, so that the table fits in 80 characters
    "network": "network",
    "experiment": "experiment",
    "top-1 error %": "top-1 error %",
    "top-5 error %": "top-5 %",
    "training error %": "training %",
    "paper top-1 %": "paper %",
    "difference": "difference",
    "verdict": "verdict",
    "seeds": "seeds",
    "test-set noise": "noise",
    "parameters": "parameters",
    "multiply-adds": "multiply-adds",
    "time per run": "time",
}

ONLY_TOP1 = ("difference", "verdict")  # columns about the top-1 error

ONLY_WIDE = ("parameters", "multiply-adds", "time per run")  # columns that are left out on a narrow terminal

WIDE = 120  # columns


def print_leaderboard(rows: "list[LeaderboardRow]", by: "Error" = "top1") -> None:
    """Print one table per data set, test protocol and scale, ranked by top-1 or top-5 error."""
    from pipeline.report.leaderboard import ranked

    for group in ranked(rows, by):
        print_ranked(group, by)


def print_ranked(rows: "list[LeaderboardRow]", by: "Error") -> None:
    """Print one table of the leaderboard. The rows have one data set, test protocol and scale."""
    from pipeline.report.text import leaderboard_cells, without_empty_columns

    data, protocol, scale = rows[0].group
    experiments = {row.experiment for row in rows}
    cells = []
    for row in rows:
        own = leaderboard_cells(row) | {"experiment": row.experiment if len(experiments) > 1 else ""}
        paper = row.published(by)
        own["paper top-1 %"] = "" if paper is None else f"{paper:g}"
        cells.append({column: own[column] for column in HEADS if by == "top1" or column not in ONLY_TOP1})
    cells = without_empty_columns(cells)
    heads = HEADS if by == "top1" else HEADS | {"paper top-1 %": "paper top-5 %"}
    crowded = ("training error %", "test-set noise") if {"difference", "experiment"} & set(cells[0]) else ()
    left_out = () if out.width >= WIDE else (*ONLY_WIDE, *crowded)
    images = ", ".join(sorted({f"{row.images:,}" for row in rows if row.images}))
    shown = f", {protocol}" if protocol else ""
    where = f"at {scale} scale on {data}" if len(experiments) == 1 else f"{data} at {scale} scale"
    title = f"{rows[0].experiment} {where}" if len(experiments) == 1 else where
    out.print(f"[bold]{title}[/] ({images or 'no'} test images{shown})", soft_wrap=not out.is_terminal)
    print_table(
        [{heads[name]: text for name, text in one.items() if name not in left_out} for one in cells],
        left=("network", "experiment", "verdict"),
    )
    other = {row.paper_data for row in rows if row.published(by) is not None} - {data}
    if other:
        say(f"The paper's errors are on {', '.join(sorted(other))}.")
    out.print()


def print_published(rows: "list[PublishedResult]") -> None:
    """Print the results of published weights, one table per data set and protocol."""
    from pipeline.report.text import published_cells, published_remarks, without_empty_columns

    for data, protocol, manifest in dict.fromkeys((row.data, row.protocol, row.manifest) for row in rows):
        group = [row for row in rows if (row.data, row.protocol, row.manifest) == (data, protocol, manifest)]
        out.print(f"[bold]published weights[/] on {escape(data)}: imported, not trained here; not a reproduction")
        cells = without_empty_columns([published_cells(row) for row in group])
        print_table(cells, left=("network", "weights", "assumed"))
        say(f"Protocol: {protocol}.")
        if group[0].ignored:
            named = f": {group[0].skipped}" if group[0].skipped else ""
            say(f"Skipped {plural(group[0].ignored, 'file')} of {data} that are not images{named}.")
        for row in group:
            for line in published_remarks(row):
                say(line)
        out.print()


@with_table_formats
@no_garbage_collection()
def leaderboard(
    paper: Annotated[
        str | None,
        typer.Argument(metavar="PAPER", help="A paper or an experiment from `repro list`. Default: all."),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Only results on this data set.")] = None,
    scale: Annotated[str | None, typer.Option(help="Only results at this scale.")] = None,
    variants: Annotated[
        list[str] | None, typer.Option("--variant", help="Only this variant or derived run (repeatable).")
    ] = None,
    by: Annotated[Literal["top1", "top5"], typer.Option(help="Error to rank by.")] = "top1",
    *,
    shape: TableFormat,
) -> None:
    """Rank networks by test error within a data set and protocol, with the paper's error beside ours.

    Without arguments, the last table is the lecture's chart of the winners of ILSVRC; `repro leaderboard ilsvrc`
    prints it alone, also as JSON, CSV or Markdown.
    """
    from pipeline.judge.counting import unchanged_records
    from pipeline.report.leaderboard import LeaderboardRow, build_leaderboard, ranked
    from pipeline.report.winners import CHART, Winner
    from pipeline.track.published_results import PublishedResult, load_results

    declared = experiments_of(paper)
    check_variants(variants or [], declared)
    records = collect_with_warnings().records
    published = [] if paper or scale or variants else load_results()
    index = unchanged_records(records)
    rows = build_leaderboard(declared, records, index)
    check_filters(data, scale, {row.data for row in rows} | {row.data for row in published}, declared)
    rows = [
        row
        for row in rows
        if data in (None, row.data) and scale in (None, row.scale) and (not variants or row.variant in variants)
    ]
    imported = [row for row in published if data in (None, row.data)]
    asks_for_chart = paper in (CHART, CHART.partition("/")[0])
    is_charted = (asks_for_chart or (paper is None and shape.is_text)) and not (data or scale or variants)
    chart = charted_winners(records, index, rows if paper is None else None) if is_charted else []
    rows = with_judged_sizes(rows, declared, index)
    if not shape.is_text:
        own = [{"kind": "trained here"} | row.to_dict() for group in ranked(rows, by) for row in group]
        others = [{"kind": "published weights"} | row.to_dict() for row in imported]
        columns = ["kind", *column_names(LeaderboardRow)]
        columns += [name for name in column_names(PublishedResult) if name not in columns] if others else []
        if asks_for_chart:
            print_rows([row.to_dict() for row in chart], shape, column_names(Winner))
        else:
            print_rows(own + others, shape, columns)
        return
    print_leaderboard(rows, by)
    print_published(imported)
    if not rows and not imported and not asks_for_chart:
        out.print("No finished runs. Start some: [bold]repro run EXPERIMENT --scale laptop[/]\n")
    if chart:
        print_winners(chart)


def with_judged_sizes(
    rows: "list[LeaderboardRow]", declared: "list[Experiment]", index: "RecordIndex"
) -> "list[LeaderboardRow]":
    """Return the rows with the verdicts on their errors, and with the sizes of their networks."""
    from pipeline.analyse.measure import measure_claim
    from pipeline.declare.recipe import PAPER_SCALE
    from pipeline.judge.collect import judge_experiments
    from pipeline.report.leaderboard import only_shown_claims, with_sizes, with_verdicts

    shown = only_shown_claims(declared, rows)
    entries = judge_experiments(shown, index, [PAPER_SCALE]) if shown else []
    return with_sizes(with_verdicts(rows, entries), declared, measure_claim)


def charted_winners(
    records: "list[Record]", index: "RecordIndex", rows: "list[LeaderboardRow] | None"
) -> "list[Winner]":
    """Return the chart of the winners of ILSVRC. `rows`: the leaderboard of all experiments; None: make it.

    `index`: that of the unchanged records.
    """
    from pipeline.declare.load import EXPERIMENTS, load_all, load_experiment
    from pipeline.declare.printed import load_printed
    from pipeline.judge.collect import judge_experiments
    from pipeline.report.leaderboard import build_leaderboard
    from pipeline.report.winners import CHART, charted_claims, winners

    chart, printed = load_experiment(CHART), load_printed(EXPERIMENTS / CHART.partition("/")[0])
    assert printed is not None  # a test of the experiments requires the file
    entries = judge_experiments([charted_claims(chart, printed)], index)
    rows = build_leaderboard(load_all(), records, index) if rows is None else rows
    return winners(chart, printed, entries, rows)


def print_winners(rows: "list[Winner]") -> None:
    """Print the lecture's chart of the winners of ILSVRC: numbers of papers, and ours where there are any."""
    from pipeline.report.text import without_empty_columns
    from pipeline.report.winners import CHART, winner_cells

    out.print("[bold]winners of ILSVRC[/], the lecture's chart: published top-5 errors, not ours", soft_wrap=True)
    cells = without_empty_columns([winner_cells(row) for row in rows])
    narrow = out.width < WIDE
    cells = [{name: text for name, text in one.items() if not (narrow and name == "source")} for one in cells]
    print_table(cells, left=("entry", "verdict", "ours", "source"))
    say("Errors on the challenge's test sets, whose labels were never published; layers: as the lecture says.")
    say(f"verdict: on the lecture's number, against the paper's. Details: repro verify {CHART}")
    if any(row.ours_top5 is not None for row in rows):
        say("ours: mean over seeds of single networks, on ImageNet's validation set.")


def check_variants(variants: list[str], declared: "list[Experiment]") -> None:
    """Raise UserError for a variant or derived run that no experiment declares."""
    from lightning_modules.names import nearest

    known = {name for experiment in declared for name in (*experiment.variants, *experiment.derived)}
    for variant in variants:
        if variant not in known:
            raise UserError(f"--variant {variant}: no such variant{nearest(variant, known, '')}")


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


@with_table_formats
def diff(
    first: RunArgument,
    second: RunArgument,
    *,
    shape: TableFormat,
) -> None:
    """Show what differs between two finished runs: declaration, data, code, environment, results."""
    from pipeline.report.run_diff import Difference, compare_runs, find_record, run_name

    records = collect_with_warnings().records
    one, other = find_record(first, records), find_record(second, records)
    found = compare_runs(one, other, (recipe_of(one), recipe_of(other)))
    if not shape.is_text:
        print_rows([difference.to_dict() for difference in found], shape, column_names(Difference))
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
