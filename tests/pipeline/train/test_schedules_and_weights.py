"""Plateau schedules, averaged weights, limited filters, clipped gradients, selection by validation error.

Each run is compared with a plain loop, resumes to the same bits, and is the same on two ranks.
"""

import pytest
import safetensors.torch
import torch

from lightning_modules.recipe import plateau_drops
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import make_runs
from pipeline.track.run_folder import RunFolder
from pipeline.train.context import RunContext
from tests.support.sharded_runs import train_sharded
from tests.support.smoke_runs import (
    images_of,
    journal_metrics,
    manifest_of,
    smoke_run,
    stop_after,
    train_in,
    train_past_a_damaged_checkpoint,
    weights,
    with_network,
)

PLATEAU = {"watch": "val", "factor": 0.5, "patience": 1, "max_drops": 2}
ALL = {  # of 12 steps in batches of 20
    "data.val": 40,
    "train.lr_drops": None,
    "train.lr": 0.005,  # at 0.05 rounding errors grow tenfold every few steps
    "train.eval_every": 2,
    "train.plateau": PLATEAU,
    "train.average": {"decay": 0.8, "since": 3, "batch_norm": True},
    "train.filter_rms_limit": 0.2,
    "train.clip_norm": 0.5,
    "train.select": "val",
    "train.optimizer.rate_in_velocity": True,
}
FILES = ("network.safetensors", "average.safetensors")


def content(path):
    """Bytes of both files of weights, and the metrics of journal and record."""
    return [(path / name).read_bytes() for name in FILES], journal_metrics(path), RunFolder(path).result().metrics


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    record = train_in(path, smoke_run(changes=ALL))
    return path, record


def plain_loop(run, folder):
    """Train `run` step by step, without Lightning, journal or resuming. Return last, best and averaged weights."""
    context = RunContext(run, RunFolder(folder), images_of(run.recipe.data.name), manifest_of("noise"))
    network, recipe = context.module.network, run.recipe.train
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(w) for w in parameters]
    lr, lowest, waited, drops = recipe.lr, 101.0, 0, 0
    best, average, errors = {}, {}, {}
    for batch in context.feed(0):
        network.train()
        loss = torch.nn.functional.cross_entropy(network(batch.images), batch.labels)
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for v, w, gradient in zip(velocity, parameters, gradients, strict=True):
                clipped = gradient * min(1.0, recipe.clip_norm / (float(norm) + 1e-6))
                v.mul_(recipe.optimizer.momentum).sub_(lr * (clipped + recipe.optimizer.weight_decay * w))
                w.add_(v)
            for module in network.modules():
                if isinstance(module, torch.nn.Conv2d):
                    for one in module.weight:
                        rms = float((one**2).mean() ** 0.5)
                        one.mul_(min(1.0, recipe.filter_rms_limit / rms))
        done = batch.step + 1
        state = {name: value.clone() for name, value in network.state_dict().items()}
        if done == recipe.average.since:
            average = {name: value.clone() for name, value in state.items()}
        elif done > recipe.average.since:
            decay = recipe.average.decay
            for name, value in average.items():
                value.copy_(decay * value + (1 - decay) * state[name])
        if done % recipe.eval_every == 0:
            error = context.held_out_errors()["val/top1_error_pct"]
            errors[done] = error
            if error < lowest:
                lowest, waited, best = error, 0, state
            else:
                waited += 1
            if waited == recipe.plateau.patience and drops < recipe.plateau.max_drops and done < recipe.steps:
                lr, waited, drops = lr * recipe.plateau.factor, 0, drops + 1
    return best, average, errors, drops


def test_run_agrees_with_a_plain_loop(whole, tmp_path):
    path, record = whole
    best, average, errors, drops = plain_loop(smoke_run(changes=ALL), tmp_path)
    for name, expected in zip(FILES, (best, average), strict=True):
        found = safetensors.torch.load_file(path / name)
        for key, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-5)
    reported = {
        step: found["val/top1_error_pct"] for step, found in journal_metrics(path) if "val/top1_error_pct" in found
    }
    assert reported == errors
    assert record.metrics["train/lr_drops"] == drops > 0


def test_record_and_journal_tell_when_the_rate_fell(whole):
    path, record = whole
    entries = dict(journal_metrics(path))
    errors = {step: found["val/top1_error_pct"] for step, found in entries.items() if "val/images" in found}
    steps = plateau_drops(errors, 1, 2)
    assert [record.metrics[f"train/lr_drop_{number}_step"] for number in (1, 2)] == steps
    for step in (2, 4, 6, 8, 10):
        assert entries[step]["train/lr"] == pytest.approx(0.005 * 0.5 ** sum(step >= at for at in steps))


def test_judged_network_is_the_one_with_the_lowest_validation_error(whole):
    path, record = whole
    errors = {
        step: found["val/top1_error_pct"] for step, found in journal_metrics(path) if "val/top1_error_pct" in found
    }
    assert record.metrics["val/top1_error_pct"] == min(errors.values())
    step = min(errors, key=errors.get)
    assert record.ended == f"12 steps; judged: step {step} (validation error {errors[step]:.4g} %)"
    assert list(errors) == [2, 4, 6, 8, 10, 12]  # the last network is a candidate too


