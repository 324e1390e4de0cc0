"""Test the CIFAR networks against arXiv:1605.07146: Tables 1 to 5 and 9, section 2."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.preact_resnet import preact_resnet_cifar
from lightning_modules.published.weights import rename_state_dict, renamer
from lightning_modules.wide_resnet import Block, wide_resnet_cifar
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

PARAMETERS = {  # depth, k: parameters with 10 classes
    (40, 1): 563_930,
    (40, 2): 2_243_546,
    (40, 4): 8_949_210,
    (40, 8): 35_748_314,
    (40, 10): 55_841_754,
    (28, 10): 36_479_194,
    (28, 12): 52_517_850,
    (22, 8): 17_158_106,
    (22, 10): 26_797_914,
    (16, 4): 2_748_890,
    (16, 8): 10_961_370,
    (16, 10): 17_116_634,
}
PRINTED = {  # depth, k: millions of parameters in Tables 4, 5 and 9
    **{(40, 1): 0.6, (40, 2): 2.2, (40, 4): 8.9, (40, 8): 35.7, (28, 10): 36.5, (28, 12): 52.5},
    **{(22, 8): 17.2, (22, 10): 26.8, (16, 8): 11.0, (16, 10): 17.1},
}
TABLE_2 = {  # block, depth: parameters
    ("B(3,1)", 40): 1_211_354,
    ("B(1,3)", 40): 1_297_370,
    ("B(3,3)", 28): 1_467_610,
    ("B(1,3,1)", 40): 953_306,
    ("B(3,1,1)", 40): 867_290,
    ("B(3,1,3)", 22): 735_578,
    ("B(1,3,1)", 58): 1_429_082,
    ("B(3,1,1)", 58): 1_343_066,
    ("B(3,1,3)", 31): 1_145_498,
}
TABLE_3 = {"B(3)": 12, "B(3,3)": 6, "B(3,3,3)": 4, "B(3,3,3,3)": 3}  # blocks per group of WRN-40


def kernel_sizes(block: str) -> list[int]:
    return [int(size) for size in block[2:-1].split(",")]


def hand_count(depth: int, k: int, block: str = "B(3,3)", classes: int = 10) -> int:
    """Count parameters from Table 1: BN before every convolution but conv1, 1x1 shortcuts, the last BN, fc."""
    n = (depth - 4) // (3 * len(kernel_sizes(block)))
    total, channels = 27 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        for _ in range(n):
            entry = channels
            for kernel in kernel_sizes(block):
                total += 2 * channels + kernel * kernel * channels * width
                channels = width
            total += entry * width if entry != width else 0
    return total + 2 * channels + channels * classes + classes


def small_network(seed: int = 0, **args) -> nn.Module:
    """Return a network in evaluation mode, with random batch-norm state."""
    torch.manual_seed(seed)
    network = wide_resnet_cifar(**args).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(("depth", "k"), PARAMETERS)
def test_parameter_count_matches_hand_count_and_printed_count(depth, k):
    count = count_parameters(on_meta(wide_resnet_cifar, depth=depth, k=k))
    assert count == hand_count(depth, k) == PARAMETERS[depth, k]
    if (depth, k) in PRINTED:
        assert round(count / 1e6, 1) == PRINTED[depth, k]


def test_a_hundred_classes_enlarge_only_fc():
    network = on_meta(wide_resnet_cifar, depth=28, k=10, num_classes=100)
    assert count_parameters(network) == hand_count(28, 10, classes=100) == 36_479_194 + 90 * 641


@pytest.mark.parametrize(("block", "depth"), TABLE_2)
def test_parameter_counts_match_table_2(block, depth):
    count = count_parameters(on_meta(wide_resnet_cifar, depth=depth, k=2, block=block))
    assert count == hand_count(depth, 2, block) == TABLE_2[block, depth]


@pytest.mark.parametrize("block", TABLE_3)
def test_networks_of_table_3_have_2_2_million_parameters_and_40_convolutions(block):
    network = on_meta(wide_resnet_cifar, depth=40, k=2, block=block)
    assert count_parameters(network) == 2_243_546
    assert len(convolutions(network)) == 40
    assert [len(network.get_submodule(f"conv{i}")) for i in (2, 3, 4)] == [TABLE_3[block]] * 3


@pytest.mark.parametrize(
    ("depth", "k", "count"), [(28, 10, 28), (16, 8, 16), (40, 4, 40), (40, 1, 39), (10, 2, 10)]
)
def test_depth_counts_convolutions_including_shortcuts(depth, k, count):
    assert len(convolutions(on_meta(wide_resnet_cifar, depth=depth, k=k))) == count


@pytest.mark.parametrize(("depth", "k", "n"), [(28, 10, 4), (40, 1, 6), (16, 8, 2)])
def test_layer_outputs_match_table_1(depth, k, n):
    network = on_meta(wide_resnet_cifar, depth=depth, k=k)
    assert [len(network.get_submodule(f"conv{i}")) for i in (2, 3, 4)] == [n] * 3
    seen = output_shapes(network, (3, 32, 32))
    expected = {"conv1": (16, 32, 32), "bn": (64 * k, 8, 8), "avg_pool": (64 * k, 1, 1), "fc": (10,)}
    for name, width, side in (("conv2", 16 * k, 32), ("conv3", 32 * k, 16), ("conv4", 64 * k, 8)):
        expected |= {name: (width, side, side)} | {f"{name}.{i}": (width, side, side) for i in range(n)}
    assert {name: seen[name] for name in expected} == expected
    names = [name for name, _ in network.named_children()]
    assert names == ["conv1", "conv2", "conv3", "conv4", "bn", "avg_pool", "fc"]


@pytest.mark.parametrize(
    "block", ["B(3,3)", "B(3,1,3)", "B(1,3,1)", "B(1,3)", "B(3,1)", "B(3,1,1)", "B(3)", "B(3,3,3)", "B(3,3,3,3)"]
)
def test_block_has_the_convolutions_of_its_type_with_equal_width(block):
    depth = 6 * len(kernel_sizes(block)) + 4
    network = on_meta(wide_resnet_cifar, depth=depth, k=2, block=block)
    for name, channels, width, stride in (("conv2.0", 16, 32, 1), ("conv3.0", 32, 64, 2), ("conv3.1", 64, 64, 1)):
        residual = network.get_submodule(f"{name}.residual")
        shapes = [tuple(conv.weight.shape) for conv in convolutions(residual)]
        entries = [channels, *[width] * (len(kernel_sizes(block)) - 1)]
        assert shapes == [(width, entry, s, s) for entry, s in zip(entries, kernel_sizes(block), strict=True)]
        assert [conv.stride[0] for conv in convolutions(residual)] == [stride, *[1] * (len(shapes) - 1)]


def test_block_output_matches_figure_1():
    """The shortcut is the input, or a projection of the activated input."""
    network = small_network(depth=16, k=2)
    x = torch.randn(2, 32, 8, 8)
    block = network.conv2[1]
    r = block.residual
    inner = r.conv2(F.relu(r.bn2(r.conv1(F.relu(block.bn1(x))))))
    torch.testing.assert_close(block(x), x + inner)
    block = network.conv3[0]
    r, activated = block.residual, F.relu(block.bn1(x))
    projected = F.conv2d(activated, block.shortcut.conv.weight, stride=2)
    torch.testing.assert_close(block(x), projected + r.conv2(F.relu(r.bn2(r.conv1(activated)))))


def test_network_is_conv1_blocks_bn_relu_average_fc():
    network = small_network(depth=10, k=2)
    x = torch.randn(2, 3, 16, 16)
    maps = network.conv4(network.conv3(network.conv2(network.conv1(x))))
    torch.testing.assert_close(network(x), network.fc(F.relu(network.bn(maps)).mean((2, 3))))


def test_dropout_is_between_the_convolutions_after_relu():
    network = wide_resnet_cifar(depth=28, k=2, dropout=0.3)
    assert [name for name, _ in network.conv2[1].residual.named_children()] == [
        *("conv1", "bn2", "relu2", "dropout2", "conv2")
    ]
    rates = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3] * 12  # 12 blocks
    assert not any(isinstance(m, nn.Dropout) for m in wide_resnet_cifar(depth=28, k=2).modules())


def test_dropout_is_active_only_in_training_and_not_on_the_shortcut():
    network = small_network(depth=10, k=1, dropout=0.4)
    block = network.conv2[0]
    x = torch.randn(2, 16, 32, 32)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))
    nn.init.zeros_(block.residual.conv2.weight)  # conv2 follows dropout
    assert torch.equal(block(x), x)
    relu = F.relu(torch.ones(2, 16, 32, 32))
    dropped_fraction = (block.residual.dropout2(relu) == 0).float().mean().item()
    assert dropped_fraction == pytest.approx(0.4, abs=5 * (0.24 / relu.numel()) ** 0.5)


def test_block_of_three_convolutions_has_two_dropout_layers():
    block = Block(16, 32, (3, 3, 3), 1, 0.3)
    assert [n for n, m in block.residual.named_children() if isinstance(m, nn.Dropout)] == ["dropout2", "dropout3"]


def test_block_of_two_layers_equals_the_pre_activation_unit():
    """The unit of arXiv:1603.05027 gives the same output with the same weights where the shape is kept."""
    ours = small_network(depth=16, k=1).conv2[1]
    theirs = preact_resnet_cifar(depth=14, layers_per_unit=2).eval().map32[1]
    rename = renamer((r"bn1\.(.+)", r"pre.bn.\1"), (r"residual\.bn2\.(.+)", r"residual.bn1.\1"), (r"(.+)", r"\1"))
    theirs.load_state_dict(rename_state_dict(ours.state_dict(), rename))
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_k_1_equals_the_pre_activation_network_except_for_its_shortcuts():
    """The caption of Table 1 calls them equivalent; two 1x1 convolutions replace that network's zero padding."""
    thin, preact = (
        on_meta(wide_resnet_cifar, depth=16, k=1),
        on_meta(preact_resnet_cifar, depth=14, layers_per_unit=2),
    )
    assert count_parameters(thin) - count_parameters(preact) == 16 * 32 + 32 * 64


