"""Test one run: its record, and that an interrupted run ends with the same bits as an uninterrupted one."""

import dataclasses
import math
import random

import pytest
import torch

from pipeline.declare.training import Warmup
from pipeline.track.run_folder import RunFolder
from pipeline.train import context
from tests.support.smoke_runs import (
    FORKSERVER,
    LENET,
    images_of,
    journal_metrics,
    smoke_run,
    stop_after,
    train_in,
    train_with_checkpoint_every_step,
    weights,
)


def assert_same_run(path, record, uninterrupted):
    """Assert that a run has the bits of the uninterrupted run."""
    expected, expected_path = uninterrupted
    assert weights(path) == weights(expected_path)
    assert journal_metrics(path) == journal_metrics(expected_path)
    assert record.metrics == expected.metrics
    times = {"seconds": expected.seconds, "finished": expected.finished, "costs": expected.costs}
    assert dataclasses.replace(record, **times) == expected


# --- the record ----------------------------------------------------------------------------------------------


def test_finished_run_has_a_record_that_counts_all_images(uninterrupted):
    record, path = uninterrupted
    assert (record.status, record.ended) == ("finished", "12 steps")
    assert record.metrics["test/images"] == len(images_of("noise").test) == 100
    assert record.metrics["trainset/images"] == len(images_of("noise").train) == 200
    assert 0 <= record.metrics["test/top5_error_pct"] <= record.metrics["test/top1_error_pct"] <= 100
    assert all(math.isfinite(value) for value in record.metrics.values())
    assert RunFolder(path).result() == record
    assert sorted(file.name for file in path.iterdir()) == [
        "journal.jsonl",
        "network.safetensors",
        "result.json",
        "run.json",
    ]


def test_validation_set_is_held_out_and_counted(tmp_path):
    record = train_in(tmp_path, smoke_run(changes={"data.val": 30, "data.train": 150}))
    assert record.metrics["val/images"] == 30
    assert record.metrics["trainset/images"] == 150
    assert "val/top1_error_pct" in dict(journal_metrics(tmp_path))[8]


# --- reproducibility -----------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bits(uninterrupted, tmp_path):
    assert_same_run(tmp_path, train_in(tmp_path, smoke_run()), uninterrupted)


def test_another_seed_gives_other_bits(uninterrupted, tmp_path):
    train_in(tmp_path, smoke_run(seed=1))
    assert weights(tmp_path) != weights(uninterrupted[1])


def test_evaluation_interval_does_not_change_the_weights(uninterrupted, tmp_path):
    for every in (2, 6):
        train_in(tmp_path / str(every), smoke_run(changes={"train.eval_every": every}))
        assert weights(tmp_path / str(every)) == weights(uninterrupted[1])


def test_report_interval_does_not_change_the_weights(uninterrupted, tmp_path):
    train_in(tmp_path, smoke_run(changes={"train.log_every": 5}))
    assert weights(tmp_path) == weights(uninterrupted[1])


# --- stopping and resuming -----------------------------------------------------------------------------------


def test_run_stopped_after_every_step_equals_the_uninterrupted_run(uninterrupted, tmp_path):
    for step in range(1, 12):
        assert train_in(tmp_path, smoke_run(), stop=lambda: True) is None
        assert int(RunFolder(tmp_path).checkpoint_files()[0].name[5:15]) == step
    assert_same_run(tmp_path, train_in(tmp_path, smoke_run(), stop=lambda: True), uninterrupted)


@pytest.mark.parametrize("steps", [(1,), (5,), (11,), (3, 4), (7, 2), (1, 1, 9)])
def test_run_stopped_after_some_steps_equals_the_uninterrupted_run(uninterrupted, tmp_path, steps):
    for count in steps:
        assert train_in(tmp_path, smoke_run(), stop=stop_after(count)) is None
    assert_same_run(tmp_path, train_in(tmp_path, smoke_run()), uninterrupted)


def test_run_resumed_from_an_older_checkpoint_reports_no_step_twice(uninterrupted, tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(3))
    train_in(tmp_path, smoke_run(), stop=stop_after(6))
    newest, _ = RunFolder(tmp_path).checkpoint_files()
    newest.write_bytes(b"damaged")
    messages = []
    record = train_in(tmp_path, smoke_run(), report=messages.append)
    assert messages == [f"checkpoint {newest.name} is damaged; using the one before"]
    assert_same_run(tmp_path, record, uninterrupted)


def test_run_with_only_damaged_checkpoints_restarts_with_the_same_bits(uninterrupted, tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(3))
    for path in RunFolder(tmp_path).checkpoint_files():
        path.write_bytes(path.read_bytes()[:1000])
    messages = []
    assert_same_run(tmp_path, train_in(tmp_path, smoke_run(), report=messages.append), uninterrupted)
    assert messages[-1].endswith("starting from the first step")


def test_run_resumes_with_and_without_compiling(uninterrupted, tmp_path, monkeypatch):
    """Compile with the "eager" backend, which changes no bit."""
    compiling, compiled = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or compiling(net, backend="eager"))
    run = smoke_run(changes={"train.compile": True})
    for has in (False, True, False):
        monkeypatch.setattr(context, "has_compiler", lambda has=has: has)
        assert train_in(tmp_path, run, stop=stop_after(3)) is None
    monkeypatch.setattr(context, "has_compiler", lambda: True)
    assert train_in(tmp_path, run).compiled
    assert len(compiled) == 2
    assert weights(tmp_path) == weights(uninterrupted[1])


