"""LeNet-300-100 and Caffe's LeNet-5 against the tables of arXiv:1506.02626 and arXiv:1510.00149."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.deep_compression import lenet5_caffe, lenet_300_100
from pipeline.analyse.network import NetworkAnalysis
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

# Layer: output, printed thousands of weights, printed thousands of operations (arXiv:1506.02626, Tables 3 and 4).
TABLE_3 = {"fc1": ((300,), 235, 470), "fc2": ((100,), 30, 60), "fc3": ((10,), 1, 2)}
TABLE_4 = {
    "conv1": ((20, 24, 24), 0.5, 576),
    "conv2": ((50, 8, 8), 25, 3200),
    "fc1": ((500,), 400, 800),
    "fc2": ((10,), 5, 10),
}
NETWORKS = {lenet_300_100: TABLE_3, lenet5_caffe: TABLE_4}
ROWS = [(build, layer, *row) for build, table in NETWORKS.items() for layer, row in table.items()]


@pytest.mark.parametrize(("build", "layer", "shape", "weights", "operations"), ROWS)
def test_layer_has_the_printed_weights_and_operations(build, layer, shape, weights, operations):
    network = on_meta(build)
    analysis = NetworkAnalysis(network, (1, 28, 28))
    half_digit = 50 if weights < 1 else 500
    assert output_shapes(network, (1, 28, 28))[layer] == shape
    assert analysis.measure(f"layer/{layer}/weights") == pytest.approx(1000 * weights, abs=half_digit)
    assert 2 * analysis.measure(f"layer/{layer}/multiply_adds") == pytest.approx(1000 * operations, abs=500)


@pytest.mark.parametrize("build", NETWORKS)
def test_layers_with_weights_are_those_of_the_table(build):
    layers = [name for name, m in on_meta(build).named_children() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert layers == list(NETWORKS[build])


def test_lenet_300_100_has_266610_parameters():
    by_hand = (784 * 300 + 300) + (300 * 100 + 100) + (100 * 10 + 10)
    assert by_hand == 266_610  # 267 thousand in Table 1, 1070 KB of 4 bytes each
    assert count_parameters(on_meta(lenet_300_100)) == by_hand


def test_lenet5_has_431080_parameters():
    by_hand = (25 * 20 + 20) + (25 * 20 * 50 + 50) + (800 * 500 + 500) + (500 * 10 + 10)
    assert by_hand == 431_080  # 431 thousand in Table 1, 1720 KB
    assert count_parameters(on_meta(lenet5_caffe)) == by_hand


def test_lenet5_pools_before_the_next_convolution_and_has_one_relu():
    shapes = output_shapes(on_meta(lenet5_caffe), (1, 28, 28))
    assert (shapes["pool1"], shapes["pool2"], shapes["flatten"]) == ((20, 12, 12), (50, 4, 4), (800,))
    assert sum(isinstance(m, nn.ReLU) for m in on_meta(lenet5_caffe).modules()) == 1


def test_lenet5_equals_a_functional_reimplementation():
    torch.manual_seed(0)
    network, x = lenet5_caffe(), torch.randn(3, 1, 28, 28)
    w1, b1, w2, b2, w3, b3, w4, b4 = network.parameters()
    y = F.conv2d(x, w1, b1).unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    y = F.conv2d(y, w2, b2).unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    y = (y.reshape(3, 800) @ w3.T + b3).clamp(min=0)
    torch.testing.assert_close(network(x), y @ w4.T + b4, atol=1e-5, rtol=1e-5)


def test_lenet_300_100_equals_a_functional_reimplementation():
    torch.manual_seed(0)
    network, x = lenet_300_100(), torch.randn(3, 1, 28, 28)
    w1, b1, w2, b2, w3, b3 = network.parameters()
    y = (x.reshape(3, 784) @ w1.T + b1).clamp(min=0)
    y = (y @ w2.T + b2).clamp(min=0)
    torch.testing.assert_close(network(x), y @ w3.T + b3, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layer", "fan_in"), [("conv2", 25 * 20), ("fc1", 800)])
def test_initial_weights_are_uniform_with_variance_1_over_fan_in_and_biases_zero(layer, fan_in):
    torch.manual_seed(0)
    module = lenet5_caffe().get_submodule(layer)
    assert module.weight.var().item() == pytest.approx(1 / fan_in, rel=0.02)
    assert module.weight.abs().max().item() == pytest.approx((3 / fan_in) ** 0.5, rel=0.01)  # normal: above 4 std
    assert not module.bias.any()


def test_classes_and_channels_are_arguments():
    network = on_meta(lenet_300_100, num_classes=7, in_channels=3)
    assert output_shapes(network, (3, 28, 28))["fc3"] == (7,)
    assert count_parameters(network) == 266_610 + 2 * 784 * 300 - 3 * 101
    assert output_shapes(on_meta(lenet5_caffe, num_classes=7, in_channels=3), (3, 28, 28))["fc2"] == (7,)


@pytest.mark.parametrize("build", NETWORKS)
def test_images_of_another_size_raise(build):
    name = build.__name__
    with pytest.raises(ValueError, match=f"{name} reads images of 28 x 28 pixels, not 32 x 32"):
        build()(torch.zeros(1, 1, 32, 32))
