"""Judge, rank and draw experiments from the finished runs, as the content of a report."""

from collections.abc import Callable, Sequence
from functools import cache

from pipeline.common.provenance import commit
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import experiment_names, load_all_printed
from pipeline.judge.collect import FinishedRuns, judge_experiments
from pipeline.judge.counting import unchanged_records
from pipeline.judge.coverage import PrintedRow, printed_rows
from pipeline.report.document.content import Report, make_content
from pipeline.report.document.unfinished import find_unfinished
from pipeline.report.leaderboard import build_leaderboard, with_sizes, with_verdicts
from pipeline.report.paper_page import measured_rates
from pipeline.track.mlflow_reader import find_experiment, server_key
from pipeline.track.record import Record

RunAddress = Callable[[Record], str]  # the page of a run on the tracking server; "" if it is not known


def collect_report(experiments: Sequence[Experiment], found: FinishedRuns, *, subject: str) -> Report:
    """Return the report of experiments from the runs found on this machine and on the tracking server.

    `subject` says which experiments these are.
    """
    from pipeline.analyse.measure import measure_claim
    from pipeline.report.paper_figures.collect import paper_figures
    from pipeline.report.run_files import RunFiles

    index, files = unchanged_records(found.records), RunFiles(found.tracker)
    entries = judge_experiments(experiments, index)
    rows = with_verdicts(build_leaderboard(experiments, found.records), entries)
    figures = paper_figures(
        experiments,
        index,
        entries,
        curves=files.curve,
        weights=files.weights,
        measure=measure_claim,
    )
    return make_content(
        experiments,
        entries,
        with_sizes(rows, experiments, measure_claim),
        found.records,
        subject=subject,
        figures=figures,
        printed=printed_of(experiments),
        rates=measured_rates(experiments, found.records),
        unfinished=find_unfinished(experiments),
        trouble=found.trouble,
        unread=files.unread,
        commit=commit(),
    )


def printed_of(experiments: Sequence[Experiment]) -> list[PrintedRow]:
    """Return what the papers print, if the experiments are all that are declared; else nothing."""
    if not set(experiment_names()) <= {experiment.name for experiment in experiments}:
        return []
    return printed_rows(experiments, load_all_printed())


def run_addresses(uri: str) -> RunAddress:
    """Return a function that gives the page of a run on a tracking server; "" where the server has no pages.

    `uri`: address of the server, as in MLFLOW_TRACKING_URI. User and password are left out.
    """
    is_server = uri.startswith(("http://", "https://"))
    places = cache(lambda paper: find_experiment(uri, paper) if is_server else None)

    def address(record: Record) -> str:
        place = places(record.experiment.partition("/")[0]) if record.run_id else None
        return f"{server_key(uri)}/#/experiments/{place}/runs/{record.run_id}" if place else ""

    return address
