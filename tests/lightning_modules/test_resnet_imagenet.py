"""Test the ImageNet networks against Table 1 and Figure 5 of arXiv:1512.03385, torchvision and timm."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.layers import PadShortcut, Projection
from lightning_modules.published.resnet import PUBLISHED
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from lightning_modules.resnet_imagenet import Bottleneck, plain_imagenet, resnet_imagenet
from tests.support.network_inspection import count_parameters, on_meta, output_shapes, randomize_batchnorm

IMAGE = (3, 224, 224)
TABLE_1 = {  # blocks of conv2_x to conv5_x
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
PROJECTIONS = {("A", 18): 0, ("A", 50): 0, ("B", 18): 3, ("B", 34): 3, ("B", 50): 4, ("C", 34): 16, ("C", 50): 16}


def hand_count(depth: int, shortcut: str = "B", stride_in_3x3: bool = False) -> tuple[int, int]:
    """Count parameters and multiply-adds for 224 x 224 pixels, row by row of Table 1."""
    weights, bn_channels, products = 3 * 64 * 49, 64, 3 * 64 * 49 * 112 * 112
    channels, side = 64, 56
    for stage, blocks in enumerate(TABLE_1[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            before, side = side, side // 2 if block == 0 and stage > 0 else side
            if depth < 50:
                out, bn_channels = width, bn_channels + 2 * width
                layers = [(channels * width * 9, side), (width * width * 9, side)]
            else:
                out, bn_channels = 4 * width, bn_channels + 2 * width + 4 * width
                first = before if stride_in_3x3 else side
                layers = [(channels * width, first), (width * width * 9, side), (width * out, side)]
            if shortcut == "C" or (shortcut == "B" and (before, channels) != (side, out)):
                layers.append((channels * out, side))
                bn_channels += out
            weights += sum(count for count, _ in layers)
            products += sum(count * pixels**2 for count, pixels in layers)
            channels = out
    fc = channels * 1000
    return weights + 2 * bn_channels + fc + 1000, products + fc


def multiply_adds(network: nn.Module) -> int:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *IMAGE))
    return counter.get_total_flops() // 2


# --- Table 1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", TABLE_1)
def test_layer_outputs_match_table_1(depth):
    expansion = 4 if depth >= 50 else 1
    shapes = output_shapes(on_meta(resnet_imagenet, depth=depth), IMAGE)
    assert {name: shape for name, shape in shapes.items() if "." not in name} == {
        "conv1": (64, 112, 112),
        "bn1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "conv2_x": (64 * expansion, 56, 56),
        "conv3_x": (128 * expansion, 28, 28),
        "conv4_x": (256 * expansion, 14, 14),
        "conv5_x": (512 * expansion, 7, 7),
        "pool": (512 * expansion, 1, 1),
        "fc": (1000,),
    }


def test_children_follow_the_table():
    names = [name for name, _ in on_meta(plain_imagenet, depth=18).named_children()]
    assert names == ["conv1", "bn1", "pool1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "pool", "fc"]


@pytest.mark.parametrize("depth", TABLE_1)
def test_number_of_weighted_layers_equals_the_depth(depth):
    network = on_meta(resnet_imagenet, depth=depth, shortcut="A")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth
    assert tuple(len(getattr(network, f"conv{k}_x")) for k in (2, 3, 4, 5)) == TABLE_1[depth]


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_parameters_and_multiply_adds_with_option_b(depth, count):
    network = on_meta(resnet_imagenet, depth=depth)
    assert count_parameters(network) == hand_count(depth)[0] == count
    assert multiply_adds(network) == hand_count(depth)[1]


@pytest.mark.parametrize("option", ["A", "C"])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_parameters_and_multiply_adds_with_options_a_and_c(depth, option):
    network = on_meta(resnet_imagenet, depth=depth, shortcut=option)
    assert (count_parameters(network), multiply_adds(network)) == hand_count(depth, option)


@pytest.mark.parametrize("depth", [18, 34])
def test_plain_network_has_the_counts_of_option_a(depth):
    network = on_meta(plain_imagenet, depth=depth)
    assert (count_parameters(network), multiply_adds(network)) == hand_count(depth, "A")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth


def test_multiply_adds_of_table_1_imply_the_stride_in_the_first_1x1():
    printed = {50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
    for depth, multiply_adds_printed in printed.items():
        assert hand_count(depth)[1] == pytest.approx(multiply_adds_printed, abs=0.06e9)  # 3.858 is printed as 3.8
        assert hand_count(depth, stride_in_3x3=True)[1] > multiply_adds_printed + 0.2e9
    in_3x3 = on_meta(resnet_imagenet, depth=50, stride_in_3x3=True)
    assert multiply_adds(in_3x3) == hand_count(50, stride_in_3x3=True)[1]
    assert hand_count(34, "A")[1] == pytest.approx(3.6e9, abs=0.05e9)  # 3.7e9 with projections
    assert hand_count(34, "B")[1] > 3.65e9


# --- blocks and shortcuts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "projections"), PROJECTIONS.items())
def test_options_have_projections_as_in_section_3_3(case, projections):
    option, depth = case
    network = on_meta(resnet_imagenet, depth=depth, shortcut=option)
    assert sum(isinstance(m, Projection) for m in network.modules()) == projections


def test_option_a_pads_the_first_bottleneck_without_subsampling():
    shortcut = on_meta(resnet_imagenet, depth=50, shortcut="A").conv2_x[0].shortcut
    assert isinstance(shortcut, PadShortcut)
    assert (shortcut.new_channels, shortcut.stride) == (256 - 64, 1)


@pytest.mark.parametrize(
    ("in_3x3", "strides"), [(False, [(2, 2), (1, 1), (1, 1)]), (True, [(1, 1), (2, 2), (1, 1)])]
)
def test_stride_in_3x3_moves_the_stride_of_bottlenecks(in_3x3, strides):
    network = on_meta(resnet_imagenet, depth=50, stride_in_3x3=in_3x3)
    for stage in (network.conv3_x, network.conv4_x, network.conv5_x):
        assert [stage[0].conv1.stride, stage[0].conv2.stride, stage[0].conv3.stride] == strides
        assert stage[0].shortcut.conv.stride == (2, 2)
        assert {conv.stride for conv in stage[1:].modules() if isinstance(conv, nn.Conv2d)} == {(1, 1)}
    assert {conv.stride for conv in network.conv2_x.modules() if isinstance(conv, nn.Conv2d)} == {(1, 1)}


def test_two_layer_block_has_its_stride_in_the_first_convolution():
    block = on_meta(resnet_imagenet, depth=18).conv4_x[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_bottleneck_adds_its_shortcut_before_the_last_relu():
    torch.manual_seed(0)
    block = Bottleneck(32, 8, 1, nn.Identity(), stride_in_3x3=False).eval()
    x = torch.randn(2, 32, 6, 6)
    inner = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    torch.testing.assert_close(block(x), F.relu(block.bn3(block.conv3(inner)) + x))


def test_plain_network_has_the_residual_networks_weights_and_another_output():
    nets = []
    for build in (plain_imagenet, lambda depth: resnet_imagenet(depth=depth, shortcut="A")):
        torch.manual_seed(0)
        nets.append(build(depth=18).eval())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(nets[0](x), nets[1](x))


def test_initial_weights_have_variance_2_over_fan_in_and_biases_are_zero():
    torch.manual_seed(0)
    network = resnet_imagenet(depth=18)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        n = conv.weight.numel()
        gain = conv.weight.var().item() * conv.weight[0].numel()
        assert gain == pytest.approx(2, abs=6 * 2 * (2 / n) ** 0.5)  # six standard errors of a variance
    assert network.fc.weight.var().item() * 512 == pytest.approx(2, rel=0.02)
    assert not network.fc.bias.any()
    assert all(
        m.weight.eq(1).all() and not m.bias.any() for m in network.modules() if isinstance(m, nn.BatchNorm2d)
    )


@pytest.mark.parametrize("side", [32, 97])
def test_network_accepts_any_image_from_32_pixels(side):  # fully convolutional (section 3.4)
    shapes = output_shapes(on_meta(resnet_imagenet, depth=18), (3, side, side + 3))
    assert shapes["fc"] == (1000,)


# --- invalid arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (resnet_imagenet, {"depth": 20}, "depth 20 is not one of Table 1: 18, 34, 50, 101, 152"),
        (plain_imagenet, {"depth": 50}, "depth 50 is not one of the plain networks of Table 2: 18, 34"),
        (
            resnet_imagenet,
            {"depth": 18, "shortcut": "D"},
            r"'D' is not one of the options of section 3\.3: A, B, C",
        ),
        (resnet_imagenet, {"depth": 34, "stride_in_3x3": True}, "depth 34 has none; use 50, 101 or 152"),
    ],
)
def test_invalid_arguments_raise_value_error(build, args, message):
    with pytest.raises(ValueError, match=message):
        build(**args)


def test_image_smaller_than_32_x_32_raises():
    with pytest.raises(
        ValueError, match="a ResNet for ImageNet reads images of 32 x 32 pixels or more, not 31 x 40"
    ):
        output_shapes(on_meta(resnet_imagenet, depth=18), (3, 31, 40))


# --- other libraries ---------------------------------------------------------------------------------------


def library_network(source: str, model: str) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False).eval()
    return torchvision.models.get_model(model, weights=None).eval()


def published_entry(source: str, model: str):
    return next(p for p in PUBLISHED if (p.source, p.model) == (source, model))


@pytest.mark.parametrize(
    ("source", "model"), [("torchvision", "resnet18"), ("timm", "resnet18"), ("torchvision", "resnet50")]
)
def test_output_matches_other_libraries_with_their_weights(source, model):
    torch.manual_seed(0)
    theirs, entry = randomize_batchnorm(library_network(source, model)), published_entry(source, model)
    ours = on_meta(resnet_imagenet, **entry.args).to_empty(device="cpu")
    ours.load_state_dict(rename_state_dict(theirs.state_dict(), entry.rename))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3


def test_stride_in_the_first_1x1_differs_from_torchvision():
    torch.manual_seed(0)
    theirs = randomize_batchnorm(library_network("torchvision", "resnet50"))
    entry = published_entry("torchvision", "resnet50")
    ours = on_meta(resnet_imagenet, depth=50).to_empty(device="cpu")
    ours.load_state_dict(rename_state_dict(theirs.state_dict(), entry.rename))  # names and shapes fit nonetheless
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).norm() > 0.1 * theirs(x).norm()


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: f"{entry.source}-{entry.model}")
def test_published_state_dict_fits(entry):
    with torch.device("meta"):
        state = library_network(entry.source, entry.model).state_dict()
    renamed = rename_state_dict(state, entry.rename)
    assert len(renamed) == len(state)
    assert state_dict_mismatch(on_meta(resnet_imagenet, **entry.args), renamed) == ""
    assert state_dict_mismatch(on_meta(resnet_imagenet, **entry.args, num_classes=10), renamed).startswith(
        "fc.weight"
    )
    assert entry.differs == (
        "stride 2 in the 3x3 of a bottleneck, not in its first 1x1" if entry.args["depth"] >= 50 else ""
    )
