"""The supervisor's metrics, and their export by Ray (slow)."""

import json
import re
import urllib.request

import pytest
import ray.util.metrics

from pipeline.cluster.metrics import GAUGES, SERVICE_DISCOVERY, ClusterMetrics, metric_values
from tests.support.clusters import ClusterHome, cluster_files, current_step, small_task, wait_until


def test_every_state_has_a_value_and_every_metric_a_description():
    found = metric_values(["running", "running", "failed"], {"all": 4, "free": 0.5}, 12.5, 3.0)
    values = {(name, labels.get("state", "")): value for name, labels, value in found}
    assert values == {
        ("repro_runs", "waiting"): 0,
        ("repro_runs", "running"): 2,
        ("repro_runs", "finished"): 0,
        ("repro_runs", "failed"): 1,
        ("repro_runs", "cancelled"): 0,
        ("repro_runs", "over-budget"): 0,
        ("repro_devices", "all"): 4,
        ("repro_devices", "free"): 0.5,
        ("repro_devices", "requested"): 0,
        ("repro_images_per_second", ""): 12.5,
        ("repro_device_hours", ""): 3.0,
    }
    assert {(name, tuple(labels)) for name, labels, _ in found} == {
        (name, keys) for name, (_, keys) in GAUGES.items()
    }


def test_a_gauge_is_created_once(monkeypatch):
    made, recorded = [], []

    class Gauge:
        def __init__(self, name, description, tag_keys):
            made.append((name, tag_keys))
            self.name = name

        def set(self, value, tags):
            recorded.append((self.name, tags, value))

    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    metrics = ClusterMetrics()
    metrics.set([("repro_runs", {"state": "running"}, 1), ("repro_runs", {"state": "failed"}, 0)])
    metrics.set([("repro_runs", {"state": "running"}, 2)])
    assert made == [("repro_runs", ("state",))]
    assert recorded[-1] == ("repro_runs", {"state": "running"}, 2)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A REPRO_HOME and the processes started for it."""
    found = ClusterHome(tmp_path / "home", monkeypatch)
    yield found
    found.end()


def get(url, token=""):
    """Return the text at a URL of this machine."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        return response.read().decode()


@pytest.mark.slow
def test_prometheus_finds_the_metrics_of_a_running_launch(cluster):
    cluster.head(1)
    tasks = [small_task(seed, steps=100_000) for seed in (0, 1)]
    cluster.run(cluster.launch(tasks))
    wait_until(lambda: current_step(tasks[0]) > 5, "the first run trains")
    token = (cluster_files(cluster.home) / "token").read_text(encoding="utf-8").strip()
    dashboard = json.loads((cluster_files(cluster.home) / "node.json").read_text(encoding="utf-8"))["dashboard"]

    def exported():
        groups = json.loads(get(f"{dashboard}{SERVICE_DISCOVERY}", token))
        return "\n".join(get(f"http://{target}/metrics") for group in groups for target in group["targets"])

    sample = re.compile(r'^ray_repro_runs\{([^}]*)state="(\w+)"[^}]*\} 1\.0$', re.MULTILINE)
    wait_until(
        lambda: {state for _, state in sample.findall(exported())} == {"running", "waiting"}, "both are exported"
    )
    text = exported()
    for name in GAUGES:
        assert re.search(rf'^ray_{name}\{{[^}}]*SessionName="[^"]+"', text, re.MULTILINE), name
    for name in ("ray_node_cpu_utilization", "ray_node_mem_used", "ray_cluster_active_nodes"):
        assert f"\n{name}{{" in text
