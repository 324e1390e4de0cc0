"""DenseNets against sections 3 and 4 and Tables 1 and 2 of arXiv:1608.06993."""

import copy
from contextlib import nullcontext
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_modules.densenet import (
    DenseBlock,
    DenseLayer,
    DenseNetConfig,
    Transition,
    densenet_cifar,
    densenet_imagenet,
)
from lightning_modules.published.densenet import PUBLISHED, RENAME
from lightning_modules.published.weights import load_published_state_dict, rename_state_dict, state_dict_mismatch
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

BC = {"bottleneck": True, "theta": 0.5}
TABLE_2 = {  # depth, k, BC: parameters with 10 classes; printed millions
    (40, 12, False): (1_019_722, 1.0),
    (100, 12, False): (6_979_642, 7.0),
    (100, 24, False): (27_249_082, 27.2),
    (100, 12, True): (769_162, 0.8),
    (250, 24, True): (15_324_406, 15.3),
    (190, 40, True): (25_624_430, 25.6),
}
TABLE_1 = {  # depth: k, layers of the blocks, parameters with 1000 classes
    121: (32, (6, 12, 24, 16), 7_978_856),
    169: (32, (6, 12, 32, 32), 14_149_480),
    201: (32, (6, 12, 48, 32), 20_013_928),
    264: (32, (6, 12, 64, 48), 33_337_704),
    161: (48, (6, 12, 36, 24), 28_681_000),
}
LAYERS_40_12 = {  # 12 layers of 12 maps in each block
    "conv1": (16, 32, 32),
    "block1": (160, 32, 32),
    "transition1": (160, 16, 16),
    "block2": (304, 16, 16),
    "transition2": (304, 8, 8),
    "block3": (448, 8, 8),
    "pool": (448, 1, 1),
    "fc": (10,),
}
LAYERS_BC_100_12 = {  # 16 layers of 12 maps in each block, halved by transitions
    "conv1": (24, 32, 32),
    "block1": (216, 32, 32),
    "transition1": (108, 16, 16),
    "block2": (300, 16, 16),
    "transition2": (150, 8, 8),
    "block3": (342, 8, 8),
    "pool": (342, 1, 1),
    "fc": (10,),
}
LAYERS_121 = {
    "conv1": (64, 112, 112),
    "pool1": (64, 56, 56),
    "block1": (256, 56, 56),
    "transition1.conv": (128, 56, 56),
    "transition1": (128, 28, 28),
    "block2": (512, 28, 28),
    "transition2.conv": (256, 28, 28),
    "transition2": (256, 14, 14),
    "block3": (1024, 14, 14),
    "transition3.conv": (512, 14, 14),
    "transition3": (512, 7, 7),
    "block4": (1024, 7, 7),
    "pool": (1024, 1, 1),
    "fc": (1000,),
}


@cache
def cifar(depth: int, k: int, bc: bool) -> nn.Module:
    return on_meta(densenet_cifar, depth=depth, k=k, **(BC if bc else {}))


@cache
def imagenet(depth: int) -> nn.Module:
    return on_meta(densenet_imagenet, depth=depth)


def by_hand(blocks: tuple[int, ...], k: int, bc: bool, stem: int, channels: int, classes: int) -> int:
    """Compute parameters from the tables: `stem` before the first block, which reads `channels` maps."""
    total = stem
    for number, layers in enumerate(blocks, start=1):
        for _ in range(layers):
            if bc:
                total += 2 * channels + channels * 4 * k + 2 * 4 * k + 9 * 4 * k * k
            else:
                total += 2 * channels + 9 * channels * k
            channels += k
        if number < len(blocks):
            width = channels // 2 if bc else channels
            total += 2 * channels + channels * width
            channels = width
    return total + 2 * channels + channels * classes + classes


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


