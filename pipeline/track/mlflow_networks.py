"""Rows of the leaderboard in MLflow: one run for each network, the parent of its seeds' runs.

The run is in the experiment of its paper and, without its seeds, in the experiment `leaderboard`. It has no
record, so it counts for no claim.
"""

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.common.environment import user_name
from pipeline.track.mlflow_errors import explain_mlflow_errors
from pipeline.track.mlflow_notes import MAX_TAG_LENGTH, NOTE_TAG
from pipeline.track.mlflow_views import LEVEL_TAG, OVERVIEW, run_address
from pipeline.track.mlflow_writer import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT_TAG, RUNS_TAG = "mlflow.parentRunId", "repro.runs"

VERDICT_TAG = "repro.verdict"

MAX_DIGEST_LENGTH = 36  # characters of a data set's hash


@dataclass(frozen=True)
class NetworkRun:
    """A row of the leaderboard: name, tags and metrics, and the MLflow runs of its seeds."""

    key: str  # unique; starts with `network_prefix`
    name: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    run_ids: tuple[str, ...]  # of its seeds
    is_parent: bool  # False for further rows of the same runs, by other test protocols
    data: tuple[str, str] | None = None  # name and hash of the data set, for MLflow's column of data sets

    def with_tags(self, tags: Mapping[str, str]) -> "NetworkRun":
        """Return the row with further tags."""
        return replace(self, tags={**self.tags, **tags})


def network_prefix(experiment: str, scale: str) -> str:
    """Return what the keys of the rows of an experiment at a scale start with."""
    return f"network:{experiment}@{scale}:"


def publish_networks(
    tracker: Tracker, experiment: str, scale: str, networks: Sequence[NetworkRun], *, known: Collection[str]
) -> set[str]:
    """Write the rows of an experiment at a scale, and move the runs of their seeds below them.

    Returns the ids of the rows, in the experiment of the paper and in `leaderboard`. `known`: all MLflow runs that
    the rows were made from. Rows that no longer exist are deleted, except those of runs that are not known here:
    another process has just published them. Raises TrackingError or RefusedError.
    """
    paper = experiment.partition("/")[0]
    with explain_mlflow_errors(tracker.uri):
        tracker.update_views(paper)
        tracker.update_views(OVERVIEW)
        parent = tracker.parent_run(experiment, scale)
        of_scale = f"tags.`repro.experiment` = '{experiment}' AND tags.`repro.scale` = '{scale}'"
        runs = {run.info.run_id: run for run in tracker.search(paper, of_scale)}
        unknown = runs.keys() - set(known)
        keys = {paper: {network.key for network in networks}, OVERVIEW: set[str]()}
        written = set()
        for network in networks:
            seeds = seeds_note(runs[seed] for seed in network.run_ids if seed in runs)
            note = {NOTE_TAG: seeds} if seeds else {}
            run_id = put_network(tracker, paper, network.with_tags({PARENT_TAG: parent, **note}))
            written.add(run_id)
            below = set(network.run_ids) if network.is_parent else set()
            for seed, run in runs.items():
                is_below = run.data.tags.get(PARENT_TAG) == run_id
                if seed in below and not is_below:
                    tracker.client.set_tag(seed, PARENT_TAG, run_id)
                elif is_below and seed in known and seed not in below:  # no longer counts
                    tracker.client.set_tag(seed, PARENT_TAG, parent)
                if seed in below:
                    tag_verdict(tracker, run, network.tags.get(VERDICT_TAG, ""))
            if not is_shown_by_another(tracker, network):
                written.add(put_network(tracker, OVERVIEW, network.with_tags(note)))
                keys[OVERVIEW].add(network.key)
        for place in (paper, OVERVIEW):
            rows = tracker.search(place, f"{of_scale} AND tags.`{LEVEL_TAG}` = 'network'")
            for row in rows:
                others = unknown.intersection(row.data.tags.get(RUNS_TAG, "").split())
                if row.data.tags.get("repro.key") not in keys[place] and not others:
                    delete_network(tracker, place, row, parent)
    return written