def test_initial_weights_follow_the_authors_code():
    torch.manual_seed(0)
    network = wide_resnet_cifar(depth=16, k=4)
    weights = torch.cat([m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in convolutions(network)])
    assert weights.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(weights)) ** 0.5)
    assert ((weights / weights.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # normal, not uniform
    bound = 256**-0.5
    assert network.fc.weight.abs().max().item() <= bound
    assert network.fc.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # uniform
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 30}, r"depth 30 is not 6N \+ 4, for 2 convolutions per block .*depths are 28 and 34"),
        ({"depth": 4}, "nearest valid depths are 10 and 16"),
        ({"depth": 28, "block": "B(3,1,3)"}, r"not 9N \+ 4, for 3 convolutions .*depths are 22 and 31"),
        (
            {"block": "B(3,3,1)"},
            r"block 'B\(3,3,1\)' is not one of section 2\.1 and Table 3: B\(3,3\), B\(3,1,3\),",
        ),
        ({"k": 0}, "k 0: the widening factor must be an integer >= 1"),
        ({"dropout": 1.0}, r"dropout 1\.0 must be >= 0 and < 1"),
        ({"block": "B(3)", "dropout": 0.3}, r"between two convolutions \(section 2\.4\), and B\(3\) has only one"),
    ],
)
def test_invalid_arguments_raise_value_error(args, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet_cifar(**{"depth": 28, "k": 2, **args})


def test_image_smaller_than_4_x_4_raises():
    network = wide_resnet_cifar(depth=10, k=1).eval()
    assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ValueError, match="reads images of 4 x 4 pixels or more, not 3 x 3"):
        network(torch.zeros(1, 3, 3, 3))
