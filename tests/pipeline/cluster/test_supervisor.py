"""The supervisor, turn by turn, Ray's part made up: what is lost on a full disk, between two launches, between a
request and its answer? (With real processes: test_cluster_faults.py.)
"""

import errno
import time
from types import SimpleNamespace

import pytest
import ray

from pipeline.cluster import launches, supervisor
from pipeline.cluster.launch import cancel_runs as cancel_these
from pipeline.cluster.launch import start_launch
from pipeline.cluster.launches import LaunchTerms
from pipeline.cluster.supervisor import MAX_FAILURES, Supervisor
from pipeline.common.paths import ROOT
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import smoke_run, smoke_task

DEVICES = 2


class MadeUp:
    """As much of Ray as the supervisor sees, and the answers of what trains."""

    exceptions = ray.exceptions

    def __init__(self):
        self.answers = {}
        self.killed = []
        self.resources = {"CPU": float(DEVICES)}

    def get_runtime_context(self):
        return SimpleNamespace(was_current_actor_reconstructed=False)

    def cluster_resources(self):
        return self.resources

    def wait(self, refs, **_):
        return [ref for ref in refs if ref in self.answers], []

    def get(self, ref):
        answer = self.answers[ref]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, runner, **_):
        self.killed.append(runner)


class Place:
    """A supervisor that takes its turns when it is told to."""

    def __init__(self, home, monkeypatch):
        self.home, self.ray, self.made = home, MadeUp(), 0
        (home / "cluster").mkdir(parents=True)
        monkeypatch.setattr(supervisor, "ray", self.ray)
        monkeypatch.setattr(supervisor.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
        monkeypatch.setattr(supervisor, "worker_environment", lambda launch: {})
        monkeypatch.setattr(Supervisor, "_train", self.train)
        self.keeper = Supervisor()
        self.keeper.troubles = []

    def train(self, one):
        self.made += 1
        one.runner = f"runner {self.made}"
        return f"ref {self.made}"

    def task(self, seed=0):
        return smoke_task(self.home / "runs", smoke_run(seed=seed))

    def launch(self, tasks, **terms):
        found = launches.create_launch("a test", ROOT, LaunchTerms(**({"devices": 1} | terms)), tuple(tasks))
        self.keeper.add_launch(found.id)
        return found

    def again(self, tasks, **terms):
        """What `repro launch` does when it is asked for the same again."""
        asked = SimpleNamespace(title="again", terms=LaunchTerms(1, **terms))
        found = start_launch(SimpleNamespace(todo=tasks, tasks=tasks, asked=asked, left_out=()), ROOT)
        self.keeper.add_launch(found.id)
        return found

    def turns(self, count=3):
        for _ in range(count):
            self.keeper.troubles = []
            self.keeper.written = 0.0  # a second has passed
            self.keeper._turn(time.monotonic())

    def running(self):
        return sorted(one.task.run.seed for one in self.keeper.running.values())

    def answer(self, task, *answer):
        [ref] = [ref for ref, one in self.keeper.running.items() if one.task.identity == task.identity]
        self.ray.answers[ref] = answer[0] if isinstance(answer[0], Exception) else answer

    def state(self, task):
        return self.keeper.queue.state(task.identity)

    def told(self, launch):
        return self.keeper.news_since(launch.id, 0)[0]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    return Place(tmp_path, monkeypatch)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_ends_on_a_full_disk_is_written_down_when_there_is_room_again(place, monkeypatch):
    task = place.task()
    launch = place.launch([task])
    place.turns()
    place.answer(task, "failed", "cannot write", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(launches, "mark_unfinished", full)
        place.turns()
        assert place.keeper.troubles == ["[Errno 28] No space left on device"]
        assert not launches.is_over(launch.id)
    place.turns()
    assert RunFolder(task.folder).unfinished()["why"] == "failed"
    assert launches.is_over(launch.id)
    assert sum("failed: cannot write" in line for line in place.told(launch)) == 1


def test_a_run_that_could_not_be_started_is_started_the_next_turn_and_no_other_is_lost(place, monkeypatch):
    tasks = [place.task(seed) for seed in (0, 1)]
    place.launch(tasks)
    real, calls = RunFolder.clear_unfinished, []

    def once(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(errno.ESTALE, "Stale file handle")
        real(folder)

    monkeypatch.setattr(RunFolder, "clear_unfinished", once)
    place.turns(1)
    assert place.running() == [1]
    place.turns()
    assert place.running() == [0, 1]


def test_a_request_to_stop_at_a_budget_s_end_is_repeated_until_it_is_there(place, monkeypatch):
    task = place.task()
    launch = place.launch([task], max_device_hours=1e-9)
    place.turns(1)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "request_stop", full)
        place.turns()
    assert RunFolder(task.folder).stop_reason() == ""
    place.turns(1)
    assert RunFolder(task.folder).stop_reason() == "over-budget"
    place.answer(task, "stopped", *RunFolder(task.folder).stop_request())
    place.turns()
    left = RunFolder(task.folder).unfinished()
    assert (left["why"], launches.is_over(launch.id)) == ("over-budget", True)
    assert "budget of 1e-09 device hours is used up" in left["text"]


def test_cancelled_and_launched_again_before_that_was_written_down_is_trained(place):
    task = place.task()
    first = place.launch([task])
    place.turns()
    cancel_these([first], None, supervised=True, training={task.identity})
    place.turns()
    why, when = RunFolder(task.folder).stop_request()
    second = place.again([task])  # while the process writes its checkpoint
    place.answer(task, "stopped", why, when)
    place.turns()
    assert place.running() == [0]
    assert launches.is_over(first.id)
    assert not launches.is_over(second.id)
    assert RunFolder(task.folder).unfinished() == {}


def test_a_second_launch_s_run_can_be_cancelled_too(place):
    task = place.task()
    first = place.launch([task])
    place.turns()
    cancel_these([first], None, supervised=True, training={task.identity})
    place.turns()
    second = place.again([task])
    place.turns()
    cancel_these([first, second], None, supervised=True, training={task.identity})
    place.turns()
    place.answer(task, "stopped", *RunFolder(task.folder).stop_request())
    place.turns()
    assert place.running() == []
    assert launches.is_over(second.id)
    assert RunFolder(task.folder).unfinished()["why"] == "cancelled"


def test_what_a_preempted_node_gives_back_does_not_go_to_the_same_process(place):
    task = place.task()
    place.launch([task])
    place.turns()
    place.answer(task, "stopped", "", 0.0)
    place.turns()
    assert place.ray.killed == ["runner 1"]
    assert place.keeper.idle == []
    assert place.running() == [0]


def test_a_run_that_dies_without_progress_fails_after_three_times_but_not_for_lost_machines(place):
    task = place.task()
    launch = place.launch([task])
    lost = ray.exceptions.NodeDiedError("the node")
    for _ in range(MAX_FAILURES + 2):
        place.turns()
        place.answer(task, lost)
        place.turns()
    assert place.state(task) == "running"
    for _ in range(MAX_FAILURES):
        place.turns()
        place.answer(task, ray.exceptions.WorkerCrashedError())
        place.turns()
    assert place.state(task) == "failed"
    assert f"died {MAX_FAILURES} times in a row" in place.told(launch)[-1]


def test_once_there_were_gpus_nothing_is_trained_on_processors(place):
    tasks = [place.task(seed) for seed in (0, 1, 2)]
    place.launch(tasks)
    place.ray.resources = {"CPU": 8.0, "GPU": 1.0}
    place.turns()
    assert len(place.running()) == 1
    [one] = place.keeper.running.values()
    assert one.gpu
    place.ray.resources = {"CPU": 8.0}  # the machine with the GPU is gone
    place.answer(one.task, ray.exceptions.NodeDiedError("the node"))
    place.turns()
    assert place.running() == []
    place.ray.resources = {"CPU": 8.0, "GPU": 2.0}
    place.turns()
    assert len(place.running()) == 2


def test_a_damaged_result_fails_its_run_and_no_other(place):
    tasks = [place.task(seed) for seed in (0, 1)]
    place.launch(tasks)
    place.turns()
    folder = RunFolder(tasks[0].folder)
    folder.result_file.write_text("{", encoding="utf-8")
    place.answer(tasks[0], "ended", "", 0.0)
    place.turns()
    assert place.state(tasks[0]) == "failed"
    assert "is not a run's record" in folder.unfinished()["text"]
    assert place.running() == [1]


def test_a_launch_that_cannot_be_read_holds_up_no_other(place):
    task = place.task()
    launches.launches_folder().mkdir(parents=True, exist_ok=True)
    (launches.launches_folder() / "00000000-damaged.json").write_text("{", encoding="utf-8")
    place.keeper.take("00000000-damaged")
    place.launch([task])
    place.turns()
    assert place.running() == [0]
    assert "not begun" in place.keeper.told("00000000-damaged", 0)[0][0]
