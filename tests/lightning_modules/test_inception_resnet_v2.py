"""Inception-ResNet-v2 against Figures 3, 7 and 15 to 19, Table 1 and section 3.3 of arXiv:1602.07261."""

import pytest
import timm
import torch
from torch import nn

from lightning_modules.inception_resnet_v2 import InceptionResNetA, ScaledResidual, inception_resnet_v2
from lightning_modules.inception_v4 import inception_v4
from lightning_modules.published.inception_v4 import PUBLISHED
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from tests.support.network_inspection import conv_bn, count_parameters, on_meta, output_shapes

FIGURE_15 = {  # channels of Figure 3, Table 1 and Figure 18: 3 x 384 and 1152 + 384 + 288 + 320
    "stem": (384, 35, 35),
    "inception_resnet_a1": (384, 35, 35),
    "inception_resnet_a5": (384, 35, 35),
    "reduction_a": (1152, 17, 17),
    "inception_resnet_b1": (1152, 17, 17),
    "inception_resnet_b10": (1152, 17, 17),
    "reduction_b": (2144, 8, 8),
    "inception_resnet_c1": (2144, 8, 8),
    "inception_resnet_c5": (2144, 8, 8),
    "pool": (2144,),
    "dropout": (2144,),
    "fc": (1000,),
}
RELEASED_OUTPUTS = {  # 320 = 96 + 64 + 96 + 64; 1088 = 320 + 2 x 384; 2080 = 1088 + 384 + 288 + 320
    "stem.conv5": (192, 71, 71),
    "stem": (320, 35, 35),
    "inception_resnet_a10": (320, 35, 35),
    "reduction_a": (1088, 17, 17),
    "inception_resnet_b20": (1088, 17, 17),
    "reduction_b": (2080, 8, 8),
    "inception_resnet_c10": (2080, 8, 8),
    "conv": (1536, 8, 8),
    "pool": (1536,),
    "fc": (1000,),
}
TIMM = PUBLISHED[1]


def linear(channels: int, filters: int) -> int:
    """Count the parameters of a 1x1 convolution with biases."""
    return channels * filters + filters


def by_hand(first: int, second: int, third: int) -> dict[str, int]:
    """Compute the parameters of one block of each figure, from the input channels of the blocks A, B and C."""
    return {
        "inception_resnet_a1": conv_bn(first, 1, 32) + conv_bn(first, 1, 32, 9, 32)
        + conv_bn(first, 1, 32, 9, 48, 9, 64)
        + linear(32 + 32 + 64, first),
        "reduction_a": conv_bn(first, 9, 384) + conv_bn(first, 1, 256, 9, 256, 9, 384),  # n and k, l, m of Table 1
        "inception_resnet_b1": conv_bn(second, 1, 192) + conv_bn(second, 1, 128, 7, 160, 7, 192)
        + linear(192 + 192, second),
        "reduction_b": conv_bn(second, 1, 256, 9, 384) + conv_bn(second, 1, 256, 9, 288)
        + conv_bn(second, 1, 256, 9, 288, 9, 320),
        "inception_resnet_c1": conv_bn(third, 1, 192) + conv_bn(third, 1, 192, 3, 224, 3, 256)
        + linear(192 + 256, third),
    }  # fmt: skip


PAPER_PARAMETERS, RELEASED_PARAMETERS = by_hand(384, 1152, 2144), by_hand(320, 1088, 2080)


def total_parameters(blocks: dict[str, int], a: int, b: int, c: int) -> int:
    times = {"inception_resnet_a1": a, "inception_resnet_b1": b, "inception_resnet_c1": c}
    return sum(count * times.get(name, 1) for name, count in blocks.items())


@pytest.fixture(scope="module")
def paper() -> nn.Module:
    """The network of the paper without weights, for shapes and counts."""
    return on_meta(inception_resnet_v2)


@pytest.fixture(scope="module")
def released() -> nn.Module:
    """The network of the authors' released code without weights."""
    return on_meta(inception_resnet_v2, released=True)


@pytest.fixture(scope="module")
def paper_shapes(paper) -> dict[str, tuple[int, ...]]:
    return output_shapes(paper, (3, 299, 299))


@pytest.fixture(scope="module")
def released_shapes(released) -> dict[str, tuple[int, ...]]:
    return output_shapes(released, (3, 299, 299))


@pytest.mark.parametrize(("layer", "shape"), FIGURE_15.items())
def test_outputs_equal_figure_15(paper_shapes, layer, shape):
    assert paper_shapes[layer] == shape


@pytest.mark.parametrize(("layer", "shape"), RELEASED_OUTPUTS.items())
def test_outputs_of_the_released_network(released_shapes, layer, shape):
    assert released_shapes[layer] == shape


def test_children_have_the_names_of_figure_15(paper):
    a, b, c = (
        [f"inception_resnet_{kind}{i + 1}" for i in range(n)] for kind, n in (("a", 5), ("b", 10), ("c", 5))
    )
    names = [name for name, _ in paper.named_children()]
    assert names == ["stem", *a, "reduction_a", *b, "reduction_b", *c, "pool", "dropout", "fc"]


