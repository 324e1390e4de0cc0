"""Test ensembles and further test protocols against the averaged predictions of their networks."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.data import manifest
from pipeline.declare.derived import EnsembleSpec, ProtocolSpec
from pipeline.declare.load import load_experiment
from pipeline.declare.protocol import parse_protocol
from pipeline.derive.context import load_network
from pipeline.plan.expand import plan_runs
from pipeline.train.evaluate import AveragedNetworks, EnsembleMember, evaluate_samples
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from tests.support.derived_runs import ENSEMBLE, derived_of, load_member, make_in, scores_of
from tests.support.smoke_runs import images_of


def test_ensemble_averages_softmax_outputs(runs, folders, tmp_path):
    record = make_in(tmp_path, derived_of(ENSEMBLE, runs), folders)
    images = images_of("noise")
    networks = [load_member(folder, run) for run, folder in zip(runs, folders, strict=True)]
    mean = scores_of(networks, images.test, images.train).softmax(2).mean(0)
    assert record.metrics["test/loss"] == pytest.approx(
        float(F.nll_loss(mean.log(), images.test.labels)), rel=1e-4
    )
    wrong = int((mean.argmax(1) != images.test.labels).sum())
    assert record.metrics["test/top1_error_pct"] == 100 * wrong / 100
    assert record.metrics["test/images"] == 100
    assert record.ended == "3 networks averaged"


def test_ensemble_of_equal_networks_has_their_errors(runs, folders, tmp_path):
    record = make_in(tmp_path, derived_of(ENSEMBLE, [runs[1]] * 3), [folders[1]] * 3)
    single = folders[1].result().metrics
    for metric in ("test/top1_error_pct", "test/top5_error_pct"):
        assert record.metrics[metric] == single[metric]
    assert record.metrics["test/loss"] == pytest.approx(single["test/loss"], rel=1e-5)


def test_probabilities_are_averaged_not_scores():
    class ConstantScores(torch.nn.Module):
        def __init__(self, *scores):
            super().__init__()
            self.scores = torch.tensor([scores])

        def forward(self, x):
            return self.scores.expand(len(x), -1)

    # One network gives class 0 a probability near 1; two with larger scores prefer class 1 slightly.
    average = AveragedNetworks(
        [ConstantScores(0.0, -9.0), ConstantScores(10.0, 10.5), ConstantScores(10.0, 10.5)]
    )(torch.zeros(1, 1))
    half = 1 / (1 + math.exp(-0.5))
    expected = (1 / (1 + math.exp(-9)) + 2 * (1 - half)) / 3
    assert float(average.exp()[0, 0]) == pytest.approx(expected)
    assert float(average.exp().sum()) == pytest.approx(1)


def test_run_is_evaluated_by_further_protocols(sharded_members, tmp_path):
    shards, runs, folders = sharded_members
    derived = derived_of(
        ProtocolSpec(kind="protocol", of="resnet-18-a", test=("10-crop-64-of-72", "1-crop-64-of-72")), runs[:1]
    )
    record = make_in(tmp_path, derived, folders[:1], images=shards)
    before = folders[0].result().metrics
    assert record.metrics["test/1-crop-64-of-72/loss"] == pytest.approx(before["test/loss"], rel=1e-5)
    assert record.metrics["test/10-crop-64-of-72/loss"] != record.metrics["test/1-crop-64-of-72/loss"]
    assert record.metrics["test/loss"] == record.metrics["test/10-crop-64-of-72/loss"]
    assert record.metrics["test/10-crop-64-of-72/images"] == 8
    assert record.ended == "evaluated by 2 more protocols"


def test_ensemble_on_images_in_shards_is_evaluated_by_the_protocol_of_its_members(sharded_members, tmp_path):
    shards, runs, folders = sharded_members
    derived = derived_of(EnsembleSpec(kind="ensemble", members={"resnet-18-a": 2}), runs)
    record = make_in(tmp_path, derived, folders, images=shards)
    losses = [folder.result().metrics["test/loss"] for folder in folders]
    assert losses[0] != losses[1]
    assert record.metrics["test/1-crop-64-of-72/loss"] < sum(losses) / 2  # Jensen's inequality
    same = make_in(tmp_path / "same", derived, folders[:1] * 2, images=shards)
    assert same.metrics["test/loss"] == pytest.approx(losses[0], rel=1e-5)


def test_each_network_of_an_ensemble_gets_images_normalised_as_in_its_training(
    sharded_members, sharded_changes, tmp_path
):
    shards, runs, folders = sharded_members
    changes = sharded_changes | {"data.normalise": "scale"}
    other, *_ = plan_runs(load_experiment("resnet/imagenet"), scale="stand-in", seeds=1, changes=changes)
    derived = derived_of(EnsembleSpec(kind="ensemble", members={"resnet-18-a": 2}), [runs[0], other])
    record = make_in(tmp_path, derived, folders[:1] * 2, images=shards)
    images_manifest = manifest.manifest_of(shards)
    network = load_network(runs[0], folders[0], images_manifest)
    normalisers = [
        load_training_data(
            shards, run.recipe.data, torch.device("cpu"), sha256="x", options=ReadOptions()
        ).normaliser
        for run in (runs[0], other)
    ]
    assert [normaliser.name for normaliser in normalisers] == ["per-pixel-mean", "scale"]
    expected = evaluate_samples(
        [EnsembleMember(network, normaliser) for normaliser in normalisers],
        shards.test,
        parse_protocol("1-crop-64-of-72"),
        expected=8,
        threads=0,
        bf16=False,
        device="cpu",
    )
    assert record.metrics["test/loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert record.metrics["test/loss"] != pytest.approx(folders[0].result().metrics["test/loss"], rel=1e-3)
