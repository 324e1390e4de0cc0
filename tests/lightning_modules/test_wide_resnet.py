"""The CIFAR nets against arXiv:1605.07146: Tables 1 to 5, section 2."""

import pytest
import torch
import torch.nn.functional as F
from looking import on_meta, output_shapes, parameters
from torch import nn

from lightning_modules.preact_resnet import preact_resnet_cifar
from lightning_modules.published.weights import renamer, translated
from lightning_modules.wide_resnet import Block, wide_resnet_cifar

EXACT = {  # depth, k: parameters with 10 classes
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
PRINTED = {  # Tables 4, 5 and 9: millions
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
OF_TABLE_3 = {"B(3)": 12, "B(3,3)": 6, "B(3,3,3)": 4, "B(3,3,3,3)": 3}  # blocks in a group of WRN-40


def sides(block: str) -> list[int]:
    return [int(side) for side in block[2:-1].split(",")]


def by_hand(depth: int, k: int, block: str = "B(3,3)", classes: int = 10) -> int:
    """Parameters from Table 1: a BN before every convolution but conv1, 1x1 shortcuts, the last BN, fc."""
    n = (depth - 4) // (3 * len(sides(block)))
    total, channels = 27 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        for _ in range(n):
            entry = channels
            for side in sides(block):
                total += 2 * channels + side * side * channels * width
                channels = width
            total += entry * width if entry != width else 0
    return total + 2 * channels + channels * classes + classes


def small(seed: int = 0, **args) -> nn.Module:
    """In evaluation mode, with batch-norm that does something."""
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


@pytest.mark.parametrize(("depth", "k"), EXACT)
def test_parameters_are_those_counted_by_hand_and_printed(depth, k):
    count = parameters(on_meta(wide_resnet_cifar, depth=depth, k=k))
    assert count == by_hand(depth, k) == EXACT[depth, k]
    if (depth, k) in PRINTED:
        assert round(count / 1e6, 1) == PRINTED[depth, k]


def test_a_hundred_classes_add_to_fc_alone():
    network = on_meta(wide_resnet_cifar, depth=28, k=10, num_classes=100)
    assert parameters(network) == by_hand(28, 10, classes=100) == 36_479_194 + 90 * 641


@pytest.mark.parametrize(("block", "depth"), TABLE_2)
def test_table_2s_parameters(block, depth):
    count = parameters(on_meta(wide_resnet_cifar, depth=depth, k=2, block=block))
    assert count == by_hand(depth, 2, block) == TABLE_2[block, depth]


@pytest.mark.parametrize("block", OF_TABLE_3)
def test_table_3s_nets_have_2_2_million_parameters_and_40_convolutions(block):
    network = on_meta(wide_resnet_cifar, depth=40, k=2, block=block)
    assert parameters(network) == 2_243_546
    assert len(convolutions(network)) == 40
    assert [len(network.get_submodule(f"conv{i}")) for i in (2, 3, 4)] == [OF_TABLE_3[block]] * 3


@pytest.mark.parametrize(
    ("depth", "k", "count"), [(28, 10, 28), (16, 8, 16), (40, 4, 40), (40, 1, 39), (10, 2, 10)]
)
def test_n_counts_the_convolutions_those_of_shortcuts_too(depth, k, count):
    assert len(convolutions(on_meta(wide_resnet_cifar, depth=depth, k=k))) == count


@pytest.mark.parametrize(("depth", "k", "n"), [(28, 10, 4), (40, 1, 6), (16, 8, 2)])
def test_outputs_are_table_1s(depth, k, n):
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
def test_a_block_has_its_types_convolutions_all_of_one_width(block):
    depth = 6 * len(sides(block)) + 4
    network = on_meta(wide_resnet_cifar, depth=depth, k=2, block=block)
    for name, channels, width, stride in (("conv2.0", 16, 32, 1), ("conv3.0", 32, 64, 2), ("conv3.1", 64, 64, 1)):
        residual = network.get_submodule(f"{name}.residual")
        shapes = [tuple(conv.weight.shape) for conv in convolutions(residual)]
        entries = [channels, *[width] * (len(sides(block)) - 1)]
        assert shapes == [(width, entry, s, s) for entry, s in zip(entries, sides(block), strict=True)]
        assert [conv.stride[0] for conv in convolutions(residual)] == [stride, *[1] * (len(shapes) - 1)]


def test_a_block_computes_what_figure_1_draws():
    """The shortcut is the input itself, or a projection of what was activated."""
    network = small(depth=16, k=2)
    x = torch.randn(2, 32, 8, 8)
    block = network.conv2[1]
    r = block.residual
    inner = r.conv2(F.relu(r.bn2(r.conv1(F.relu(block.bn1(x))))))
    torch.testing.assert_close(block(x), x + inner)
    block = network.conv3[0]
    r, activated = block.residual, F.relu(block.bn1(x))
    projected = F.conv2d(activated, block.shortcut.conv.weight, stride=2)
    torch.testing.assert_close(block(x), projected + r.conv2(F.relu(r.bn2(r.conv1(activated)))))


def test_the_blocks_stand_between_a_bare_conv1_and_bn_relu_and_the_average():
    network = small(depth=10, k=2)
    x = torch.randn(2, 3, 16, 16)
    maps = network.conv4(network.conv3(network.conv2(network.conv1(x))))
    torch.testing.assert_close(network(x), network.fc(F.relu(network.bn(maps)).mean((2, 3))))


def test_dropout_stands_between_the_convolutions_after_relu():
    network = wide_resnet_cifar(depth=28, k=2, dropout=0.3)
    assert [name for name, _ in network.conv2[1].residual.named_children()] == [
        *("conv1", "bn2", "relu2", "dropout2", "conv2")
    ]
    rates = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3] * 12  # 12 blocks
    assert not any(isinstance(m, nn.Dropout) for m in wide_resnet_cifar(depth=28, k=2).modules())


def test_dropout_drops_when_training_and_has_no_part_in_the_shortcut():
    network = small(depth=10, k=1, dropout=0.4)
    block = network.conv2[0]
    x = torch.randn(2, 16, 32, 32)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))
    nn.init.zeros_(block.residual.conv2.weight)  # what is dropped comes before it
    assert torch.equal(block(x), x)
    relu = F.relu(torch.ones(2, 16, 32, 32))
    share = (block.residual.dropout2(relu) == 0).float().mean().item()
    assert share == pytest.approx(0.4, abs=5 * (0.24 / relu.numel()) ** 0.5)