@pytest.mark.parametrize("layer", PAPER_PARAMETERS)
def test_parameters_of_a_block_equal_its_figure(paper, released, layer):
    assert count_parameters(paper.get_submodule(layer)) == PAPER_PARAMETERS[layer]
    assert count_parameters(released.get_submodule(layer)) == RELEASED_PARAMETERS[layer]


def test_network_of_the_paper_has_32_4_million_parameters(paper):
    stem = count_parameters(on_meta(inception_v4).stem)  # checked by hand in test_inception_v4.py
    count = stem + total_parameters(PAPER_PARAMETERS, 5, 10, 5) + linear(2144, 1000)
    assert count == 32_433_928
    assert count_parameters(paper) == count


def test_released_network_has_55_8_million_parameters(released):
    stem = (
        conv_bn(3, 9, 32, 9, 32, 9, 64, 1, 80, 9, 192)
        + conv_bn(192, 1, 96)
        + conv_bn(192, 1, 48, 25, 64)
        + conv_bn(192, 1, 64, 9, 96, 9, 96)
        + conv_bn(192, 1, 64)
    )
    count = stem + total_parameters(RELEASED_PARAMETERS, 10, 20, 10) + conv_bn(2080, 1, 1536) + linear(1536, 1000)
    assert count == 55_843_464
    assert count_parameters(released) == count


def test_block_adds_its_scaled_linear_convolution_before_the_relu():
    torch.manual_seed(0)
    block = InceptionResNetA(384, 0.25).eval()
    x = torch.randn(2, 384, 5, 5)
    with torch.no_grad():
        residual = block.linear(block.branches(x))
        torch.testing.assert_close(block(x), (x + 0.25 * residual).relu())
    assert (residual < 0).any()  # linear: no ReLU before the sum


def test_only_the_last_released_block_does_not_end_in_a_relu(paper, released):
    assert all(block.ends_in_relu for block in residuals(paper))
    assert [block.ends_in_relu for block in residuals(released)] == [True] * 39 + [False]
    assert residuals(released)[-1].scale == 1
    x = torch.randn(2, 384, 5, 5)
    with torch.no_grad():
        for ends_in_relu, negative in ((True, False), (False, True)):
            block = ScaledResidual(384, "1x1 8", scale=0.2, ends_in_relu=ends_in_relu).eval()
            assert (block(x) < 0).any().item() is negative


def residuals(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if hasattr(m, "ends_in_relu")]


def test_scales_by_default_and_as_argument(paper):
    assert [block.scale for block in residuals(paper)] == [0.17] * 5 + [0.10] * 10 + [0.20] * 5
    assert {block.scale for block in residuals(on_meta(inception_resnet_v2, scale=0.3))} == {0.3}
    assert {block.scale for block in residuals(on_meta(inception_resnet_v2, scale=1))} == {1}


@pytest.mark.parametrize("scale", [0, -0.1, 1.5, float("nan")])
def test_invalid_scale_names_the_valid_range(scale):
    with pytest.raises(
        ValueError, match=r"scale must be above 0 and at most 1, not .*; section 3\.3 uses 0\.1 to 0\.3"
    ):
        inception_resnet_v2(scale=scale)


def test_all_convolutions_except_the_linear_ones_are_normalised(paper):
    convolutions = {name: m for name, m in paper.named_modules() if isinstance(m, nn.Conv2d)}
    biased = {name for name, m in convolutions.items() if m.bias is not None}
    assert {name.rpartition(".")[2] for name in biased} == {"linear"}
    assert len(biased) == 5 + 10 + 5
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in paper.modules())
    assert norms == len(convolutions) - len(biased)


@pytest.mark.parametrize("form", ["paper", "released"])
def test_75_pixels_give_one_place_and_74_raise(form, request):
    network = request.getfixturevalue(form)
    assert output_shapes(network, (3, 75, 75))["inception_resnet_c5"][1:] == (1, 1)
    with pytest.raises(
        ValueError, match="inception_resnet_v2 reads images of 75 x 75 pixels or more, not 90 x 74"
    ):
        network(torch.zeros(1, 3, 90, 74, device="meta"))


def test_timm_weights_fit_the_released_network_only(paper, released):
    with torch.device("meta"):
        timm_network = timm.create_model(TIMM.model)
    state = timm_network.state_dict()
    ours = rename_state_dict(state, TIMM.rename)
    assert len(ours) == len(state)
    assert state_dict_mismatch(released, ours) == ""
    reason = "inception_resnet_a1.branches.branch0.conv.weight has shape 32 x 320 x 1 x 1, expected 32 x 384"
    assert reason in state_dict_mismatch(paper, ours)


def test_scores_equal_timm():
    torch.manual_seed(0)
    timm_network = timm.create_model(TIMM.model, num_classes=10).eval()
    for module in timm_network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    ours = inception_resnet_v2(released=True, num_classes=10).eval()
    ours.load_state_dict(rename_state_dict(timm_network.state_dict(), TIMM.rename))
    x = torch.randn(1, 3, 107, 107)  # last maps of 2 x 2, to test the last pooling
    with torch.no_grad():
        expected, scores = timm_network(x), ours(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
