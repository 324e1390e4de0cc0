"""Registered training processes, and the detection of a node that shuts down."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.cluster import processes
from pipeline.cluster.processes import node_is_draining, register_training, training_pids
from pipeline.common.paths import ROOT
from tests.support.clusters import wait_until


def test_outside_a_node_nothing_drains_and_nothing_is_registered(cluster_home):
    assert not node_is_draining()
    with register_training():
        assert list(cluster_home.rglob("training")) == []


@pytest.fixture
def clock(monkeypatch):
    """A list whose only item is the time of `time.monotonic()`."""
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    return now


def test_draining_is_detected_at_the_next_check_a_quarter_of_a_second_later(node_folder, clock):
    assert not node_is_draining()
    (node_folder / "leaving").touch()
    clock[0] = 0.24
    assert not node_is_draining()
    clock[0] = 0.25
    assert node_is_draining()
    clock[0] = 0.26
    assert node_is_draining()


def test_the_file_is_checked_four_times_a_second_at_most(node_folder, clock, monkeypatch):
    checks = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: (checks.append(path), exists(path))[1])
    for call in range(20_000):
        clock[0] = call / 10_000
        node_is_draining()
    assert len(checks) == 8  # in two seconds


def test_a_process_is_registered_while_it_trains(node_folder):
    assert training_pids(node_folder) == []
    with register_training():
        assert training_pids(node_folder) == [os.getpid()]
    assert training_pids(node_folder) == []
    with pytest.raises(RuntimeError), register_training():
        raise RuntimeError
    assert training_pids(node_folder) == []


def test_a_killed_process_and_a_reused_pid_do_not_count_as_training(node_folder):
    code = (
        "import time; from pipeline.cluster.processes import register_training\n"
        "with register_training(): time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: training_pids(node_folder) == [child.pid], "the child is registered")
    child.kill()
    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "the child is a zombie")
    assert training_pids(node_folder) == []
    child.wait()
    assert training_pids(node_folder) == []
    (node_folder / "training" / str(os.getpid())).write_text(repr(psutil.Process().create_time() - 60))
    assert training_pids(node_folder) == []


def test_a_zombie_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = psutil.Process(child.pid)
    assert processes.is_alive(process)
    assert processes.is_same_process(child.pid, process.create_time())
    child.kill()
    wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE, "the child is a zombie")
    began = process.create_time()
    assert not processes.is_alive(process)
    assert not processes.is_same_process(child.pid, began)
    child.communicate()
    assert not processes.is_alive(process)
