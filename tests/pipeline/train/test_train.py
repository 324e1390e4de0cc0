"""One run: what it records, and that nothing which stops it changes a bit of it."""

import dataclasses
import math
import random
import time

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.declare.recipe import Warmup
from pipeline.track.run_folder import RunFolder
from pipeline.train import context
from pipeline.train.context import RunContext, block_size
from pipeline.train.lightning import BufferedCheckpointIO
from tests.support.smoke_runs import (
    LENET,
    FORKSERVER,
    smoke_run,
    journal_metrics,
    images_of,
    manifest_of,
    stop_after,
    train_with_checkpoint_every_step,
    train_in,
    weights,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run never stopped: its record and its folder."""
    path = tmp_path_factory.mktemp("whole")
    return train_in(path, smoke_run()), path


def same(path, record, whole):
    """Whether a run is the run never stopped, to the bit."""
    expected, never_stopped = whole
    assert weights(path) == weights(never_stopped)
    assert journal_metrics(path) == journal_metrics(never_stopped)
    assert record.metrics == expected.metrics
    differ = {"seconds", "finished"}
    left, right = (dataclasses.asdict(one) for one in (record, expected))
    assert {k: v for k, v in left.items() if k not in differ} == {
        k: v for k, v in right.items() if k not in differ
    }


# The record


def test_a_run_ends_with_a_record_that_counts_the_images(whole):
    record, path = whole
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


def test_the_record_s_errors_are_those_of_the_network_kept(whole, tmp_path):
    import safetensors.torch

    record, path = whole
    job = RunContext(smoke_run(), RunFolder(tmp_path), images_of("noise"), manifest_of("noise"))
    job.module.network.load_state_dict(safetensors.torch.load(weights(path)))
    assert job.final_metrics() == {key: v for key, v in record.metrics.items() if not key.startswith("train/")}


def test_a_validation_set_is_held_out_and_counted(tmp_path):
    record = train_in(tmp_path, smoke_run(changes={"data.val": 30, "data.train": 150}))
    assert record.metrics["val/images"] == 30
    assert record.metrics["trainset/images"] == 150
    assert "val/top1_error_pct" in dict(journal_metrics(tmp_path))[8]


# Same seed, same bits


def test_same_seed_same_bits(whole, tmp_path):
    same(tmp_path, train_in(tmp_path, smoke_run()), whole)


def test_another_seed_other_bits(whole, tmp_path):
    train_in(tmp_path, smoke_run(seed=1))
    assert weights(tmp_path) != weights(whole[1])


def test_how_often_is_evaluated_does_not_change_what_is_learned(whole, tmp_path):
    for every in (2, 6):
        train_in(tmp_path / str(every), smoke_run(changes={"train.eval_every": every}))
        assert weights(tmp_path / str(every)) == weights(whole[1])


def test_how_often_is_reported_does_not_change_what_is_learned(whole, tmp_path):
    train_in(tmp_path, smoke_run(changes={"train.log_every": 5}))
    assert weights(tmp_path) == weights(whole[1])


# Stopped and resumed


def test_stopped_at_every_step_and_resumed_is_the_run_never_stopped(whole, tmp_path):
    for step in range(1, 12):
        assert train_in(tmp_path, smoke_run(), stop=lambda: True) is None
        assert int(RunFolder(tmp_path).checkpoint_files()[0].name[5:15]) == step
    same(tmp_path, train_in(tmp_path, smoke_run(), stop=lambda: True), whole)


@pytest.mark.parametrize("steps", [(1,), (5,), (11,), (3, 4), (7, 2), (1, 1, 9)])
def test_stopped_after_some_steps_and_resumed_is_the_run_never_stopped(whole, tmp_path, steps):
    for count in steps:
        assert train_in(tmp_path, smoke_run(), stop=stop_after(count)) is None
    same(tmp_path, train_in(tmp_path, smoke_run()), whole)


def test_a_run_resumed_from_an_older_checkpoint_reports_nothing_twice(whole, tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(3))
    train_in(tmp_path, smoke_run(), stop=stop_after(6))
    newest, _ = RunFolder(tmp_path).checkpoint_files()
    newest.write_bytes(b"damaged")
    said = []
    record = train_in(tmp_path, smoke_run(), report=said.append)
    assert said == [f"checkpoint {newest.name} is damaged; using the one before"]
    same(tmp_path, record, whole)


def test_all_checkpoints_damaged_the_run_starts_anew_to_the_same_bits(whole, tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(3))
    for path in RunFolder(tmp_path).checkpoint_files():
        path.write_bytes(path.read_bytes()[:1000])
    said = []
    same(tmp_path, train_in(tmp_path, smoke_run(), report=said.append), whole)
    assert said[-1].endswith("starting from the first update")


def test_seconds_are_those_of_all_sessions(tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(6))
    [path] = RunFolder(tmp_path).checkpoint_files()
    spent = torch.load(path, weights_only=True)["callbacks"]["TrainingCallback"]["seconds"]
    begun = time.monotonic()
    record = train_in(tmp_path, smoke_run())
    assert spent < record.seconds < spent + time.monotonic() - begun


def test_how_updates_were_made_in_all_sessions_is_said_where_it_changed(tmp_path):
    batch = smoke_run().recipe.train.batch_size
    half = batch // 2
    for device_batch, steps in ((None, 3), (half, 2), (half, 2), (None, 1)):
        assert train_in(tmp_path, smoke_run(), device_batch=device_batch, stop=stop_after(steps)) is None
    record = train_in(tmp_path, smoke_run(), device_batch=half)
    assert record.ended == f"12 steps; device batches {batch}, {half}, {batch}, {half}"
    assert (record.device_batch, record.world) == (half, 1)


def test_a_checkpoint_that_does_not_say_how_updates_were_made_is_resumed(tmp_path):
    train_in(tmp_path, smoke_run(), stop=stop_after(6))
    [path] = RunFolder(tmp_path).checkpoint_files()
    held = torch.load(path, weights_only=True)
    state = held["callbacks"]["TrainingCallback"]
    held["callbacks"]["TrainingCallback"] = {"seconds": state["seconds"]}
    content = BufferedCheckpointIO()
    content.save_checkpoint(held, "")
    RunFolder(tmp_path).save_checkpoint(6, content.write)
    path.unlink()
    (said,) = RunFolder(tmp_path).checkpoint_files()
    assert set(torch.load(said, weights_only=True)["callbacks"]["TrainingCallback"]) == {"seconds"}
    assert train_in(tmp_path, smoke_run()).ended == "12 steps"


def test_a_run_begun_uncompiled_goes_on_compiled_and_back(whole, tmp_path, monkeypatch):
    """Compiled by a backend that changes nothing, so that no bit may differ."""
    compiling, compiled = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda net: compiled.append(net) or compiling(net, backend="eager"))
    run = smoke_run(changes={"train.compile": True})
    for has in (False, True, False):
        monkeypatch.setattr(context, "has_compiler", lambda has=has: has)
        assert train_in(tmp_path, run, stop=stop_after(3)) is None
    monkeypatch.setattr(context, "has_compiler", lambda: True)
    assert train_in(tmp_path, run).compiled
    assert len(compiled) == 2
    assert weights(tmp_path) == weights(whole[1])


def killed_at_random(path, seed, kills):
    """Train in processes that get `kill -9` at random moments, at last in one that does not; where each began."""
    draw = random.Random(seed)
    began = []
    for left in range(kills, -1, -1):
        if RunFolder(path).result():  # it was quicker than the last kill
            break
        process = FORKSERVER.Process(target=train_with_checkpoint_every_step, args=(path, smoke_run()))
        began.append(max((int(file.name[5:15]) for file in RunFolder(path).checkpoint_files()), default=0))
        process.start()
        if left:
            process.join(draw.uniform(0.05, 1.2))
            process.kill()
        process.join(100)
    return began


def test_killed_at_random_moments_and_resumed_is_the_run_never_stopped(whole, tmp_path):
    seed = random.randrange(10**6)
    print("random seed", seed)
    began = killed_at_random(tmp_path, seed, kills=4)
    assert began == sorted(began)
    same(tmp_path, RunFolder(tmp_path).result(), whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_many_times_and_resumed_is_the_run_never_stopped(whole, tmp_path, seed):
    killed_at_random(tmp_path, seed, kills=10)
    same(tmp_path, RunFolder(tmp_path).result(), whole)


# Not converged


def test_a_loss_that_is_not_finite_ends_the_run_with_a_record_that_names_the_step(tmp_path):
    record = train_in(tmp_path, smoke_run("plain-20", changes={"train.lr": 1e30}))
    assert record.status == "not converged"
    what, _, step = record.ended.rpartition(" at step ")
    assert what in ("the loss became nan", "the loss became inf", "the loss became -inf")
    assert 1 <= int(step) <= 3
    assert record.metrics == {}
    assert RunFolder(tmp_path).result() == record
    assert not RunFolder(tmp_path).network_file.exists()


def test_a_network_and_an_optimizer_that_do_not_fit_are_one_sentence(tmp_path):
    changes = {
        "train.optimizer": {"name": "sdlm", "mu": 0.02, "samples": 50},
        "train.loss": {"name": "map", "j": 1.0, "divided_by": 84.0},
        "train.batch_size": 1,
    }
    with pytest.raises(UserError, match=r"'sdlm' needs .*'plain_cifar' does not have; use it with 'lenet5'"):
        train_in(tmp_path, smoke_run("plain-20", changes=changes))


# Precision and compiler


def test_bf16_without_the_processor_falls_back_to_fp32_and_says_so(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(context, "has_bf16", lambda device: False)
    record = train_in(tmp_path, smoke_run(changes={"train.precision": "bf16"}))
    assert record.precision == "fp32"
    assert weights(tmp_path) == weights(whole[1])


def test_bf16_with_the_processor_is_used_and_recorded(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(context, "has_bf16", lambda device: True)
    record = train_in(tmp_path, smoke_run(changes={"train.precision": "bf16"}))
    assert record.precision == "bf16"
    assert weights(tmp_path) != weights(whole[1])


def test_without_a_compiler_nothing_is_compiled_and_the_record_says_so(tmp_path, monkeypatch, whole):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    record = train_in(tmp_path, smoke_run(changes={"train.compile": True}))
    assert not record.compiled
    assert weights(tmp_path) == weights(whole[1])


# When it reports


def test_it_reports_and_evaluates_at_the_declared_steps_only(whole):
    found = dict(journal_metrics(whole[1]))
    assert list(found) == [2, 4, 6, 8, 10, 12]
    assert [step for step, metrics in found.items() if "test/loss" in metrics] == [4, 8]  # the last: in the record
    assert all("train/loss" in metrics for metrics in found.values())


def test_it_reports_at_the_last_step_too(tmp_path):
    train_in(tmp_path, smoke_run(changes={"train.log_every": 5, "train.eval_every": 7}))
    found = dict(journal_metrics(tmp_path))
    assert list(found) == [5, 7, 10, 12]
    assert "train/loss" not in found[7]


def test_reports_unless_declared_are_200_in_a_run_and_evaluations_40(tmp_path):
    run = smoke_run(changes={"train.steps": 4000, "train.log_every": None, "train.eval_every": None})
    job = RunContext(run, RunFolder(tmp_path), images_of("noise"), manifest_of("noise"))
    assert (job.log_every, job.eval_every) == (20, 100)


def test_a_block_of_updates_ends_wherever_something_happens():
    recipe = smoke_run("lenet5", experiment=LENET).recipe.train
    assert block_size(recipe, log_every=479, eval_every=479, images=1437) == 479
    drops = recipe.lr_drops.model_copy(update={"at": (100, 958)})
    assert block_size(recipe.model_copy(update={"lr_drops": drops}), 479, 479, 1437) == 1
    assert block_size(smoke_run().recipe.train, log_every=2, eval_every=4, images=200) == 1


# ResNet-110's warm-up


def rates(monkeypatch, run, path):
    """The learning rate of every update."""
    seen = []
    original = torch.optim.SGD.step

    def step(self, *words, **more):
        loss = original(self, *words, **more)  # computes the loss first, which is when the rate is set
        seen.append(self.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train_in(path, run)
    monkeypatch.undo()
    return seen


def warmed(below):
    changes = {"train.steps": 12, "train.lr_drops": None, "train.lr": 0.05}
    return smoke_run(changes=changes | {"train.warmup": Warmup(lr=0.01, train_error_below_pct=below).model_dump()})


def test_the_warm_up_ends_when_the_training_error_is_low(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.classifier.WARMUP_WINDOW", 4)
    assert rates(monkeypatch, warmed(below=100.0), tmp_path / "a") == [0.01] * 4 + [0.05] * 8


def test_the_warm_up_goes_on_while_the_training_error_is_high(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.classifier.WARMUP_WINDOW", 4)
    assert rates(monkeypatch, warmed(below=0.001), tmp_path / "a") == [0.01] * 12


def test_the_warm_up_resumes_in_mid_window(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_modules.classifier.WARMUP_WINDOW", 4)
    train_in(tmp_path / "whole", warmed(below=100.0))
    for count in (2, 1, 2):
        assert train_in(tmp_path / "stopped", warmed(below=100.0), stop=stop_after(count)) is None
    train_in(tmp_path / "stopped", warmed(below=100.0))
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


# One pattern at a time


@pytest.mark.slow
def test_learning_one_pattern_at_a_time_ends_and_resumes_to_the_same_bits(tmp_path):
    run = smoke_run("lenet5", experiment=LENET)
    record = train_in(tmp_path / "whole", run)
    assert (record.status, record.metrics["trainset/images"]) == ("finished", 1437)
    assert [step for step, _ in journal_metrics(tmp_path / "whole")] == [479, 958, 1437]
    for _ in range(2):  # a stop is looked at between blocks of updates
        assert train_in(tmp_path / "stopped", run, stop=lambda: True) is None
    again = train_in(tmp_path / "stopped", run)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert journal_metrics(tmp_path / "stopped") == journal_metrics(tmp_path / "whole")
    assert again.metrics == record.metrics
