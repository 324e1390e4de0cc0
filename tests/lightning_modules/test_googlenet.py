"""GoogLeNet against Table 1, Figures 2 and 3, section 5 of arXiv:1409.4842, and the lecture's example module."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from looking import on_meta, output_shapes, parameters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.googlenet import GoogLeNet, Inception, googlenet, inception_bottleneck, inception_naive
from lightning_modules.published.weights import renamer, translated, unfit

OUTPUTS = {  # Table 1, with the rows that Figure 3 adds
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
    """Of each row of Table 1 with weights: weights, biases, side of its map."""
    rows = {"conv1": (3 * 64 * 49, 64, 112), "conv2_reduce": (64 * 64, 64, 56), "conv2": (64 * 192 * 9, 192, 56)}
    channels = 192
    for name, (a, b, c, d, e, f) in FILTERS.items():
        weights = channels * (a + b + d + f) + 9 * b * c + 25 * d * e
        rows[name] = (weights, a + b + c + d + e + f, OUTPUTS[name][1])
        channels = a + c + e + f
    return rows | {"linear": (1024 * 1000, 1000, 1)}


def multiply_adds(network: nn.Module, image: tuple[int, int, int]) -> int:
    """Of one image through a network from `on_meta`."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image))
    return counter.get_total_flops() // 2


@pytest.fixture
def network() -> GoogLeNet:
    torch.manual_seed(0)
    built = googlenet(num_classes=10).eval()
    for module in built.modules():  # biases of zero would hide a lost one
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return built


# --- the table ---------------------------------------------------------------------------------------------


def test_layers_and_outputs_are_table_1s():
    shapes = output_shapes(on_meta(googlenet), (3, 224, 224))
    assert {name: shape for name, shape in shapes.items() if "." not in name} == OUTPUTS
    assert [name for name, _ in on_meta(googlenet).named_children()] == [*OUTPUTS, "aux1", "aux2"]


@pytest.mark.parametrize(("name", "filters"), FILTERS.items())
def test_filters_of_a_module_are_table_1s(name, filters):
    module = on_meta(googlenet).get_submodule(name)
    assert tuple(module.get_submodule(branch).out_channels for branch in BRANCHES) == filters
    sides = tuple(module.get_submodule(branch).kernel_size for branch in BRANCHES)
    assert sides == ((1, 1), (1, 1), (3, 3), (1, 1), (5, 5), (1, 1))


@pytest.mark.parametrize(("name", "row"), by_hand().items())
def test_parameters_of_a_row(name, row):
    weights, biases, _ = row
    assert parameters(on_meta(googlenet).get_submodule(name)) == weights + biases


def test_parameters_and_multiply_adds_of_the_whole():
    rows = by_hand().values()
    assert sum(weights for weights, _, _ in rows) == 6_990_272
    assert sum(weights + biases for weights, biases, _ in rows) == 6_998_552
    assert sum(weights * side**2 for weights, _, side in rows) == 1_582_671_872
    plain = on_meta(googlenet, aux=False)
    assert parameters(plain) == 6_998_552
    assert multiply_adds(plain, (3, 224, 224)) == 1_582_671_872
    assert multiply_adds(on_meta(googlenet), (3, 224, 224)) == 1_582_671_872  # aux is not used when evaluating


def test_22_layers_with_weights_and_27_with_poolings():
    """Section 5: the convolutions in a row, two in each module, and the last linear layer."""
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
    with pytest.raises(RuntimeError, match="Output size is too small"):  # 112, 55, 27, 13, 6: too small for 7x7
        output_shapes(network, (3, 224, 224))


def test_there_is_no_batch_normalisation_and_lrn_is_krizhevskys():
    kinds = [type(m).__name__ for m in on_meta(googlenet).modules()]
    assert not any("Norm" in kind for kind in set(kinds) - {"LocalResponseNorm"})
    found = [m for m in on_meta(googlenet).modules() if isinstance(m, nn.LocalResponseNorm)]
    assert [(m.size, m.k, m.alpha, m.beta) for m in found] == [(5, 2.0, 5 * 1e-4, 0.75)] * 2


