"""Test running tasks on this machine: which are executed, and that old marks in their folders are removed."""

from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.schedule import reproduce
from pipeline.schedule.reproduce import require_precision, split_finished, threads_of_each
from pipeline.schedule.tasks import make_tasks
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import smoke_run


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Set REPRO_HOME to a folder of the test."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_DATA", raising=False)


def test_running_a_task_removes_why_it_was_left_and_its_stop_request(monkeypatch):
    [task] = make_tasks([smoke_run()])
    folder = RunFolder(task.folder)
    folder.create(task.description())
    folder.mark_unfinished("cancelled", "by root")
    folder.request_stop("requested")
    seen = []

    def end_at_once(tasks, **_):
        seen.append((folder.unfinished(), folder.stop_reason()))
        return "ended"

    class FakeSync:
        """Tracking server without records."""

        trouble = ""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def watch(self, path):
            pass

        def sync(self):
            pass

        def records(self):
            return []

    monkeypatch.setattr(reproduce, "run_all", end_at_once)
    monkeypatch.setattr(reproduce, "BackgroundSync", FakeSync)
    assert split_finished([task], FakeSync()) == ({}, [task])
    reproduce.run_tasks([task], threads=1, on_event=lambda _: None)
    assert seen == [({}, "")]


@pytest.mark.parametrize("has", [False, True])
def test_tf32_is_refused_before_training_on_a_machine_without_it(monkeypatch, has):
    monkeypatch.setattr("pipeline.train.process.has_tf32", lambda: has)
    require_precision(make_tasks([smoke_run()]))
    tasks = make_tasks([smoke_run(changes={"train.precision": "tf32"})])
    if has:
        require_precision(tasks)
        return
    with pytest.raises(UserError, match=r"^precision tf32 needs an NVIDIA GPU .*; use fp32 or bf16$"):
        require_precision(tasks)


def test_runs_that_choose_their_settings_share_the_cpus(monkeypatch):
    monkeypatch.setattr(reproduce, "available_cpus", lambda: 16)
    fixed = make_tasks([smoke_run()])
    free = [replace(task, run=replace(task.run, tunable=True)) for task in fixed]
    assert threads_of_each(free, 1) == 16
    assert threads_of_each(free, 3) == 5
    assert threads_of_each(free, 32) == 1
    assert threads_of_each([*free, *fixed], 1) == 1  # the bits of a fixed run depend on the threads
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert threads_of_each(free, 1) == 1
