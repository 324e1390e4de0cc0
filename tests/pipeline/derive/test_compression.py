"""Test Deep Compression: pruning, weight sharing, Huffman coding, and that a file decodes exactly."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_modules.networks import build
from pipeline.data import manifest
from pipeline.declare.derived import CompressionSpec
from pipeline.declare.load import load_experiment
from pipeline.derive.compression import (
    MAX_GAP,
    code_lengths,
    compress,
    compressible_layers,
    decompress,
    encode_layer,
    huffman_decode,
    huffman_encode,
    prune,
    prune_layers,
    read_layers,
    share_weights,
    size_breakdown,
)
from pipeline.derive.run import COMPRESSED_FILE
from tests.support.derived_runs import derived_of, fake_run_folder, load_member, make_in, scores_of
from tests.support.smoke_runs import LENET, images_of, smoke_run


def network_weights():
    """Return a ResNet-20 and its state dict."""
    torch.manual_seed(0)
    network = build("resnet_cifar", {"depth": 20, "shortcut": "A"}, num_classes=10, in_channels=3)
    return network, network.state_dict()


# --- pruning -------------------------------------------------------------------------------------------------


def test_weights_of_largest_magnitude_are_kept():
    values = torch.tensor([[0.1, -0.5, 0.2], [0.4, -0.3, 0.05]])
    expected = torch.tensor([[0.0, -0.5, 0.0], [0.4, -0.3, 0.0]])
    assert torch.equal(prune(values, 0.5), expected)  # three of six


@pytest.mark.parametrize(("density", "kept"), [(1.0, 100), (0.333, 33), (0.005, 1), (0.25, 25)])
def test_density_is_the_fraction_of_kept_weights(density, kept):
    assert int((prune(torch.arange(1.0, 101.0).view(10, 10), density) != 0).sum()) == kept


def test_each_layer_is_pruned_separately_and_other_tensors_are_kept():
    network, weights = network_weights()
    kinds = compressible_layers(network)
    result = prune_layers(weights, kinds, 0.25)
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


# --- Huffman coding ------------------------------------------------------------------------------------------


def test_code_lengths_equal_a_textbook_example():
    """CLRS, figure 16.3: a to f occur 45, 13, 12, 16, 9 and 5 times and take 1, 3, 3, 3, 4 and 4 bits: 224."""
    counts = np.array([45, 13, 12, 16, 9, 5])
    lengths = code_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    assert int((lengths * counts).sum()) == 224


def test_single_symbol_takes_one_bit():
    assert code_lengths(np.array([0, 7, 0])).tolist() == [0, 1, 0]
    assert len(huffman_encode(np.ones(9, np.int64), code_lengths(np.array([0, 9])))) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=400))
def test_stream_is_decoded_to_its_symbols(values):
    stream = np.array(values)
    lengths = code_lengths(np.bincount(stream))
    content = huffman_encode(stream, lengths)
    assert huffman_decode(content, lengths, len(stream)).tolist() == values
    bits = sum(int(lengths[symbol]) * n for symbol, n in Counter(values).items())
    assert len(content) == -(-bits // 8)
    entropy = -sum(n * math.log2(n / len(values)) for n in Counter(values).values())
    assert bits <= entropy + len(values)  # Huffman coding is within one bit per symbol of the entropy


def test_stream_longer_than_the_window_is_decoded(monkeypatch):
    monkeypatch.setattr("pipeline.derive.compression.DECODER_WINDOW", 13)
    stream = np.random.default_rng(0).geometric(0.3, 5000)  # some symbols extend over two windows
    lengths = code_lengths(np.bincount(stream))
    assert lengths.max() > 8
    assert np.array_equal(huffman_decode(huffman_encode(stream, lengths), lengths, len(stream)), stream)


def test_truncated_stream_is_refused():
    stream = np.random.default_rng(0).integers(0, 9, 500)
    lengths = code_lengths(np.bincount(stream))
    with pytest.raises(ValueError, match=r"a stream of 500 symbols ends after \d+"):
        huffman_decode(huffman_encode(stream, lengths)[:-20], lengths, 500)


# --- file ----------------------------------------------------------------------------------------------------


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
        centres, numbers = share_weights(flat[kept], 2**bits - bool((gaps > MAX_GAP[kinds[name]]).any()))
        flat = np.zeros_like(flat)
        flat[kept] = centres[numbers]
        result[name] = torch.from_numpy(flat.reshape(value.shape))
    return result


@pytest.mark.parametrize(("density", "bits"), [(1.0, 4), (0.33, 8), (0.01, 1)])
def test_decoding_gives_exactly_the_quantised_network(density, bits):
    network, weights = network_weights()
    kinds = compressible_layers(network)
    decoded = decompress(compress(weights, kinds, density=density, conv_bits=bits, fc_bits=bits))
    expected = quantise(weights, kinds, density, bits)
    assert decoded.keys() == weights.keys()
    for name, value in expected.items():
        assert decoded[name].dtype == value.dtype
        assert torch.equal(decoded[name], value), name
    network.load_state_dict(decoded)


def test_layers_have_at_most_as_many_values_as_their_bits_allow():
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Linear(64, 64))
    content = compress(network.state_dict(), compressible_layers(network), density=0.9, conv_bits=3, fc_bits=2)
    decoded = decompress(content)
    assert [len(decoded[name][decoded[name] != 0].unique()) for name in ("0.weight", "1.weight")] == [8, 4]


def test_zeros_are_stored_across_gaps_longer_than_the_maximum():
    flat = np.zeros(1000, np.float32)
    flat[[0, 1, 600, 999]] = [1.0, -1.0, 2.0, 3.0]
    parts = encode_layer(flat, bits=8, max_gap=256)
    # Distances are 1, 1, 599 = 256 + 256 + 87, and 399 = 256 + 143: four weights and three zeros.
    assert int.from_bytes(parts["number"], "little") == 7
    assert np.frombuffer(parts["codebook"], "<f4").tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]


def test_gap_of_the_maximum_needs_no_zero():
    flat = np.zeros(257, np.float32)
    flat[[0, 256]] = 1.0
    assert int.from_bytes(encode_layer(flat, bits=1, max_gap=256)["number"], "little") == 2


def test_layer_of_zeros_is_decoded_to_zeros():
    zero = {"weight": torch.zeros(4, 5)}
    assert torch.equal(
        decompress(compress(zero, {"weight": "fc"}, density=0.5, conv_bits=1, fc_bits=1))["weight"], zero["weight"]
    )


def test_every_byte_is_counted():
    network, weights = network_weights()
    content = compress(weights, compressible_layers(network), density=0.33, conv_bits=8, fc_bits=5)
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
    content = compress(weights, compressible_layers(network), density=0.33, conv_bits=8, fc_bits=8)
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
    content = compress({"weight": torch.randn(9, 9)}, {"weight": "fc"}, density=0.5, conv_bits=2, fc_bits=2)
    with pytest.raises(ValueError, match=message):
        decompress(damage(content))


def test_same_network_gives_the_same_bytes():
    network, weights = network_weights()
    files = [
        compress(weights, compressible_layers(network), density=0.5, conv_bits=4, fc_bits=4) for _ in range(2)
    ]
    assert files[0] == files[1]
    json.loads(files[0][8 : 8 + int.from_bytes(files[0][4:8], "little")])  # the header is JSON


# --- derived runs --------------------------------------------------------------------------------------------


def test_errors_after_compression_are_those_of_the_decoded_file(runs, folders, tmp_path):
    derived = derived_of(
        CompressionSpec(kind="compression", of="resnet-20", density=0.3, conv_bits=4, fc_bits=3), runs[:1]
    )
    record = make_in(tmp_path, derived, folders[:1])
    content = (tmp_path / COMPRESSED_FILE).read_bytes()
    decoded = load_member(folders[0], runs[0])
    decoded.load_state_dict(decompress(content))
    images = images_of("noise")
    [scores] = scores_of([decoded], images.test, images.train)
    assert record.metrics["test/loss"] == pytest.approx(
        float(F.cross_entropy(scores, images.test.labels)), rel=1e-4
    )
    assert record.metrics["original/loss"] == folders[0].result().metrics["test/loss"]
    assert len({record.metrics[f"{stage}/loss"] for stage in ("original", "pruned", "test")}) == 3
    assert record.metrics["compressed/bytes"] == len(content)
    ratio = record.metrics["compressed/original_bytes"] / len(content)
    assert record.metrics["compressed/ratio"] == ratio > 6
    assert record.ended == f"compressed {ratio:.1f} times"


def test_compressed_lenet_5_keeps_its_fixed_codes(runs, folders, tmp_path):
    run, images = smoke_run("lenet5", experiment=LENET), images_of("digits")
    torch.manual_seed(0)
    network = build("lenet5", {}, num_classes=10, in_channels=1)
    folder = fake_run_folder(tmp_path / "run", network, folders[0].result(), manifest.manifest_of(images))
    derived = derived_of(load_experiment(LENET).derived_spec("lenet5-compressed", "smoke"), [run])
    record = make_in(tmp_path / "derived", derived, [folder], images=images)
    decoded = decompress((tmp_path / "derived" / COMPRESSED_FILE).read_bytes())
    before = network.state_dict()
    [codes] = [name for name in before if name.endswith("codes")]
    assert torch.equal(decoded[codes], before[codes])
    assert int((decoded["f6.weight"] != 0).sum()) == 120 * 84 / 2
    assert record.metrics["compressed/ratio"] > 4
    assert set(record.metrics) == set(load_experiment(LENET).measured("lenet5-compressed", named=True))
    assert record.metrics["test/images"] == 360