def test_weights_start_normal_with_variance_2_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = googlenet()
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = torch.cat([(m.weight * m.weight[0].numel() ** 0.5).flatten() for m in convolutions])
    assert weights.var().item() == pytest.approx(2, rel=0.01)
    assert (weights / weights.std()).pow(4).mean().item() == pytest.approx(3, abs=0.05)
    assert not any(m.bias.any() for m in convolutions)


def test_another_image_size_is_refused():
    with pytest.raises(ValueError, match="googlenet reads images of 224 x 224 pixels, not 224 x 256"):
        on_meta(googlenet)(torch.zeros(1, 3, 224, 256, device="meta"))


def test_dense_on_224_pixels_is_the_ordinary_net_also_when_training(network):
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network.dense(x), network(x), atol=1e-5, rtol=1e-5)
        assert network.train().dense(x).shape == (1, 10)  # no auxiliary scores


def test_dense_is_the_mean_of_the_last_layers_scores_at_every_place(network):
    """The mean of a linear layer's scores is its score of the mean."""
    x = torch.randn(1, 3, 224, 320)
    with torch.no_grad():
        maps, _ = network.maps(x, heads=False)
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


# --- Figure 2: the module ----------------------------------------------------------------------------------


def test_a_module_is_figure_2b_branch_by_branch():
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
def test_operations_of_the_lectures_example(build, branches, total, depth):
    """Each branch: 28 * 28 places, times filters, times side squared, times the channels that it reads."""
    module = on_meta(build).inception
    for name, operations in branches.items():
        conv = module.get_submodule(name)
        assert 28 * 28 * conv.out_channels * conv.kernel_size[0] ** 2 * conv.in_channels == operations
    assert sum(branches.values()) == total == multiply_adds(module, (256, 28, 28))
    assert output_shapes(on_meta(build), (256, 28, 28))["inception"] == (depth, 28, 28)


def test_the_naive_module_passes_the_pooling_on_as_it_is():
    module = inception_naive(in_channels=8, num_classes=2).inception
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(module(x)[:, -8:], F.max_pool2d(x, 3, 1, 1))
    assert (module(x)[:, :-8] >= 0).all()


# --- section 5: auxiliary classifiers ----------------------------------------------------------------------


def test_when_training_there_are_three_scores_and_when_evaluating_one():
    network, x = on_meta(googlenet, num_classes=10), torch.zeros(2, 3, 224, 224, device="meta")
    assert network(x).shape == (2, 10)
    assert [scores.shape for scores in network.train()(x)] == [(2, 10)] * 3
    assert network.aux_weight == 0.3


def test_without_aux_there_is_one_score_in_training_too():
    plain = on_meta(googlenet, aux=False).train()
    assert plain(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize(
    ("head", "reads", "channels"), [("aux1", "inception4a", 512), ("aux2", "inception4d", 528)]
)
def test_an_auxiliary_classifier_is_section_5s(head, reads, channels):
    network = on_meta(googlenet).train()
    shapes = output_shapes(network, (3, 224, 224))
    assert shapes[reads] == (channels, 14, 14)
    assert shapes[f"{head}.pool"] == (channels, 4, 4)
    assert shapes[f"{head}.conv"] == (128, 4, 4)
    assert shapes[f"{head}.fc"] == (1024,)
    assert shapes[f"{head}.linear"] == (1000,)
    module = network.get_submodule(head)
    by_hand = channels * 128 + 128 + 2048 * 1024 + 1024 + 1024 * 1000 + 1000
    assert parameters(module) == by_hand
    assert (module.pool.kernel_size, module.pool.stride, module.dropout.p) == (5, 3, 0.7)
    assert network.dropout.p == 0.4


def test_both_heads_add_6_4_million_parameters():
    assert parameters(on_meta(googlenet)) == 13_378_280 == 6_998_552 + 3_188_840 + 3_190_888


def test_heads_read_what_4a_and_4d_give():
    network, seen = on_meta(googlenet).train(), {}
    for name in FILTERS:
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: seen.update({name: output})
        )
    for name in ("aux1", "aux2"):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _m, given, name=name: seen.update({name: given[0]})
        )
    network(torch.zeros(1, 3, 224, 224, device="meta"))
    assert seen["aux1"] is seen["inception4a"]
    assert seen["aux2"] is seen["inception4d"]


