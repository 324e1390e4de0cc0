"""Test the file of a compressed network: what it stores, that it decodes exactly, and its counted bytes."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lightning_modules.networks import build
from pipeline.derive.compressed_file import (
    compress,
    decompress,
    encode_layer,
    quantised_bytes,
    read_layers,
    size_breakdown,
    with_fillers,
)
from pipeline.derive.quantise import (
    LayerSettings,
    SharedLayer,
    compressible_layers,
    prune,
    share_layer,
    share_weights,
)


def network_weights():
    """Return a ResNet-20 and its state dict."""
    torch.manual_seed(0)
    network = build("resnet_cifar", {"depth": 20, "shortcut": "A"}, num_classes=10, in_channels=3)
    return network, network.state_dict()


def shared(flat, bits):
    """Return a flat layer, quantised."""
    return share_layer(torch.from_numpy(flat), LayerSettings("conv", 1.0, bits, 8))


def compressed(weights, kinds, *, density, conv_bits, fc_bits):
    """Return the file of a state dict, without training."""
    settings = {
        name: LayerSettings(kind, density, *((conv_bits, 8) if kind == "conv" else (fc_bits, 5)))
        for name, kind in kinds.items()
    }
    layers = {name: share_layer(prune(weights[name], density), layer) for name, layer in settings.items()}
    return compress(weights, layers, settings)


def quantise(weights, kinds, density, bits):
    """Return the pruned state dict with each kept weight replaced by its shared value, without coding."""
    result = {}
    for name, value in weights.items():
        if name not in kinds:
            result[name] = value
            continue
        flat = prune(value, density).numpy().ravel()
        kept = np.flatnonzero(flat)
        gaps = np.diff(kept, prepend=-1)
        largest = {"conv": 256, "fc": 32}[kinds[name]]
        centres, numbers = share_weights(flat[kept], 2**bits - bool((gaps > largest).any()))
        flat = np.zeros_like(flat)
        flat[kept] = centres[numbers]
        result[name] = torch.from_numpy(flat.reshape(value.shape))
    return result


@pytest.mark.parametrize(("density", "bits"), [(1.0, 4), (0.33, 8), (0.01, 1)])
def test_decoding_gives_exactly_the_quantised_network(density, bits):
    network, weights = network_weights()
    kinds = compressible_layers(network)
    decoded = decompress(compressed(weights, kinds, density=density, conv_bits=bits, fc_bits=bits))
    expected = quantise(weights, kinds, density, bits)
    assert decoded.keys() == weights.keys()
    for name, value in expected.items():
        assert decoded[name].dtype == value.dtype
        assert torch.equal(decoded[name], value), name
    network.load_state_dict(decoded)


def test_layers_have_at_most_as_many_values_as_their_bits_allow():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Linear(64, 64))
    content = compressed(network.state_dict(), compressible_layers(network), density=0.9, conv_bits=3, fc_bits=2)
    decoded = decompress(content)
    assert [len(decoded[name][decoded[name] != 0].unique()) for name in ("0.weight", "1.weight")] == [8, 4]


def test_zeros_are_stored_across_gaps_longer_than_the_maximum():
    flat = np.zeros(1000, np.float32)
    flat[[0, 1, 600, 999]] = [1.0, -1.0, 2.0, 3.0]
    parts = encode_layer(shared(flat, bits=8), max_gap=256)
    # Distances are 1, 1, 599 = 256 + 256 + 87, and 399 = 256 + 143: four weights and three zeros.
    assert int.from_bytes(parts["number"], "little") == 7
    assert np.frombuffer(parts["codebook"], "<f4").tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]


def test_gap_of_the_maximum_needs_no_zero():
    flat = np.zeros(257, np.float32)
    flat[[0, 256]] = 1.0
    assert int.from_bytes(encode_layer(shared(flat, bits=1), max_gap=256)["number"], "little") == 2


def test_layer_of_zeros_is_decoded_to_zeros():
    zero = {"weight": torch.zeros(4, 5)}
    assert torch.equal(
        decompress(compressed(zero, {"weight": "fc"}, density=0.5, conv_bits=1, fc_bits=1))["weight"],
        zero["weight"],
    )


def test_every_byte_is_counted():
    network, weights = network_weights()
    content = compressed(weights, compressible_layers(network), density=0.33, conv_bits=8, fc_bits=5)
    found = size_breakdown(content)
    parts = ("codebook", "table", "indices", "positions", "other", "header")
    assert sum(found[f"{part}_bytes"] for part in parts) == found["bytes"] == len(content)
    expected = sum(value.numel() * value.element_size() for value in weights.values())
    assert found["original_bytes"] == expected
    assert found["other_bytes"] == sum(
        value.numel() * value.element_size()
        for name, value in weights.items()
        if name not in compressible_layers(network)
    )
    for entry, parts_of_layer in read_layers(content):
        assert entry["name"] in weights
        if entry["kind"]:
            assert len(parts_of_layer["codebook"]) <= 4 * 256


def test_a_third_of_the_weights_at_8_bits_is_4_to_12_times_smaller():
    """8 of 32 bits for a third of the weights is a twelfth; positions take about as much again."""
    network, weights = network_weights()
    content = compressed(weights, compressible_layers(network), density=0.33, conv_bits=8, fc_bits=8)
    assert 4 < size_breakdown(content)["original_bytes"] / len(content) < 12


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"ZIP!" + content[4:], "not a compressed network"),
        (lambda content: content + b"x", r"has \d+ bytes, expected"),
        (lambda content: content[:-1], r"has \d+ bytes, expected"),
    ],
)
def test_damaged_file_is_refused(damage, message):
    content = compressed({"weight": torch.randn(9, 9)}, {"weight": "fc"}, density=0.5, conv_bits=2, fc_bits=2)
    with pytest.raises(ValueError, match=message):
        decompress(damage(content))


def test_same_network_gives_the_same_bytes():
    network, weights = network_weights()
    files = [
        compressed(weights, compressible_layers(network), density=0.5, conv_bits=4, fc_bits=4) for _ in range(2)
    ]
    assert files[0] == files[1]
    json.loads(files[0][8 : 8 + int.from_bytes(files[0][4:8], "little")])  # the header is JSON


def slow_indices(positions, numbers, zero, max_gap):
    """Return (index, distance) of each stored weight, one position of the layer after the other."""
    stored, distance = [], 0
    values = dict(zip(positions, numbers, strict=True))
    for place in range(max(positions) + 1):
        distance += 1
        if place in values:
            stored.append((values[place], distance))
            distance = 0
        elif distance == max_gap:  # Figure 2: a filler zero where the distance exceeds the largest number
            stored.append((zero, distance))
            distance = 0
    return stored


@pytest.mark.parametrize("max_gap", [8, 32, 256])
def test_relative_indices_are_those_of_a_walk_along_the_layer(max_gap):
    draws = np.random.default_rng(max_gap)
    positions = np.flatnonzero(draws.random(3000) < 0.02)
    values = np.array([-2.0, -0.5, 0.25, 1.0], np.float32)
    layer = SharedLayer((3000,), positions, values, draws.integers(0, 4, len(positions)))
    stored_values, indices, distances = with_fillers(layer, max_gap)
    zero = 2 if len(stored_values) == 5 else None  # between -0.5 and 0.25
    numbers = [number + (zero is not None and number >= zero) for number in layer.indices.tolist()]
    assert list(zip(indices.tolist(), distances.tolist(), strict=True)) == slow_indices(
        positions.tolist(), numbers, zero, max_gap
    )
    assert distances.max() <= max_gap
    if zero is not None:
        assert stored_values.tolist() == [-2.0, -0.5, 0.0, 0.25, 1.0]


def test_figure_2_of_the_paper():
    """With distances of 3 bits, a span of 11 is a filler zero after 8, then a distance of 3."""
    layer = SharedLayer((16,), np.array([1, 4, 15]), np.array([0.9, 1.7, 3.4], np.float32), np.array([2, 0, 1]))
    values, indices, distances = with_fillers(layer, 8)
    assert distances.tolist() == [2, 3, 8, 3]
    assert values[indices].tolist() == pytest.approx([3.4, 0.9, 0.0, 1.7])


def test_values_that_training_moved_past_each_other_or_to_zero_are_decoded_exactly():
    positions, numbers = np.array([3, 70, 71, 200]), np.array([0, 1, 2, 3])
    layer = SharedLayer((20, 20), positions, np.array([1.5, 0.0, -3.0, 1.5], np.float32), numbers)
    settings = {"fc.weight": LayerSettings("fc", 0.01, 3, 5)}
    decoded = decompress(compress({"fc.weight": layer.weights()}, {"fc.weight": layer}, settings))["fc.weight"]
    expected = torch.zeros(400)
    expected[torch.from_numpy(positions)] = torch.tensor([1.5, 0.0, -3.0, 1.5])
    assert torch.equal(decoded, expected.view(20, 20))


def test_size_without_huffman_coding_is_that_of_codes_of_fixed_length():
    """13 weights: a codebook of 4 values, and 2 + 5 bits for each weight."""
    flat = torch.zeros(10, 13)
    flat[:, 0] = torch.arange(1.0, 11.0)
    flat[0, :4] = torch.tensor([9.0, 9.0, 9.0, 9.0])
    settings = {"a": LayerSettings("fc", 0.1, 2, 5)}
    layers = {"a": share_layer(flat, settings["a"])}
    content = compress({"a": flat, "b": torch.ones(3)}, layers, settings)
    header = size_breakdown(content)["header_bytes"]
    assert quantised_bytes(content, settings) == header + 4 * 4 + -(-13 * (2 + 5) // 8) + 4 * 3
