"""Saved views of MLflow's table of runs: leaderboard, training, verdicts. Pure: no request is sent here.

MLflow 3.17 keeps a saved view in a tag of an experiment, `mlflow.sharedViewState.KEY`: JSON with a name, a time
and the compressed state of the page. `#/experiments/ID/runs?viewStateShareKey=KEY` opens it. The client has no
function for it, so this follows the page's own code and `mlflow.demo.generators.saved_views`. An MLflow that does
not know the tags ignores them.
"""

import base64
import json
import time
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

KIND_TAG, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"  # else pages for traces and prompts

UNDECIDED_KINDS = ("", "no_inferred_type", "genai_development_inferred", "custom_model_development_inferred")

VIEW_TAG = "mlflow.sharedViewState."

KEY_PREFIX = "repro-"  # of our views; all others are of users

LEVEL_TAG, RANK_TAG = "repro.level", "repro.rank"

OVERVIEW = "leaderboard"  # name of the MLflow experiment with the networks of all papers

COMPRESSED = "deflate;"

MODE = "workflowType=machine_learning"  # for one page; MLflow keeps the last chosen mode in the browser


@dataclass(frozen=True)
class View:
    """A saved view: which runs, in which order, and which columns, with their widths in pixels."""

    name: str
    filter: str  # of MLflow's search
    order_by: str  # column, ascending
    columns: Mapping[str, int]

    @property
    def key(self) -> str:
        """Key in the address that opens the view."""
        return f"{KEY_PREFIX}{self.name}"

    @property
    def state(self) -> dict[str, Any]:
        """State of MLflow's page. What it leaves out has MLflow's default."""
        return {
            "searchFilter": self.filter,
            "orderByKey": self.order_by,
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(self.columns),
            "columnOrder": list(self.columns),
            "columnWidths": dict(self.columns),
            "groupBy": None,
        }


def metric(name: str) -> str:
    """Return the column of a metric."""
    return f"metrics.`{name}`"


def tag(name: str) -> str:
    """Return the column of a tag."""
    return f"tags.`{name}`"


LEADERBOARD = View(
    "leaderboard",
    f"{tag(LEVEL_TAG)} = 'network'",
    tag(RANK_TAG),
    {
        tag("repro.data"): 90,
        tag("repro.scale"): 90,
        metric("test/top1_error_pct"): 125,
        metric("paper"): 65,
        metric("difference"): 80,
        tag("repro.verdict"): 140,
        tag("repro.experiment"): 160,
        metric("spread"): 70,
        metric("test/top5_error_pct"): 125,
        metric("seeds"): 60,
        metric("images"): 70,
        metric("parameters"): 90,
        metric("multiply_adds"): 105,
        metric("seconds"): 80,
        tag("repro.protocol"): 120,
    },
)

TRAINING = View(  # the server's status of a run is RUNNING, or KILLED while nothing trains it
    "training",
    f"attributes.status != 'FINISHED' AND attributes.status != 'FAILED' AND {tag('repro.seed')} LIKE '%'",
    tag("repro.variant"),
    {
        metric("train/loss"): 100,
        metric("train/top1_error_pct"): 130,
        metric("val/top1_error_pct"): 130,
        metric("test/top1_error_pct"): 130,
        tag("repro.experiment"): 170,
        tag("repro.scale"): 90,
    },
)

VERDICTS = View(
    "verdicts",
    f"{tag(LEVEL_TAG)} = 'network' AND {tag('repro.verdict')} LIKE '%'",
    tag("repro.verdict"),
    {
        tag("repro.verdict"): 200,
        metric("test/top1_error_pct"): 125,
        metric("paper"): 80,
        metric("difference"): 90,
        metric("difference_low"): 110,
        metric("difference_high"): 110,
        metric("seeds"): 60,
        tag("repro.experiment"): 170,
        tag("repro.scale"): 90,
        tag("repro.data"): 100,
    },
)

VIEWS = (LEADERBOARD, TRAINING, VERDICTS)

OVERVIEW_VIEWS = (LEADERBOARD, VERDICTS)  # the runs of seeds are in the experiments of their papers


def pack_state(state: Mapping[str, Any]) -> str:
    """Return the state of a page as MLflow's page writes it."""
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    return COMPRESSED + base64.b64encode(packed).decode("ascii")


def unpack_state(packed: str) -> dict[str, Any]:
    """Return the state that `pack_state` packed. Raises ValueError for any other text."""
    try:
        state = json.loads(zlib.decompress(base64.b64decode(packed.removeprefix(COMPRESSED), validate=True)))
    except zlib.error as error:
        raise ValueError(f"not a compressed state: {error}") from None
    if not isinstance(state, dict):
        raise ValueError("not the state of a page")
    return state


def views_of(name: str) -> tuple[View, ...]:
    """Return the views of the MLflow experiment with this name."""
    return OVERVIEW_VIEWS if name == OVERVIEW else VIEWS


def changed_tags(tags: Mapping[str, str], views: Iterable[View] = VIEWS) -> dict[str, str]:
    """Return the tags to set on an experiment with `tags`: its kind, unless a user chose one, and our views."""
    new = {} if tags.get(KIND_TAG, "") not in UNDECIDED_KINDS else {KIND_TAG: MODEL_TRAINING}
    now = int(time.time() * 1000)
    for number, view in enumerate(views):
        if not is_current(view, tags.get(f"{VIEW_TAG}{view.key}", "")):
            saved = {"name": view.name, "createdAt": now - number, "state": pack_state(view.state)}  # newest first
            new[f"{VIEW_TAG}{view.key}"] = json.dumps(saved, separators=(",", ":"))
    return new


def outdated_tags(tags: Iterable[str], views: Collection[View]) -> set[str]:
    """Return the tags of views of ours that an experiment no longer has."""
    return {f"{VIEW_TAG}{view.key}" for view in VIEWS if view not in views}.intersection(tags)


def is_current(view: View, value: str) -> bool:
    """Return True if the value of a tag is this view."""
    try:
        saved = json.loads(value)
        return bool(saved["name"] == view.name and unpack_state(saved["state"]) == view.state)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def view_address(server: str, experiment_id: str, view: View = LEADERBOARD) -> str:
    """Return the address of a view, in MLflow's mode for model training; its default mode is GenAI."""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={view.key}&{MODE}"


def run_address(experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page, relative to the server, in the mode for model training."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{MODE}"