def is_shown_by_another(tracker: Tracker, network: NetworkRun) -> bool:
    """Return True if another experiment's row shows the same runs; delete it if only this has a paper number.

    Experiments that declare the same recipe share its runs, which `repro leaderboard` shows once.
    """
    if not network.run_ids:
        return False
    same = {name: network.tags.get(name) for name in ("repro.scale", "repro.data", "repro.protocol")}
    for row in tracker.search(OVERVIEW, f"tags.`{RUNS_TAG}` = '{run_ids_tag(network)}'"):
        tags = row.data.tags
        if tags.get("repro.experiment") == network.tags.get("repro.experiment"):
            continue
        if {name: tags.get(name) for name in same} == same:
            if "paper" in row.data.metrics or "paper" not in network.metrics:
                return True
            tracker.client.delete_run(row.info.run_id)
    return False


def tag_verdict(tracker: Tracker, run: "Run", verdict: str) -> None:
    """Set or delete the tag of a seed's run with the verdict of its network."""
    before = run.data.tags.get(VERDICT_TAG, "")
    if verdict and verdict != before:
        tracker.client.set_tag(run.info.run_id, VERDICT_TAG, verdict[:MAX_TAG_LENGTH])
    elif before and not verdict:
        tracker.client.delete_tag(run.info.run_id, VERDICT_TAG)


def run_ids_tag(network: NetworkRun) -> str:
    """Return the tag that lists the runs of a row, as long as MLflow allows."""
    return " ".join(network.run_ids)[:MAX_TAG_LENGTH]


def put_network(tracker: Tracker, place: str, network: NetworkRun) -> str:
    """Create or update the run of a row in an MLflow experiment; return its id. Sends only what has changed."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag

    tags = {**network.tags, LEVEL_TAG: "network", RUNS_TAG: run_ids_tag(network)}
    tags = {key: value[:MAX_TAG_LENGTH] for key, value in tags.items()}
    created = tags | {"mlflow.user": user_name()}  # kept when another user updates the row
    run = tracker.find_run(place, network.key, network.name, created)
    if run.data.metrics.keys() - network.metrics.keys():  # MLflow deletes no metric: the run is replaced
        old, run = run, tracker.create_run(place, network.key, network.name, created)
        delete_network(tracker, place, old, run.info.run_id)
    run_id: str = run.info.run_id
    now = int(time.time() * 1000)
    metrics = [Metric(k, v, now, 0) for k, v in network.metrics.items() if run.data.metrics.get(k) != v]
    new_tags = [RunTag(k, v) for k, v in tags.items() if run.data.tags.get(k) != v]
    for key in run.data.tags:
        if key.startswith("repro.") and key not in (*tags, "repro.key"):
            tracker.client.delete_tag(run_id, key)
    if metrics or new_tags:
        tracker.client.log_batch(run_id, metrics=metrics, tags=new_tags)
    if network.data and not run.inputs.dataset_inputs:
        name, content = network.data
        dataset = Dataset(name, content[:MAX_DIGEST_LENGTH], "repro", json.dumps({"source": name}))
        context = InputTag("mlflow.data.context", "training")
        tracker.client.log_inputs(run_id, [DatasetInput(dataset, [context])])
    if run.info.status != "FINISHED":
        tracker.client.set_terminated(run_id)
    return run_id


def delete_network(tracker: Tracker, place: str, row: "Run", heir: str) -> None:
    """Delete the run of a row; the runs below it move below the run `heir`."""
    for child in tracker.search(place, f"tags.`{PARENT_TAG}` = '{row.info.run_id}'"):
        tracker.client.set_tag(child.info.run_id, PARENT_TAG, heir)
    tracker.client.delete_run(row.info.run_id)


def seeds_note(runs: Iterable["Run"]) -> str:
    """Return links to the runs of a network's seeds, as one line of Markdown; "" for none.

    MLflow's page of a run shows four lines of its description, and as children only runs of the same experiment,
    in its mode for GenAI none. A click on a row leads to the mode that the browser used last.
    """
    links = [f"[{run.info.run_name}]({run_address(run.info.experiment_id, run.info.run_id)})" for run in runs]
    return f"Runs of its seeds: {', '.join(links)}" if links else ""
