"""The pool of actors: when an idle one is reused, and when it is killed."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from pipeline.cluster import shared_devices, workers
from pipeline.cluster.launches import LaunchTerms, task_devices
from pipeline.cluster.sharing import FreeDevices
from pipeline.cluster.workers import Attempt, WorkerPool
from tests.support.launch_tasks import set_home, tasks_of
from tests.support.status_files import save_launch


class FakeRay:
    """Records the actors that are killed; `resources` are those of the cluster."""

    def __init__(self):
        self.killed, self.resources = [], {"CPU": 4.0}
        self.groups, self.removed, self.util = 0, [], self

    def cluster_resources(self):
        return self.resources

    def kill(self, runner):
        self.killed.append(runner)

    def placement_group(self, bundles, name):
        self.groups += 1
        return self.groups

    def remove_placement_group(self, group):
        self.removed.append(group)


@pytest.fixture
def pool(monkeypatch):
    """A pool with a fake Ray; each started actor is a new object."""
    fake = FakeRay()
    monkeypatch.setattr(workers, "ray", fake)
    monkeypatch.setattr(shared_devices, "ray", fake)
    monkeypatch.setattr(shared_devices.SharedDevice, "strategy", lambda device: device.group)
    monkeypatch.setattr(workers, "worker_environment", lambda launch: {})

    def options(**kwargs):
        train = SimpleNamespace(remote=lambda raw: "ref")
        return SimpleNamespace(remote=lambda: SimpleNamespace(train=train, options=kwargs))

    monkeypatch.setattr(workers.Runner, "options", options)
    made = WorkerPool()
    made.ray = fake
    return made


@pytest.fixture
def new_attempt(monkeypatch, tmp_path, experiment):
    """Return an attempt of a run with a code folder."""
    tasks = tasks_of(experiment, set_home(monkeypatch, tmp_path))

    def make(code="code", *, gpu=False, devices=1, runs_per_device=1):
        launch = save_launch(tasks, LaunchTerms(devices, runs_per_device=runs_per_device))
        devices = task_devices(launch.terms, tasks[0])
        return Attempt(tasks[0], SimpleNamespace(code=code, terms=launch.terms), devices, "", 0, gpu)

    return make


def test_an_idle_actor_with_the_same_code_is_reused(pool, new_attempt):
    first, second = new_attempt(), new_attempt()
    assert pool.start(first) == "ref"
    pool.release(first, reusable=True)
    pool.start(second)
    assert (second.runner, first.reused, second.reused) == (first.runner, False, True)
    assert pool.ray.killed == []


def test_an_idle_actor_with_other_code_is_killed(pool, new_attempt):
    first, second = new_attempt("old"), new_attempt("new")
    pool.start(first)
    pool.release(first, reusable=True)
    pool.start(second)
    assert second.runner is not first.runner
    assert pool.ray.killed == [first.runner]


def test_an_actor_that_died_or_whose_node_shuts_down_is_not_kept(pool, new_attempt):
    attempt = new_attempt()
    pool.start(attempt)
    pool.release(attempt, reusable=False)
    assert pool.ray.killed == [attempt.runner]
    assert pool.idle == []


def test_a_run_on_a_gpu_reserves_it(pool, new_attempt):
    attempt = new_attempt(gpu=True)
    pool.start(attempt)
    assert (attempt.runner.options["num_gpus"], attempt.runner.options["num_cpus"]) == (1, 0)
    cpu = new_attempt()
    pool.start(cpu)
    assert cpu.runner.options["runtime_env"]["env_vars"] == {"CUDA_VISIBLE_DEVICES": ""}


def test_devices_are_gpus_once_there_was_one(pool):
    assert (pool.device_count(), pool.uses_gpus()) == (4, False)
    pool.ray.resources = {"CPU": 4.0, "GPU": 2.0}
    assert (pool.device_count(), pool.uses_gpus()) == (2, True)
    pool.ray.resources = {"CPU": 4.0}
    assert (pool.device_count(), pool.uses_gpus()) == (0, True)


def test_runs_that_share_a_gpu_reserve_a_part_of_it_and_know_their_number(pool, new_attempt):
    attempts = [new_attempt(gpu=True, runs_per_device=3) for _ in range(4)]
    for attempt in attempts:
        pool.start(attempt)
    options = [attempt.runner.options for attempt in attempts]
    assert [(one["num_gpus"], one["num_cpus"]) for one in options] == [(0.3333, 0)] * 4
    assert [one["scheduling_strategy"] for one in options] == [1, 1, 1, 2]
    assert options[0]["runtime_env"]["env_vars"] == {"REPRO_RUNS_PER_DEVICE": "3"}
    alone = new_attempt(gpu=True)
    pool.start(alone)
    assert "scheduling_strategy" not in alone.runner.options
    assert alone.runner.options["runtime_env"]["env_vars"] == {}


def test_a_half_of_each_of_two_devices_is_no_free_device(pool, new_attempt):
    pool.ray.resources = {"CPU": 4.0, "GPU": 3.0}
    running = [new_attempt(gpu=True, runs_per_device=2) for _ in range(3)]
    for attempt in running:
        pool.start(attempt)
    assert pool.free_devices(running) == FreeDevices(1, (Fraction(0), Fraction(1, 2)))
    for attempt in (running.pop(), running.pop()):
        pool.release(attempt, reusable=True)
    assert pool.free_devices(running) == FreeDevices(2, (Fraction(1, 2),))  # an idle process gives way
    pool.ray.resources = {"CPU": 4.0}  # all GPUs are lost
    assert pool.free_devices(running) == FreeDevices(0)


def test_a_run_on_several_devices_uses_them_all(pool, new_attempt):
    pool.ray.resources = {"CPU": 4.0}
    assert pool.free_devices([new_attempt(), new_attempt()]) == FreeDevices(2)
    assert pool.free_devices([new_attempt(devices=4)]) == FreeDevices(0)


def test_runs_that_share_a_cpu_reserve_a_part_of_it(pool, new_attempt):
    attempt = new_attempt(runs_per_device=2)
    pool.start(attempt)
    assert attempt.runner.options["num_cpus"] == 0.5
    assert "num_gpus" not in attempt.runner.options


def test_the_actor_of_a_shared_device_is_reused_there_and_killed_for_another_kind(pool, new_attempt):
    first, second = (new_attempt(gpu=True, runs_per_device=2) for _ in range(2))
    pool.start(first)
    pool.release(first, reusable=True)
    pool.start(second)
    assert (second.runner, second.reused, pool.ray.groups) == (first.runner, True, 1)
    pool.release(second, reusable=True)
    pool.start(new_attempt(gpu=True))  # needs a whole GPU
    assert pool.ray.killed == [first.runner]
    assert pool.ray.removed == [1]


def test_a_run_joins_the_fuller_device_even_if_an_actor_is_idle_on_another(pool, new_attempt):
    attempts = [new_attempt(gpu=True, runs_per_device=2) for _ in range(3)]
    for attempt in attempts:
        pool.start(attempt)
    pool.release(attempts[2], reusable=True)  # alone on the second device
    pool.release(attempts[1], reusable=False)
    joined = new_attempt(gpu=True, runs_per_device=2)
    pool.start(joined)
    assert (joined.device, joined.reused) == (attempts[0].device, False)


def test_a_device_whose_last_process_died_is_given_back(pool, new_attempt):
    attempt = new_attempt(gpu=True, runs_per_device=4)
    pool.start(attempt)
    pool.release(attempt, reusable=False)
    assert (pool.ray.removed, pool.shared.devices) == ([1], [])
