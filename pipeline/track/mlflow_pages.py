"""Pages in MLflow: aggregates, tables and figures of an experiment at a scale; results of published weights."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipeline.common.hashing import digest
from pipeline.declare.protocol import PART_PATTERN
from pipeline.track.mlflow_errors import explain_mlflow_errors
from pipeline.track.mlflow_notes import NOTE_TAG, set_note
from pipeline.track.mlflow_run import LOG_BATCH_SIZE
from pipeline.track.mlflow_views import LEVEL_TAG, OVERVIEW, run_address
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.published_results import result_key
from pipeline.track.record import Record

IMPORTED = "published weights"  # name of the MLflow experiment that holds them

Tables = Mapping[str, Sequence[Mapping[str, Any]]]  # name -> rows, each column -> cell


def publish_experiment(
    tracker: Tracker,
    experiment: str,
    scale: str,
    records: Sequence[Record],
    *,
    tables: Tables,
    files: Iterable[Path],
    note: str,
) -> str:
    """Put aggregates over seeds, tables, files and a note on the parent run of an experiment at a scale.

    Returns the id of the parent run. Raises TrackingError or RefusedError.
    """
    from mlflow.entities import Metric

    with explain_mlflow_errors(tracker.uri):
        client = tracker.client
        parent = tracker.parent_run(experiment, scale)
        now = int(time.time() * 1000)
        points = [Metric(key, value, now, 0) for key, value in aggregate_metrics(records).items()]
        for start in range(0, len(points), LOG_BATCH_SIZE):
            client.log_batch(parent, metrics=points[start : start + LOG_BATCH_SIZE])
        log_pages(tracker, parent, tables, files, note)
    return parent


def log_pages(tracker: Tracker, run_id: str, tables: Tables, files: Iterable[Path], note: str) -> None:
    """Put tables, files and a note on a run and mark it as finished.

    MLflow's `log_table` would append to the tables that are there.
    """
    client = tracker.client
    for name, rows in tables.items():
        columns = list(rows[0]) if rows else []
        client.log_dict(run_id, {"columns": columns, "data": [list(row.values()) for row in rows]}, f"{name}.json")
    logged = [{"path": f"{name}.json", "type": "table"} for name in tables]
    client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(logged))
    for path in files:
        client.log_artifact(run_id, str(path))
    client.set_tag(run_id, NOTE_TAG, note)
    client.set_terminated(run_id, "FINISHED")


def publish_paper_note(tracker: Tracker, paper: str, note: Callable[[Callable[[str, str], str]], str]) -> None:
    """Set the note of a paper's MLflow experiment; `note` is called with a function that links to a run.

    The function takes the name of an experiment and a scale. A note of somebody else stays. Raises TrackingError
    or RefusedError.
    """
    with explain_mlflow_errors(tracker.uri):
        place = tracker.experiment_id(paper)
        text = note(lambda experiment, scale: run_address(place, tracker.parent_run(experiment, scale)))
        set_note(tracker, place, text)


def publish_tables(tracker: Tracker, tables: Tables, files: Iterable[Path], note: str) -> str:
    """Put tables and files of all papers on one run of the experiment `leaderboard`, and a note on the experiment.

    Returns the run's id. Raises TrackingError or RefusedError.
    """
    with explain_mlflow_errors(tracker.uri):
        run_id: str = tracker.find_run(OVERVIEW, "tables", "tables", {LEVEL_TAG: "tables"}).info.run_id
        log_pages(tracker, run_id, tables, files, note)
        set_note(tracker, tracker.experiment_id(OVERVIEW), note)
    return run_id


def publish_imported(tracker: Tracker, result: Mapping[str, Any]) -> str:
    """Log the result of published weights on a data set; return the id of its run.

    The run is in an MLflow experiment of its own and has no record, so it counts for no claim. The same weights on
    the same data give the same run. Raises TrackingError or RefusedError.
    """
    from mlflow.entities import Metric, RunTag

    key = f"published:{digest(list(result_key(result).values()))}"
    about = {name: value for name, value in result.items() if isinstance(value, str) and value}
    protocol = result.get("protocol", "")
    has_protocol = PART_PATTERN.match(protocol) is not None  # small images are evaluated whole, described in words
    parts = ["test", f"test/{protocol}"] if has_protocol else ["test"]
    values = {"top1_error_pct": result["top1"], "top5_error_pct": result["top5"], "images": result["images"]}
    with explain_mlflow_errors(tracker.uri):
        client = tracker.client
        name = f"{result['network']}, {IMPORTED}" + (f", {protocol}" if has_protocol else "")
        run_id: str = tracker.find_run(IMPORTED, key, name, {"repro.kind": IMPORTED}).info.run_id
        now = int(time.time() * 1000)
        points = [Metric(f"{part}/{k}", v, now, 0) for part in parts for k, v in values.items()]
        client.log_batch(run_id, metrics=points, tags=[RunTag(f"repro.{k}", v) for k, v in about.items()])
        client.set_terminated(run_id)
    return run_id


def aggregate_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Return mean, number of seeds and, with several seeds, standard deviation of every metric of every variant.

    Keys are such as "resnet-20/test/top1_error_pct/mean", ".../seeds" and ".../std".
    """
    values: dict[str, list[float]] = {}
    for record in records:
        for key, value in record.metrics.items():
            if math.isfinite(value):
                values.setdefault(f"{record.variant}/{key}", []).append(value)
    result = {}
    for key, row in values.items():
        result[f"{key}/mean"] = fmean(row)
        result[f"{key}/seeds"] = float(len(row))
        if len(row) > 1:
            result[f"{key}/std"] = stdev(row)
    return result