def train_with_random_kills(path, seed, kills):
    """Train in processes that are killed at random moments, then in one that is not; return their first steps."""
    draw = random.Random(seed)
    first_steps = []
    for left in range(kills, -1, -1):
        if RunFolder(path).result():  # it finished before the last kill
            break
        process = FORKSERVER.Process(target=train_with_checkpoint_every_step, args=(path, smoke_run()))
        first_steps.append(max((int(file.name[5:15]) for file in RunFolder(path).checkpoint_files()), default=0))
        process.start()
        if left:
            process.join(draw.uniform(0.05, 1.2))
            process.kill()
        process.join(100)
    return first_steps


def test_run_killed_at_random_moments_equals_the_uninterrupted_run(uninterrupted, tmp_path):
    seed = random.randrange(10**6)
    print("random seed", seed)
    first_steps = train_with_random_kills(tmp_path, seed, kills=4)
    assert first_steps == sorted(first_steps)
    assert_same_run(tmp_path, RunFolder(tmp_path).result(), uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_run_killed_many_times_equals_the_uninterrupted_run(uninterrupted, tmp_path, seed):
    train_with_random_kills(tmp_path, seed, kills=10)
    assert_same_run(tmp_path, RunFolder(tmp_path).result(), uninterrupted)


# --- not converged -------------------------------------------------------------------------------------------


def test_loss_that_is_not_finite_ends_the_run_with_a_record_that_names_the_step(tmp_path):
    record = train_in(tmp_path, smoke_run("plain-20", changes={"train.lr": 1e30}))
    assert record.status == "not converged"
    what, _, step = record.ended.rpartition(" at step ")
    assert what in ("the loss became nan", "the loss became inf", "the loss became -inf")
    assert 1 <= int(step) <= 3
    assert record.metrics == {}
    assert RunFolder(tmp_path).result() == record
    assert not RunFolder(tmp_path).network_file.exists()


# --- warm-up of ResNet-110 -----------------------------------------------------------------------------------


def learning_rates(monkeypatch, run, path):
    """Train, and return the learning rate of every step."""
    rates = []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)  # computes the loss first, which sets the rate
        rates.append(self.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train_in(path, run)
    monkeypatch.undo()
    return rates


def warmup_run(error):
    changes = {"train.steps": 12, "train.lr_drops": None, "train.lr": 0.05}
    return smoke_run(changes=changes | {"train.warmup": Warmup(lr=0.01, train_error_below_pct=error).model_dump()})


def test_warmup_ends_when_the_training_error_is_low(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.classifier.WARMUP_WINDOW", 4)
    assert learning_rates(monkeypatch, warmup_run(100.0), tmp_path / "a") == [0.01] * 4 + [0.05] * 8


def test_warmup_continues_while_the_training_error_is_high(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.classifier.WARMUP_WINDOW", 4)
    assert learning_rates(monkeypatch, warmup_run(0.001), tmp_path / "a") == [0.01] * 12


def test_warmup_resumes_in_the_middle_of_a_window(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.classifier.WARMUP_WINDOW", 4)
    train_in(tmp_path / "whole", warmup_run(100.0))
    for count in (2, 1, 2):
        assert train_in(tmp_path / "stopped", warmup_run(100.0), stop=stop_after(count)) is None
    train_in(tmp_path / "stopped", warmup_run(100.0))
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


# --- one pattern at a time -----------------------------------------------------------------------------------


def test_record_has_the_step_sizes_of_the_first_report(tmp_path):
    changes = {
        "train.steps": 12,
        "train.log_every": 4,
        "train.eval_every": 12,
        "train.lr_drops": {"at": [4], "factor": 0.5},
    }
    run = smoke_run("lenet5", experiment=LENET, changes=changes)
    assert train_in(tmp_path, run, stop=stop_after(2)) is None
    metrics = train_in(tmp_path, run).metrics
    first, _, last = (found for _, found in journal_metrics(tmp_path))
    for which in ("smallest", "largest"):
        assert metrics[f"train/first_pass_{which}_step"] == first[f"train/{which}_step"]
        assert (
            metrics[f"train/{which}_step"]
            == last[f"train/{which}_step"]
            == pytest.approx(first[f"train/{which}_step"] / 2)
        )
    assert 0 < first["train/smallest_step"] < first["train/largest_step"] <= 5e-4 / 0.02  # eta / mu


@pytest.mark.slow
def test_learning_from_one_pattern_at_a_time_resumes_with_the_same_bits(tmp_path):
    run = smoke_run("lenet5", experiment=LENET)
    record = train_in(tmp_path / "whole", run)
    assert (record.status, record.metrics["trainset/images"]) == ("finished", 1437)
    assert [step for step, _ in journal_metrics(tmp_path / "whole")] == [479, 958, 1437]
    for _ in range(2):  # `stop` is called between blocks of steps
        assert train_in(tmp_path / "stopped", run, stop=lambda: True) is None
    resumed = train_in(tmp_path / "stopped", run)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert journal_metrics(tmp_path / "stopped") == journal_metrics(tmp_path / "whole")
    assert resumed.metrics == record.metrics
