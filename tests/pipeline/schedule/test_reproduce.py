"""Test running tasks on this machine: which are executed, and that old marks in their folders are removed."""

import pytest

from pipeline.schedule import reproduce
from pipeline.schedule.reproduce import split_finished
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
