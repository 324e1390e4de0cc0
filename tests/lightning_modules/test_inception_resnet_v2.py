"""Inception-ResNet-v2 against Figures 3, 7 and 15 to 19, Table 1 and section 3.3 of arXiv:1602.07261."""

import pytest
import timm
import torch
from looking import on_meta, output_shapes, parameters, unit
from torch import nn

from lightning_modules.inception_resnet_v2 import InceptionResNetA, Residual, inception_resnet_v2
from lightning_modules.inception_v4 import inception_v4
from lightning_modules.published.inception_v4 import PUBLISHED
from lightning_modules.published.weights import translated, unfit

FIGURE_15 = {  # the maps of Figure 3, Table 1 and Figure 18: 3 x 384 and 1152 + 384 + 288 + 320
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
RELEASED = {  # 320 = 96 + 64 + 96 + 64; 1088 = 320 + 2 x 384; 2080 = 1088 + 384 + 288 + 320
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
THEIRS = PUBLISHED[1]


def linear(channels: int, filters: int) -> int:
    """Parameters of a 1x1 convolution with biases."""
    return channels * filters + filters


def by_hand(first: int, second: int, third: int) -> dict[str, int]:
    """Parameters of one block of each figure, by the maps that the blocks A, B and C read."""
    return {
        "inception_resnet_a1": unit(first, 1, 32) + unit(first, 1, 32, 9, 32) + unit(first, 1, 32, 9, 48, 9, 64)
        + linear(32 + 32 + 64, first),
        "reduction_a": unit(first, 9, 384) + unit(first, 1, 256, 9, 256, 9, 384),  # n and k, l, m of Table 1
        "inception_resnet_b1": unit(second, 1, 192) + unit(second, 1, 128, 7, 160, 7, 192)
        + linear(192 + 192, second),
        "reduction_b": unit(second, 1, 256, 9, 384) + unit(second, 1, 256, 9, 288)
        + unit(second, 1, 256, 9, 288, 9, 320),
        "inception_resnet_c1": unit(third, 1, 192) + unit(third, 1, 192, 3, 224, 3, 256)
        + linear(192 + 256, third),
    }  # fmt: skip


PAPERS, CODES = by_hand(384, 1152, 2144), by_hand(320, 1088, 2080)


def total(blocks: dict[str, int], a: int, b: int, c: int) -> int:
    times = {"inception_resnet_a1": a, "inception_resnet_b1": b, "inception_resnet_c1": c}
    return sum(count * times.get(name, 1) for name, count in blocks.items())


@pytest.fixture(scope="module")
def paper() -> nn.Module:
    """Without weights: for shapes and counts. The paper's form."""
    return on_meta(inception_resnet_v2)


@pytest.fixture(scope="module")
def code() -> nn.Module:
    """The same as the authors' code has it."""
    return on_meta(inception_resnet_v2, released=True)


@pytest.fixture(scope="module")
def papers_shapes(paper) -> dict[str, tuple[int, ...]]:
    return output_shapes(paper, (3, 299, 299))


@pytest.fixture(scope="module")
def codes_shapes(code) -> dict[str, tuple[int, ...]]:
    return output_shapes(code, (3, 299, 299))


@pytest.mark.parametrize(("layer", "shape"), FIGURE_15.items())
def test_outputs_are_figure_15s(papers_shapes, layer, shape):
    assert papers_shapes[layer] == shape


@pytest.mark.parametrize(("layer", "shape"), RELEASED.items())
def test_outputs_of_the_released_form(codes_shapes, layer, shape):
    assert codes_shapes[layer] == shape


def test_children_read_like_figure_15(paper):
    a, b, c = (
        [f"inception_resnet_{kind}{i + 1}" for i in range(n)] for kind, n in (("a", 5), ("b", 10), ("c", 5))
    )
    names = [name for name, _ in paper.named_children()]
    assert names == ["stem", *a, "reduction_a", *b, "reduction_b", *c, "pool", "dropout", "fc"]


@pytest.mark.parametrize("layer", PAPERS)
def test_parameters_of_a_block_are_those_of_its_figure(paper, code, layer):
    assert parameters(paper.get_submodule(layer)) == PAPERS[layer]
    assert parameters(code.get_submodule(layer)) == CODES[layer]


def test_the_papers_form_has_32_4_million_parameters(paper):
    stem = parameters(on_meta(inception_v4).stem)  # counted by hand in test_inception_v4.py
    count = stem + total(PAPERS, 5, 10, 5) + linear(2144, 1000)
    assert count == 32_433_928
    assert parameters(paper) == count


def test_the_released_form_has_55_8_million_parameters(code):
    stem = (
        unit(3, 9, 32, 9, 32, 9, 64, 1, 80, 9, 192)
        + unit(192, 1, 96)
        + unit(192, 1, 48, 25, 64)
        + unit(192, 1, 64, 9, 96, 9, 96)
        + unit(192, 1, 64)
    )
    count = stem + total(CODES, 10, 20, 10) + unit(2080, 1, 1536) + linear(1536, 1000)
    assert count == 55_843_464
    assert parameters(code) == count


def test_a_block_adds_its_scaled_linear_convolution_before_the_relu():
    torch.manual_seed(0)
    block = InceptionResNetA(384, 0.25).eval()
    x = torch.randn(2, 384, 5, 5)
    with torch.no_grad():
        residual = block.linear(block.branches(x))
        torch.testing.assert_close(block(x), (x + 0.25 * residual).relu())
    assert (residual < 0).any()  # linear: nothing cuts it before the sum


def test_the_papers_blocks_all_end_in_a_relu_and_the_released_last_does_not(paper, code):
    assert all(block.ends_in_relu for block in residuals(paper))
    assert [block.ends_in_relu for block in residuals(code)] == [True] * 39 + [False]
    assert residuals(code)[-1].scale == 1
    x = torch.randn(2, 384, 5, 5)
    with torch.no_grad():
        for ends_in_relu, negative in ((True, False), (False, True)):
            block = Residual(384, "1x1 8", scale=0.2, ends_in_relu=ends_in_relu).eval()
            assert (block(x) < 0).any().item() is negative


def residuals(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if hasattr(m, "ends_in_relu")]


def test_scales_are_between_0_1_and_0_3_and_one_scale_can_be_given(paper):
    assert [block.scale for block in residuals(paper)] == [0.17] * 5 + [0.10] * 10 + [0.20] * 5
    assert {block.scale for block in residuals(on_meta(inception_resnet_v2, scale=0.3))} == {0.3}
    assert {block.scale for block in residuals(on_meta(inception_resnet_v2, scale=1))} == {1}


@pytest.mark.parametrize("scale", [0, -0.1, 1.5, float("nan")])
def test_an_impossible_scale_names_the_papers(scale):
    with pytest.raises(ValueError, match=r"above 0, at most 1; section 3\.3 uses 0\.1 to 0\.3"):
        inception_resnet_v2(scale=scale)


def test_all_but_the_linear_convolutions_are_normalised(paper):
    convolutions = {name: m for name, m in paper.named_modules() if isinstance(m, nn.Conv2d)}
    biased = {name for name, m in convolutions.items() if m.bias is not None}
    assert {name.rpartition(".")[2] for name in biased} == {"linear"}
    assert len(biased) == 5 + 10 + 5
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in paper.modules())
    assert norms == len(convolutions) - len(biased)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_75_pixels_leave_one_and_74_are_refused(form, request):
    network = request.getfixturevalue(form)
    assert output_shapes(network, (3, 75, 75))["inception_resnet_c5"][1:] == (1, 1)
    with pytest.raises(
        ValueError, match="inception_resnet_v2 reads images of 75 x 75 pixels or more, not 90 x 74"
    ):
        network(torch.zeros(1, 3, 90, 74, device="meta"))


def test_timms_weights_fit_the_released_form_and_not_the_papers(paper, code):
    with torch.device("meta"):
        theirs = timm.create_model(THEIRS.model)
    state = theirs.state_dict()
    ours = translated(state, THEIRS.rename)
    assert len(ours) == len(state)
    assert unfit(code, ours) == ""
    assert "inception_resnet_a1.branches.branch0.conv.weight is 32 x 320 x 1 x 1 where 32 x 384" in unfit(
        paper, ours
    )


def test_second_opinion_timm_computes_the_same():
    torch.manual_seed(0)
    theirs = timm.create_model(THEIRS.model, num_classes=10).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    ours = inception_resnet_v2(released=True, num_classes=10).eval()
    ours.load_state_dict(translated(theirs.state_dict(), THEIRS.rename))
    x = torch.randn(1, 3, 107, 107)  # 2 x 2 maps at the end: the last pooling counts, too
    with torch.no_grad():
        expected, scores = theirs(x), ours(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
