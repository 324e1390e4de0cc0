"""BN-AlexNet and BN-NIN against the two files of imagenet-multiGPU.torch."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_modules.complexity import bn_alexnet, bn_nin
from pipeline.analyse.network import NetworkAnalysis
from tests.support.network_inspection import (
    count_parameters,
    on_meta,
    output_shapes,
    randomize_batchnorm,
)

# models/alexnetowtbn_cudnn.lua: input channels, kernels, size, stride, padding, side of the output.
ALEXNET = [
    (3, 64, 11, 4, 2, 55),
    (64, 192, 5, 1, 2, 27),
    (192, 384, 3, 1, 1, 13),
    (384, 256, 3, 1, 1, 13),
    (256, 256, 3, 1, 1, 13),
]
# models/ninbn.lua: the first convolution of each block; two of 1x1 with as many kernels follow.
NIN = [
    (3, 96, 11, 4, 5, 56),
    (96, 256, 5, 1, 2, 28),
    (256, 384, 3, 1, 1, 14),
    (384, 1024, 3, 1, 1, 7),
]


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def settings(conv: nn.Conv2d) -> tuple[int, ...]:
    return conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0]


def test_bn_alexnet_has_the_convolutions_and_sizes_of_its_file():
    network = on_meta(bn_alexnet)
    shapes = output_shapes(network, (3, 224, 224))
    assert [settings(conv) for conv in convolutions(network)] == [row[:5] for row in ALEXNET]
    assert [shapes[f"conv{i}"] for i in range(1, 6)] == [(row[1], row[5], row[5]) for row in ALEXNET]
    assert [shapes[f"pool{i}"] for i in (1, 2, 5)] == [(64, 27, 27), (192, 13, 13), (256, 6, 6)]
    assert [shapes[f"fc{i}"] for i in (6, 7, 8)] == [(4096,), (4096,), (1000,)]


def test_bn_nin_has_the_convolutions_and_sizes_of_its_file():
    network = on_meta(bn_nin)
    shapes = output_shapes(network, (3, 224, 224))
    rows = [row for first in NIN for row in (first[:5], *[(first[1], first[1], 1, 1, 0)] * 2)]
    assert [settings(conv) for conv in convolutions(network)] == rows
    assert [shapes[f"mlpconv{i}"] for i in (1, 2, 3, 4)] == [(row[1], row[5], row[5]) for row in NIN]
    assert [shapes[f"pool{i}"] for i in (1, 2, 3)] == [(96, 28, 28), (256, 14, 14), (384, 7, 7)]
    assert (shapes["pool"], shapes["fc"]) == ((1024, 1, 1), (1000,))


def test_parameters_and_multiply_adds_of_bn_alexnet_by_hand():
    weights = [c * k * size**2 for c, k, size, *_ in ALEXNET]
    full = [9216 * 4096, 4096 * 4096, 4096 * 1000]
    biases = sum(row[1] for row in ALEXNET) + 4096 + 4096 + 1000
    batch_norm = 2 * (sum(row[1] for row in ALEXNET) + 4096 + 4096)
    assert sum(weights) + sum(full) + biases == 61_100_840  # torchvision's AlexNet
    assert count_parameters(on_meta(bn_alexnet)) == 61_100_840 + batch_norm == 61_119_528
    places = sum(weight * row[5] ** 2 for weight, row in zip(weights, ALEXNET, strict=True))
    assert NetworkAnalysis(on_meta(bn_alexnet), (3, 224, 224)).multiply_adds == places + sum(full) == 714_188_480


def test_parameters_and_multiply_adds_of_bn_nin_by_hand():
    parameters = operations = 1024 * 1000
    parameters += 1000
    for channels, kernels, size, _, _, side in NIN:
        weights = channels * kernels * size**2 + 2 * kernels**2
        parameters += weights + 3 * 3 * kernels  # a bias, a scale and a shift of each of three convolutions
        operations += weights * side**2
    assert count_parameters(on_meta(bn_nin)) == parameters == 8_655_336
    assert NetworkAnalysis(on_meta(bn_nin), (3, 224, 224)).multiply_adds == operations == 1_259_939_840


@pytest.mark.parametrize(("build", "dropouts", "norms"), [(bn_alexnet, 2, 5 + 2), (bn_nin, 0, 4 * 3)])
def test_every_layer_but_the_last_is_normalised_with_epsilon_1e_3(build, dropouts, norms):
    modules = list(on_meta(build).modules())
    batch_norms = [m for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(batch_norms) == norms
    assert {m.eps for m in batch_norms} == {1e-3}
    assert [m.p for m in modules if isinstance(m, nn.Dropout)] == [0.5] * dropouts


def test_bn_alexnet_without_normalisation_equals_torchvisions_alexnet():
    torch.manual_seed(0)
    theirs, ours = torchvision.models.alexnet(num_classes=10).eval(), bn_alexnet(num_classes=10).eval()
    weighted = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for source, target in zip(
        (m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.Linear)), weighted, strict=True
    ):
        target.load_state_dict(source.state_dict())
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_var.fill_(1 - module.eps)  # divides by one
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)


def test_bn_nin_equals_a_functional_reimplementation():
    torch.manual_seed(0)
    network, x = randomize_batchnorm(bn_nin(num_classes=10)).eval(), torch.randn(1, 3, 224, 224)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    y = x
    with torch.no_grad():
        for i, (conv, bn) in enumerate(zip(convolutions(network), norms, strict=True)):
            stride, padding = {0: (4, 5), 3: (1, 2), 6: (1, 1), 9: (1, 1)}.get(i, (1, 0))
            y = F.conv2d(y, conv.weight, conv.bias, stride, padding)
            y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-3).relu()
            if i in (2, 5, 8):
                y = F.pad(y, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
        torch.testing.assert_close(network(x), network.fc(y.mean((2, 3))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [bn_alexnet, bn_nin])
def test_images_of_another_size_raise(build):
    with pytest.raises(ValueError, match=f"{build.__name__} reads images of 224 x 224 pixels, not 227 x 227"):
        on_meta(build)(torch.zeros(1, 3, 227, 227, device="meta"))
