"""Shared devices: packing of runs with a fake Ray, and with a real one on made-up GPUs (slow)."""

import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest

from pipeline.cluster import shared_devices, token
from pipeline.cluster.local_head import ray_environment
from pipeline.cluster.shared_devices import SharedDevices
from pipeline.common.paths import ROOT
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import ENDING, ClusterHome, run_log, small_task, wait_until
from tests.support.shared_device_driver import join, leave

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)


class FakeGroups:
    """Placement groups as numbers; `open`: those that are not removed."""

    def __init__(self):
        self.open, self.bundles = [], []

    def placement_group(self, bundles, name):
        self.bundles.append((bundles, name))
        self.open.append(len(self.bundles))
        return len(self.bundles)

    def remove_placement_group(self, group):
        self.open.remove(group)


@pytest.fixture
def groups(monkeypatch):
    """A fake of Ray's placement groups."""
    made = FakeGroups()
    monkeypatch.setattr(shared_devices, "ray", SimpleNamespace(util=made))
    return made


def test_runs_fill_a_device_before_the_next_is_reserved(groups):
    devices = SharedDevices()
    joined = [join(devices, QUARTER).group for _ in range(9)]
    assert joined == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert [bundles for bundles, _ in groups.bundles] == [[{"GPU": 1}]] * 3


def test_a_run_joins_the_fullest_device_with_room(groups):
    devices = SharedDevices()
    joined = [join(devices, QUARTER) for _ in range(8)]
    for device in joined[1:4] + joined[4:5]:  # 1/4 of the first device and 3/4 of the second are used
        leave(devices, device, QUARTER)
    assert join(devices, QUARTER).group == 2
    assert join(devices, HALF).group == 1
    assert join(devices, HALF).group == 3


def test_a_device_is_given_back_after_its_last_process(groups):
    devices = SharedDevices()
    first, second = join(devices, HALF), join(devices, HALF)
    leave(devices, first, HALF)
    assert groups.open == [1]
    leave(devices, second, HALF)
    assert (groups.open, devices.devices) == ([], [])


def test_gpus_and_cpus_are_not_mixed(groups):
    devices = SharedDevices()
    assert [join(devices, HALF, gpu=gpu).group for gpu in (True, False, True)] == [1, 2, 1]
    assert groups.bundles[1][0] == [{"CPU": 1}]


def test_devices_empty_while_runs_are_replaced_so_that_a_run_on_a_whole_device_starts(groups):
    """Eight quarters on two devices; four leave at random. As others end and are replaced, one device empties."""
    draw = random.Random(5)
    for _ in range(20):
        devices = SharedDevices()
        running = [join(devices, QUARTER) for _ in range(8)]
        for _ in range(4):
            leave(devices, running.pop(draw.randrange(len(running))), QUARTER)
        for _ in range(60):
            if len(devices.devices) == 1:
                break
            leave(devices, running.pop(draw.randrange(len(running))), QUARTER)
            running.append(join(devices, QUARTER))
        assert len(devices.devices) == 1


# --- with Ray and made-up GPUs ------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A REPRO_HOME and the processes started for it."""
    found = ClusterHome(tmp_path / "home", monkeypatch)
    yield found
    found.end()


@pytest.mark.slow
def test_ray_places_the_runs_of_a_device_on_one_gpu(cluster):
    cluster.head(4, "--gpus", 2)
    env = os.environ | ray_environment(token.token_path())
    words = [sys.executable, "-m", "tests.support.shared_device_driver", cluster.gcs()]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=ENDING, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    *first, second = seen["shared"]
    assert len(set(first)) == 1
    assert {first[0], second} == {"0", "1"}
    assert seen["waits"]  # the whole GPU is not free
    assert seen["whole"] == second
    assert seen["groups"] == ["REMOVED"]


@pytest.mark.slow
def test_two_runs_train_at_the_same_time_on_one_gpu_and_their_records_say_so(cluster):
    cluster.head(1, "--gpus", 1)
    tasks = [small_task(seed, steps=150) for seed in range(3)]
    driver = cluster.run(cluster.launch(tasks, runs_per_device=2))
    wait_until(lambda: all("started on 1/2 of a GPU" in run_log(task) for task in tasks[:2]), "two runs start")
    assert not RunFolder(tasks[0].folder).result_file.exists()
    assert "started" not in run_log(tasks[2])
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    for task in tasks:
        record = RunFolder(task.folder).result()
        assert (record.runs_per_device, record.world) == (2, 1)
        assert record.hardware.endswith(", shared by 2 runs")
    alone = [small_task(4, steps=20)]  # a whole GPU is free again
    driver = cluster.run(cluster.launch(alone))
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    assert RunFolder(alone[0].folder).result().runs_per_device == 1
