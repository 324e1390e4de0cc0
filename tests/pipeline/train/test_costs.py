"""Costs: time of training without evaluations and checkpoints, over all sessions of one setup."""

import itertools
from types import SimpleNamespace

import pytest

from pipeline.declare.training import COST_METRICS
from pipeline.track.run_folder import RunFolder
from pipeline.train import context, costs
from pipeline.train.costs import CostMeter
from tests.support.smoke_runs import journal_metrics, smoke_run, stop_after, train_in, weights


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in seconds."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_pauses_are_left_out(clock):
    meter = CostMeter("one core", "cpu")
    meter.start_session()
    clock.seconds += 3
    with meter.paused():
        clock.seconds += 50
        with meter.paused():
            clock.seconds += 50
    clock.seconds += 1
    meter.pause()
    clock.seconds += 50
    meter.pause()
    assert meter.costs(images=200) == {"train/seconds": 4.0, "train/images_per_second": 50.0}


def test_killed_session_counts_up_to_its_last_checkpoint(clock):
    first, second = CostMeter("one core", "cpu"), CostMeter("one core", "cpu")
    first.start_session()
    clock.seconds += 3
    with first.paused():
        state = first.state_dict()
    clock.seconds += 7  # steps that the second session repeats
    second.load_state_dict(state)
    second.start_session()
    clock.seconds += 2
    second.pause()
    assert second.costs(images=10)["train/seconds"] == 5.0


def test_run_with_sessions_of_different_setups_has_no_costs(clock):
    for state in ({"setups": ["two cores"], "seconds": 3.0, "peak_bytes": 0}, None):
        meter = CostMeter("one core", "cpu")
        meter.load_state_dict(state)
        meter.start_session()
        clock.seconds += 2
        meter.pause()
        assert meter.costs(images=10) == {}


def test_memory_of_a_gpu_is_that_of_training_steps(clock, monkeypatch):
    peaks = itertools.chain([5, 9], itertools.repeat(7))  # MiB at each pause
    gpu = SimpleNamespace(
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: None,
        max_memory_allocated=lambda: next(peaks) * 2**20,
    )
    monkeypatch.setattr(costs.torch, "cuda", gpu)
    meter = CostMeter("one GPU", "cuda")
    meter.start_session()
    for _ in range(3):
        clock.seconds += 1
        with meter.paused():
            clock.seconds += 1
    meter.pause()
    assert meter.costs(images=6) == dict(zip(COST_METRICS, (3.0, 2.0, 9.0), strict=True))


def test_evaluations_and_checkpoints_of_a_run_are_left_out(clock, tmp_path, monkeypatch):
    """Evaluations take 1,000 seconds here, checkpoints 100, and a step one second."""
    module, evaluate, save = context.Classifier, context.RunContext.held_out_errors, RunFolder.save_checkpoint

    def slowly(function, seconds):
        def call(*args, **kwargs):
            clock.seconds += seconds
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(context.RunContext, "held_out_errors", slowly(evaluate, 1000))
    monkeypatch.setattr(RunFolder, "save_checkpoint", slowly(save, 100))
    monkeypatch.setattr(module, "training_step", slowly(module.training_step, 1))
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    assert train_in(tmp_path, smoke_run(), stop=stop_after(5)) is None
    record = train_in(tmp_path, smoke_run())
    assert record.costs == {"train/seconds": 12.0, "train/images_per_second": 20.0}  # 12 steps of 20 images
    assert record.measured == {**record.metrics, **record.costs}
    assert RunFolder(tmp_path).result() == record


def test_run_on_changing_hardware_has_no_costs_and_the_same_bits(tmp_path, monkeypatch, uninterrupted):
    train_in(tmp_path, smoke_run(), stop=stop_after(5))
    monkeypatch.setattr(context, "hardware_name", lambda: "another machine")
    record = train_in(tmp_path, smoke_run())
    assert record.costs == {}
    assert uninterrupted[0].costs.keys() >= {"train/seconds", "train/images_per_second"}
    assert weights(tmp_path) == weights(uninterrupted[1])
    assert journal_metrics(tmp_path) == journal_metrics(uninterrupted[1])


def test_run_that_did_not_converge_has_no_costs(tmp_path):
    record = train_in(tmp_path, smoke_run("plain-20", changes={"train.lr": 1e30}))
    assert (record.status, record.costs) == ("not converged", {})