# --- Tables 1 and 2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "count"), TABLE_2.items())
def test_parameters_equal_table_2(key, count):
    depth, k, bc = key
    exact, millions = count
    n, first = (depth - 4) // (6 if bc else 3), 2 * k if bc else 16
    assert by_hand((n, n, n), k, bc, 27 * first, first, 10) == exact
    assert count_parameters(cifar(*key)) == exact
    assert round(exact / 1e6, 1) == millions


@pytest.mark.parametrize(("depth", "row"), TABLE_1.items())
def test_parameters_for_imagenet(depth, row):
    k, blocks, count = row
    assert by_hand(blocks, k, True, 2 * k * 3 * 49 + 2 * 2 * k, 2 * k, 1000) == count
    assert count_parameters(imagenet(depth)) == count


@pytest.mark.parametrize(("key", "layers"), [((40, 12, False), LAYERS_40_12), ((100, 12, True), LAYERS_BC_100_12)])
def test_outputs_for_cifar(key, layers):
    shapes = output_shapes(cifar(*key), (3, 32, 32))
    assert {name: shapes[name] for name in layers} == layers


def test_outputs_of_densenet_121_equal_table_1():
    shapes = output_shapes(imagenet(121), (3, 224, 224))
    assert {name: shapes[name] for name in LAYERS_121} == LAYERS_121


@pytest.mark.parametrize("depth", TABLE_1)
def test_sides_and_layers_of_table_1(depth):
    k, blocks, _ = TABLE_1[depth]
    network = imagenet(depth)
    shapes = output_shapes(network, (3, 224, 224))
    sides = {name: shape[-1] for name, shape in shapes.items() if "." not in name and len(shape) == 3}
    assert [sides[f"block{i}"] for i in (1, 2, 3, 4)] == [56, 28, 14, 7]
    assert shapes["conv1"] == (2 * k, 112, 112)
    assert tuple(len(block) for block in network.children() if isinstance(block, DenseBlock)) == blocks
    for layer in (m for m in network.modules() if isinstance(m, DenseLayer)):
        first, second = convolutions(layer)
        assert (first.kernel_size, first.out_channels) == ((1, 1), 4 * k)
        assert (second.kernel_size, second.out_channels) == ((3, 3), k)


@pytest.mark.parametrize(("depth", "layers"), [(121, 121), (169, 169), (201, 201), (161, 161), (264, 265)])
def test_name_counts_the_weighted_layers_except_264(depth, layers):
    """1 + 2 (6 + 12 + 64 + 48) + 3 + 1 = 265."""
    assert len(convolutions(imagenet(depth))) + 1 == layers


@pytest.mark.parametrize("key", TABLE_2)
def test_depth_counts_the_weighted_layers(key):
    assert len(convolutions(cifar(*key))) + 1 == key[0]


def test_children_have_the_names_of_the_table():
    blocks = ["block1", "transition1", "block2", "transition2", "block3"]
    end = ["bn", "relu", "pool", "flatten", "fc"]
    assert [name for name, _ in cifar(40, 12, False).named_children()] == ["conv1", *blocks, *end]
    names = [name for name, _ in imagenet(121).named_children()]
    assert names == ["conv1", "bn1", "relu1", "pool1", *blocks, "transition3", "block4", *end]


@pytest.mark.parametrize(
    ("bottleneck", "theta", "first"), [(False, 1, 16), (True, 1, 16), (False, 0.5, 16), (True, 0.5, 24)]
)
def test_only_densenet_bc_starts_with_2k_filters(bottleneck, theta, first):
    network = on_meta(densenet_cifar, depth=40, k=12, bottleneck=bottleneck, theta=theta)
    assert network.conv1.out_channels == first


def test_transition_rounds_down():
    network = on_meta(densenet_cifar, depth=7, k=5, theta=0.5)  # 16 + 5 = 21 maps; 10 + 5 = 15
    widths = [m.conv.conv.out_channels for m in network.modules() if isinstance(m, Transition)]
    assert widths == [10, 7]


# --- equation 2 --------------------------------------------------------------------------------------------


