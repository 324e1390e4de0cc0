"""Test counts of networks against the papers' tables and against arithmetic by hand."""

import pytest
import torch

from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.measure import measure_claim
from pipeline.analyse.network import NetworkAnalysis
from pipeline.declare.load import load_experiment
from tests.support.branched_network import Branches

# arXiv:1512.03385, Table 6 prints 0.27, 0.46, 0.66, 0.85, 1.7 and 19.4 million; exact from section 4.2:
# convolutions without bias, batch-norm's scale and shift, fc with bias.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}


@pytest.fixture(scope="module")
def depth():
    """Return the declaration of resnet/cifar10_depth."""
    return load_experiment("resnet/cifar10_depth")


@pytest.fixture(scope="module")
def resnet_20():
    """Return the analysis of ResNet-20."""
    return NetworkAnalysis(resnet_cifar(depth=20), (3, 32, 32))


@pytest.mark.parametrize(("layers", "count"), PARAMETERS.items())
def test_parameters(depth, layers, count):
    assert measure_claim("model/parameters", depth, f"resnet-{layers}") == count


@pytest.mark.parametrize("layers", [20, 56])
def test_plain_networks_have_as_many_parameters(depth, layers):
    assert measure_claim("model/parameters", depth, f"plain-{layers}") == PARAMETERS[layers]


def multiply_adds_by_hand(layers):
    """Return the sum over section 4.2's table: inputs x outputs x 9 x output size; stacks start with stride 2."""
    n = (layers - 2) // 6
    total = 3 * 16 * 9 * 32 * 32
    channels = 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        total += channels * width * 9 * side * side + (2 * n - 1) * width * width * 9 * side * side
        channels = width
    return total + 64 * 10


@pytest.mark.parametrize("layers", [20, 56, 110])
def test_multiply_adds(depth, layers):
    assert measure_claim("model/multiply_adds", depth, f"resnet-{layers}") == multiply_adds_by_hand(layers)


def test_multiply_adds_of_resnet_20_are_41_million():
    assert multiply_adds_by_hand(20) == 442_368 + 14_155_776 + 2 * (1_179_648 + 11_796_480) + 640 == 40_551_040


@pytest.mark.parametrize("layers", [20, 56, 110])
def test_depth_is_6n_plus_2(depth, layers):
    assert measure_claim("model/depth", depth, f"resnet-{layers}") == layers


def test_projection_shortcuts_do_not_count_as_depth():
    assert NetworkAnalysis(resnet_cifar(depth=20, shortcut="C"), (3, 32, 32)).measure("depth") == 20


def test_every_convolution_of_resnet_20_is_batch_normalised(resnet_20):
    assert resnet_20.measure("batchnorms_per_convolution") == 1
    assert resnet_20.measure("count/Conv2d") == 19
    assert resnet_20.measure("count/Linear") == 1
    assert resnet_20.measure("count/Dropout") == 0


def test_init_gain_of_he_initialisation_is_2(depth):
    # the variance of n normal draws has a relative standard error of sqrt(2 / n), n the convolutions' weights
    weights = PARAMETERS[56] - 650 - 2 * (16 * 19 + 32 * 18 + 64 * 18)
    assert measure_claim("model/init_gain", depth, "resnet-56") == pytest.approx(
        2, abs=4 * 2 * (2 / weights) ** 0.5
    )


def test_init_gain_of_another_initialisation_differs():
    network = resnet_cifar(depth=20)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    assert NetworkAnalysis(network, (3, 32, 32)).measure("init_gain") == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("conv1", [16, 32, 32]),
        ("map32", [16, 32, 32]),
        ("map16", [32, 16, 16]),
        ("map16.0", [32, 16, 16]),
        ("map8", [64, 8, 8]),
        ("fc", [10]),
    ],
)
def test_layer_outputs(resnet_20, layer, shape):
    assert resnet_20.measure(f"layer/{layer}/output") == shape


