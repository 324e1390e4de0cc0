"""Test the callback: the steps that it reports and evaluates, and the state that it keeps over sessions."""

import itertools
import time
from types import SimpleNamespace

import torch

from pipeline.track.run_folder import RunFolder
from pipeline.train.lightning import BufferedCheckpointIO
from tests.support.smoke_runs import journal_metrics, smoke_run, stop_after, train_in


def test_run_reports_and_evaluates_at_the_declared_steps_only(uninterrupted):
    found = dict(journal_metrics(uninterrupted[1]))
    assert list(found) == [2, 4, 6, 8, 10, 12]
    assert [step for step, metrics in found.items() if "test/loss" in metrics] == [
        4,
        8,
    ]  # errors after the last step are in the record
    assert all("train/loss" in metrics for metrics in found.values())


def test_run_reports_after_its_last_step(tmp_path):
    train_in(tmp_path, smoke_run(changes={"train.log_every": 5, "train.eval_every": 7}))
    found = dict(journal_metrics(tmp_path))
    assert list(found) == [5, 7, 10, 12]
    assert "train/loss" not in found[7]


def test_seconds_are_summed_over_sessions(tmp_path, monkeypatch):
    train_in(tmp_path, smoke_run(), stop=stop_after(6))
    [path] = RunFolder(tmp_path).checkpoint_files()
    earlier = torch.load(path, weights_only=True)["callbacks"]["TrainingCallback"]["seconds"]
    clock = itertools.count(1000.0).__next__  # advances by one second per call
    monkeypatch.setattr("pipeline.train.callback.time", SimpleNamespace(monotonic=clock, time=time.time))
    record = train_in(tmp_path, smoke_run())
    assert earlier < record.seconds < earlier + clock() - 1000.0


def test_record_lists_the_device_batches_of_all_sessions_if_they_differ(tmp_path):
    batch = smoke_run().recipe.train.batch_size
    half = batch // 2
    for device_batch, steps in ((None, 3), (half, 2), (half, 2), (None, 1)):
        assert train_in(tmp_path, smoke_run(), device_batch=device_batch, stop=stop_after(steps)) is None
    record = train_in(tmp_path, smoke_run(), device_batch=half)
    assert record.ended == f"12 steps; device batches {batch}, {half}, {batch}, {half}"
    assert (record.device_batch, record.world) == (half, 1)


def test_run_resumes_from_a_checkpoint_without_device_batches(tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(6))
    [path] = RunFolder(tmp_path).checkpoint_files()
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"]["TrainingCallback"]
    checkpoint["callbacks"]["TrainingCallback"] = {"seconds": state["seconds"]}
    checkpoint_io = BufferedCheckpointIO()
    checkpoint_io.save_checkpoint(checkpoint, "")
    RunFolder(tmp_path).save_checkpoint(6, checkpoint_io.write)
    path.unlink()
    (resaved,) = RunFolder(tmp_path).checkpoint_files()
    assert set(torch.load(resaved, weights_only=True)["callbacks"]["TrainingCallback"]) == {"seconds"}
    assert train_in(tmp_path, smoke_run()).ended == "12 steps"