# --- torchvision's network of that name --------------------------------------------------------------------

THEIRS = {  # our layer -> theirs
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
FULL = {"linear": "fc", "aux1.fc": "aux1.fc1", "aux1.linear": "aux1.fc2"} | {
    "aux2.fc": "aux2.fc1",
    "aux2.linear": "aux2.fc2",
}


def torchvisions(**args) -> nn.Module:
    return torchvision.models.googlenet(weights=None, init_weights=False, **args)


def test_torchvisions_is_another_network():
    """Batch normalisation in place of biases, and 3x3 filters where the paper has 5x5."""
    with torch.device("meta"):
        other = torchvisions(aux_logits=False)
    filters = (
        64 + 64 + 192 + sum(map(sum, FILTERS.values()))
    )  # one bias each here, two numbers of batch-norm there
    smaller = sum((25 - 9) * reduce * n5x5 for _, _, _, reduce, n5x5, _ in FILTERS.values())
    assert parameters(other) == 6_998_552 + filters - smaller == 6_624_904
    assert other.inception3a.branch3[1].conv.kernel_size == (3, 3)
    assert other.maxpool4.kernel_size == 2
    rename = renamer(
        *((rf"{place}\.(?:conv\.)?(weight|bias)", rf"{name}.\1") for name, place in (THEIRS | FULL).items())
    )
    state = translated(other.state_dict(), rename)
    assert "weights are missing, 'conv1.bias' first" in unfit(on_meta(googlenet, aux=False), state)
    assert "where 32 x 16 x 5 x 5 is needed" in unfit(on_meta(googlenet, aux=False), state)


def test_second_opinion_torchvisions_wiring_with_the_papers_layers(network):
    """Theirs, once it has our 5x5 filters, poolings, normalisations and biases, gives our scores."""
    other = torchvisions(num_classes=10, aux_logits=True, transform_input=False).eval()
    with torch.no_grad():
        for ours, place in THEIRS.items():
            layer, block = network.get_submodule(ours), other.get_submodule(place)
            if ours.endswith("conv5x5"):
                block.conv = nn.Conv2d(layer.in_channels, layer.out_channels, 5, padding=2, bias=False)
            block.conv.weight.copy_(layer.weight)
            block.bn.weight.fill_(math.sqrt(1 + block.bn.eps))  # with a variance of 1: no scaling
            block.bn.bias.copy_(layer.bias)
        for ours, place in FULL.items():
            other.get_submodule(place).load_state_dict(network.get_submodule(ours).state_dict())
        lrn = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
        other.maxpool1 = nn.Sequential(other.maxpool1, lrn)
        other.maxpool2 = nn.Sequential(lrn, other.maxpool2)
        x = torch.randn(1, 3, 224, 224)
        assert not torch.allclose(network(x), other(x), rtol=1e-3)  # theirs still pools 2x2 before 5a
        other.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        assert other(x).std() > 0.01
        torch.testing.assert_close(network(x), other(x), atol=1e-5, rtol=1e-4)
        maps = torch.randn(2, 512, 14, 14)  # theirs pools adaptively, which is not 5x5/3
        torch.testing.assert_close(network.aux1(maps), other.aux1(F.avg_pool2d(maps, 5, 3)), atol=1e-5, rtol=1e-4)