def test_layer_counts(resnet_20):
    assert resnet_20.measure("layer/conv1/parameters") == 3 * 16 * 9
    assert resnet_20.measure("layer/map32/convolutions") == 6
    assert resnet_20.measure("layer/map32.0/convolutions") == 2
    assert resnet_20.measure("layer/fc/connections") == 650
    assert resnet_20.measure("layer/conv1/connections") == 3 * 16 * 9 * 1024
    assert resnet_20.measure("layer/pool/connections") == 0


def test_connections_are_multiply_adds_plus_biases(resnet_20):
    assert resnet_20.measure("connections") == multiply_adds_by_hand(20) + 10


# --- fields, paths, sums of a network small enough to count by hand ----------------------------------------


@pytest.fixture(scope="module")
def branches():
    """Return the analysis of Branches on the meta device."""
    with torch.device("meta"):
        network = Branches()
    return NetworkAnalysis(network, (3, 32, 32), Branches)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("layer/stem/receptive_field", 5),
        ("layer/pool/receptive_field", 5 + 2 * 2),
        ("layer/left/receptive_field", 9 + 2 * 4),
        ("layer/deep.0/receptive_field", 9),
        ("layer/deep/receptive_field", 9 + 4 * 4),  # dilated: as wide as 5
        ("layer/last/receptive_field", 25 + 2 * 8),  # stride 4 became stride 8
        ("layer/mean/receptive_field", 41 + 3 * 8),  # over all 4 x 4
        ("longest_path", 5),  # stem, two of deep, last, fc
        ("additions", 1),
        ("parameters", 304 + 144 + 20 + 148 + 584 + 90 + 6),
        ("weights", 300 + 144 + 16 + 144 + 576 + 80 + 4),
        ("layer/deep/weights", 16 + 144),
        ("multiply_adds", 300 * 256 + 144 * 64 + 16 * 64 + 144 * 64 + 576 * 16 + 80),
        ("layer/deep/multiply_adds", 160 * 64),
        ("layer/left+deep/multiply_adds", 304 * 64),
        ("layer/left+deep+fc/parameters", 144 + 168 + 90),
        ("layer/unused/multiply_adds", 0),
        ("layer/unused/activations", 0),
        ("activations", 4 * 256 + 3 * 4 * 64 + 8 * 16 + 10),
        ("memory_values", 3 * 1024 + 4 * 256 + 4 * 64 + 3 * 4 * 64 + 8 * 16 + 8 + 10),
        ("input", [3, 32, 32]),
        ("layer/stem/kernel_size", [5, 5]),
        ("layer/deep.1/dilation", [2, 2]),
        ("layer/fc/out_features", 10),
        ("own/side", 32),
        ("own/name", "branches"),
        ("own/rates", [1, 2]),
        ("count/Linear", 2),
    ],
)
def test_counts_of_branches(branches, metric, value):
    assert branches.measure(metric) == value


def test_initial_weights_follow_the_initialisation(branches):
    torch.manual_seed(0)
    bound = (3 * 25) ** -0.5  # torch's default initialisation: uniform in +-1/sqrt(fan-in)
    assert branches.measure("layer/stem/init_std") == pytest.approx(bound / 3**0.5, rel=0.1)
    assert abs(branches.measure("layer/stem/init_mean")) < 0.02
    assert abs(branches.measure("layer/stem/init_bias")) < bound


def test_counts_of_parameters_need_no_forward_pass(monkeypatch):
    calls = []
    monkeypatch.setattr("pipeline.analyse.network.trace_forward", lambda *args: calls.append(args))
    analysis = NetworkAnalysis(resnet_cifar(depth=8), (3, 32, 32))
    assert analysis.measure("depth") == 8
    assert analysis.measure("parameters") == analysis.measure("layer/conv1+bn1+map32+map16+map8+fc/parameters")
    assert calls == []


def test_initial_weights_are_built_once(monkeypatch):
    built = []
    analysis = NetworkAnalysis(
        resnet_cifar(depth=8), (3, 32, 32), lambda: built.append(1) or resnet_cifar(depth=8)
    )
    for metric in ("init_gain", "layer/conv1/init_std", "layer/fc/init_bias"):
        analysis.measure(metric)
    assert built == [1]