def test_layer_l_reads_k0_and_l_minus_1_times_k_maps():
    block = cifar(40, 12, False).block1
    assert [layer.conv3x3.conv.in_channels for layer in block] == [16 + 12 * (l - 1) for l in range(1, 13)]  # noqa: E741
    assert block.direct_connections == 12 * 13 // 2


@pytest.mark.parametrize("bottleneck", [False, True])
def test_block_equals_equation_2(bottleneck):
    torch.manual_seed(0)
    block = DenseBlock(3, 5, DenseNetConfig(4, bottleneck)).eval()
    for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(bn.bias)
        bn.running_mean.normal_()
    x = torch.randn(2, 5, 6, 6)
    maps = [x]
    for layer in block:
        y = torch.cat(maps, dim=1)
        for conv_layer in layer:
            y = conv_layer.conv(F.relu(conv_layer.bn(y)))  # BN, ReLU, convolution: section 3
        maps.append(y)
    with torch.no_grad():
        torch.testing.assert_close(block(x), torch.cat(maps, dim=1))
    assert [len(layer) for layer in block] == [2 if bottleneck else 1] * 3


def test_last_layer_reads_every_previous_layer():
    """The output of a block's last layer depends on the block's input and on every previous layer."""
    torch.manual_seed(0)
    block = DenseBlock(4, 3, DenseNetConfig(2)).train()
    maps = [torch.randn(2, 3, 5, 5, requires_grad=True)]
    maps += [torch.randn(2, 2, 5, 5, requires_grad=True) for _ in range(3)]
    block.layer4(maps).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in maps)


# --- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "args"), [(40, {}), (100, BC)])
def test_dropout_follows_every_convolution_except_the_first(depth, args):
    network = on_meta(densenet_cifar, depth=depth, k=12, dropout=0.2, **args)
    order = [type(m).__name__ for m in network.modules() if isinstance(m, nn.Conv2d | nn.Dropout)]
    assert order == ["Conv2d", *["Conv2d", "Dropout"] * (depth - 2)]  # depth includes conv1 and fc
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.2}
    assert not any(isinstance(m, nn.Dropout) for m in cifar(40, 12, False).modules())


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    dropping, plain = densenet_cifar(depth=10, k=4, dropout=0.2), densenet_cifar(depth=10, k=4)
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(dropping.eval()(x), plain.eval()(x))
    dropping.train()
    assert not torch.equal(dropping(x), dropping(x))


# --- memory_efficient --------------------------------------------------------------------------------------


def saved_for_backward(module: nn.Module, x: torch.Tensor) -> int:
    """Count the values of feature maps that autograd saves in a forward pass, without per-channel tensors."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 4 and not isinstance(tensor, nn.Parameter):
            kept[tensor.data_ptr()] = tensor  # keep a reference, so that its address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    return sum(tensor.numel() for tensor in kept.values())


@pytest.mark.parametrize("bottleneck", [False, True])
def test_memory_efficient_saves_no_concatenated_maps(bottleneck):
    """Each layer saves the concatenated and the normalised maps, or only its k maps, and its bottleneck maps."""
    layers, channels, k, n, side = 8, 10, 3, 2, 6
    x = torch.randn(n, channels, side, side, requires_grad=True)
    ordinary = DenseBlock(layers, channels, DenseNetConfig(k, bottleneck)).train()
    efficient = DenseBlock(layers, channels, DenseNetConfig(k, bottleneck, memory_efficient=True)).train()
    inner = layers * 2 * 4 * k if bottleneck else 0  # output of conv1x1, plain and normalised
    concatenated = 2 * sum(channels + k * number for number in range(layers))
    assert saved_for_backward(ordinary, x) == n * side**2 * (inner + concatenated)
    assert saved_for_backward(efficient, x) == n * side**2 * (inner + channels + k * (layers - 1))


def test_memory_grows_quadratically_or_linearly_with_the_depth():
    x = torch.randn(2, 3, 8, 8)
    ordinary, efficient = (
        [saved_for_backward(densenet_cifar(depth=d, k=12, memory_efficient=m), x) for d in (40, 76)]
        for m in (False, True)
    )
    assert ordinary[1] / ordinary[0] > 3.5  # 12 and 24 layers per block
    assert efficient[1] / efficient[0] < 2.1
    assert ordinary[1] / efficient[1] > 8


def forward_backward(
    network: nn.Module, seed: int
) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return scores, gradients and state after one forward and backward pass."""
    torch.manual_seed(seed)
    x = torch.randn(4, 3, 8, 8)
    scores = network.train()(x)
    F.cross_entropy(scores, torch.arange(4)).backward()
    return scores.detach(), [p.grad for p in network.parameters()], network.state_dict()


