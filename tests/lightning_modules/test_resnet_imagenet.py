"""The ImageNet nets against section 3.3, Table 1 and Figure 5 of arXiv:1512.03385, and against other libraries."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from looking import on_meta, output_shapes, parameters, shaken
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.layers import PadShortcut, Projection
from lightning_modules.published.resnet import PUBLISHED
from lightning_modules.published.weights import translated, unfit
from lightning_modules.resnet_imagenet import Bottleneck, plain_imagenet, resnet_imagenet

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


def by_hand(depth: int, shortcut: str = "B", stride_in_3x3: bool = False) -> tuple[int, int]:
    """Parameters and multiply-adds for 224 x 224 pixels, row by row of Table 1."""
    weights, norms, products = 3 * 64 * 49, 64, 3 * 64 * 49 * 112 * 112
    channels, side = 64, 56
    for stage, blocks in enumerate(TABLE_1[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            before, side = side, side // 2 if block == 0 and stage > 0 else side
            if depth < 50:
                out, norms = width, norms + 2 * width
                layers = [(channels * width * 9, side), (width * width * 9, side)]
            else:
                out, norms = 4 * width, norms + 2 * width + 4 * width
                first = before if stride_in_3x3 else side
                layers = [(channels * width, first), (width * width * 9, side), (width * out, side)]
            if shortcut == "C" or (shortcut == "B" and (before, channels) != (side, out)):
                layers.append((channels * out, side))
                norms += out
            weights += sum(count for count, _ in layers)
            products += sum(count * pixels**2 for count, pixels in layers)
            channels = out
    fc = channels * 1000
    return weights + 2 * norms + fc + 1000, products + fc


def multiply_adds(network: nn.Module) -> int:
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *IMAGE))
    return counter.get_total_flops() // 2


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", TABLE_1)
def test_outputs_are_table_1s(depth):
    wide = 4 if depth >= 50 else 1
    shapes = output_shapes(on_meta(resnet_imagenet, depth=depth), IMAGE)
    assert {name: shape for name, shape in shapes.items() if "." not in name} == {
        "conv1": (64, 112, 112),
        "bn1": (64, 112, 112),
        "pool1": (64, 56, 56),
        "conv2_x": (64 * wide, 56, 56),
        "conv3_x": (128 * wide, 28, 28),
        "conv4_x": (256 * wide, 14, 14),
        "conv5_x": (512 * wide, 7, 7),
        "pool": (512 * wide, 1, 1),
        "fc": (1000,),
    }


def test_children_read_like_the_table():
    names = [name for name, _ in on_meta(plain_imagenet, depth=18).named_children()]
    assert names == ["conv1", "bn1", "pool1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "pool", "fc"]


@pytest.mark.parametrize("depth", TABLE_1)
def test_weighted_layers_are_the_depth(depth):
    network = on_meta(resnet_imagenet, depth=depth, shortcut="A")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth
    assert tuple(len(getattr(network, f"conv{k}_x")) for k in (2, 3, 4, 5)) == TABLE_1[depth]


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_parameters_and_multiply_adds_with_option_b(depth, count):
    network = on_meta(resnet_imagenet, depth=depth)
    assert parameters(network) == by_hand(depth)[0] == count
    assert multiply_adds(network) == by_hand(depth)[1]


@pytest.mark.parametrize("option", ["A", "C"])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_parameters_and_multiply_adds_with_options_a_and_c(depth, option):
    network = on_meta(resnet_imagenet, depth=depth, shortcut=option)
    assert (parameters(network), multiply_adds(network)) == by_hand(depth, option)


@pytest.mark.parametrize("depth", [18, 34])
def test_a_plain_net_counts_as_option_a(depth):
    network = on_meta(plain_imagenet, depth=depth)
    assert (parameters(network), multiply_adds(network)) == by_hand(depth, "A")
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth


def test_table_1s_multiply_adds_are_those_of_the_stride_in_the_first_1x1():
    printed = {50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
    for depth, figure in printed.items():
        assert by_hand(depth)[1] == pytest.approx(figure, abs=0.06e9)  # 3.858 is printed as 3.8
        assert by_hand(depth, stride_in_3x3=True)[1] > figure + 0.2e9
    elsewhere = on_meta(resnet_imagenet, depth=50, stride_in_3x3=True)
    assert multiply_adds(elsewhere) == by_hand(50, stride_in_3x3=True)[1]
    assert by_hand(34, "A")[1] == pytest.approx(3.6e9, abs=0.05e9)  # with projections it would be 3.7
    assert by_hand(34, "B")[1] > 3.65e9


# --- blocks and shortcuts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "projections"), PROJECTIONS.items())
def test_options_project_where_section_3_3_says(case, projections):
    option, depth = case
    network = on_meta(resnet_imagenet, depth=depth, shortcut=option)
    assert sum(isinstance(m, Projection) for m in network.modules()) == projections


def test_option_a_pads_the_first_bottleneck_without_subsampling():
    way = on_meta(resnet_imagenet, depth=50, shortcut="A").conv2_x[0].shortcut
    assert isinstance(way, PadShortcut)
    assert (way.new_channels, way.stride) == (256 - 64, 1)


@pytest.mark.parametrize(
    ("in_3x3", "strides"), [(False, [(2, 2), (1, 1), (1, 1)]), (True, [(1, 1), (2, 2), (1, 1)])]
)
def test_a_bottleneck_has_its_stride_where_it_is_asked_for(in_3x3, strides):
    network = on_meta(resnet_imagenet, depth=50, stride_in_3x3=in_3x3)
    for stage in (network.conv3_x, network.conv4_x, network.conv5_x):
        assert [stage[0].conv1.stride, stage[0].conv2.stride, stage[0].conv3.stride] == strides
        assert stage[0].shortcut.conv.stride == (2, 2)
        assert {conv.stride for conv in stage[1:].modules() if isinstance(conv, nn.Conv2d)} == {(1, 1)}
    assert {conv.stride for conv in network.conv2_x.modules() if isinstance(conv, nn.Conv2d)} == {(1, 1)}


def test_a_basic_block_strides_in_its_first_convolution():
    block = on_meta(resnet_imagenet, depth=18).conv4_x[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_a_bottleneck_is_figure_5s_shortcut_before_the_last_relu():
    torch.manual_seed(0)
    block = Bottleneck(32, 8, 1, nn.Identity(), stride_in_3x3=False).eval()
    x = torch.randn(2, 32, 6, 6)
    inner = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    torch.testing.assert_close(block(x), F.relu(block.bn3(block.conv3(inner)) + x))


def test_a_plain_net_has_the_residual_nets_weights_and_another_output():
    nets = []
    for build in (plain_imagenet, lambda depth: resnet_imagenet(depth=depth, shortcut="A")):
        torch.manual_seed(0)
        nets.append(build(depth=18).eval())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(nets[0](x), nets[1](x))


def test_weights_start_normal_with_variance_2_over_fan_in_and_biases_zero():
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
def test_any_image_from_32_pixels_is_read(side):  # fully convolutional (section 3.4)
    shapes = output_shapes(on_meta(resnet_imagenet, depth=18), (3, side, side + 3))
    assert shapes["fc"] == (1000,)


# --- wrong arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "words"),
    [
        (resnet_imagenet, {"depth": 20}, "depth 20 is not one of Table 1: 18, 34, 50, 101, 152"),
        (plain_imagenet, {"depth": 50}, "depth 50 is not one of the plain nets of Table 2: 18, 34"),
        (
            resnet_imagenet,
            {"depth": 18, "shortcut": "D"},
            r"'D' is not one of the options of section 3\.3: A, B, C",
        ),
        (resnet_imagenet, {"depth": 34, "stride_in_3x3": True}, "which depth 34 lacks; 50, 101, 152 have them"),
    ],
)
def test_a_wrong_argument_is_told_what_would_fit(build, args, words):
    with pytest.raises(ValueError, match=words):
        build(**args)


def test_a_small_image_is_told_what_would_fit():
    with pytest.raises(
        ValueError, match="a ResNet for ImageNet reads images of 32 x 32 pixels or more, not 31 x 40"
    ):
        output_shapes(on_meta(resnet_imagenet, depth=18), (3, 31, 40))


# --- second opinion ----------------------------------------------------------------------------------------


def theirs(source: str, model: str) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False).eval()
    return torchvision.models.get_model(model, weights=None).eval()


def entry(source: str, model: str):
    return next(p for p in PUBLISHED if (p.source, p.model) == (source, model))


@pytest.mark.parametrize(
    ("source", "model"), [("torchvision", "resnet18"), ("timm", "resnet18"), ("torchvision", "resnet50")]
)
def test_with_other_libraries_weights_the_output_is_theirs(source, model):
    torch.manual_seed(0)
    other, published = shaken(theirs(source, model)), entry(source, model)
    ours = on_meta(resnet_imagenet, **published.args).to_empty(device="cpu")
    ours.load_state_dict(translated(other.state_dict(), published.rename))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = other(x)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3


def test_the_papers_stride_place_is_not_torchvisions():
    torch.manual_seed(0)
    other, published = shaken(theirs("torchvision", "resnet50")), entry("torchvision", "resnet50")
    ours = on_meta(resnet_imagenet, depth=50).to_empty(device="cpu")
    ours.load_state_dict(translated(other.state_dict(), published.rename))  # the weights fit all the same
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (ours(x) - other(x)).norm() > 0.1 * other(x).norm()


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.source}-{p.model}")
def test_every_published_size_fits(published):
    with torch.device("meta"):
        state = theirs(published.source, published.model).state_dict()
    ours = translated(state, published.rename)
    assert len(ours) == len(state)
    assert unfit(on_meta(resnet_imagenet, **published.args), ours) == ""
    assert unfit(on_meta(resnet_imagenet, **published.args, num_classes=10), ours).startswith("fc.weight is")
    assert published.differs == (
        "stride 2 in the 3x3 of a bottleneck, not in its first 1x1" if published.args["depth"] >= 50 else ""
    )
