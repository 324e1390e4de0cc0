"""Inception-ResNet-v1 against Figures 7 and 10 to 15, Table 1 and section 3.3 of arXiv:1602.07261."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.inception_resnet_v1 import inception_resnet_v1
from tests.support.network_inspection import (
    conv_bn,
    count_parameters,
    on_meta,
    output_shapes,
    randomize_batchnorm,
)

FIGURES_14_AND_15 = {
    "stem.conv1": (32, 149, 149),
    "stem.conv2": (32, 147, 147),
    "stem.conv3": (64, 147, 147),
    "stem.pool": (64, 73, 73),
    "stem.conv4": (80, 73, 73),
    "stem.conv5": (192, 71, 71),
    "stem.conv6": (256, 35, 35),
    "stem": (256, 35, 35),
    "inception_resnet_a1": (256, 35, 35),
    "inception_resnet_a5": (256, 35, 35),
    "reduction_a": (896, 17, 17),
    "inception_resnet_b1": (896, 17, 17),
    "inception_resnet_b10": (896, 17, 17),
    "reduction_b": (1792, 8, 8),
    "inception_resnet_c1": (1792, 8, 8),
    "inception_resnet_c5": (1792, 8, 8),
    "pool": (1792,),
    "dropout": (1792,),
    "fc": (1000,),
}


def linear(channels: int, filters: int) -> int:
    """Count the parameters of a 1x1 convolution with biases."""
    return channels * filters + filters


BY_HAND = {
    "stem": conv_bn(3, 9, 32, 9, 32, 9, 64, 1, 80, 9, 192, 9, 256),
    "inception_resnet_a1": conv_bn(256, 1, 32)
    + conv_bn(256, 1, 32, 9, 32)
    + conv_bn(256, 1, 32, 9, 32, 9, 32)
    + linear(3 * 32, 256),
    "reduction_a": conv_bn(256, 9, 384) + conv_bn(256, 1, 192, 9, 192, 9, 256),  # n and k, l, m of Table 1
    "inception_resnet_b1": conv_bn(896, 1, 128) + conv_bn(896, 1, 128, 7, 128, 7, 128) + linear(2 * 128, 896),
    "reduction_b": conv_bn(896, 1, 256, 9, 384)
    + conv_bn(896, 1, 256, 9, 256)
    + conv_bn(896, 1, 256, 9, 256, 9, 256),
    "inception_resnet_c1": conv_bn(1792, 1, 192) + conv_bn(1792, 1, 192, 3, 192, 3, 192) + linear(2 * 192, 1792),
    "fc": linear(1792, 1000),
}
TIMES = {"inception_resnet_a1": 5, "inception_resnet_b1": 10, "inception_resnet_c1": 5}  # Figure 15


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return on_meta(inception_resnet_v1)


@pytest.fixture(scope="module")
def shapes(network) -> dict[str, tuple[int, ...]]:
    return output_shapes(network, (3, 299, 299))


@pytest.mark.parametrize(("layer", "shape"), FIGURES_14_AND_15.items())
def test_outputs_equal_figures_14_and_15(shapes, layer, shape):
    assert shapes[layer] == shape


def test_children_have_the_names_of_figure_15(network):
    a, b, c = (
        [f"inception_resnet_{kind}{i + 1}" for i in range(n)] for kind, n in (("a", 5), ("b", 10), ("c", 5))
    )
    names = [name for name, _ in network.named_children()]
    assert names == ["stem", *a, "reduction_a", *b, "reduction_b", *c, "pool", "dropout", "fc"]


@pytest.mark.parametrize(("layer", "count"), BY_HAND.items())
def test_parameters_of_a_block_equal_its_figure(network, layer, count):
    assert count_parameters(network.get_submodule(layer)) == count


def test_network_has_22_8_million_parameters(network):
    by_hand = sum(count * TIMES.get(layer, 1) for layer, count in BY_HAND.items())
    assert by_hand == 22_756_328
    assert count_parameters(network) == by_hand


def test_linear_convolutions_have_the_printed_filters_and_alone_have_biases(network):
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    biased = {name: m.out_channels for name, m in convolutions.items() if m.bias is not None}
    assert {name.rpartition(".")[2] for name in biased} == {"linear"}
    assert list(biased.values()) == [256] * 5 + [896] * 10 + [1792] * 5
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == len(convolutions) - len(biased)


def test_scales_by_default_and_as_argument(network):
    def scales(network: nn.Module) -> list[float]:
        return [m.scale for m in network.modules() if hasattr(m, "ends_in_relu")]

    assert scales(network) == [0.17] * 5 + [0.10] * 10 + [0.20] * 5
    assert set(scales(on_meta(inception_resnet_v1, scale=0.3))) == {0.3}
    with pytest.raises(ValueError, match=r"scale must be above 0 and at most 1, not 0; section 3\.3"):
        inception_resnet_v1(scale=0)


def test_75_pixels_give_one_place_and_74_raise(network):
    assert output_shapes(network, (3, 75, 75))["inception_resnet_c5"] == (1792, 1, 1)
    with pytest.raises(
        ValueError, match="inception_resnet_v1 reads images of 75 x 75 pixels or more, not 90 x 74"
    ):
        network(torch.zeros(1, 3, 90, 74, device="meta"))


class Reimplementation:
    """The figures with torch's functions, on the weights of a network, taken in the order of its parameters."""

    def __init__(self, network: nn.Module) -> None:
        self.convolutions = iter([m for m in network.modules() if isinstance(m, nn.Conv2d)])
        self.norms = iter([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
        self.fc = network.fc

    def conv(self, x: Tensor, stride: int = 1, *, valid: bool = False) -> Tensor:
        weight, bn = next(self.convolutions).weight, next(self.norms)
        height, width = weight.shape[2:]
        x = F.conv2d(x, weight, stride=stride, padding=(0, 0) if valid else (height // 2, width // 2))
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=0.001).relu()

    def chain(self, x: Tensor, length: int, *, reduce: bool = False) -> Tensor:
        for i in range(length):
            last = reduce and i == length - 1
            x = self.conv(x, 2 if last else 1, valid=last)
        return x

    def residual(self, x: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
        maps = torch.cat([self.chain(x, length) for length in lengths], dim=1)
        linear = next(self.convolutions)
        return (x + scale * F.conv2d(maps, linear.weight, linear.bias)).relu()

    def reduction(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        maps = [self.chain(x, length, reduce=True) for length in lengths]
        return torch.cat([*maps, F.max_pool2d(x, 3, 2)], dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(x, 2, valid=True)
        x = self.conv(self.conv(x, valid=True))
        x = self.conv(F.max_pool2d(x, 3, 2))
        x = self.conv(self.conv(x, valid=True), 2, valid=True)
        for _ in range(5):
            x = self.residual(x, (1, 2, 3), 0.17)
        x = self.reduction(x, (1, 3))
        for _ in range(10):
            x = self.residual(x, (1, 3), 0.10)
        x = self.reduction(x, (2, 2, 3))
        for _ in range(5):
            x = self.residual(x, (1, 3), 0.20)
        return self.fc(x.mean((2, 3)))


def test_scores_equal_a_functional_reimplementation():
    torch.manual_seed(0)
    network = randomize_batchnorm(inception_resnet_v1(num_classes=10)).eval()
    x = torch.randn(1, 3, 107, 107)  # last maps of 2 x 2
    with torch.no_grad():
        expected = Reimplementation(network)(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)


def test_asymmetric_kernels_are_a_row_first_and_then_a_column(network):
    def kernels(block: nn.Module) -> list[tuple[int, ...]]:
        return [m.kernel_size for m in block.branches.modules() if isinstance(m, nn.Conv2d)]

    assert kernels(network.inception_resnet_b1) == [(1, 1), (1, 1), (1, 7), (7, 1)]  # Figure 11
    assert kernels(network.inception_resnet_c1) == [(1, 1), (1, 1), (1, 3), (3, 1)]  # Figure 13
