"""The MLflow run of one training or derived run: what is sent of its run folder.

All of it may be sent twice, since the server may become unavailable between any two requests; sending twice
changes nothing.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.declare.training import STEPS_TO
from pipeline.track.folder_content import FolderContent, flatten, model_tags, run_tags
from pipeline.track.mlflow_errors import explain_mlflow_errors
from pipeline.track.mlflow_models import log_model
from pipeline.track.mlflow_reader import RECORD_TAG, SENT_TAG, make_tracked_run, record_tags
from pipeline.track.record import FINISHED, Record
from pipeline.track.run_folder import RunFolder

if TYPE_CHECKING:
    from mlflow.entities import Run

    from pipeline.track.mlflow_writer import Tracker

LOG_BATCH_SIZE = 900  # metrics in one request; MLflow's limit is 1,000


def send_content(
    tracker: "Tracker", folder: RunFolder, content: FolderContent, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Send what `state` does not list as sent of a run folder; return the new state (`Tracker.state`).

    Raises TrackingError or RefusedError.
    """
    from mlflow.entities import Metric

    client = tracker.client
    with explain_mlflow_errors(tracker.uri):
        run_id = state.get("run_id")
        if not run_id:
            run = find_child_run(tracker, content.description)
            if SENT_TAG in run.data.tags:  # another process sent it, or the state file was lost
                return {**state, "run_id": run.info.run_id, "offset": content.end, "done": True}
            run_id = run.info.run_id
        record = None if folder.is_training() else content.record  # in training: its model is being exported
        if record and has_other_record(client.get_run(run_id), record):
            return {**state, "run_id": run_id, "offset": content.end, "done": True}
        curves = {key: dict(curve) for key, curve in state.get("curves", {}).items()}
        found = [*content.curve_points(curves), *content.system_points()]
        points = [Metric(one.metric, one.value, one.milliseconds, one.step) for one in found]
        for start in range(0, len(points), LOG_BATCH_SIZE):
            client.log_batch(run_id, metrics=points[start : start + LOG_BATCH_SIZE])
        after = {**state, "run_id": run_id, "offset": content.end}
        after |= {"curves": curves} if curves else {}
        after |= {"system_offset": content.system_end} if content.system_end else {}
        if record:
            finish_run(tracker, run_id, record, folder, content)
            return {**after, "done": True}
        after["status"] = unfinished_status(folder)
        if state.get("status") != after["status"]:
            client.update_run(run_id, status=after["status"])
    return after


def has_other_record(run: "Run", record: Record) -> bool:
    """Return True if a run ended on another machine that trained it at the same time: the first record counts."""
    if RECORD_TAG not in run.data.tags:
        return False
    try:
        known = make_tracked_run(run.info.run_id, run.data.tags).record
    except (ValueError, TypeError):  # damaged: replace it
        return False
    return (known.get("finished"), known.get("hardware")) != (record.finished, record.hardware)


def unfinished_status(folder: RunFolder) -> str:
    """Return MLflow's status of a run that has not ended."""
    return "RUNNING" if folder.is_training() else "KILLED"


def is_up_to_date(folder: RunFolder, content: FolderContent, state: Mapping[str, Any]) -> bool:
    """Return True if a run that has not ended, as an interrupted one, has nothing new since `state`."""
    new = content.record or content.entries or content.system or not state.get("run_id")
    return not new and state.get("status") == unfinished_status(folder)


def find_child_run(tracker: "Tracker", description: Mapping[str, Any]) -> "Run":
    """Return the MLflow run of a training; create it below its experiment's parent run if missing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    tags = run_tags(description) | {
        "mlflow.parentRunId": tracker.parent_run(description["experiment"], description["scale"])
    }
    name = f"{description['variant']} seed {description['seed']}" + (
        " (departs)" if description["changes"] else ""
    )
    paper = description["experiment"].partition("/")[0]
    run = tracker.find_run(paper, f"run:{description['identity']}", name, tags)
    if SENT_TAG in run.data.tags:
        return run
    params = {"seed": description["seed"]} | flatten(description["recipe"])
    tracker.client.log_batch(run.info.run_id, params=[Param(k, str(v)[:500]) for k, v in params.items()])
    data = description["manifest"]
    profile = json.dumps({"train": data["train"], "test": data["test"]})
    source = json.dumps({"source": data["source"]})
    dataset = Dataset(data["name"], data["sha256"][:36], "repro", source, profile=profile)
    context = InputTag("mlflow.data.context", "training")
    tracker.client.log_inputs(run.info.run_id, [DatasetInput(dataset, [context])])
    return run


def finish_run(tracker: "Tracker", run_id: str, record: Record, folder: RunFolder, content: FolderContent) -> None:
    """Send a run's record and final metrics, mark it as ended, then send its last model and journal."""
    from mlflow.entities import Metric, RunTag

    client, description, last_step = tracker.client, content.description, content.steps
    parent = tracker.parent_run(description["experiment"], description["scale"])
    # Not the current time, so that sending twice gives one point. `finished` is in whole seconds; the journal
    # ends before the next one.
    when = int(datetime.fromisoformat(record.finished).timestamp() + 1) * 1000
    metrics = [
        Metric(key, value, when, last_step)
        for key, value in record.measured.items()
        # The last line of the journal has the others.
        if not key.startswith("train/") or key in record.costs or key.startswith(STEPS_TO)
    ]
    about = {"commit": record.commit, "code": record.code, "lock": record.lock, "hardware": record.hardware}
    about |= {"precision": record.precision, "threads": str(record.threads), "ended": record.ended}
    about |= {"world": str(record.world), "device_batch": str(record.device_batch)}  # 0: unknown
    about |= {f"library.{name}": version for name, version in record.libraries.items()}
    tags = [RunTag(f"repro.{key}", value[:5000]) for key, value in about.items()]
    tags += [RunTag(key, part) for key, part in record_tags(record.to_dict()).items()]
    # Again: if two parents were created at the same time, only one of them still exists.
    tags.append(RunTag("mlflow.parentRunId", parent))
    client.log_batch(run_id, metrics=[*metrics, Metric("seconds", record.seconds, when, 0)], tags=tags)
    client.set_terminated(run_id, "FINISHED" if record.status == FINISHED else "FAILED")
    for file in (folder.network_file, folder.journal_file, folder.system_file):
        if file.is_file():  # a run that diverged has no network, and may have no journal
            client.log_artifact(run_id, str(file))
    if folder.model_folder.is_dir():
        log_model(client, client.get_run(run_id), folder.model_folder, last_step, model_tags(record))
    client.set_tag(run_id, SENT_TAG, "all")
