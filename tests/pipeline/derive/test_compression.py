"""Deep Compression: what is kept, what is shared, and that a file gives back exactly what it means."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_modules.networks import build
from pipeline.derive.compression import (
    MAX_GAP,
    code_lengths,
    coded_layer,
    compress,
    decompress,
    huffman_decode,
    huffman_encode,
    layers_of,
    prune,
    pruned,
    read_layers,
    share_weights,
    size_breakdown,
)


def network_weights():
    torch.manual_seed(0)
    network = build("resnet_cifar", {"depth": 20, "shortcut": "A"}, num_classes=10, in_channels=3)
    return network, network.state_dict()


# --- pruning -----------------------------------------------------------------------------------------------


def test_the_largest_magnitudes_stay():
    values = torch.tensor([[0.1, -0.5, 0.2], [0.4, -0.3, 0.05]])
    expected = torch.tensor([[0.0, -0.5, 0.0], [0.4, -0.3, 0.0]])
    assert torch.equal(prune(values, 0.5), expected)  # three of six


@pytest.mark.parametrize(("density", "kept"), [(1.0, 100), (0.333, 33), (0.005, 1), (0.25, 25)])
def test_as_many_stay_as_the_density_says(density, kept):
    assert int((prune(torch.arange(1.0, 101.0).view(10, 10), density) != 0).sum()) == kept


def test_each_layer_is_pruned_by_itself_and_the_rest_stays():
    network, weights = network_weights()
    kinds = layers_of(network)
    result = pruned(weights, kinds, 0.25)
    assert set(kinds) == {name for name in weights if name.endswith("weight") and weights[name].dim() > 1}
    for name, value in weights.items():
        if name in kinds:
            assert int((result[name] != 0).sum()) == round(0.25 * value.numel()), name
        else:
            assert torch.equal(result[name], value), name


def test_fixed_codes_are_no_layer():
    """LeNet-5's last layer compares with bitmaps, which nobody learnt."""
    network = build("lenet5", {}, num_classes=10, in_channels=1)
    kinds = layers_of(network)
    assert not any("codes" in name for name in kinds)
    assert {kinds[name] for name in kinds} == {"conv", "fc"}


# --- sharing -----------------------------------------------------------------------------------------------


def test_weights_around_two_values_share_these():
    values = np.array([0.9, 1.0, 1.1, -2.1, -2.0, -1.9], np.float32)
    centres, numbers = share_weights(values, 2)
    assert centres == pytest.approx([-2.0, 1.0])
    assert numbers.tolist() == [1, 1, 1, 0, 0, 0]


def lloyd(values, centres):
    """k-means as everybody writes it: two steps until nothing moves."""
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
def test_it_is_k_means_from_evenly_spaced_values(bits):
    values = np.random.default_rng(bits).normal(size=200)
    centres, numbers = share_weights(values, 2**bits)
    expected = lloyd(values.tolist(), np.linspace(values.min(), values.max(), 2**bits).tolist())
    assert centres == pytest.approx(expected, abs=1e-6)
    nearest = np.abs(values[:, None] - centres[None]).argmin(1)
    assert (nearest == numbers).mean() > 0.99  # but for what lies in the middle of two, rounded


def test_no_more_values_than_there_are_weights():
    centres, numbers = share_weights(np.array([3.0, 3.0, 5.0]), 256)
    assert (centres.tolist(), numbers.tolist()) == ([3.0, 5.0], [0, 0, 1])


# --- Huffman -----------------------------------------------------------------------------------------------


def test_code_lengths_are_those_of_the_textbook():
    """CLRS, figure 16.3: a to f come 45, 13, 12, 16, 9 and 5 times, and take 1, 3, 3, 3, 4 and 4 bits: 224."""
    counts = np.array([45, 13, 12, 16, 9, 5])
    lengths = code_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    assert int((lengths * counts).sum()) == 224


def test_a_symbol_alone_takes_a_bit_each_time():
    assert code_lengths(np.array([0, 7, 0])).tolist() == [0, 1, 0]
    assert len(huffman_encode(np.ones(9, np.int64), code_lengths(np.array([0, 9])))) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=400))
