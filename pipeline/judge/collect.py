"""Collect the finished runs of this machine and of the tracking server, and judge experiments from them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.garbage import no_garbage_collection
from pipeline.common.paths import runs_folder
from pipeline.declare.experiment import Experiment
from pipeline.judge.counting import Records, declarations_of, unchanged_records
from pipeline.judge.ledger import LedgerEntry, ledger
from pipeline.judge.missing import Unfinished
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import list_names, local_records, sync_all


@dataclass(frozen=True)
class FinishedRuns:
    """Records of the finished runs on this machine and on the tracking server."""

    records: list[Record]
    tracker: Tracker | None  # None if the tracking server cannot be used
    trouble: str = ""  # the reason, or the run folders that cannot be sent; "" if there is none


@no_garbage_collection()
def collect_runs() -> FinishedRuns:
    """Send untracked runs to the tracking server and return the records of this machine and of the server."""
    tracker = Tracker()
    try:
        tracked, trouble = sync_all(tracker)
    except TrackingError as error:
        return FinishedRuns(local_records(), None, str(error))
    on_server = {record.identity: record for record in tracked}
    on_this_machine = {record.identity: record for record in local_records(known=on_server)}
    return FinishedRuns(list((on_this_machine | on_server).values()), tracker, trouble)


def judge_experiments(
    experiments: Sequence[Experiment],
    records: Records,
    scales: Sequence[str] = (),
    unfinished: Unfinished | None = None,
) -> list[LedgerEntry]:
    """Return the ledger of several experiments, at `scales` only if any are given.

    `unfinished` gives the reasons why runs are unfinished; None reads them from the run folders.
    """
    from pipeline.analyse.measure import measure_claim

    reasons = unfinished_runs(experiments) if unfinished is None else unfinished
    unchanged = unchanged_records(records)
    return [
        entry
        for experiment in experiments
        for entry in ledger(experiment, unchanged, measure_claim, scales, reasons)
    ]


def unfinished_runs(experiments: Sequence[Experiment]) -> dict[tuple[str, str, str, int], dict[str, str]]:
    """Return why runs in this machine's or the cluster's run folders are unfinished: the latest reason of each.

    Leaves out runs changed by --set, which count for no claim, and runs whose declaration has changed since.
    """
    others = {name: other for experiment in experiments for name, other in experiment.others.items()}
    declared = others | {experiment.name: experiment for experiment in experiments}
    found = {}
    root = runs_folder()
    files = [f"{root}/{name}/left.json" for name in list_names(root)]  # Path.glob is slow for 10,000 folders
    for path in sorted(map(Path, filter(os.path.exists, files)), key=lambda path: path.stat().st_mtime):
        folder = RunFolder(path.parent)
        left = folder.unfinished()
        if not left or folder.result_file.is_file() or not (path.parent / "run.json").is_file():
            continue
        try:
            run = folder.description()
            experiment = declared.get(run["experiment"])
            if experiment and not run["changes"] and is_declared(experiment, run):
                reason = {key: str(left[key]) for key in ("why", "text")}
                found[run["experiment"], run["scale"], run["variant"], run["seed"]] = reason
        except (ValueError, TypeError, KeyError):  # damaged; reported when it is sent to MLflow
            continue
    return found


def is_declared(experiment: Experiment, run: Mapping[str, Any]) -> bool:
    """Return True if the run of a folder's description still has the recipe that is declared."""
    scale, name = run["scale"], run["variant"]
    if scale not in experiment.scales or not (name in experiment.variants or name in experiment.derived):
        return False
    return run.get("declaration") in declarations_of(experiment, scale, name, {run["seed"]})
