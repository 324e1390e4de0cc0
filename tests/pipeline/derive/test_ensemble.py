"""Test ensembles and further test protocols against the averaged predictions of their networks."""

import math

import pytest
import torch
import torch.nn.functional as F

from pipeline.common.hashing import digest
from pipeline.data import manifest
from pipeline.data.jpeg import decode
from pipeline.declare.derived import EnsembleSpec, ProtocolSpec
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from pipeline.declare.protocol import parse_protocol
from pipeline.derive.context import load_network
from pipeline.plan.expand import plan_runs
from pipeline.report.derived_text import derived_text
from pipeline.track.run_folder import RunFolder
from pipeline.train.evaluate import AveragedNetworks, EnsembleMember, evaluate_samples
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from tests.support.declarations import WITH_CROP
from tests.support.derived_runs import ENSEMBLE, derived_of, load_member, make_in, scores_of
from tests.support.pillow_protocols import Way, probabilities
from tests.support.smoke_runs import images_of, smoke_run, train_in


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


# --- a protocol for each member ------------------------------------------------------------------------------


def by_member(protocols, runs):
    """Ensemble of two variants with one network each."""
    members = dict.fromkeys(protocols, 1)
    return derived_of(EnsembleSpec(kind="ensemble", members=members, member_test=protocols), runs)


def test_equal_protocols_of_all_members_give_the_errors_of_this_protocol(sharded_members, tmp_path):
    shards, runs, folders = sharded_members
    for name in ("1-crop-64-of-72", "10-crop-64-of-72"):
        spec = EnsembleSpec(kind="ensemble", members={"a": 1, "b": 1}, test=(name,))
        one = make_in(tmp_path / name, derived_of(spec, runs), folders, images=shards).metrics
        found = make_in(tmp_path / f"{name}-each", by_member({"a": name, "b": name}, runs), folders, images=shards)
        for error in ("top1_error_pct", "top5_error_pct", "images"):
            assert found.metrics[f"test/by-member/{error}"] == one[f"test/{name}/{error}"]
        assert found.metrics["test/loss"] == pytest.approx(one["test/loss"], rel=1e-9)
        assert found.ended == "2 networks averaged, each by its own test protocol"


def test_each_network_is_evaluated_by_the_protocol_of_its_member(sharded_members, tmp_path):
    """Against the average of both networks' probabilities, each from the slow second implementation."""
    shards, runs, folders = sharded_members
    ways = {"12-crop-32-of-40": [Way("twelve", 32, (40,))], "dense-of-48": [Way("dense", None, (48,))]}
    protocols = dict(zip("ab", ways, strict=True))
    record = make_in(tmp_path, by_member(protocols, runs), folders, images=shards)
    data = load_training_data(shards, runs[0].recipe.data, torch.device("cpu"), sha256="x", options=ReadOptions())
    mean = data.normaliser.shift.numpy()
    images_manifest = manifest.manifest_of(shards)
    networks = [
        load_network(run, folder, images_manifest).eval() for run, folder in zip(runs, folders, strict=True)
    ]
    losses = []
    for number in range(len(shards.test)):
        pixels = decode(shards.test.read([number])[0], "test")
        each = [
            probabilities([(network, mean)], pixels, way)
            for network, way in zip(networks, ways.values(), strict=True)
        ]
        losses.append(-math.log(sum(each)[int(shards.test.labels[number])] / 2))
    assert record.metrics["test/by-member/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    swapped = by_member(dict(zip(protocols, reversed(protocols.values()), strict=True)), runs)
    other = make_in(tmp_path / "swapped", swapped, folders, images=shards)
    assert other.metrics["test/loss"] != pytest.approx(record.metrics["test/loss"], rel=1e-4)
    assert swapped.declaration != by_member(protocols, runs).declaration


def test_names_of_members_are_not_part_of_a_declaration(sharded_members):
    _, runs, _ = sharded_members
    names = "1-crop-64-of-72", "10-crop-64-of-72"
    first, second = (by_member(dict(zip(keys, names, strict=True)), runs) for keys in (("a", "b"), ("c", "d")))
    assert first.declaration == second.declaration


MEMBER_TEST = {
    "both": ("test: [dense-of-384], member_test: {plain-20: dense-of-256}", "give either 'test', for all members"),
    "too few": ("member_test: {plain-20: dense-of-256}", "should have the same names; plain-32 is only in one"),
    "too many": (
        "member_test: {plain-20: dense-of-256, plain-32: dense-of-256, resnet-20: dense-of-256}",
        "should have the same names; resnet-20 is only in one",
    ),
    "protocol": ("member_test: {plain-20: dense, plain-32: dense-of-256}", "unknown test protocol 'dense'"),
}


@pytest.mark.parametrize(("test", "words"), MEMBER_TEST.values(), ids=MEMBER_TEST.keys())
def test_wrong_protocols_of_members_are_errors(declare, test, words):
    text = f"derived:\n  two: {{kind: ensemble, members: {{plain-20: 1, plain-32: 1}}, {test}}}\nscales:\n"
    with pytest.raises(DeclarationError, match=words):
        declare(*WITH_CROP, "scales:\n", text)


def test_members_with_their_own_protocols_are_measured_by_member(declare):
    test = "member_test: {plain-20: dense-of-256, plain-32: dense-of-384}"
    text = f"derived:\n  two: {{kind: ensemble, members: {{plain-20: 1, plain-32: 1}}, {test}}}\nscales:\n"
    declared = declare(*WITH_CROP, "scales:\n", text)
    assert declared.protocols("two", "paper") == ("by-member",)
    assert "test/by-member/top1_error_pct" in metric_names(declared, "two", named=True)
    assert derived_text(declared.derived["two"]) == (
        "average of plain-20 + plain-32; plain-20 tested with dense-of-256, plain-32 tested with dense-of-384"
    )
    with pytest.raises(DeclarationError, match="test protocols need runs whose data has a 'crop'"):
        declare("scales:\n", text)


# --- averaged weights ----------------------------------------------------------------------------------------


def averaged(count):
    return EnsembleSpec(kind="ensemble", members={"resnet-20": count}, weights="average")


def test_ensemble_of_averaged_weights_has_their_errors(tmp_path):
    """An ensemble of equal networks has the errors that the run measured for its averaged weights."""
    run = smoke_run(changes={"train.average": {"decay": 0.5, "since": 4}})
    record = train_in(tmp_path / "run", run)
    derived = derived_of(averaged(2), [run, run])
    errors = make_in(tmp_path / "ensemble", derived, [RunFolder(tmp_path / "run")] * 2).metrics
    assert errors["test/top1_error_pct"] == record.metrics["average/test/top1_error_pct"]
    assert errors["test/loss"] == pytest.approx(record.metrics["average/test/loss"], rel=1e-5)
    assert errors["test/loss"] != pytest.approx(record.metrics["test/loss"], rel=1e-3)


def test_averaged_weights_need_an_average(declare):
    derived = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}, weights: average}\nscales:\n"
    with pytest.raises(DeclarationError, match=r"derived.two.weights .at paper scale.: plain-20 keeps no average"):
        declare("scales:\n", derived)


def test_last_weights_are_not_part_of_the_hash_of_a_derived_run(runs):
    """Recorded derived runs were declared without the key."""
    last = EnsembleSpec(kind="ensemble", members={"resnet-20": 3}, weights="last")
    members = [run.declaration for run in runs]
    expected = digest({"step": {"kind": "ensemble", "test": []}, "members": members})
    assert derived_of(last, runs).declaration == expected
    assert derived_of(averaged(3), runs).declaration != expected