def test_averaged_weights_have_their_own_metrics(whole):
    metrics = whole[1].metrics
    assert metrics["average/test/images"] == metrics["test/images"] == 100
    assert metrics["average/test/loss"] != metrics["test/loss"]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_stopped_run_ends_with_the_same_bits(whole, tmp_path, every):
    run = smoke_run(changes=ALL)
    while train_in(tmp_path, run, stop=stop_after(every)) is None:
        pass
    assert content(tmp_path) == content(whole[0])


def test_run_resumed_from_an_older_checkpoint_ends_with_the_same_bits(whole, tmp_path):
    """The journal then has evaluations of later steps than the checkpoint."""
    assert train_past_a_damaged_checkpoint(tmp_path, smoke_run(changes=ALL), (5, 2))
    assert content(tmp_path) == content(whole[0])


def test_rmsprop_of_tensorflow_and_smoothed_labels_resume_with_the_same_bits(tmp_path):
    """From a checkpoint that holds the mean squares and velocities; the smoothing changes the training."""
    rmsprop = {"name": "rmsprop", "form": "tensorflow", "alpha": 0.9, "eps": 1.0, "momentum": 0.9}
    recipe = {"train.optimizer": rmsprop, "train.eval_every": 12}
    recipe["train.loss"] = {"name": "cross-entropy", "smoothing": 0.1}
    run = smoke_run(changes=recipe)
    train_in(tmp_path / "whole", run)
    while train_in(tmp_path / "stopped", run, stop=stop_after(5)) is None:
        pass
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    train_in(tmp_path / "plain", smoke_run(changes=recipe | {"train.loss": {"name": "cross-entropy"}}))
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")


def test_two_ranks_agree_with_one(whole, tmp_path, two_ranks):
    run = with_network("lenet5_modern", ALL | {"data.pad_to": 32})  # without batch normalisation
    train_in(tmp_path / "one", run, device_batch=10)
    first, second = two_ranks.run(train_in, tmp_path / "two", run)
    assert first.metrics == second.metrics
    for name in FILES:
        one, two = (safetensors.torch.load_file(tmp_path / folder / name) for folder in ("one", "two"))
        for key, value in one.items():
            if value.is_floating_point():
                torch.testing.assert_close(two[key], value, rtol=1e-4, atol=2e-5)


def test_two_ranks_resume_with_the_same_bits(tmp_path, two_ranks):
    run = smoke_run(changes=ALL)
    two_ranks.run(train_in, tmp_path / "whole", run)
    for _ in range(3):
        two_ranks.run(train_and_stop, tmp_path / "stopped", run, 4)
    two_ranks.run(train_in, tmp_path / "stopped", run)
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


def train_and_stop(path, run, steps):
    return train_in(path, run, stop=stop_after(steps))


@pytest.mark.slow  # compiling takes half a minute
def test_compiled_run_learns_alike(whole, tmp_path):
    record = train_in(tmp_path, smoke_run(changes=ALL | {"train.compile": True}))
    assert record.metrics["average/test/loss"] == pytest.approx(whole[1].metrics["average/test/loss"], rel=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.average": {"decay": 0.8}},
        {"train.filter_rms_limit": 0.2},
        {"train.clip_norm": 0.1},
        {
            "train.lr_drops": None,
            "train.plateau": PLATEAU | {"watch": "test", "patience": 1},
            "train.eval_every": 1,
        },
        {"train.optimizer.rate_in_velocity": True},
    ],
)
def test_each_setting_alone(uninterrupted, tmp_path, changes):
    record = train_in(tmp_path, smoke_run(changes=changes))
    changes_training = "train.average" not in changes
    assert (weights(tmp_path) != weights(uninterrupted[1])) == changes_training
    assert record.status == "finished"


# --- images in shards: a checkpoint precedes each evaluation -------------------------------------------------

SHARDED = {
    "train.eval_every": 2,
    "train.plateau": {"watch": "test", "factor": 0.5, "patience": 1, "max_drops": 2},
    "train.average": {"since": 4},
    "train.select": "val",
    "data.test": ["1-crop-32-of-36"],
}


@pytest.fixture(scope="module")
def sharded(sharded_experiment):
    return make_runs(load_experiment(str(sharded_experiment)), "paper", "resnet-18", [0], SHARDED)[0]


@pytest.fixture(scope="module")
def whole_sharded(sharded, data_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole_sharded")
    assert train_sharded(path, sharded, data_root)
    return path


@pytest.mark.parametrize("moment", [8, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (3, 14, 20))])
def test_run_on_shards_stopped_at_any_moment_ends_with_the_same_bits(
    whole_sharded, sharded, data_root, tmp_path, moment
):
    """Also in an evaluation, before its errors are in the journal."""
    while train_sharded(tmp_path, sharded, data_root, stop=stop_after(moment)) is None:
        moment += 5
    assert content(tmp_path) == content(whole_sharded)
    assert RunFolder(tmp_path).result().metrics["train/lr_drops"] > 0
