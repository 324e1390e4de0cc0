"""Following launches through the supervisor, with a fake one. (With a real one: test_cluster_faults.py.)"""

from types import SimpleNamespace

import pytest
import ray

from pipeline.cluster import connect, launches
from pipeline.cluster.connect import follow_launches, has_failed
from pipeline.track.run_folder import RunFolder
from tests.support.launch_tasks import set_home, tasks_of
from tests.support.status_files import finish, save_launch


@pytest.fixture
def launch(monkeypatch, tmp_path, experiment):
    """A launch of six runs."""
    return save_launch(tasks_of(experiment, set_home(monkeypatch, tmp_path)))


class FakeSupervisor:
    """A supervisor actor with a line of news per call; `fail_first`: its first call finds the actor dead."""

    def __init__(self, news, *, fail_first=False):
        self.news, self.added, self.shown, self.fail = list(news), [], 0, fail_first
        self.add_launch = SimpleNamespace(remote=self.added.append)
        self.news_since = SimpleNamespace(remote=self.next_news)

    def next_news(self, launch_id, seen):
        if self.fail:
            self.fail = False
            raise ray.exceptions.RayActorError
        self.shown = min(len(self.news), self.shown + 1)
        return self.news[seen : self.shown], self.shown == len(self.news)


@pytest.fixture
def follow(monkeypatch, launch):
    """Follow the launch with a supervisor; return the exit code and the printed news."""

    def run(*supervisors):
        remaining = list(supervisors)
        monkeypatch.setattr(connect, "connect", lambda: None)
        monkeypatch.setattr(connect, "NEWS_POLL_SECONDS", 0.0)
        monkeypatch.setattr(connect, "get_supervisor", lambda first: remaining.pop(0))
        monkeypatch.setattr(connect.ray, "get", lambda value: value)
        printed = []
        return follow_launches([launch.id], printed.append), printed

    return run


def test_news_are_passed_on_until_the_launch_ends(follow, launch, experiment):
    for task in launch.tasks:
        finish(task, experiment)
    supervisor = FakeSupervisor(["started", "finished"])
    assert follow(supervisor) == (0, ["started", "finished"])
    assert supervisor.added == [launch.id]


def test_a_supervisor_that_ended_is_replaced(follow, launch):
    ended, new = FakeSupervisor([], fail_first=True), FakeSupervisor(["started"])
    assert follow(ended, new)[1] == ["started"]
    assert new.added == [launch.id]


def test_failed_runs_give_exit_code_1_but_cancelled_ones_do_not(follow, launch):
    for task, why in zip(launch.tasks, ["cancelled", "over-budget"] * 3, strict=True):
        launches.mark_unfinished(task, why, "x")
    assert follow(FakeSupervisor(["x"]))[0] == 0
    launches.mark_unfinished(launch.tasks[0], "failed", "x")
    assert follow(FakeSupervisor(["x"]))[0] == 1


def test_a_run_without_result_and_reason_has_failed(launch, experiment):
    first, second, *_ = (RunFolder(task.folder) for task in launch.tasks)
    assert has_failed(first)
    finish(launch.tasks[0], experiment)
    assert not has_failed(first)
    launches.mark_unfinished(launch.tasks[1], "cancelled", "x")
    assert not has_failed(second)
