"""The supervisor's report, and whether it shows a live supervisor."""

import json
import os
import time

import pytest

from pipeline.cluster.state_file import (
    STALE_SECONDS,
    launches_elsewhere,
    read_supervisor_state,
    state_file,
    supervisor_is_alive,
    write_supervisor_state,
)
from pipeline.cluster.token import clusters_folder


def test_a_report_is_read_as_written_with_its_time(cluster_home):
    before = time.time()
    write_supervisor_state({"devices": {}, "runs": {}, "trouble": ""})
    assert list(json.loads(state_file().read_text())) == ["time", "devices", "runs", "trouble"]
    assert before <= read_supervisor_state()["time"] <= time.time()
    assert supervisor_is_alive()


def test_an_old_report_shows_no_live_supervisor(cluster_home):
    write_report(state_file().parent.name, age=STALE_SECONDS + 1)
    assert not supervisor_is_alive()


@pytest.mark.parametrize("difference", [-3600.0, 3600.0])
def test_the_clocks_of_two_machines_may_differ(cluster_home, difference):
    """A supervisor on a machine whose clock is an hour behind or ahead of this one's."""
    write_report("slurm-7", launches=["2"], time=time.time() + difference)
    write_report("slurm-8", age=STALE_SECONDS + 1, launches=["3"], time=time.time() + difference)
    assert launches_elsewhere() == {"2"}
    assert read_supervisor_state()["age"] < 5


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_report_is_no_report(cluster_home, text):
    state_file().write_text(text)
    assert read_supervisor_state() == {}
    assert not supervisor_is_alive()


def write_report(name, age=0.0, **report):
    """Write the report of a cluster; `age` in seconds of the file."""
    file = clusters_folder() / name / "state.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"time": time.time(), **report}))
    moment = file.stat().st_mtime - age
    os.utime(file, (moment, moment))


def test_reports_of_several_clusters_are_read_as_one(cluster_home):
    write_supervisor_state(
        {
            "devices": {"all": 4, "free": 1, "kind": "GPU"},
            "runs": {"a": {"state": "running"}, "b": {"state": "waiting"}, "c": {"state": "finished"}},
            "launches": ["1"],
            "trouble": "",
        }
    )
    write_report(
        "slurm-7",
        devices={"all": 8, "free": 3, "requested": 2, "kind": "GPU"},
        runs={"a": {"state": "waiting"}, "b": {"state": "running"}, "d": {"state": "waiting"}},
        launches=["2"],
        trouble="disk full",
    )
    write_report("slurm-8", devices={"all": 16, "free": 16, "kind": "CPU"}, runs={}, launches=[])
    write_report("slurm-6", age=STALE_SECONDS + 1, devices={"all": 99, "free": 9, "kind": "GPU"}, launches=["3"])
    found = read_supervisor_state()
    assert found["devices"] == {"all": 12, "free": 4, "requested": 2, "kind": "GPU"}
    assert {name: run["state"] for name, run in found["runs"].items()} == {
        "a": "running",
        "b": "running",
        "c": "finished",
        "d": "waiting",
    }
    assert found["launches"] == ["1", "2"]
    assert found["trouble"] == "disk full"
    assert launches_elsewhere() == {"2"}


def test_the_last_report_is_read_where_no_supervisor_runs(cluster_home):
    write_report("slurm-6", age=200.0, trouble="old")
    write_report("slurm-7", age=100.0, trouble="new")
    assert read_supervisor_state()["trouble"] == "new"
    assert not supervisor_is_alive()
    assert launches_elsewhere() == frozenset()


def test_the_supervisor_of_another_cluster_is_not_ours(cluster_home):
    write_report("slurm-7", launches=["2"])
    assert not supervisor_is_alive()
