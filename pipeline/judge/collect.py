"""Collect the finished runs of this machine and of the tracking server, and judge experiments from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common.paths import runs_folder
from pipeline.declare.experiment import Experiment
from pipeline.judge.counting import declarations_of
from pipeline.judge.ledger import LedgerEntry, Unfinished, ledger
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import local_records, sync_all


@dataclass(frozen=True)
class FinishedRuns:
    """All ended runs that can be found."""

    records: list[Record]
    tracker: Any | None  # None where the server cannot be used
    trouble: str = ""  # why, or which run folder cannot be sent


def collect_runs() -> FinishedRuns:
    """The runs ended here and those on the tracking server, after sending it what is unsent."""
    tracker = Tracker()
    try:
        tracked, trouble = sync_all(tracker)
    except TrackingError as error:
        return FinishedRuns(local_records(), None, str(error))
    there = {record.identity: record for record in tracked}
    here = {record.identity: record for record in local_records(known=there)}
    return FinishedRuns(list((here | there).values()), tracker, trouble)


def judge_experiments(
    experiments: Sequence[Experiment],
    records: Sequence[Record],
    scales: Sequence[str] = (),
    left: Unfinished | None = None,
) -> list[LedgerEntry]:
    """The ledger of several experiments; without `left`, what is known here of runs left unfinished is told."""
    from pipeline.analyse.measure import measure_claim

    known_left = unfinished_runs(experiments) if left is None else left
    return [entry for one in experiments for entry in ledger(one, records, measure_claim, scales, known_left)]


def unfinished_runs(experiments: Sequence[Experiment]) -> dict[tuple[str, str, str, int], dict[str, str]]:
    """Why runs in this machine's or the cluster's folder were left unfinished: the latest word on each.

    Of what --set changed nothing is told, as it counts for no claim; nor of what is now declared otherwise.
    """
    declared = {experiment.name: experiment for experiment in experiments}
    found = {}
    for path in sorted(runs_folder().glob("*/left.json"), key=lambda path: path.stat().st_mtime):
        folder = RunFolder(path.parent)
        left = folder.unfinished()
        if not left or folder.result_file.is_file() or not (path.parent / "run.json").is_file():
            continue
        try:
            run = folder.description()
            experiment = declared.get(run["experiment"])
            if experiment and not run["changes"] and is_declared(experiment, run):
                said = {key: str(left[key]) for key in ("why", "text")}
                found[run["experiment"], run["scale"], run["variant"], run["seed"]] = said
        except (ValueError, TypeError, KeyError):  # damaged: whoever sends it to MLflow complains of it
            continue
    return found


def is_declared(experiment: Experiment, run: Mapping[str, Any]) -> bool:
    """Whether what a folder describes is, recipe and all, what is declared now."""
    scale, name = run["scale"], run["variant"]
    if scale not in experiment.scales or not (name in experiment.variants or name in experiment.derived):
        return False
    return run.get("declaration") in declarations_of(experiment, scale, name, {run["seed"]})
