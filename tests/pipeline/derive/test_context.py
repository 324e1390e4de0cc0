"""Test the context of derived runs: its members must be finished, and errors are measured once."""

from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.data import manifest
from pipeline.declare.derived import CompressionSpec
from pipeline.derive.context import load_network
from pipeline.track.run_folder import RunFolder
from pipeline.train.evaluate import ErrorCounts
from tests.support.derived_runs import ENSEMBLE, copy_record, derived_of, make_in, scores_of
from tests.support.smoke_runs import images_of


def test_member_that_has_not_ended_is_a_user_error(runs, folders, tmp_path):
    with pytest.raises(UserError, match="needs resnet-20 seed 1, which has not ended on this machine"):
        make_in(tmp_path, derived_of(ENSEMBLE, runs), [folders[0], RunFolder(tmp_path / "missing"), folders[2]])
    assert not (tmp_path / "result.json").exists()


def test_member_that_did_not_converge_is_a_user_error(runs, folders, tmp_path):
    damaged = copy_record(
        folders[0], tmp_path / "damaged", status="not converged", ended="the loss became nan at step 3", metrics={}
    )
    with pytest.raises(UserError, match="needs resnet-20 seed 0, which did not converge: the loss became nan at"):
        make_in(tmp_path, derived_of(ENSEMBLE, runs), [damaged, *folders[1:]])


def test_missing_network_file_is_a_user_error(runs, folders, tmp_path):
    without_network = copy_record(folders[0], tmp_path / "without_network")
    with pytest.raises(UserError, match=r"the model of resnet-20 seed 0 is not at .*trained on another machine"):
        make_in(tmp_path, derived_of(ENSEMBLE, runs), [without_network, *folders[1:]])


def test_damaged_network_file_is_a_user_error(runs, folders, tmp_path):
    damaged = copy_record(folders[0], tmp_path / "damaged")
    damaged.network_file.write_bytes(folders[0].network_file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot read .*network\.safetensors .*move its folder away"):
        make_in(tmp_path, derived_of(ENSEMBLE, runs), [damaged, *folders[1:]])


def test_changed_images_are_a_user_error(runs, folders, tmp_path):
    other = replace(images_of("noise"), classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match="noise: the images changed since resnet-20 seed 0 was trained"):
        make_in(tmp_path, derived_of(ENSEMBLE, runs), folders, images=other)


def test_loaded_network_is_the_trained_one(runs, folders):
    loaded = load_network(runs[0], folders[0], manifest.manifest_of(images_of("noise")))
    images = images_of("noise")
    [scores] = scores_of([loaded.eval()], images.test, images.train)
    wrong = int((scores.argmax(1) != images.test.labels).sum())
    assert folders[0].result().metrics["test/top1_error_pct"] == wrong


def test_resumed_derived_run_measures_only_the_remaining_errors(runs, folders, tmp_path, monkeypatch):
    derived = derived_of(
        CompressionSpec(kind="compression", of="resnet-20", density=0.5, conv_bits=4, fc_bits=4), runs[:1]
    )
    stops = iter([False, True])
    assert make_in(tmp_path, derived, folders[:1], stop=lambda: next(stops)) is None
    whole = make_in(tmp_path / "whole", derived, folders[:1])
    evaluations = []
    monkeypatch.setattr(
        "pipeline.train.in_memory.evaluate_batches",
        lambda *_, **__: evaluations.append(1) or ErrorCounts(100, 7, 3, 0.5),
    )
    resumed = make_in(tmp_path, derived, folders[:1])
    assert len(evaluations) == 3  # pruned, shared and coded; the errors of the original network are cached
    assert resumed.metrics["original/loss"] == whole.metrics["original/loss"]
    assert resumed.metrics["test/top1_error_pct"] == 7.0