@pytest.mark.parametrize("args", [{}, BC, {"dropout": 0.2}, {**BC, "dropout": 0.2}])
def test_memory_efficient_gives_the_same_gradients_and_state(args):
    torch.manual_seed(0)
    ordinary = densenet_cifar(depth=16, k=4, **args)
    efficient = densenet_cifar(depth=16, k=4, memory_efficient=True, **args)
    efficient.load_state_dict(ordinary.state_dict())
    expected, actual = forward_backward(ordinary, 1), forward_backward(efficient, 1)
    assert torch.equal(expected[0], actual[0])
    for a, b in zip(expected[1], actual[1], strict=True):
        assert torch.equal(a, b)
    for name, value in expected[2].items():
        assert torch.equal(value, actual[2][name]), name


def test_recomputation_without_frozen_statistics_counts_a_batch_twice(monkeypatch):
    torch.manual_seed(0)
    ordinary = densenet_cifar(depth=10, k=4)
    counting_twice = densenet_cifar(depth=10, k=4, memory_efficient=True)
    counting_twice.load_state_dict(ordinary.state_dict())
    monkeypatch.setattr(DenseLayer, "checkpoint_contexts", lambda self: (nullcontext(), nullcontext()))
    expected, actual = forward_backward(ordinary, 1)[2], forward_backward(counting_twice, 1)[2]
    assert actual["block1.layer1.conv3x3.bn.num_batches_tracked"] == 2
    assert not torch.equal(
        expected["block1.layer1.conv3x3.bn.running_var"], actual["block1.layer1.conv3x3.bn.running_var"]
    )


# --- initial weights ---------------------------------------------------------------------------------------


