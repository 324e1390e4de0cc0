"""Test executing one task: its lock, its data, and what it imports."""

from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.common.errors import UserError
from pipeline.declare.transfer import TransferSpec
from pipeline.schedule import execute, local
from pipeline.schedule.execute import execute_task
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import smoke_run, smoke_task, train_in
from tests.support.worker_pools import derived_task, shades_task, write_shades


def test_torch_is_not_imported_with_the_module():
    """Commands import the modules of `schedule` before they know whether a run must be trained."""
    for module in (execute, local):
        assert "\nimport torch" not in Path(module.__file__).read_text(encoding="utf-8")


def test_data_that_changed_after_the_task_was_made_are_a_user_error(tmp_path):
    data = tmp_path / "data"
    write_shades(data)
    task = shades_task(data, tmp_path / "runs" / "changed")
    (data / "shades/train/dark/3.png").unlink()
    execute.load_cached_images.cache_clear()
    with pytest.raises(
        UserError, match=r"shades: the images changed since the command began; run the same command again"
    ):
        execute_task(task, threads=1, stop=lambda: False, on_event=lambda *_: None)


def test_changed_data_of_a_transfer_are_a_user_error(tmp_path):
    task = smoke_task(tmp_path / "runs", smoke_run())
    spec = TransferSpec(kind="transfer", of="resnet-20", data="shades", c=1.0)
    data = tmp_path / "data"
    write_shades(data)
    derived = replace(derived_task(tmp_path / "runs", [task], spec), data_root=data)
    execute.load_cached_images.cache_clear()
    with pytest.raises(
        UserError, match=r"shades: the images changed since the command began; run the same command again"
    ):
        execute_task(derived, threads=1, stop=lambda: False, on_event=lambda *_: None)


def test_derived_run_is_made_once_by_two_commands(tmp_path):
    tasks = [smoke_task(tmp_path, smoke_run(seed=seed)) for seed in (0, 1)]
    for task in tasks:
        train_in(task.folder, task.run)
    derived = derived_task(tmp_path, tasks)
    events = []
    assert execute_task(derived, threads=1, stop=lambda: False, on_event=lambda *event: events.append(event))
    assert [event[0] for event in events] == ["started"]
    lock = FileLock(RunFolder(derived.folder).lock_file)
    with lock:  # as another command would hold it
        assert (
            execute_task(derived, threads=1, stop=lambda: True, on_event=lambda *event: events.append(event))
            is None
        )
    assert events[1:] == [("waiting", "another repro command is training this run; waiting for its result")]
    record = execute_task(derived, threads=1, stop=lambda: False, on_event=pytest.fail)
    assert record == RunFolder(derived.folder).result()
