"""Requests to an autoscaler, and a launch on a cluster without workers that Ray's autoscaler enlarges (slow)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray.autoscaler.sdk
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from pipeline.cluster import autoscale
from pipeline.cluster.autoscale import DeviceRequest
from pipeline.cluster.local_head import ray_environment
from pipeline.cluster.node import run_node
from pipeline.cluster.state_file import read_supervisor_state
from pipeline.common.errors import UserError
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import ENDING, ClusterHome, cluster_files, small_task, wait_until


class FakeAutoscaler:
    """Judges requests as version 2 of Ray's autoscaler: all devices are possible, or none.

    `lag`: how many reads of its state later.
    """

    def __init__(self, limit=10**9, lag=3):
        self.requests, self.limit, self.lag = [], limit, lag
        self.version, self.seen, self.infeasible = 0, 0, False
        self.states = []  # that it has not seen yet: version, devices

    def request(self, bundles):
        self.requests.append(bundles)

    def read(self):
        self.version += 1
        self.states.append((self.version, len(self.requests[-1])))
        if len(self.states) > self.lag:
            self.seen, devices = self.states.pop(0)
            self.infeasible = devices > self.limit
        return self.version, self.seen, self.infeasible


@pytest.fixture
def autoscaler(monkeypatch):
    """A fake of Ray's autoscaler without a limit."""
    made = FakeAutoscaler()
    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", made.request)
    monkeypatch.setattr(autoscale, "read_autoscaler_state", made.read)
    monkeypatch.setenv(autoscale.AUTOSCALED_VARIABLE, "gpu")
    return made


@pytest.fixture
def requests(autoscaler):
    """The bundles of each request to the autoscaler."""
    return autoscaler.requests


def test_devices_are_requested_one_by_one_and_only_when_their_number_changes(requests):
    request = DeviceRequest()
    for wanted in (2, 2, 3, 0, 0):
        request.update(wanted, gpu=True)
    assert requests == [[{"GPU": 1}] * 2, [{"GPU": 1}] * 3, []]
    request.update(1, gpu=False)
    assert requests[-1] == [{"CPU": 1}]


def test_a_new_supervisor_withdraws_the_request_of_an_earlier_one(requests):
    DeviceRequest().update(0, gpu=True)
    assert requests == [[]]


def settle(request, wanted, turns=200):
    """Update the request until it no longer changes; return it."""
    for _ in range(turns):
        request.update(wanted, gpu=True)
    return request.devices


@pytest.mark.parametrize("limit", [0, 1, 2, 64, 999, 1000])
def test_more_runs_than_the_autoscaler_has_room_for_get_all_that_it_can_add(autoscaler, limit):
    """Version 2 adds no node at all for a request beyond its limit."""
    autoscaler.limit = limit
    request = DeviceRequest()
    assert settle(request, 10_000) == limit
    assert len(autoscaler.requests) <= 12  # bisection of 1,001 numbers
    assert settle(request, min(limit, 1)) == min(limit, 1)
    assert settle(request, 10_000) == limit


def test_a_limit_that_was_lowered_is_found_again(autoscaler):
    autoscaler.limit = 16
    request = DeviceRequest()
    assert settle(request, 100) == 16
    autoscaler.limit = 4
    assert settle(request, 100) == 4


def test_a_request_that_the_autoscaler_has_not_seen_is_not_judged(autoscaler):
    """The judgement that is there is of the request before."""
    autoscaler.limit, autoscaler.lag = 5, 10**6
    request = DeviceRequest()
    autoscaler.infeasible = True
    assert settle(request, 100) == 100
    assert len(autoscaler.requests) == 1


def test_nothing_is_requested_without_an_autoscaler(requests, monkeypatch):
    monkeypatch.delenv(autoscale.AUTOSCALED_VARIABLE)
    request = DeviceRequest()
    request.update(2, gpu=True)
    assert (requests, request.devices) == ([], None)


def test_only_a_head_has_an_autoscaler():
    options = {"listen": "127.0.0.1", "cpus": 1, "gpus": 0, "grace": 1.0, "until_idle": None}
    with pytest.raises(UserError, match="--autoscaled is an option of the head"):
        run_node(head=False, address="127.0.0.1:1", autoscaled="gpu", **options)


# --- with Ray's autoscaler and its provider of made-up nodes ------------------------------------------------

MONITOR = Path(ray.__file__).parent / "autoscaler" / "v2" / "monitor.py"
HEAD_TYPE, GROUP = "ray.head.default", "workers"


def autoscaling_config(gcs, idle_seconds):
    """Return the configuration of Ray's autoscaler for up to two nodes of one CPU, processes of this machine."""
    return {
        "cluster_name": "test",
        "max_workers": 2,
        "idle_timeout_minutes": idle_seconds / 60,
        "upscaling_speed": 1,
        "provider": {
            "type": "external",  # "fake_multinode" needs a file that Ray's wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "gcs_address": gcs,
            "disable_node_updaters": True,
        },
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            GROUP: {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": HEAD_TYPE,
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A REPRO_HOME and the processes started for it."""
    found = ClusterHome(tmp_path / "home", monkeypatch)
    found.env |= {
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": HEAD_TYPE,  # without it the autoscaler reports an error at each step
        "RAY_enable_autoscaler_v2": "1",  # as KubeRay does: requests go where version 2 reads them
    }
    yield found
    found.end()


def start_autoscaler(cluster, idle_seconds):
    """Start Ray's autoscaler in a process of its own, as KubeRay does; its nodes are that process's children.

    It removes a node that is idle for `idle_seconds`.
    """
    config = cluster.home / "autoscaler.json"
    config.write_text(json.dumps(autoscaling_config(cluster.gcs(), idle_seconds)), encoding="utf-8")
    env = os.environ | cluster.env | ray_environment(cluster_files(cluster.home) / "token")
    env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    for name in ("RAY_CLOUD_INSTANCE_ID", "RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_NODE_TYPE_NAME"):
        env.pop(name, None)
    options = [
        "--logs-dir",
        str(cluster.home),
        "--gcs-address",
        cluster.gcs(),
        "--autoscaling-config",
        str(config),
    ]
    file = cluster.home / "autoscaler.out"
    with file.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, str(MONITOR), *options], env=env, stdout=out, stderr=out, start_new_session=True
        )
    cluster.outputs[process.pid] = file
    cluster.processes.append(process)
    return process


@pytest.mark.slow
def test_a_cluster_without_workers_grows_for_waiting_runs_and_shrinks_after_them(cluster):
    start = time.monotonic()
    cluster.head(0, "--autoscaled", "cpu")
    # A node waits for its run about as long as a head takes to start. A shorter limit would remove it before.
    start_autoscaler(cluster, idle_seconds=max(6.0, 2 * (time.monotonic() - start)))
    tasks = [small_task(seed, steps=60) for seed in range(3)]  # three CPUs for two nodes of one
    driver = cluster.run(cluster.launch(tasks))
    wait_until(lambda: read_supervisor_state().get("devices", {}).get("all") == 2, "two nodes join, the limit")
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    assert all(RunFolder(task.folder).result() for task in tasks)
    wait_until(lambda: read_supervisor_state()["devices"].get("requested") == 0, "nothing is requested any more")
    wait_until(lambda: read_supervisor_state()["devices"]["all"] == 0, "idle nodes are removed")
