"""Test stored predictions: the errors of their averages are those of ensembles evaluated anew, bit for bit."""

import itertools
import math

import pytest
import torch

from pipeline.data import manifest
from pipeline.declare.protocol import parse_protocol
from pipeline.derive.context import load_network
from pipeline.derive.predictions import Predictions, count_in_float64, predict
from pipeline.train.evaluate import EnsembleMember, evaluate_samples
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from tests.support.derived_runs import load_member
from tests.support.smoke_runs import images_of

CPU = torch.device("cpu")
PAIRS = [(0, 1), (0, 2), (1, 2), (0, 1, 2)]


def loaded(images, run, **changes):
    data = run.recipe.data.model_copy(update=changes)
    return load_training_data(images, data, CPU, sha256="x", options=ReadOptions())


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=pytest.mark.slow)])  # slow where it is emulated
def test_errors_on_images_in_memory_are_those_of_the_networks_evaluated_together(runs, folders, bf16):
    data = loaded(images_of("noise"), runs[0])
    networks = [load_member(folder, run) for run, folder in zip(runs, folders, strict=True)]
    predictions = predict(networks, [data] * 3, "test", None, bf16=bf16)
    assert predictions.networks == 3
    for members in PAIRS:
        chosen = [networks[m] for m in members]
        assert predictions.errors(members) == data.ensemble_errors(chosen, [data] * len(chosen), None, bf16=bf16)


def test_validation_images_are_those_held_out(runs, folders):
    images = images_of("noise")
    data = loaded(images, runs[0], val=60)
    networks = [load_member(folder, run) for run, folder in zip(runs, folders, strict=True)]
    predictions = predict(networks, [data] * 3, "val", None, bf16=False)
    _, held_out = manifest.split_indices(images.train.labels, train_count=None, val_count=60)
    assert torch.equal(torch.cat(list(predictions.labels)), images.train.labels[held_out])
    alone = data.held_out_errors(networks[1], torch.nn.functional.cross_entropy, bf16=False)
    errors = predictions.errors([1])
    assert errors.images == 60
    assert errors.metrics("val")["val/top1_error_pct"] == alone["val/top1_error_pct"]
    assert errors.loss == pytest.approx(alone["val/loss"], rel=1e-6)


@pytest.mark.parametrize("protocol", ["1-crop-64-of-72", "10-crop-64-of-72"])
def test_errors_on_images_in_shards_are_those_of_the_networks_evaluated_together(sharded_members, protocol):
    shards, runs, folders = sharded_members
    found = manifest.manifest_of(shards)
    networks = [load_network(run, folder, found) for run, folder in zip(runs, folders, strict=True)]
    datas = [loaded(shards, runs[0]), loaded(shards, runs[1], normalise="scale")]
    predictions = predict(networks, datas, "test", protocol, bf16=False)
    assert predictions.errors([0, 1]) == datas[0].ensemble_errors(networks, datas, protocol, bf16=False)
    for number in (0, 1):
        alone = [EnsembleMember(networks[number], datas[number].normaliser)]
        assert predictions.errors([number]) == evaluate_samples(
            alone, shards.test, parse_protocol(protocol), expected=8, threads=0, bf16=False, device="cpu"
        )


def test_probabilities_are_averaged():
    """Two images, two classes: by hand."""
    probabilities = torch.tensor([[[0.9, 0.1], [0.6, 0.4]], [[0.3, 0.7], [0.2, 0.8]]], dtype=torch.float64)
    labels = torch.tensor([1, 0])
    # In batches of one image.
    stored = Predictions(list(probabilities.log().split(1, dim=1)), list(labels.split(1)), count_in_float64, CPU)
    both = stored.errors([0, 1])  # 0.6 and 0.4 for class 0 of the images: both are wrong
    assert (both.images, both.wrong1, both.wrong5) == (2, 2, 0)
    assert both.loss == pytest.approx(-(math.log(0.4) + math.log(0.4)) / 2)
    wrong = [stored.errors([network]).wrong1 for network in (0, 1)]
    assert wrong == [1, 1]
    assert all(stored.errors(order) == both for order in itertools.permutations([0, 1]))