def test_three_convolutions_to_a_block_have_two_dropouts():
    block = Block(16, 32, (3, 3, 3), 1, 0.3)
    assert [n for n, m in block.residual.named_children() if isinstance(m, nn.Dropout)] == ["dropout2", "dropout3"]


def test_units_of_two_layers_that_keep_their_size_are_those_of_the_pre_activation_paper():
    """arXiv:1603.05027's unit, with our weights, computes the same."""
    ours = small(depth=16, k=1).conv2[1]
    theirs = preact_resnet_cifar(depth=14, layers_per_unit=2).eval().map32[1]
    rename = renamer((r"bn1\.(.+)", r"pre.bn.\1"), (r"residual\.bn2\.(.+)", r"residual.bn1.\1"), (r"(.+)", r"\1"))
    theirs.load_state_dict(translated(ours.state_dict(), rename))
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_k_1_is_the_pre_activation_net_save_for_its_shortcuts():
    """Table 1's caption calls them equivalent: two 1x1 convolutions stand where that net pads."""
    thin, preact = (
        on_meta(wide_resnet_cifar, depth=16, k=1),
        on_meta(preact_resnet_cifar, depth=14, layers_per_unit=2),
    )
    assert parameters(thin) - parameters(preact) == 16 * 32 + 32 * 64


def test_weights_start_as_in_the_authors_code():
    torch.manual_seed(0)
    network = wide_resnet_cifar(depth=16, k=4)
    weights = torch.cat([m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in convolutions(network)])
    assert weights.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(weights)) ** 0.5)
    assert ((weights / weights.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # normal, not uniform
    bound = 256**-0.5
    assert network.fc.weight.abs().max().item() <= bound
    assert network.fc.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # of a uniform distribution
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"depth": 30}, r"depth 30 is not 6N \+ 4, with 2 convolutions to a block .*nearest that are: 28, 34"),
        ({"depth": 4}, "nearest that are: 10, 16"),
        ({"depth": 28, "block": "B(3,1,3)"}, r"not 9N \+ 4, with 3 convolutions .*nearest that are: 22, 31"),
        (
            {"block": "B(3,3,1)"},
            r"block 'B\(3,3,1\)' is not one of section 2\.1 and Table 3: B\(3,3\), B\(3,1,3\),",
        ),
        ({"k": 0}, "k 0 is not a widening factor"),
        ({"dropout": 1.0}, r"dropout 1\.0 is not a share from 0 to below 1"),
        ({"block": "B(3)", "dropout": 0.3}, r"between two convolutions \(section 2\.4\), and B\(3\) has only one"),
    ],
)
def test_impossible_arguments_are_refused_with_what_fits(args, sentence):
    with pytest.raises(ValueError, match=sentence):
        wide_resnet_cifar(**{"depth": 28, "k": 2, **args})


def test_an_image_too_small_for_conv4_is_refused():
    network = wide_resnet_cifar(depth=10, k=1).eval()
    assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ValueError, match="reads images of 4 x 4 pixels or more, not 3 x 3"):
        network(torch.zeros(1, 3, 3, 3))
