"""GoogLeNet against Table 1, Figures 2 and 3 and section 5 of arXiv:1409.4842.

Also the example module of Stanford CS231n, lecture 9, "CNN architectures" ("the lecture").
"""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.googlenet import GoogLeNet, Inception, googlenet, inception_bottleneck, inception_naive
from lightning_modules.published.weights import rename_state_dict, renamer, state_dict_mismatch
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

OUTPUTS = {  # Table 1 and the layers that Figure 3 adds
    "conv1": (64, 112, 112),
    "pool1": (64, 56, 56),
    "lrn1": (64, 56, 56),
    "conv2_reduce": (64, 56, 56),
    "conv2": (192, 56, 56),
    "lrn2": (192, 56, 56),
    "pool2": (192, 28, 28),
    "inception3a": (256, 28, 28),
    "inception3b": (480, 28, 28),
    "pool3": (480, 14, 14),
    "inception4a": (512, 14, 14),
    "inception4b": (512, 14, 14),
    "inception4c": (512, 14, 14),
    "inception4d": (528, 14, 14),
    "inception4e": (832, 14, 14),
    "pool4": (832, 7, 7),
    "inception5a": (832, 7, 7),
    "inception5b": (1024, 7, 7),
    "avgpool": (1024, 1, 1),
    "dropout": (1024, 1, 1),
    "linear": (1000,),
}
FILTERS = {  # Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
BRANCHES = ("conv1x1", "conv3x3_reduce", "conv3x3", "conv5x5_reduce", "conv5x5", "pool_proj")


def by_hand() -> dict[str, tuple[int, int, int]]:
    """Return weights, biases and output side of each row of Table 1 that has weights."""
    rows = {"conv1": (3 * 64 * 49, 64, 112), "conv2_reduce": (64 * 64, 64, 56), "conv2": (64 * 192 * 9, 192, 56)}
    channels = 192
    for name, (a, b, c, d, e, f) in FILTERS.items():
        weights = channels * (a + b + d + f) + 9 * b * c + 25 * d * e
        rows[name] = (weights, a + b + c + d + e + f, OUTPUTS[name][1])
        channels = a + c + e + f
    return rows | {"linear": (1024 * 1000, 1000, 1)}


def multiply_adds(network: nn.Module, image: tuple[int, int, int]) -> int:
    """Return the multiply-adds of one image through a network from `on_meta`."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image))
    return counter.get_total_flops() // 2


@pytest.fixture
def network() -> GoogLeNet:
    torch.manual_seed(0)
    network = googlenet(num_classes=10).eval()
    for module in network.modules():  # biases of zero would hide a missing bias
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return network


# --- Table 1 -----------------------------------------------------------------------------------------------


def test_layers_and_outputs_equal_table_1():
    shapes = output_shapes(on_meta(googlenet), (3, 224, 224))
    assert {name: shape for name, shape in shapes.items() if "." not in name} == OUTPUTS
    assert [name for name, _ in on_meta(googlenet).named_children()] == [*OUTPUTS, "aux1", "aux2"]


@pytest.mark.parametrize(("name", "filters"), FILTERS.items())
def test_filters_of_a_module_equal_table_1(name, filters):
    module = on_meta(googlenet).get_submodule(name)
    assert tuple(module.get_submodule(branch).out_channels for branch in BRANCHES) == filters
    sides = tuple(module.get_submodule(branch).kernel_size for branch in BRANCHES)
    assert sides == ((1, 1), (1, 1), (3, 3), (1, 1), (5, 5), (1, 1))


@pytest.mark.parametrize(("name", "row"), by_hand().items())
def test_parameters_of_a_row(name, row):
    weights, biases, _ = row
    assert count_parameters(on_meta(googlenet).get_submodule(name)) == weights + biases


def test_total_parameters_and_multiply_adds():
    rows = by_hand().values()
    assert sum(weights for weights, _, _ in rows) == 6_990_272
    assert sum(weights + biases for weights, biases, _ in rows) == 6_998_552
    assert sum(weights * side**2 for weights, _, side in rows) == 1_582_671_872
    plain = on_meta(googlenet, aux=False)
    assert count_parameters(plain) == 6_998_552
    assert multiply_adds(plain, (3, 224, 224)) == 1_582_671_872
    assert multiply_adds(on_meta(googlenet), (3, 224, 224)) == 1_582_671_872  # evaluation does not use aux


def test_22_layers_with_weights_and_27_with_poolings():
    """Section 5: consecutive convolutions, two per module, and the last linear layer."""
    names = [name for name, _ in on_meta(googlenet, aux=False).named_children()]
    depth = {name: 2 if name.startswith("inception") else 1 for name in names}
    weighted = [name for name in names if name.startswith(("conv", "inception", "linear"))]
    pooling = [name for name in names if "pool" in name]
    assert sum(depth[name] for name in weighted) == 22
    assert sum(depth[name] for name in [*weighted, *pooling]) == 27
    assert sum(name.startswith("inception") for name in names) == 9


def test_poolings_of_stride_2_round_up():
    network = on_meta(googlenet)
    for name in ("pool1", "pool2", "pool3", "pool4"):
        network.get_submodule(name).ceil_mode = False
    # Sides 112, 55, 27, 13, 6: too small for the 7x7 pooling.
    with pytest.raises(RuntimeError, match="Output size is too small"):
        output_shapes(network, (3, 224, 224))


def test_only_normalisation_is_lrn_with_the_constants_of_alexnet():
    kinds = [type(m).__name__ for m in on_meta(googlenet).modules()]
    assert not any("Norm" in kind for kind in set(kinds) - {"LocalResponseNorm"})
    actual = [m for m in on_meta(googlenet).modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(m.size, m.k, m.alpha, m.beta) for m in actual] == [(5, 2.0, 5 * 1e-4, 0.75)] * 2


def test_initial_weights_are_normal_with_variance_2_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = googlenet()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = torch.cat([(m.weight * m.weight[0].numel() ** 0.5).flatten() for m in convolutions])
    assert weights.var().item() == pytest.approx(2, rel=0.01)
    assert (weights / weights.std()).pow(4).mean().item() == pytest.approx(3, abs=0.05)
    assert not any(m.bias.any() for m in convolutions)


def test_another_image_size_raises():
    with pytest.raises(ValueError, match="googlenet reads images of 224 x 224 pixels, not 224 x 256"):
        on_meta(googlenet)(torch.zeros(1, 3, 224, 256, device="meta"))


def test_dense_equals_forward_on_224_pixels_and_has_one_output_in_training(network):
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network.dense(x), network(x), atol=1e-5, rtol=1e-5)
        assert network.train().dense(x).shape == (1, 10)  # without auxiliary scores


def test_dense_is_the_mean_of_the_scores_over_places(network):
    """`linear` applied to the mean of the maps equals the mean of its scores."""
    x = torch.randn(1, 3, 224, 320)
    with torch.no_grad():
        maps, _ = network.feature_maps(x, aux=False)
        assert maps.shape == (1, 1024, 7, 10)
        scores = torch.stack([network.linear(maps[:, :, i, j]) for i in range(7) for j in range(10)])
        torch.testing.assert_close(network.dense(x), scores.mean(0), atol=1e-5, rtol=1e-5)
        assert scores.std(0).min() > 1e-3


def test_dense_reads_images_of_32_pixels_or_more(network):
    with torch.no_grad():
        assert network.dense(torch.randn(1, 3, 32, 45)).shape == (1, 10)
    with pytest.raises(
        ValueError, match="googlenet, applied densely, reads images of 32 x 32 pixels or more, not 31"
    ):
        network.dense(torch.zeros(1, 3, 31, 40))


# --- Figure 2: Inception module ----------------------------------------------------------------------------


def test_module_equals_figure_2b_by_branch():
    torch.manual_seed(0)
    module = Inception(6, 2, 3, 4, 5, 7, 8)
    x = torch.randn(2, 6, 9, 9)

    def conv(name: str, y: torch.Tensor, padding: int = 0) -> torch.Tensor:
        layer = module.get_submodule(name)
        return torch.clamp(F.conv2d(y, layer.weight, layer.bias, padding=padding), min=0)

    padded = F.pad(x, (1, 1, 1, 1), value=-math.inf)
    pooled = padded.unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
    branches = [
        conv("conv1x1", x),
        conv("conv3x3", conv("conv3x3_reduce", x), padding=1),
        conv("conv5x5", conv("conv5x5_reduce", x), padding=2),
        conv("pool_proj", pooled),
    ]
    torch.testing.assert_close(module(x), torch.cat(branches, dim=1))


@pytest.mark.parametrize(
    ("build", "branches", "total", "depth"),
    [
        (
            inception_naive,
            {"conv1x1": 25_690_112, "conv3x3": 346_816_512, "conv5x5": 481_689_600},
            854_196_224,
            672,
        ),
        (
            inception_bottleneck,
            {
                "conv1x1": 25_690_112,
                "conv3x3_reduce": 12_845_056,
                "conv3x3": 86_704_128,
                "conv5x5_reduce": 12_845_056,
                "conv5x5": 120_422_400,
                "pool_proj": 12_845_056,
            },
            271_351_808,
            480,
        ),
    ],
)
def test_multiply_adds_of_the_example_of_the_lecture(build, branches, total, depth):
    """Each branch: 28 * 28 places, times filters, times kernel area, times input channels."""
    module = on_meta(build).inception
    for name, operations in branches.items():
        conv = module.get_submodule(name)
        assert 28 * 28 * conv.out_channels * conv.kernel_size[0] ** 2 * conv.in_channels == operations
    assert sum(branches.values()) == total == multiply_adds(module, (256, 28, 28))
    assert output_shapes(on_meta(build), (256, 28, 28))["inception"] == (depth, 28, 28)


def test_naive_module_does_not_change_the_pooling_branch():
    module = inception_naive(in_channels=8, num_classes=2).inception
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(module(x)[:, -8:], F.max_pool2d(x, 3, 1, 1))
    assert (module(x)[:, :-8] >= 0).all()


# --- section 5: auxiliary classifiers ----------------------------------------------------------------------


def test_three_scores_in_training_and_one_in_evaluation():
    network, x = on_meta(googlenet, num_classes=10), torch.zeros(2, 3, 224, 224, device="meta")
    assert network(x).shape == (2, 10)
    assert [scores.shape for scores in network.train()(x)] == [(2, 10)] * 3
    assert network.aux_weight == 0.3


def test_without_aux_there_is_one_score_in_training():
    plain = on_meta(googlenet, aux=False).train()
    assert plain(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize(
    ("classifier", "reads", "channels"), [("aux1", "inception4a", 512), ("aux2", "inception4d", 528)]
)
def test_auxiliary_classifiers_equal_section_5(classifier, reads, channels):
    network = on_meta(googlenet).train()
    shapes = output_shapes(network, (3, 224, 224))
    assert shapes[reads] == (channels, 14, 14)
    assert shapes[f"{classifier}.pool"] == (channels, 4, 4)
    assert shapes[f"{classifier}.conv"] == (128, 4, 4)
    assert shapes[f"{classifier}.fc"] == (1024,)
    assert shapes[f"{classifier}.linear"] == (1000,)
    module = network.get_submodule(classifier)
    by_hand = channels * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000
    assert count_parameters(module) == by_hand
    assert (module.pool.kernel_size, module.pool.stride, module.dropout.p) == (5, 3, 0.7)
    assert network.dropout.p == 0.4


def test_auxiliary_classifiers_add_6_4_million_parameters():
    assert count_parameters(on_meta(googlenet)) == 13_378_280 == 6_998_552 + 3_188_840 + 3_190_888


def test_auxiliary_classifiers_read_inception4a_and_inception4d():
    network, recorded = on_meta(googlenet).train(), {}
    for name in FILTERS:
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: recorded.update({name: output})
        )
    for name in ("aux1", "aux2"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _m, given, name=name: recorded.update({name: given[0]})
        )
    network(torch.zeros(1, 3, 224, 224, device="meta"))
    assert recorded["aux1"] is recorded["inception4a"]
    assert recorded["aux2"] is recorded["inception4d"]


# --- torchvision's GoogLeNet -------------------------------------------------------------------------------

TORCHVISION_CONVOLUTIONS = {  # our layer: torchvision's
    "conv1": "conv1",
    "conv2_reduce": "conv2",
    "conv2": "conv3",
    **{
        f"{module}.{branch}": f"{module}.{place}"
        for module in FILTERS
        for branch, place in zip(
            BRANCHES, ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1"), strict=True
        )
    },
    "aux1.conv": "aux1.conv",
    "aux2.conv": "aux2.conv",
}
TORCHVISION_LINEAR = {"linear": "fc", "aux1.fc": "aux1.fc1", "aux1.linear": "aux1.fc2"} | {
    "aux2.fc": "aux2.fc1",
    "aux2.linear": "aux2.fc2",
}


def torchvision_googlenet(**args) -> nn.Module:
    return torchvision.models.googlenet(weights=None, init_weights=False, **args)


def test_torchvision_googlenet_is_a_different_network():
    """torchvision has batch normalisation instead of biases, and 3x3 filters instead of the 5x5 of the paper."""
    with torch.device("meta"):
        other = torchvision_googlenet(aux_logits=False)
    # A filter has one bias here, and two batch-norm parameters in torchvision.
    filters = 64 + 64 + 192 + sum(map(sum, FILTERS.values()))
    smaller = sum((25 - 9) * reduce * n5x5 for _, _, _, reduce, n5x5, _ in FILTERS.values())
    assert count_parameters(other) == 6_998_552 + filters - smaller == 6_624_904
    assert other.inception3a.branch3[1].conv.kernel_size == (3, 3)
    assert other.maxpool4.kernel_size == 2
    rename = renamer(
        *(
            (rf"{place}\.(?:conv\.)?(weight|bias)", rf"{name}.\1")
            for name, place in (TORCHVISION_CONVOLUTIONS | TORCHVISION_LINEAR).items()
        )
    )
    state = rename_state_dict(other.state_dict(), rename)
    assert "first 'conv1.bias'" in state_dict_mismatch(on_meta(googlenet, aux=False), state)
    assert "expected 32 x 16 x 5 x 5" in state_dict_mismatch(on_meta(googlenet, aux=False), state)


def test_scores_equal_torchvision_with_the_layers_of_the_paper(network):
    """torchvision's network with our 5x5 filters, poolings, normalisations and biases gives equal scores."""
    other = torchvision_googlenet(num_classes=10, aux_logits=True, transform_input=False).eval()
    with torch.no_grad():
        for ours, place in TORCHVISION_CONVOLUTIONS.items():
            layer, block = network.get_submodule(ours), other.get_submodule(place)
            if ours.endswith("conv5x5"):
                block.conv = nn.Conv2d(layer.in_channels, layer.out_channels, 5, padding=2, bias=False)
            block.conv.weight.copy_(layer.weight)
            block.bn.weight.fill_(math.sqrt(1 + block.bn.eps))  # running variance is 1: no scaling
            block.bn.bias.copy_(layer.bias)
        for ours, place in TORCHVISION_LINEAR.items():
            other.get_submodule(place).load_state_dict(network.get_submodule(ours).state_dict())
        lrn = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
        other.maxpool1 = nn.Sequential(other.maxpool1, lrn)
        other.maxpool2 = nn.Sequential(lrn, other.maxpool2)
        x = torch.randn(1, 3, 224, 224)
        # torchvision still pools 2x2 before inception5a.
        assert not torch.allclose(network(x), other(x), rtol=1e-3)
        other.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        assert other(x).std() > 0.01
        torch.testing.assert_close(network(x), other(x), atol=1e-5, rtol=1e-4)
        maps = torch.randn(2, 512, 14, 14)  # torchvision uses adaptive pooling instead of 5x5/3
        torch.testing.assert_close(network.aux1(maps), other.aux1(F.avg_pool2d(maps, 5, 3)), atol=1e-5, rtol=1e-4)