def test_a_stream_gives_back_its_symbols(values):
    stream = np.array(values)
    lengths = code_lengths(np.bincount(stream))
    content = huffman_encode(stream, lengths)
    assert huffman_decode(content, lengths, len(stream)).tolist() == values
    bits = sum(int(lengths[symbol]) * n for symbol, n in Counter(values).items())
    assert len(content) == -(-bits // 8)
    entropy = -sum(n * math.log2(n / len(values)) for n in Counter(values).values())
    assert bits <= entropy + len(values)  # within a bit a symbol of what is possible


def test_a_long_stream_is_decoded_in_pieces(monkeypatch):
    monkeypatch.setattr("pipeline.derive.compression.OFFSETS", 13)
    stream = np.random.default_rng(0).geometric(0.3, 5000)  # some codes are longer than a piece
    lengths = code_lengths(np.bincount(stream))
    assert lengths.max() > 8
    assert np.array_equal(huffman_decode(huffman_encode(stream, lengths), lengths, len(stream)), stream)


def test_a_stream_that_was_cut_is_noticed():
    stream = np.random.default_rng(0).integers(0, 9, 500)
    lengths = code_lengths(np.bincount(stream))
    with pytest.raises(ValueError, match=r"a stream of 500 symbols ends after \d+"):
        huffman_decode(huffman_encode(stream, lengths)[:-20], lengths, 500)


# --- the file ----------------------------------------------------------------------------------------------


def meant(weights, kinds, density, bits):
    """The quantised network, found without any file: pruned, and each kept weight its nearest shared value."""
    result = {}
    for name, value in weights.items():
        if name not in kinds:
            result[name] = value
            continue
        flat = prune(value, density).numpy().ravel()
        kept = np.flatnonzero(flat)
        gaps = np.diff(kept, prepend=-1)
        centres, numbers = share_weights(flat[kept], 2**bits - bool((gaps > MAX_GAP[kinds[name]]).any()))
        flat = np.zeros_like(flat)
        flat[kept] = centres[numbers]
        result[name] = torch.from_numpy(flat.reshape(value.shape))
    return result


@pytest.mark.parametrize(("density", "bits"), [(1.0, 4), (0.33, 8), (0.01, 1)])
def test_decoding_gives_exactly_the_quantised_network(density, bits):
    network, weights = network_weights()
    kinds = layers_of(network)
    decoded = decompress(compress(weights, kinds, density=density, conv_bits=bits, fc_bits=bits))
    expected = meant(weights, kinds, density, bits)
    assert decoded.keys() == weights.keys()
    for name, value in expected.items():
        assert decoded[name].dtype == value.dtype
        assert torch.equal(decoded[name], value), name
    network.load_state_dict(decoded)


def test_layers_have_at_most_as_many_values_as_their_bits_allow():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Linear(64, 64))
    content = compress(network.state_dict(), layers_of(network), density=0.9, conv_bits=3, fc_bits=2)
    decoded = decompress(content)
    assert [len(decoded[name][decoded[name] != 0].unique()) for name in ("0.weight", "1.weight")] == [8, 4]


def test_where_weights_are_far_apart_zeros_are_put_between():
    flat = np.zeros(1000, np.float32)
    flat[[0, 1, 600, 999]] = [1.0, -1.0, 2.0, 3.0]
    parts = coded_layer(flat, bits=8, farthest=256)
    # distances 1, 1, then 599 = 256 + 256 + 87, and 399 = 256 + 143: four weights and three zeros
    assert int.from_bytes(parts["number"], "little") == 7
    assert np.frombuffer(parts["codebook"], "<f4").tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]


def test_a_distance_as_long_as_allowed_needs_no_zero():
    flat = np.zeros(257, np.float32)
    flat[[0, 256]] = 1.0
    assert int.from_bytes(coded_layer(flat, bits=1, farthest=256)["number"], "little") == 2


def test_a_layer_of_zeros_stays_one():
    zero = {"weight": torch.zeros(4, 5)}
    assert torch.equal(
        decompress(compress(zero, {"weight": "fc"}, density=0.5, conv_bits=1, fc_bits=1))["weight"], zero["weight"]
    )


def test_every_byte_is_counted():
    network, weights = network_weights()
    content = compress(weights, layers_of(network), density=0.33, conv_bits=8, fc_bits=5)
    found = size_breakdown(content)
    parts = ("codebook", "table", "indices", "positions", "other", "header")
    assert sum(found[f"{part}_bytes"] for part in parts) == found["bytes"] == len(content)
    numbers = sum(value.numel() * value.element_size() for value in weights.values())
    assert found["original_bytes"] == numbers
    assert found["other_bytes"] == sum(
        value.numel() * value.element_size() for name, value in weights.items() if name not in layers_of(network)
    )
    for entry, held in read_layers(content):
        assert entry["name"] in weights
        if entry["kind"]:
            assert len(held["codebook"]) <= 4 * 256


def test_a_third_of_the_weights_at_8_bits_take_less_than_a_sixth():
    """8 bits of 32 for a third of them is a twelfth; positions take about as much (SqueezeNet: 4.8 to 0.66 MB)."""
    network, weights = network_weights()
    content = compress(weights, layers_of(network), density=0.33, conv_bits=8, fc_bits=8)
    assert 4 < size_breakdown(content)["original_bytes"] / len(content) < 12


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"ZIP!" + content[4:], "no compressed network"),
        (lambda content: content + b"x", "bytes has"),
        (lambda content: content[:-1], "bytes has"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(damage, words):
    content = compress({"weight": torch.randn(9, 9)}, {"weight": "fc"}, density=0.5, conv_bits=2, fc_bits=2)
    with pytest.raises(ValueError, match=words):
        decompress(damage(content))


def test_the_same_network_gives_the_same_bytes():
    network, weights = network_weights()
    same = [compress(weights, layers_of(network), density=0.5, conv_bits=4, fc_bits=4) for _ in range(2)]
    assert same[0] == same[1]
    json.loads(same[0][8 : 8 + int.from_bytes(same[0][4:8], "little")])  # the header is for anybody to read
