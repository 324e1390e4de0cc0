"""The pool of actors: when an idle one is reused, and when it is killed."""

from types import SimpleNamespace

import pytest

from pipeline.cluster import workers
from pipeline.cluster.launches import LaunchTerms
from pipeline.cluster.workers import Attempt, WorkerPool
from tests.support.launch_tasks import set_home, tasks_of
from tests.support.status_files import save_launch


class FakeRay:
    """Records the actors that are killed; `resources` are those of the cluster."""

    def __init__(self):
        self.killed, self.resources = [], {"CPU": 4.0}

    def cluster_resources(self):
        return self.resources

    def kill(self, runner):
        self.killed.append(runner)


@pytest.fixture
def pool(monkeypatch):
    """A pool with a fake Ray; each started actor is a new object."""
    fake = FakeRay()
    monkeypatch.setattr(workers, "ray", fake)
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

    def make(code="code", *, gpu=False, devices=1):
        launch = save_launch(tasks, LaunchTerms(devices))
        return Attempt(tasks[0], SimpleNamespace(code=code, terms=launch.terms), "", 0, gpu)

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
