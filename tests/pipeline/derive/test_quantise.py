"""Test pruning and weight sharing, and which settings a layer has."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.networks import build
from pipeline.declare.derived import CompressionSpec
from pipeline.derive.quantise import (
    LayerSettings,
    compressible_layers,
    layer_settings,
    prune,
    prune_layers,
    share_layer,
    share_weights,
)


def spec_of(**settings):
    """Return a compression of a quarter of the weights with 8 and 5 bits, with these settings."""
    settings = {"density": 0.25, "conv_bits": 8, "fc_bits": 5} | settings
    return CompressionSpec(kind="compression", of="a", **settings)


# --- settings by layer ---------------------------------------------------------------------------------------

KINDS = {"conv1.weight": "conv", "block.conv2.weight": "conv", "block.fc.weight": "fc", "fc1.weight": "fc"}


def test_bits_are_those_of_the_kind_of_layer():
    found = layer_settings(spec_of(conv_index_bits=4), KINDS)
    assert found["conv1.weight"] == LayerSettings("conv", 0.25, 8, 4)
    assert found["fc1.weight"] == LayerSettings("fc", 0.25, 5, 5)
    assert (found["conv1.weight"].max_gap, found["fc1.weight"].max_gap) == (16, 32)


def test_a_layer_and_all_layers_of_a_module_can_have_their_own_settings():
    spec = spec_of(density={"conv1": 0.66, "block": 0.12, "block.fc": 0.08, "fc1": 0.19}, bits={"block": 3})
    found = layer_settings(spec, KINDS)
    assert [layer.density for layer in found.values()] == [0.66, 0.12, 0.08, 0.19]
    assert [layer.bits for layer in found.values()] == [8, 3, 3, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": {"block": 0.1, "fc1": 0.1}}, "density should name every layer with weights; missing: conv1"),
        ({"bits": {"fc2": 3}}, "bits: no layer with weights has the name 'fc2'; did you mean 'fc1'"),
        ({"bits": {"bloc": 3}}, "bits: no layer with weights has the name 'bloc'"),
    ],
)
def test_layers_that_the_network_does_not_have_are_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        layer_settings(spec_of(**settings), KINDS)


# --- pruning -------------------------------------------------------------------------------------------------


def test_weights_of_largest_magnitude_are_kept():
    values = torch.tensor([[0.1, -0.5, 0.2], [0.4, -0.3, 0.05]])
    expected = torch.tensor([[0.0, -0.5, 0.0], [0.4, -0.3, 0.0]])
    assert torch.equal(prune(values, 0.5), expected)  # three of six


@pytest.mark.parametrize(("density", "kept"), [(1.0, 100), (0.333, 33), (0.005, 1), (0.25, 25)])
def test_density_is_the_fraction_of_kept_weights(density, kept):
    assert int((prune(torch.arange(1.0, 101.0).view(10, 10), density) != 0).sum()) == kept


def test_each_layer_is_pruned_separately_and_other_tensors_are_kept():
    network = build("resnet_cifar", {"depth": 20, "shortcut": "A"}, num_classes=10, in_channels=3)
    weights, kinds = network.state_dict(), compressible_layers(network)
    result = prune_layers(weights, dict.fromkeys(kinds, 0.25))
    assert set(kinds) == {name for name in weights if name.endswith("weight") and weights[name].dim() > 1}
    for name, value in weights.items():
        if name in kinds:
            assert int((result[name] != 0).sum()) == round(0.25 * value.numel()), name
        else:
            assert torch.equal(result[name], value), name


def test_fixed_codes_are_not_compressed():
    """LeNet-5's last layer compares with fixed bitmaps."""
    network = build("lenet5", {}, num_classes=10, in_channels=1)
    kinds = compressible_layers(network)
    assert not any("codes" in name for name in kinds)
    assert set(kinds.values()) == {"conv", "fc"}


# --- weight sharing ------------------------------------------------------------------------------------------


def test_weights_around_two_values_share_their_means():
    values = np.array([0.9, 1.0, 1.1, -2.1, -2.0, -1.9], np.float32)
    centres, numbers = share_weights(values, 2)
    assert centres == pytest.approx([-2.0, 1.0])
    assert numbers.tolist() == [1, 1, 1, 0, 0, 0]


def lloyd(values, centres):
    """Return the centres of textbook k-means: assign and average until the centres are stable."""
    while True:
        nearest = [min(range(len(centres)), key=lambda i: abs(v - centres[i])) for v in values]
        moved = [
            math.fsum(v for v, n in zip(values, nearest, strict=True) if n == i) / count if count else centre
            for i, centre in enumerate(centres)
            for count in [nearest.count(i)]
        ]
        if np.allclose(moved, centres, rtol=0, atol=1e-12):
            return moved
        centres = moved


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_shared_values_are_those_of_k_means_from_evenly_spaced_values(bits):
    values = np.random.default_rng(bits).normal(size=200)
    centres, numbers = share_weights(values, 2**bits)
    expected = lloyd(values.tolist(), np.linspace(values.min(), values.max(), 2**bits).tolist())
    assert centres == pytest.approx(expected, abs=1e-6)
    nearest = np.abs(values[:, None] - centres[None]).argmin(1)
    assert (nearest == numbers).mean() > 0.99  # values in the middle of two centres may round to either


def test_equal_weights_share_one_value():
    centres, numbers = share_weights(np.array([3.0, 3.0, 5.0]), 256)
    assert (centres.tolist(), numbers.tolist()) == ([3.0, 5.0], [0, 0, 1])


@pytest.mark.parametrize(("index_bits", "most"), [(8, 4), (5, 3)])
def test_a_layer_with_large_gaps_leaves_one_value_for_the_zeros_across_them(index_bits, most):
    flat = torch.zeros(200)
    flat[::40] = torch.arange(1.0, 6.0)  # distances of 40: above 2^5, below 2^8
    layer = share_layer(flat.view(10, 20), LayerSettings("fc", 1.0, 2, index_bits))
    assert (layer.shape, len(layer.values)) == ((10, 20), most)
    assert layer.positions.tolist() == [0, 40, 80, 120, 160]


def test_a_shared_layer_has_each_kept_weight_s_shared_value():
    torch.manual_seed(0)
    pruned = prune(nn.Linear(9, 7).weight.detach(), 0.4)
    layer = share_layer(pruned, LayerSettings("fc", 0.4, 2, 5))
    weights = layer.weights()
    assert weights.shape == pruned.shape
    assert torch.equal(weights != 0, pruned != 0)
    kept = pruned[pruned != 0]
    assert weights[pruned != 0].tolist() == [layer.values[number] for number in layer.indices]
    assert sorted(set(weights[pruned != 0].tolist())) == layer.values.tolist()
    assert float((weights[pruned != 0] - kept).abs().max()) < float(kept.max() - kept.min()) / 3
