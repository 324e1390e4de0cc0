"""Test the context of a run: intervals, precision, compiler, final metrics."""

import pytest
import safetensors.torch

from pipeline.common.errors import UserError
from pipeline.track.run_folder import RunFolder
from pipeline.train import context
from pipeline.train.context import RunContext, block_size
from tests.support.smoke_runs import LENET, images_of, manifest_of, smoke_run, train_in, weights


def test_recorded_errors_are_those_of_the_saved_network(uninterrupted, tmp_path):
    record, path = uninterrupted
    run_context = RunContext(smoke_run(), RunFolder(tmp_path), images_of("noise"), manifest_of("noise"))
    run_context.module.network.load_state_dict(safetensors.torch.load(weights(path)))
    assert run_context.final_metrics() == {
        key: v for key, v in record.metrics.items() if not key.startswith("train/")
    }


def test_network_that_does_not_fit_the_optimizer_is_a_user_error(tmp_path):
    changes = {
        "train.optimizer": {"name": "sdlm", "mu": 0.02, "samples": 50},
        "train.loss": {"name": "map", "j": 1.0, "divided_by": 84.0},
        "train.batch_size": 1,
    }
    with pytest.raises(UserError, match=r"'sdlm' needs .*'plain_cifar' does not have; use it with 'lenet5'"):
        train_in(tmp_path, smoke_run("plain-20", changes=changes))


# --- precision and compiler ----------------------------------------------------------------------------------


def test_bf16_falls_back_to_fp32_if_the_processor_lacks_it(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setattr(context, "has_bf16", lambda device: False)
    record = train_in(tmp_path, smoke_run(changes={"train.precision": "bf16"}))
    assert record.precision == "fp32"
    assert weights(tmp_path) == weights(uninterrupted[1])


def test_bf16_is_used_and_recorded_if_the_processor_has_it(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setattr(context, "has_bf16", lambda device: True)
    changes = {"train.precision": "bf16", "train.steps": 2, "train.lr_drops.at": [1]}  # slow where it is emulated
    record = train_in(tmp_path, smoke_run(changes=changes))
    assert record.precision == "bf16"
    assert weights(tmp_path) != weights(uninterrupted[1])


def test_missing_compiler_is_recorded_and_changes_no_bit(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    record = train_in(tmp_path, smoke_run(changes={"train.compile": True}))
    assert not record.compiled
    assert weights(tmp_path) == weights(uninterrupted[1])


# --- intervals -----------------------------------------------------------------------------------------------


def test_default_intervals_give_200_reports_and_40_evaluations(tmp_path):
    run = smoke_run(changes={"train.steps": 4000, "train.log_every": None, "train.eval_every": None})
    run_context = RunContext(run, RunFolder(tmp_path), images_of("noise"), manifest_of("noise"))
    assert (run_context.log_every, run_context.eval_every) == (20, 100)


def test_block_ends_at_each_report_evaluation_pass_and_drop():
    recipe = smoke_run("lenet5", experiment=LENET).recipe.train
    assert block_size(recipe, log_every=479, eval_every=479, images=1437) == 479
    drops = recipe.lr_drops.model_copy(update={"at": (100, 958)})
    assert block_size(recipe.model_copy(update={"lr_drops": drops}), 479, 479, 1437) == 1
    assert block_size(smoke_run().recipe.train, log_every=2, eval_every=4, images=200) == 1
