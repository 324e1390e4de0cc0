"""Inception-v4 against Figures 3 to 9 and Table 1 of arXiv:1602.07261."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.inception_v4 import Concat, ConvBnRelu, inception_v4
from lightning_modules.published.inception_v4 import PUBLISHED
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from tests.support.network_inspection import conv_bn, count_parameters, on_meta, output_shapes

FIGURES_3_AND_9 = {
    "stem.conv1": (32, 149, 149),
    "stem.conv2": (32, 147, 147),
    "stem.conv3": (64, 147, 147),
    "stem.mixed1": (160, 73, 73),
    "stem.mixed2": (192, 71, 71),
    "stem.mixed3": (384, 35, 35),
    "stem": (384, 35, 35),
    "inception_a1": (384, 35, 35),
    "inception_a4": (384, 35, 35),
    "reduction_a": (1024, 17, 17),
    "inception_b1": (1024, 17, 17),
    "inception_b7": (1024, 17, 17),
    "reduction_b": (1536, 8, 8),
    "inception_c1": (1536, 8, 8),
    "inception_c3": (1536, 8, 8),
    "pool": (1536,),
    "dropout": (1536,),
    "fc": (1000,),
}
TIMM = PUBLISHED[0]


STEM = (
    conv_bn(3, 9, 32, 9, 32, 9, 64)  # conv1 to conv3
    + conv_bn(64, 9, 96)  # with the pooling: 64 + 96 = 160
    + conv_bn(160, 1, 64, 9, 96)
    + conv_bn(160, 1, 64, 7, 64, 7, 64, 9, 96)
    + conv_bn(192, 9, 192)
)
BY_HAND = {
    "stem": STEM,
    "inception_a1": conv_bn(384, 1, 96) * 2 + conv_bn(384, 1, 64, 9, 96) + conv_bn(384, 1, 64, 9, 96, 9, 96),
    "reduction_a": conv_bn(384, 9, 384) + conv_bn(384, 1, 192, 9, 224, 9, 256),  # n and k, l, m of Table 1
    "inception_b1": conv_bn(1024, 1, 384)
    + conv_bn(1024, 1, 192, 7, 224, 7, 256)
    + conv_bn(1024, 1, 192, 7, 192, 7, 224, 7, 224, 7, 256)
    + conv_bn(1024, 1, 128),
    "reduction_b": conv_bn(1024, 1, 192, 9, 192) + conv_bn(1024, 1, 256, 7, 256, 7, 320, 9, 320),
    "inception_c1": conv_bn(1536, 1, 256) * 2
    + conv_bn(1536, 1, 384)
    + conv_bn(384, 3, 256) * 2
    + conv_bn(1536, 1, 384, 3, 448, 3, 512)
    + conv_bn(512, 3, 256) * 2,
    "fc": 1536 * 1000 + 1000,
}


@pytest.fixture(scope="module")
def initialised() -> nn.Module:
    """The network with weights and random batch-norm statistics."""
    torch.manual_seed(0)
    network = inception_v4(num_classes=10)
    randomize_batchnorm(network)
    return network.eval()


def randomize_batchnorm(network: nn.Module) -> None:
    """Randomize running statistics, scales and shifts, as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


