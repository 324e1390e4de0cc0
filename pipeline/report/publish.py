"""Judge, rank and draw an experiment at one scale; write its page and publish it to MLflow."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.locks import explain_lock_errors, file_lock
from pipeline.common.paths import report_folder
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import load_paper
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.category import category
from pipeline.judge.collect import judge_experiments
from pipeline.judge.counting import RecordIndex, counted_records, unchanged_records
from pipeline.judge.ledger import LedgerEntry
from pipeline.report.judged_models import judged_models
from pipeline.report.leaderboard import (
    LeaderboardRow,
    build_leaderboard,
    in_protocol_order,
    with_sizes,
    with_verdicts,
)
from pipeline.report.mlflow_overview import publish_overview
from pipeline.report.mlflow_rows import network_runs, with_trends
from pipeline.report.paper_note import Link, paper_note
from pipeline.track.mlflow_networks import publish_networks
from pipeline.track.mlflow_notes import MAX_NOTE_LENGTH
from pipeline.track.mlflow_pages import publish_experiment, publish_paper_note
from pipeline.track.mlflow_registry import register_models
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.record import Record


@dataclass(frozen=True)
class ExperimentReport:
    """Leaderboard, verdicts and files of an experiment at one scale."""

    rows: list[LeaderboardRow]
    entries: list[LedgerEntry]
    figure: Path | None
    page: Path
    trouble: str = ""  # why something is not in MLflow, in one sentence
    published: bool = False  # to MLflow, by this call


def make_report(
    experiment: Experiment, scale: str, records: Sequence[Record], tracker: Tracker | None
) -> ExperimentReport:
    """Judge and rank an experiment at one scale, write figure and page, and publish them to MLflow.

    Figure and page are kept if a report with the same content exists. Without a tracker nothing is published. A
    server that cannot be used, or refuses, is the report's `trouble`; the next call publishes.
    """
    from pipeline.report.stamp import ReportStamp, report_hash

    index = unchanged_records(records)
    by_variant = counted_records(experiment, scale, index)
    counted = [record for rows in by_variant.values() for record in rows]
    board = [row for row in build_leaderboard([experiment], records, index) if row.scale == scale]
    entries = judge_experiments([experiment], index, [scale])
    rows = with_verdicts(board, entries)
    stem = f"{experiment.name.replace('/', '-')}-{scale}"
    stamp = ReportStamp(
        report_folder() / f".{stem}.json", report_hash(experiment, scale, rows, entries, counted, tracker)
    )
    if files := stamp.files(tracker):
        page, *figures = files
        return ExperimentReport(rows, entries, figures[0] if figures else None, page)
    from pipeline.report.page import write_page
    from pipeline.report.paper_figures.figure_data import scale_runs
    from pipeline.report.paper_figures.training import training_figure
    from pipeline.report.run_files import RunFiles

    curves = RunFiles(tracker)
    drawn = training_figure(curves.curve, scale_runs(experiment, scale, counted))
    figure = drawn.write(report_folder() / f"{stem}.png") if drawn else None
    figures_of_page = [drawn] if drawn else []
    page = write_page(
        experiment,
        scale,
        rows,
        entries,
        counted,
        figures_of_page,
        report_folder() / f"{stem}.html",
        unread=curves.unread,
    )
    files = [page, *([figure] if figure else [])]
    run_ids: set[str] = set()
    trouble = ""
    if tracker and rows:
        try:
            run_ids, trouble = publish_report(tracker, experiment, scale, records, index, rows, entries, files)
        except UserError as error:
            trouble = f"the leaderboard in MLflow is not up to date: {error}"
    if not trouble and not curves.unread:  # else the next command tries again
        stamp.write(files, run_ids)
    return ExperimentReport(rows, entries, figure, page, trouble, bool(run_ids))


def make_reports(
    selected: Iterable[tuple[Experiment, str]], records: Sequence[Record], tracker: Tracker | None
) -> tuple[list[ExperimentReport], list[str]]:
    """Make the report of each experiment at its scale; where one was published, also the tables of all papers.

    Returns the reports, and sentences on what is not in MLflow. Commands on one home do this one after the other:
    what two write at once would be a mixture, and a model would be registered twice.
    """
    folder = report_folder()
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with explain_lock_errors(folder), file_lock(folder / ".publish.lock"):
        reports = [make_report(experiment, scale, records, tracker) for experiment, scale in selected]
        troubles = [report.trouble for report in reports if report.trouble]
        if tracker and any(report.published for report in reports):
            try:
                publish_overview(records, tracker)
            except UserError as error:
                troubles.append(f"the tables of all papers in MLflow are not up to date: {error}")
        return reports, troubles


def publish_report(
    tracker: Tracker,
    experiment: Experiment,
    scale: str,
    records: Sequence[Record],
    index: RecordIndex,
    rows: Sequence[LeaderboardRow],
    entries: Sequence[LedgerEntry],
    files: Sequence[Path],
) -> tuple[set[str], str]:
    """Publish judged rows of an experiment at one scale, and files, to MLflow.

    Returns the ids of the runs that it wrote, and what MLflow's registry has refused, "" for nothing. Raises
    TrackingError or RefusedError.
    """
    from pipeline.analyse.measure import measure_claim
    from pipeline.report.text import leaderboard_table, verdict_cells

    by_variant = counted_records(experiment, scale, index)
    counted = [record for of_variant in by_variant.values() for record in of_variant]
    tables = {"leaderboard": leaderboard_table(rows), "verdicts": [verdict_cells(entry) for entry in entries]}
    note = mlflow_note(experiment, scale, tables["leaderboard"], entries)
    run_id = publish_experiment(tracker, experiment.name, scale, counted, tables=tables, files=files, note=note)
    publish_paper_note(tracker, experiment.folder, partial(note_of_paper, experiment, records, index, rows))
    ordered = in_protocol_order(experiment, rows)
    shown = with_trends(with_sizes(ordered, [experiment], measure_claim), entries)
    networks, known = network_runs(shown, records), {record.run_id for record in records}
    run_ids = {run_id} | publish_networks(tracker, experiment.name, scale, networks, known=known)
    ids = {record.identity: record.run_id for record in records if record.run_id}
    scales = sorted(experiment.scales, key=lambda name: name != PAPER_SCALE)
    return run_ids, register_models(tracker, judged_models(ordered, by_variant, ids, experiment.derived), scales)


def note_of_paper(
    experiment: Experiment,
    records: Sequence[Record],
    index: RecordIndex,
    rows: Sequence[LeaderboardRow],
    link: Link,
) -> str:
    """Return the note of the paper of `experiment`, over all its experiments and scales.

    `index`: that of the unchanged records, in which those of `experiment` are looked up already. `rows`: those of
    `experiment` at one scale, judged. Its claims are judged again, since the note is about all scales.
    """
    declared = {one.name: one for one in load_paper(experiment.folder)} | {experiment.name: experiment}
    trained = [
        one.model_copy(update={"claims": tuple(claim for claim in one.claims if category(claim) == "trained")})
        for one in declared.values()
    ]  # the others do not depend on runs, and take seconds to judge
    entries = judge_experiments(trained, index)
    known = {(row.experiment, row.scale) for row in rows}
    board = build_leaderboard(declared.values(), records, index)
    others = [row for row in board if (row.experiment, row.scale) not in known]
    return paper_note(list(declared.values()), [*rows, *with_verdicts(others, entries)], entries, link)


def mlflow_note(
    experiment: Experiment, scale: str, board: Sequence[dict[str, str]], entries: Sequence[LedgerEntry]
) -> str:
    """Return leaderboard and verdicts that rest on runs as Markdown, cut to the length that MLflow stores."""
    from pipeline.report.text import headlines, markdown, verdict_cells

    verdicts = [verdict_cells(entry) for entry in entries if entry.evidence]
    for shown in range(len(verdicts), -1, -1):
        note = "\n\n".join(
            [
                f"# {experiment.question}",
                f"Scale: {scale}. {experiment.scales[scale].why}",
                markdown(board),
                markdown(verdicts[:shown], ("verdict", "claim", "says")),
                "All claims:",
                "\n".join(f"- {line}" for line in headlines(entries)),
                "Evidence: verdicts.json.",
            ]
        )
        if len(note) <= MAX_NOTE_LENGTH:
            break
    return note[:MAX_NOTE_LENGTH]
