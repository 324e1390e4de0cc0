"""The supervisor turn by turn with a fake Ray: full disks, overlapping launches, cancellations, deaths.

With real processes: test_cluster_faults.py.
"""

import errno
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from filelock import FileLock

from pipeline.cluster import launches, shared_devices, supervisor, workers
from pipeline.cluster.launch import cancel_runs, start_launch
from pipeline.cluster.launches import LaunchTerms
from pipeline.cluster.metrics import ClusterMetrics
from pipeline.cluster.state_file import read_supervisor_state
from pipeline.cluster.supervisor import MAX_FAILURES, Supervisor
from pipeline.common.paths import ROOT
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import cluster_files
from tests.support.smoke_runs import smoke_run, smoke_task

DEVICES = 2


class FakeRay:
    """The functions of Ray that the supervisor calls; `results`: the result or error of each reference."""

    exceptions = ray.exceptions

    def __init__(self):
        self.results = {}
        self.killed = []
        self.resources = {"CPU": float(DEVICES)}
        self.util = SimpleNamespace(
            placement_group=lambda bundles, name: name, remove_placement_group=lambda group: None
        )

    def get_runtime_context(self):
        return SimpleNamespace(was_current_actor_reconstructed=False)

    def cluster_resources(self):
        return self.resources

    def wait(self, refs, **options):
        return [ref for ref in refs if ref in self.results], []

    def get(self, ref):
        result = self.results[ref]
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self, runner, **options):
        self.killed.append(runner)


def labelled(values):
    """Return metrics by "name state"."""
    return {" ".join([name, *labels.values()]): value for name, labels, value in values}