def kernels(module: nn.Module) -> list[tuple[int, ...]]:
    return [m.kernel_size for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.fixture(scope="module")
def paper() -> nn.Module:
    """The network of the paper without weights, for shapes and counts."""
    return on_meta(inception_v4)


@pytest.fixture(scope="module")
def released() -> nn.Module:
    """The network of the authors' released code without weights."""
    return on_meta(inception_v4, released=True)


@pytest.fixture(scope="module")
def shapes(paper) -> dict[str, tuple[int, ...]]:
    return output_shapes(paper, (3, 299, 299))


@pytest.mark.parametrize(("layer", "shape"), FIGURES_3_AND_9.items())
def test_outputs_equal_the_figures(shapes, layer, shape):
    assert shapes[layer] == shape


def test_children_have_the_names_of_figure_9(paper):
    names = [name for name, _ in paper.named_children()]
    a, b, c = ([f"inception_{kind}{i + 1}" for i in range(n)] for kind, n in (("a", 4), ("b", 7), ("c", 3)))
    assert names == ["stem", *a, "reduction_a", *b, "reduction_b", *c, "pool", "dropout", "fc"]


@pytest.mark.parametrize(("layer", "count"), BY_HAND.items())
def test_parameters_of_a_block_equal_its_figure(paper, layer, count):
    assert count_parameters(paper.get_submodule(layer)) == count


def test_network_has_42_7_million_parameters(paper, released):
    times = {"inception_a1": 4, "inception_b1": 7, "inception_c1": 3}
    by_hand = sum(count * times.get(layer, 1) for layer, count in BY_HAND.items())
    assert by_hand == 42_679_816
    assert count_parameters(paper) == by_hand
    assert count_parameters(released) == by_hand  # the same kernels, transposed
    assert count_parameters(on_meta(inception_v4, num_classes=10, in_channels=1)) == (
        by_hand - 990 * (1536 + 1) - 2 * 9 * 32
    )


def test_convolutions_have_no_bias_and_only_stem_and_reductions_are_unpadded(paper):
    convolutions = {name: m for name, m in paper.named_modules() if isinstance(m, nn.Conv2d)}
    # Stem 11, Inception-A 7, Reduction-A 4, Inception-B 10, Reduction-B 6, Inception-C 10.
    assert len(convolutions) == 11 + 4 * 7 + 4 + 7 * 10 + 6 + 3 * 10
    assert sum(isinstance(m, nn.BatchNorm2d) for m in paper.modules()) == len(convolutions)
    assert all(m.bias is None for m in convolutions.values())
    valid = {
        n.partition(".")[0] for n, m in convolutions.items() if m.kernel_size != (1, 1) and m.padding == (0, 0)
    }
    assert valid == {"stem", "reduction_a", "reduction_b"}


def test_consecutive_asymmetric_kernels_alternate(paper):
    """Figure 5 prints 1x7 twice in its branch of two; Figure 8 prints 1x7 and 7x1."""
    assert kernels(paper.inception_b1.branch1) == [(1, 1), (1, 7), (7, 1)]
    assert kernels(paper.reduction_b.branch1) == [(1, 1), (1, 7), (7, 1), (3, 3)]


def test_released_code_transposes_the_kernels_of_three_branches(paper, released):
    assert kernels(paper.stem.mixed2.branch1) == [(1, 1), (7, 1), (1, 7), (3, 3)]
    assert kernels(released.stem.mixed2.branch1) == [(1, 1), (1, 7), (7, 1), (3, 3)]
    assert kernels(paper.inception_b7.branch2) == [(1, 1), (1, 7), (7, 1), (1, 7), (7, 1)]
    assert kernels(released.inception_b7.branch2) == [(1, 1), (7, 1), (1, 7), (7, 1), (1, 7)]
    assert kernels(paper.inception_c3.branch2)[1:3] == [(1, 3), (3, 1)]
    assert kernels(released.inception_c3.branch2)[1:3] == [(3, 1), (1, 3)]
    assert kernels(paper.inception_b7.branch1) == kernels(released.inception_b7.branch1)
    assert kernels(paper.reduction_b) == kernels(released.reduction_b)


def test_stem_without_the_stride_missing_in_figure_3_cannot_be_concatenated():
    with torch.device("meta"):
        x = torch.zeros(1, 192, 71, 71)
        assert ConvBnRelu(192, "3x3 192 V")(x).shape[-1] == 69
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            Concat(192, "3x3 192 V", "max /2 V")(x)


def test_box_is_convolution_batch_normalisation_relu():
    torch.manual_seed(0)
    conv = ConvBnRelu(3, "1x7 5").eval()
    randomize_batchnorm(conv)
    x = torch.randn(2, 3, 9, 9)
    a = F.conv2d(x, conv.conv.weight, padding=(0, 3))
    shape = (1, 5, 1, 1)
    mean, var = conv.bn.running_mean.view(shape), conv.bn.running_var.view(shape)
    a = (a - mean) / (var + 0.001).sqrt() * conv.bn.weight.view(shape) + conv.bn.bias.view(shape)
    torch.testing.assert_close(conv(x), a.clamp(min=0))


def test_branches_are_concatenated_and_average_pooling_counts_no_padding():
    concat = Concat(2, "avg", ("1x1 3", ["3x1 4", "1x3 5"])).eval()
    assert concat.out_channels == 2 + 4 + 5
    x = torch.ones(1, 2, 6, 6)
    y = concat(x)
    assert torch.equal(y[:, :2], x)  # 4/9 in the corners if padding were counted
    torch.testing.assert_close(y[:, 2:6], concat.branch1[1].branch0(concat.branch1[0](x)))
    torch.testing.assert_close(y[:, 6:], concat.branch1[1].branch1(concat.branch1[0](x)))


def test_dropout_keeps_0_8_and_acts_in_training_only(initialised):
    assert initialised.dropout.p == pytest.approx(0.2)
    x = torch.randn(1, 3, 75, 75)
    with torch.no_grad():
        torch.testing.assert_close(initialised(x), initialised(x), rtol=0, atol=0)
        ones = nn.Dropout(initialised.dropout.p)(torch.ones(100_000))
    assert (ones > 0).float().mean().item() == pytest.approx(0.8, abs=0.01)


def test_initial_weights_are_normal_with_variance_2_over_fan_in_and_biases_zero(initialised):
    for name, fan_in in (("inception_c1.branch2.1.conv", 3 * 384), ("reduction_a.branch0.conv", 9 * 384)):
        weight = initialised.get_submodule(name).weight
        assert weight.var().item() == pytest.approx(2 / fan_in, rel=0.02)
        assert ((weight / weight.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # uniform: 1.8
    assert not initialised.fc.bias.any()


def test_75_pixels_give_one_place_and_74_raise(paper):
    assert output_shapes(paper, (3, 75, 75))["inception_c3"] == (1536, 1, 1)
    with pytest.raises(ValueError, match="inception_v4 reads images of 75 x 75 pixels or more, not 74 x 80"):
        paper(torch.zeros(1, 3, 74, 80, device="meta"))


def test_timm_weights_fit_the_released_network_only(paper, released):
    with torch.device("meta"):
        timm_network = timm.create_model(TIMM.model)
    state = timm_network.state_dict()
    ours = rename_state_dict(state, TIMM.rename)
    assert len(ours) == len(state)
    assert state_dict_mismatch(released, ours) == ""
    # Two transposed kernels in the stem, four in each Inception-B, two in each Inception-C.
    assert f"{2 + 7 * 4 + 3 * 2 - 1} more shapes differ" in state_dict_mismatch(paper, ours)


def test_scores_equal_timm():
    torch.manual_seed(0)
    timm_network = timm.create_model(TIMM.model, num_classes=10).eval()
    randomize_batchnorm(timm_network)
    ours = inception_v4(released=True, num_classes=10).eval()
    ours.load_state_dict(rename_state_dict(timm_network.state_dict(), TIMM.rename))
    x = torch.randn(1, 3, 107, 107)  # last maps of 2 x 2, to test the last pooling
    with torch.no_grad():
        expected, scores = timm_network(x), ours(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
