"""The Grafana dashboard: its structure, and that its metrics are exported by Ray or by the supervisor."""

import copy
import json
import re

import pytest
from ray.dashboard.modules.reporter.reporter_agent import (
    CLUSTER_TAG_KEYS,
    GPU_TAG_KEYS,
    METRICS_GAUGES,
    NODE_TAG_KEYS,
)

from pipeline.cluster.metrics import GAUGES
from tests.support.composed import ROOT

FILE = ROOT / "docker" / "grafana" / "cnn-repro.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
COLUMNS = 24  # of Grafana's grid
COMMON = {"SessionName"}  # label of all metrics that Ray exports


def exported():
    """Return the labels of each metric by the name under which Ray exports it."""
    ours = {f"ray_{name}": {*labels} | COMMON for name, (_, labels) in GAUGES.items()}
    of_ray = {*NODE_TAG_KEYS, *GPU_TAG_KEYS, *CLUSTER_TAG_KEYS} | COMMON
    return ours | {f"ray_{name}": of_ray for name in METRICS_GAUGES}


def errors(dashboard):
    """Yield what is wrong with a dashboard."""
    known, cells, ids = exported(), set(), set()
    for panel in dashboard["panels"]:
        title, place = panel["title"], panel["gridPos"]
        if panel["id"] in ids:
            yield f"{title}: its id is used twice"
        ids.add(panel["id"])
        own = {
            (place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])
        }
        if own & cells or max(column for column, _ in own) >= COLUMNS:
            yield f"{title}: overlaps another panel or the edge"
        cells |= own
        for target in panel["targets"]:
            expression = target["expr"]
            if expression.count("(") != expression.count(")") or expression.count("{") != expression.count("}"):
                yield f"{title}: unbalanced brackets in {expression}"
            metrics = re.findall(r"\b(?:ray|autoscaler)_\w+", expression)
            yield from (f"{title}: {name} is not exported" for name in metrics if name not in known)
            used = {*re.findall(r"(\w+)=~?\"", expression), *re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])}
            used |= {name for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(", ")}
            labels = set().union(*(known.get(name, set()) for name in metrics))
            yield from (f"{title}: no label {name}" for name in sorted(used - labels))
            if target["datasource"]["uid"] != "${datasource}" or "$session" not in expression:
                yield f"{title}: does not use the variables"


def test_the_dashboard_is_consistent_and_its_metrics_exist():
    assert list(errors(DASHBOARD)) == []
    assert DASHBOARD["schemaVersion"] >= 39  # Grafana 11
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "session"]


def test_every_metric_of_ours_is_shown():
    text = FILE.read_text(encoding="utf-8")
    assert [name for name in GAUGES if f"ray_{name}" not in text] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expr": 'sum(ray_repro_run{SessionName=~"$session"})'}, "Waiting: ray_repro_run is not exported"),
        ({"expr": 'sum(ray_repro_runs{State="x", SessionName=~"$session"})'}, "Waiting: no label State"),
        ({"expr": 'sum(ray_repro_runs{SessionName=~"$session"}'}, "Waiting: unbalanced brackets in "),
        ({"expr": "sum(ray_repro_runs)"}, "Waiting: does not use the variables"),
        ({"legendFormat": "{{node}}"}, "Waiting: no label node"),
    ],
)
def test_an_error_in_a_panel_is_detected(change, message):
    broken = copy.deepcopy(DASHBOARD)
    broken["panels"][0]["targets"][0] |= change
    assert any(error.startswith(message) for error in errors(broken))


def test_overlapping_panels_are_detected():
    broken = copy.deepcopy(DASHBOARD)
    broken["panels"][1]["gridPos"]["x"] = 2
    assert list(errors(broken)) == ["Running: overlaps another panel or the edge"]