class SteppedSupervisor:
    """A supervisor without its thread: `turns` runs its main loop."""

    def __init__(self, home, monkeypatch):
        self.home, self.ray, self.started = home, FakeRay(), 0
        cluster_files(home).mkdir(parents=True)
        monkeypatch.setattr(supervisor, "ray", self.ray)
        monkeypatch.setattr(workers, "ray", self.ray)
        monkeypatch.setattr(supervisor.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
        monkeypatch.setattr(workers, "worker_environment", lambda launch: {})
        monkeypatch.setattr(shared_devices, "ray", self.ray)
        monkeypatch.setattr(shared_devices.SharedDevice, "strategy", lambda device: device.group)
        monkeypatch.setattr(workers.Runner, "options", self.runner_options)
        self.metrics = {}
        monkeypatch.setattr(ClusterMetrics, "set", lambda _, values: self.metrics.update(labelled(values)))
        self.supervisor = Supervisor()
        self.supervisor.troubles = []

    def runner_options(self, **options):
        """Replace Runner.options: make actors whose `train` returns a reference."""
        return SimpleNamespace(remote=lambda: SimpleNamespace(train=SimpleNamespace(remote=self.train)))

    def train(self, raw):
        self.started += 1
        return f"ref {self.started}"

    def task(self, seed=0):
        return smoke_task(self.home / "runs", smoke_run(seed=seed))

    def launch(self, tasks, **terms):
        found = launches.create_launch("a test", ROOT, LaunchTerms(**({"devices": 1} | terms)), tuple(tasks))
        self.supervisor.add_launch(found.id)
        return found

    def launch_again(self, tasks, **terms):
        """Launch tasks again, as `repro launch` does."""
        request = SimpleNamespace(title="again", terms=LaunchTerms(1, **terms))
        found = start_launch(SimpleNamespace(todo=tasks, tasks=tasks, request=request, left_out=()), ROOT)
        self.supervisor.add_launch(found.id)
        return found

    def turns(self, count=3):
        for _ in range(count):
            self.supervisor.troubles = []
            self.supervisor.last_state = 0.0  # as if a second had passed
            self.supervisor._turn(time.monotonic())

    def running(self):
        return sorted(attempt.task.run.seed for attempt in self.supervisor.running.values())

    def end(self, task, *result):
        """End the attempt of a task with a result (how, why, when) or an error."""
        running = self.supervisor.running.items()
        [ref] = [ref for ref, attempt in running if attempt.task.identity == task.identity]
        self.ray.results[ref] = result[0] if isinstance(result[0], Exception) else result

    def state(self, task):
        return self.supervisor.queue.state(task.identity)

    def news(self, launch):
        return self.supervisor.news_since(launch.id, 0)[0]


@pytest.fixture
def stepped(tmp_path, monkeypatch):
    """A supervisor that runs turn by turn, with two CPUs and no launches."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    return SteppedSupervisor(tmp_path, monkeypatch)


def disk_full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_end_that_cannot_be_recorded_on_a_full_disk_is_recorded_later(stepped, monkeypatch):
    task = stepped.task()
    launch = stepped.launch([task])
    stepped.turns()
    stepped.end(task, "failed", "cannot write", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(launches, "mark_unfinished", disk_full)
        stepped.turns()
        assert stepped.supervisor.troubles == ["[Errno 28] No space left on device"]
        assert not launches.is_over(launch.id)
    stepped.turns()
    assert RunFolder(task.folder).unfinished()["why"] == "failed"
    assert launches.is_over(launch.id)
    assert sum("failed: cannot write" in line for line in stepped.news(launch)) == 1


def test_a_run_that_cannot_start_is_started_in_the_next_turn_and_others_are_not_affected(stepped, monkeypatch):
    tasks = [stepped.task(seed) for seed in (0, 1)]
    stepped.launch(tasks)
    real, calls = Path.unlink, []

    def once(path, **options):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        real(path, **options)

    monkeypatch.setattr(Path, "unlink", once)
    stepped.turns(1)
    assert stepped.running() == [1]
    stepped.turns()
    assert stepped.running() == [0, 1]


def test_a_bug_at_a_start_leaves_no_run_behind(stepped, monkeypatch):
    tasks = [stepped.task(seed) for seed in (0, 1)]
    stepped.launch(tasks)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "last_step", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stepped.turns(1)
    assert [stepped.state(task) for task in tasks] == ["waiting", "waiting"]
    stepped.turns()
    assert stepped.running() == [0, 1]


def test_a_damaged_result_fails_its_run_and_no_other_one(stepped):
    """The other runs of a resumed launch that were cancelled stay so."""
    tasks = [stepped.task(seed) for seed in range(3)]
    launched = launches.create_launch("a test", ROOT, LaunchTerms(devices=1), tuple(tasks))
    for task in tasks[1:]:
        launches.mark_unfinished(task, "cancelled", "cancelled by repro cancel")
    tasks[0].folder.mkdir(parents=True, exist_ok=True)
    (tasks[0].folder / "result.json").write_text('{"cut')
    stepped.supervisor.add_launch(launched.id)
    stepped.turns()
    assert [stepped.state(task) for task in tasks] == ["failed", "cancelled", "cancelled"]
    assert stepped.running() == []
    assert launches.is_over(launched.id)


def test_runs_that_another_cluster_trains_go_behind_the_others_once(stepped):
    """Two clusters that share a home divide the runs; neither waits while others are left."""
    tasks = [stepped.task(seed) for seed in range(4)]
    locks = [FileLock(RunFolder(task.folder).lock_file) for task in tasks[:2]]
    for task, lock in zip(tasks, locks, strict=False):
        task.folder.mkdir(parents=True)
        lock.acquire()
    launched = stepped.launch(tasks)
    stepped.turns()
    assert stepped.running() == [2, 3]
    assert stepped.news(launched)[1:3] == [
        f"{task.title}: another repro command is training it; the others go first" for task in tasks[:2]
    ]
    for task in tasks[2:]:
        stepped.end(task, "failed", "a test", 0.0)
    stepped.turns()
    assert stepped.running() == [0, 1]  # nothing else is left: they wait for the other cluster
    for lock in locks:
        lock.release()


def test_a_stop_request_at_the_end_of_a_budget_is_repeated_until_it_is_written(stepped, monkeypatch):
    task = stepped.task()
    launch = stepped.launch([task], max_device_hours=1e-9)
    stepped.turns(1)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "request_stop", disk_full)
        stepped.turns()
    assert RunFolder(task.folder).stop_reason() == ""
    stepped.turns(1)
    assert RunFolder(task.folder).stop_reason() == "over-budget"
    stepped.end(task, "stopped", *RunFolder(task.folder).stop_request())
    stepped.turns()
    left = RunFolder(task.folder).unfinished()
    assert (left["why"], launches.is_over(launch.id)) == ("over-budget", True)
    assert "budget of 1e-09 device hours is used up" in left["text"]


def test_a_run_launched_again_while_its_cancellation_is_pending_is_trained(stepped):
    task = stepped.task()
    first = stepped.launch([task])
    stepped.turns()
    cancel_runs([first], None, supervised=True, training={task.identity})
    stepped.turns()
    why, when = RunFolder(task.folder).stop_request()
    second = stepped.launch_again([task])  # while the process writes its checkpoint
    stepped.end(task, "stopped", why, when)
    stepped.turns()
    assert stepped.running() == [0]
    assert launches.is_over(first.id)
    assert not launches.is_over(second.id)
    assert RunFolder(task.folder).unfinished() == {}


def test_a_run_launched_again_can_be_cancelled_again(stepped):
    task = stepped.task()
    first = stepped.launch([task])
    stepped.turns()
    cancel_runs([first], None, supervised=True, training={task.identity})
    stepped.turns()
    second = stepped.launch_again([task])
    stepped.turns()
    cancel_runs([first, second], None, supervised=True, training={task.identity})
    stepped.turns()
    stepped.end(task, "stopped", *RunFolder(task.folder).stop_request())
    stepped.turns()
    assert stepped.running() == []
    assert launches.is_over(second.id)
    assert RunFolder(task.folder).unfinished()["why"] == "cancelled"


def test_the_actor_of_a_preempted_attempt_is_not_reused(stepped):
    task = stepped.task()
    stepped.launch([task])
    stepped.turns()
    [first] = stepped.supervisor.running.values()
    stepped.end(task, "stopped", "", 0.0)
    stepped.turns()
    assert stepped.ray.killed == [first.runner]
    assert stepped.supervisor.pool.idle == []
    assert stepped.running() == [0]


def test_a_run_fails_after_three_deaths_without_progress_but_not_after_lost_nodes(stepped):
    task = stepped.task()
    launch = stepped.launch([task])
    lost = ray.exceptions.NodeDiedError("the node")
    for _ in range(MAX_FAILURES + 2):
        stepped.turns()
        stepped.end(task, lost)
        stepped.turns()
    assert stepped.state(task) == "running"
    for _ in range(MAX_FAILURES):
        stepped.turns()
        stepped.end(task, ray.exceptions.WorkerCrashedError())
        stepped.turns()
    assert stepped.state(task) == "failed"
    assert f"died {MAX_FAILURES} times in a row" in stepped.news(launch)[-1]


def test_runs_wait_for_a_gpu_once_the_cluster_had_one(stepped):
    tasks = [stepped.task(seed) for seed in (0, 1, 2)]
    stepped.launch(tasks)
    stepped.ray.resources = {"CPU": 8.0, "GPU": 1.0}
    stepped.turns()
    assert len(stepped.running()) == 1
    [attempt] = stepped.supervisor.running.values()
    assert attempt.gpu
    stepped.ray.resources = {"CPU": 8.0}  # the node with the GPU is lost
    stepped.end(attempt.task, ray.exceptions.NodeDiedError("the node"))
    stepped.turns()
    assert stepped.running() == []
    stepped.ray.resources = {"CPU": 8.0, "GPU": 2.0}
    stepped.turns()
    assert len(stepped.running()) == 2


def test_a_damaged_result_fails_only_its_run(stepped):
    tasks = [stepped.task(seed) for seed in (0, 1)]
    stepped.launch(tasks)
    stepped.turns()
    folder = RunFolder(tasks[0].folder)
    folder.result_file.write_text("{", encoding="utf-8")
    stepped.end(tasks[0], "ended", "", 0.0)
    stepped.turns()
    assert stepped.state(tasks[0]) == "failed"
    assert "is not a run's record" in folder.unfinished()["text"]
    assert stepped.running() == [1]


def test_an_unreadable_launch_does_not_delay_others(stepped):
    task = stepped.task()
    launches.launches_folder().mkdir(parents=True, exist_ok=True)
    (launches.launches_folder() / "00000000-damaged.json").write_text("{", encoding="utf-8")
    stepped.supervisor.add_launch("00000000-damaged")
    stepped.launch([task])
    stepped.turns()
    assert stepped.running() == [0]
    assert "not started" in stepped.supervisor.news_since("00000000-damaged", 0)[0][0]


def test_runs_that_share_a_device_start_together(stepped):
    tasks = [stepped.task(seed) for seed in range(6)]
    launch = stepped.launch(tasks, runs_per_device=2)
    stepped.turns()
    assert stepped.running() == [0, 1, 2, 3]  # two on each of two CPUs
    assert "started on 1/2 of a CPU from the beginning" in RunFolder(tasks[0].folder).log_file.read_text()
    stepped.end(tasks[0], "stopped", "", 0.0)
    stepped.turns(1)
    state = read_supervisor_state()
    assert state["devices"] == {"all": DEVICES, "free": 0, "kind": "CPU"}
    assert state["runs"][tasks[5].identity]["why"] == "behind 1 other run"
    for task in tasks[1:4]:
        stepped.end(task, "failed", "x", 0.0)
    stepped.turns(2)
    assert read_supervisor_state()["devices"]["free"] == 0.5
    assert launches.read_launch(launch.id).terms.runs_per_device == 2


def test_a_run_that_needs_a_whole_device_waits_while_two_are_half_used(stepped):
    """One half of each device is free: together one device, but not one for the run."""
    halves, whole = [stepped.task(seed) for seed in range(4)], stepped.task(9)
    stepped.launch(halves, runs_per_device=2)
    stepped.turns()
    budget = stepped.launch([whole], max_device_hours=1.0)
    for task in (halves[0], halves[2]):  # one on each device
        stepped.end(task, "failed", "x", 0.0)
    stepped.turns()
    assert stepped.running() == [1, 3]
    report = read_supervisor_state()
    assert (report["devices"]["free"], report["runs"][whole.identity]["why"]) == (1, "needs 1 device, 0 free")
    assert stepped.supervisor.queue.spent(budget.id, time.monotonic() + 3600) == 0
    stepped.end(halves[1], "failed", "x", 0.0)
    stepped.turns()
    assert stepped.running() == [3, 9]


def test_a_run_uses_and_pays_for_the_devices_of_the_launch_that_it_belongs_to(stepped):
    """Cancelled, and launched again with other terms before it has stopped."""
    task = stepped.task()
    first = stepped.launch([task])
    stepped.turns()
    cancel_runs([first], None, supervised=True, training={task.identity})
    stepped.turns()
    stop = RunFolder(task.folder).stop_request()
    second = stepped.launch_again([task], runs_per_device=2)
    stepped.turns()
    stepped.end(task, "stopped", *stop)
    stepped.turns()
    [attempt] = stepped.supervisor.running.values()
    queue = stepped.supervisor.queue
    assert (attempt.launch.id, attempt.devices) == (second.id, Fraction(1, 2))
    assert queue.launches[second.id].charged_devices == Fraction(1, 2)
    assert read_supervisor_state()["devices"]["free"] == 1.5


def test_metrics_count_runs_devices_and_images(stepped):
    tasks = [stepped.task(seed) for seed in range(4)]
    stepped.launch(tasks)
    stepped.turns()
    for task, speed in zip(tasks, (100.0, 20.5), strict=False):
        RunFolder(task.folder).write_progress(1, speed)
    stepped.turns()
    expected = {"waiting": 2, "running": 2, "finished": 0, "failed": 0, "cancelled": 0, "over-budget": 0}
    assert stepped.metrics.items() >= {f"repro_runs {state}": count for state, count in expected.items()}.items()
    assert stepped.metrics["repro_images_per_second"] == 120.5
    assert (stepped.metrics["repro_devices all"], stepped.metrics["repro_devices free"]) == (DEVICES, 0)
    stepped.end(tasks[0], "failed", "x", 0.0)
    stepped.turns()
    assert (stepped.metrics["repro_runs failed"], stepped.metrics["repro_runs waiting"]) == (1, 1)
    assert stepped.metrics["repro_device_hours"] > 0