def test_initial_weights_are_normal_with_variance_2_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = densenet_cifar(depth=100, k=12, **BC)
    weights = torch.cat([m.weight.flatten() * (m.weight[0].numel()) ** 0.5 for m in convolutions(network)])
    assert weights.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(weights)) ** 0.5)
    assert ((weights / weights.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # of a normal distribution
    assert network.fc.weight.var().item() == pytest.approx(2 / 342, rel=0.1)
    assert not network.fc.bias.any()
    assert all(m.bias is None for m in convolutions(network))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((bn.weight == 1).all() and not bn.bias.any() for bn in norms)


# --- invalid arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 41, "k": 12}, r"depth 41 is not 3n \+ 4; the nearest valid depths are 40 and 43"),
        ({"depth": 4, "k": 12}, r"depth 4 is not 3n \+ 4; the nearest valid depths are 7 and 10"),
        (
            {"depth": 101, "k": 12, **BC},
            r"depth 101 is not 6n \+ 4 \(DenseNet-B\); the nearest valid depths are 100 and 106",
        ),
        ({"depth": 40, "k": 0}, "k must be an integer >= 1, not 0"),
        ({"depth": 40, "k": 12, "theta": 0}, r"theta must be above 0 and at most 1 \(section 3\), not 0"),
        ({"depth": 40, "k": 12, "theta": 1.5}, r"theta must be above 0 and at most 1 \(section 3\), not 1.5"),
        ({"depth": 40, "k": 12, "dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"depth": 40, "k": 12, "dropout": -0.1}, "dropout must be at least 0 and below 1, not -0.1"),
    ],
)
def test_invalid_arguments_for_cifar(args, message):
    with pytest.raises(ValueError, match=message):
        on_meta(densenet_cifar, **args)


def test_depth_outside_table_1_raises():
    with pytest.raises(ValueError, match="depth 122 is not one of Table 1: 121, 161, 169, 201, 264"):
        densenet_imagenet(depth=122)


def test_too_small_images_raise():
    small, large = densenet_cifar(depth=7, k=2).eval(), imagenet(121)
    assert small(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ValueError, match="densenet reads images of 4 x 4 pixels or more, not 3 x 8"):
        small(torch.zeros(1, 3, 3, 8))
    assert output_shapes(large, (3, 29, 29))["block4"] == (1024, 1, 1)
    with pytest.raises(ValueError, match="densenet reads images of 29 x 29 pixels or more, not 28 x 28"):
        output_shapes(large, (3, 28, 28))


# --- torchvision and timm ----------------------------------------------------------------------------------


def other_network(source: str, model: str) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False)
    return getattr(torchvision.models, model)(weights=None)


def with_random_batchnorm(network: nn.Module) -> nn.Module:
    """Randomize batch-norm statistics and parameters; return the network in evaluation mode."""
    for bn in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(bn.bias, std=0.1)
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        bn.running_mean.normal_(std=0.1)
        bn.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_densenet_121_of_other_libraries_gives_equal_scores(source):
    torch.manual_seed(0)
    other, ours = with_random_batchnorm(other_network(source, "densenet121")), densenet_imagenet(depth=121).eval()
    load_published_state_dict(ours, other.state_dict(), [RENAME])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), other(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.source}-{p.model}")
def test_weights_of_other_libraries_fit(published):
    with torch.device("meta"):
        state = other_network(published.source, published.model).state_dict()
    assert set(published.args) == {"depth"}
    assert state_dict_mismatch(imagenet(published.args["depth"]), rename_state_dict(state, published.rename)) == ""


def test_published_weights_are_listed():
    assert sorted((p.source, p.model) for p in PUBLISHED) == [
        (source, f"densenet{depth}") for source in ("timm", "torchvision") for depth in (121, 161, 169, 201)
    ]


def test_older_torchvision_files_fit():
    """Their keys have a dot before the number: norm.1 and conv.2."""
    with torch.device("meta"):
        state = other_network("torchvision", "densenet121").state_dict()
    for word in ("norm", "conv"):
        for number in "12":
            state = {
                key.replace(f".{word}{number}.", f".{word}.{number}.") if "denselayer" in key else key: value
                for key, value in state.items()
            }
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    assert state_dict_mismatch(imagenet(121), rename_state_dict(state, RENAME)) == ""


def test_swapped_names_do_not_fit():
    """Swapped convolutions of a layer have different shapes."""
    with torch.device("meta"):
        state = other_network("torchvision", "densenet121").state_dict()
    swapped = {}
    for key, value in state.items():
        if "denselayer1.conv" in key:
            key = key.replace("conv1", "conv*").replace("conv2", "conv1").replace("conv*", "conv2")
        swapped[key] = value
    assert "has shape 32 x 128 x 3 x 3, expected 128 x" in state_dict_mismatch(
        imagenet(121), rename_state_dict(swapped, RENAME)
    )


def test_timm_densenet264d_is_a_different_network():
    """timm's densenet264d has growth rate 48 and three 3x3 convolutions in its stem."""
    with torch.device("meta"):
        other = timm.create_model("densenet264d", pretrained=False)
    assert count_parameters(other) > 2 * 33_337_704
    assert state_dict_mismatch(imagenet(264), rename_state_dict(other.state_dict(), RENAME)) != ""


def test_deep_copy_gives_the_same_scores():
    torch.manual_seed(0)
    network = densenet_cifar(depth=10, k=4, memory_efficient=True).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(copy.deepcopy(network)(x), network(x), rtol=0, atol=0)
