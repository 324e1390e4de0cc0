"""AlexNet against sections 3 to 5 and Figure 2 of Krizhevsky et al. 2012, and against torchvision's AlexNet."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_modules.alexnet import (
    AlexNet,
    ConvSpec,
    DropoutSpec,
    LinearSpec,
    LocallyConnected,
    LRNSpec,
    PoolSpec,
    alexnet,
    alexnet_cifar,
)
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

IMAGE = (3, 227, 227)
# Section 3.5 and Figure 2: output, parameters (kernels x size x size x printed depth, + kernels).
ROWS = {
    "conv1": ((96, 55, 55), 96 * 11 * 11 * 3 + 96),
    "lrn1": ((96, 55, 55), 0),
    "pool1": ((96, 27, 27), 0),
    "conv2": ((256, 27, 27), 256 * 5 * 5 * 48 + 256),
    "lrn2": ((256, 27, 27), 0),
    "pool2": ((256, 13, 13), 0),
    "conv3": ((384, 13, 13), 384 * 3 * 3 * 256 + 384),
    "conv4": ((384, 13, 13), 384 * 3 * 3 * 192 + 384),
    "conv5": ((256, 13, 13), 256 * 3 * 3 * 192 + 256),
    "pool5": ((256, 6, 6), 0),
    "fc6": ((4096,), 256 * 6 * 6 * 4096 + 4096),
    "dropout6": ((4096,), 0),
    "fc7": ((4096,), 4096 * 4096 + 4096),
    "dropout7": ((4096,), 0),
    "fc8": ((1000,), 4096 * 1000 + 1000),
}
NEURONS = {
    "conv2": 186_624,
    "conv3": 64_896,
    "conv4": 64_896,
    "conv5": 43_264,
    "fc6": 4096,
    "fc7": 4096,
    "fc8": 1000,
}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """AlexNet with few units in fc6 and fc7, to save time."""
    torch.manual_seed(0)
    return alexnet(units=32, num_classes=10).eval()


def random_images(n: int = 2, side: int = 227) -> torch.Tensor:
    """Return random images with the value range of the paper: pixels of 0 to 255, mean subtracted."""
    return 60 * torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


# --- table of layers ---------------------------------------------------------------------------------------


def test_layers_outputs_and_parameters_equal_section_3_5():
    network = on_meta(alexnet)
    assert [name for name, _ in network.named_children()] == list(ROWS)
    assert output_shapes(network, IMAGE) == {name: shape for name, (shape, _) in ROWS.items()}
    assert {name: count_parameters(row) for name, row in network.named_children()} == {
        n: c for n, (_, c) in ROWS.items()
    }


def test_parameters_are_60_965_224_of_which_10_568_are_biases():
    network = on_meta(alexnet)
    assert count_parameters(network) == sum(count for _, count in ROWS.values()) == 60_965_224
    biases = sum(p.numel() for name, p in network.named_parameters() if name.endswith("bias"))
    assert biases == 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 1000 == 10_568


@pytest.mark.parametrize(("layer", "neurons"), NEURONS.items())
def test_neurons_equal_figure_2(layer, neurons):
    assert math.prod(output_shapes(on_meta(alexnet), IMAGE)[layer]) == neurons


def test_figure_2_misprints_the_neurons_of_conv1():
    assert math.prod(output_shapes(on_meta(alexnet), IMAGE)["conv1"]) == 55 * 55 * 96 == 290_400 != 253_440


def test_multiply_adds_are_724_406_816():
    network = on_meta(alexnet)
    outputs = output_shapes(network, IMAGE)
    places = {name: math.prod(outputs[name][1:]) for name in ROWS}
    weights = {name: row.weight.numel() for name, row in network.named_children() if hasattr(row, "weight")}
    assert sum(places[name] * count for name, count in weights.items()) == 724_406_816


def test_printed_224_pixels_do_not_give_55():
    assert (224 - 11) % 4 != 0
    assert (227 - 11) // 4 + 1 == 55
    with pytest.raises(ValueError, match="alexnet reads images of 227 x 227 pixels, not 224 x 224"):
        on_meta(alexnet)(torch.zeros(1, 3, 224, 224, device="meta"))


# --- two GPUs ----------------------------------------------------------------------------------------------


def test_conv2_conv4_and_conv5_have_two_groups():
    network = on_meta(alexnet)
    groups = {name: row.groups for name, row in network.named_children() if isinstance(row, nn.Conv2d)}
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2}


@pytest.mark.parametrize(
    ("layer", "joined"), [("conv2", False), ("conv3", True), ("conv4", False), ("conv5", False)]
)
def test_only_conv3_reads_maps_of_the_other_gpu(small, layer, joined):
    """Change the first map and compare the two halves of the output."""
    row = small.get_submodule(layer)
    x = torch.randn(1, row.in_channels, 13, 13)
    changed = x.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        difference = (row(changed) - row(x)).abs().amax(dim=(0, 2, 3))
    same_gpu, other_gpu = difference.chunk(2)
    assert same_gpu.min() > 0
    assert (other_gpu.min() > 0) == joined
    assert (other_gpu.max() > 0) == joined


def test_scores_equal_two_towers_joined_in_conv3_and_fc6(small):
    """Reference implementation: each GPU's half computed separately, as in Figure 2, except normalisation."""
    x = random_images()
    w = {name: p.detach() for name, p in small.named_parameters()}

    def half(layer: str, maps: list[torch.Tensor], gpu: int, **kwargs: int) -> torch.Tensor:
        weight, bias = w[f"{layer}.weight"].chunk(2)[gpu], w[f"{layer}.bias"].chunk(2)[gpu]
        return F.conv2d(maps[gpu], weight, bias, **kwargs).relu()

    def normalised_and_pooled(maps: list[torch.Tensor]) -> list[torch.Tensor]:
        a = torch.cat(maps, 1)
        squares = F.pad(a.square(), (0, 0, 0, 0, 2, 2))
        neighbours = sum(squares[:, i : i + a.shape[1]] for i in range(5))
        return list(F.max_pool2d(a / (2 + 1e-4 * neighbours) ** 0.75, 3, 2).chunk(2, 1))

    maps = normalised_and_pooled([half("conv1", [x, x], gpu, stride=4) for gpu in (0, 1)])
    maps = normalised_and_pooled([half("conv2", maps, gpu, padding=2) for gpu in (0, 1)])
    both = torch.cat(maps, 1)
    maps = [half("conv3", [both, both], gpu, padding=1) for gpu in (0, 1)]
    maps = [half("conv4", maps, gpu, padding=1) for gpu in (0, 1)]
    maps = [half("conv5", maps, gpu, padding=1) for gpu in (0, 1)]
    y = F.max_pool2d(torch.cat(maps, 1), 3, 2).flatten(1)
    for layer in ("fc6", "fc7"):
        y = F.linear(y, w[f"{layer}.weight"], w[f"{layer}.bias"]).relu()
    expected = F.linear(y, w["fc8.weight"], w["fc8.bias"])
    with torch.no_grad():
        torch.testing.assert_close(small(x), expected, atol=1e-5, rtol=1e-5)


def test_one_gpu_has_half_the_kernels_except_in_conv5():
    network = on_meta(alexnet, gpus=1)
    convolutions = {name: row for name, row in network.named_children() if isinstance(row, nn.Conv2d)}
    assert [c.out_channels for c in convolutions.values()] == [48, 128, 192, 192, 256]
    assert {c.groups for c in convolutions.values()} == {1}
    convolved = 48 * 364 + 128 * (25 * 48 + 1) + 192 * (9 * 128 + 1) + 192 * (9 * 192 + 1) + 256 * (9 * 192 + 1)
    assert count_parameters(network) == convolved + sum(ROWS[fc][1] for fc in ("fc6", "fc7", "fc8")) == 59_798_312


# --- normalisation, pooling, dropout -----------------------------------------------------------------------


def test_normalisation_has_the_constants_of_the_paper_and_is_between_relu_and_pooling(small):
    for row in (small.lrn1, small.lrn2):
        assert (row.size, row.k, row.beta) == (5, 2, 0.75)
        assert row.alpha / row.size == pytest.approx(1e-4)  # PyTorch divides by n, the paper does not
    recorded = []
    hook = small.lrn1.register_forward_hook(lambda _m, inputs, output: recorded.extend([*inputs, output]))
    into_pool = small.pool1.register_forward_hook(lambda _m, inputs, _o: recorded.extend(inputs))
    with torch.no_grad():
        small(random_images())
    hook.remove()
    into_pool.remove()
    assert recorded[0].min() == 0 < recorded[0].max()  # after ReLU
    assert recorded[2] is recorded[1]  # before pooling


def test_lrn_false_removes_only_the_normalisation():
    assert [n for n, _ in on_meta(alexnet, lrn=False).named_children()] == [n for n in ROWS if n[:3] != "lrn"]
    torch.manual_seed(1)
    plain = alexnet(lrn=False, units=8, num_classes=4).eval()
    torch.manual_seed(1)
    normalised = alexnet(units=8, num_classes=4).eval()
    for a, b in zip(plain.parameters(), normalised.parameters(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert not torch.allclose(
            plain.pool1(plain.conv1(random_images())),
            normalised.pool1(normalised.lrn1(plain.conv1(random_images()))),
        )


def test_pooling_without_overlap_gives_the_same_sizes():
    overlapping, apart = on_meta(alexnet), on_meta(alexnet, overlapping=False)
    assert output_shapes(overlapping, IMAGE) == output_shapes(apart, IMAGE)
    for name in ("pool1", "pool2", "pool5"):
        assert (overlapping.get_submodule(name).kernel_size, overlapping.get_submodule(name).stride) == (3, 2)
        assert (apart.get_submodule(name).kernel_size, apart.get_submodule(name).stride) == (2, 2)


def test_dropout_zeroes_half_of_fc6_and_fc7_in_training_only():
    torch.manual_seed(0)
    network = alexnet(units=2000, num_classes=4)
    recorded_dropout = {}
    for name in ("dropout6", "dropout7"):
        row = network.get_submodule(name)
        row.register_forward_hook(lambda _m, i, o, n=name: recorded_dropout.update({n: (i[0], o)}))
    x = random_images(1)
    with torch.no_grad():
        network.train()(x)
        for before, after in recorded_dropout.values():
            positive = before > 0
            share = (after[positive] == 0).float().mean().item()
            assert share == pytest.approx(0.5, abs=5 * (0.25 / int(positive.sum())) ** 0.5)
        network.eval()(x)
        assert all(torch.equal(before, after) for before, after in recorded_dropout.values())
        assert torch.equal(network(x), network(x))


# --- initial weights, section 5 ----------------------------------------------------------------------------


def test_initial_weights_are_normal_with_standard_deviation_0_01():
    torch.manual_seed(0)
    network = alexnet(units=512, num_classes=100)
    for name, p in network.named_parameters():
        if name.endswith("weight"):
            n = p.numel()
            assert p.mean().item() == pytest.approx(0, abs=5 * 0.01 / n**0.5), name
            assert p.std().item() == pytest.approx(0.01, abs=5 * 0.01 / (2 * n) ** 0.5), name
            assert (p / p.std()).pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5), name


def test_initial_biases_are_one_as_in_section_5(small):
    biases = {name: set(row.bias.tolist()) for name, row in small.named_children() if hasattr(row, "bias")}
    ones = {name for name, values in biases.items() if values == {1.0}}
    assert ones == {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert all(biases[name] == {0.0} for name in ("conv1", "conv3", "fc8"))


def test_relu_follows_every_layer_except_the_last(small):
    recorded = {}
    names = ["lrn1", "lrn2", "conv4", "conv5", "pool5", "dropout6", "dropout7"]
    hooks = [
        small.get_submodule(n).register_forward_pre_hook(lambda _m, i, n=n: recorded.update({n: i[0].min()}))
        for n in names
    ]
    with torch.no_grad():
        scores = small(random_images(8))
    for hook in hooks:
        hook.remove()
    assert all(least >= 0 for least in recorded.values())
    assert scores.shape == (8, 10)
    with torch.no_grad():
        small.fc8.bias -= 10
        assert (small(random_images(1)) < 0).any()  # no ReLU after fc8
        small.fc8.bias += 10


# --- variants of Zeiler and Fergus (arXiv:1311.2901, Table 3) ----------------------------------------------


@pytest.mark.parametrize(
    ("without", "change"),
    [
        # conv5 then reads 128 maps on its GPU, not 192
        (["conv3", "conv4"], -885_120 - 663_936 - 256 * 9 * 64),
        (["fc7"], -16_781_312),
        (["fc6", "fc7"], -37_752_832 - 16_781_312 + (9216 - 4096) * 1000),
        (["conv3", "conv4", "fc6", "fc7"], -885_120 - 663_936 - 256 * 9 * 64 - 54_534_144 + (9216 - 4096) * 1000),
    ],
)
def test_without_removes_layers(without, change):
    network = on_meta(alexnet, without=without)
    removed = {*without, *(f"dropout{row[2]}" for row in without if row.startswith("fc"))}
    assert [name for name, _ in network.named_children()] == [name for name in ROWS if name not in removed]
    assert count_parameters(network) == 60_965_224 + change
    assert output_shapes(network, IMAGE)["fc8"] == (1000,)


@pytest.mark.parametrize(
    ("units", "count"),
    [
        (2048, 2_334_080 + 9217 * 2048 + 2049 * 2048 + 2049 * 1000),
        (8192, 2_334_080 + 9217 * 8192 + 8193 * 8192 + 8193 * 1000),
    ],
)
def test_units_sets_the_width_of_fc6_and_fc7(units, count):
    network = on_meta(alexnet, units=units)
    assert sum(c for name, (_, c) in ROWS.items() if name.startswith("conv")) == 2_334_080
    assert count_parameters(network) == count
    assert output_shapes(network, IMAGE)["dropout7"] == (units,)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"gpus": 3}, r"gpus must be 1 or 2 \(section 3.2\), not 3"),
        ({"gpus": 0}, "not 0"),
        ({"units": 0}, "units must be an integer >= 1, not 0"),
        (
            {"without": ["conv2"]},
            r"without must be a list of layers out of conv3, conv4, fc6, fc7, not \['conv2'\]",
        ),
        ({"without": "fc7"}, r"without must be a list of layers .* not 'fc7'"),
    ],
)
def test_invalid_argument_names_the_valid_values(args, message):
    with pytest.raises(ValueError, match=message):
        on_meta(alexnet, **args)


# --- dense evaluation (arXiv:1409.1556, section 3.2) -------------------------------------------------------


def sliding_window_scores(network: AlexNet, x: torch.Tensor, stride: int) -> torch.Tensor:
    """Return the scores of a sliding window over (1, C, H, W), moved by `stride` pixels: (1, classes, H', W')."""
    side, (height, width) = network.side, x.shape[-2:]
    rows = [
        torch.stack([network(x[:, :, i : i + side, j : j + side]) for j in range(0, width - side + 1, stride)], -1)
        for i in range(0, height - side + 1, stride)
    ]
    return torch.stack(rows, -2)


def test_dense_equals_forward_on_227_pixels(small):
    x = random_images()
    with torch.no_grad():
        assert small.score_map(x).shape == (2, 10, 1, 1)
        torch.testing.assert_close(small.dense(x), small(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_dense_equals_a_sliding_window_without_padding(activation):
    table = {
        "conv1": ConvSpec(6, 5, stride=2, std=0.1, bias=0.1),
        "lrn1": LRNSpec(),
        "pool1": PoolSpec(),
        "conv2": ConvSpec(8, 3, groups=2, std=0.2, bias=0.1),
        "fc6": LinearSpec(7, bias=0.1),
        "dropout6": DropoutSpec(),
        "fc8": LinearSpec(4),
    }
    torch.manual_seed(0)
    network = AlexNet("small", table, 27, 3, activation).eval()  # maps of 12, 5 and 3
    x = 5 * torch.randn(1, 3, 27 + 3 * 4, 27 + 2 * 4)
    for fc in (network.fc6, network.fc8):
        nn.init.normal_(fc.weight, std=0.2)
    with torch.no_grad():
        expected = sliding_window_scores(network, x, stride=2 * 2)
        actual = network.score_map(x)
        assert actual.shape == (1, 4, 4, 3)
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(network.dense(x), expected.mean((2, 3)), atol=1e-6, rtol=1e-5)
        assert expected.std((2, 3)).min() > 0.01  # places have different scores


def test_dense_alexnet_equals_a_sliding_window_if_filters_ignore_the_padding():
    torch.manual_seed(0)
    network = alexnet(units=8, num_classes=5).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.normal_(module.bias, std=0.1)
            if isinstance(module, nn.Conv2d) and module.padding != (0, 0):  # keep only the central weight
                centre = module.weight[..., module.padding[0], module.padding[0]].clone()
                module.weight.zero_()[..., module.padding[0], module.padding[0]] = 3 * centre
        x = random_images(1, 227 + 2 * 32)[..., : 227 + 32]
        expected = sliding_window_scores(network, x, stride=4 * 2 * 2 * 2)
        actual = network.score_map(x)
    assert actual.shape == (1, 5, 3, 2)
    torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)
    assert (expected.std((2, 3)) > 1e-3 * expected.abs().max()).all()


def test_dense_alexnet_slides_the_fully_connected_layers_over_the_last_maps(small):
    x = random_images(1, 270)
    maps = []
    hook = small.pool5.register_forward_hook(lambda *args: maps.append(args[2]))
    with torch.no_grad():
        actual = small.score_map(x)
        hook.remove()
        assert maps[0].shape == (1, 256, 7, 7)
        for i in range(2):
            for j in range(2):
                y = maps[0][:, :, i : i + 6, j : j + 6].flatten(1)
                expected = small.fc8(small.fc7(small.fc6(y).relu()).relu())
                torch.testing.assert_close(actual[:, :, i, j], expected, atol=1e-6, rtol=1e-5)


def test_dense_raises_below_the_size_of_the_paper(small):
    with pytest.raises(
        ValueError, match="alexnet, applied densely, reads images of 227 x 227 pixels or more, not 300 x 226"
    ):
        small.dense(torch.zeros(1, 3, 300, 226))


# --- torchvision's AlexNet ---------------------------------------------------------------------------------


def test_torchvision_alexnet_is_a_different_network():
    """torchvision's is from a later paper: 64 to 384 filters, no groups, no normalisation, 224 pixels, padding."""
    torchvision_net = on_meta(torchvision.models.alexnet, weights=None)
    ours = on_meta(alexnet)
    assert count_parameters(torchvision_net) == 61_100_840 != count_parameters(ours)
    widths = [
        [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (torchvision_net, ours)
    ]
    assert widths == [[64, 192, 384, 256, 256], [96, 256, 384, 384, 256]]
    assert {m.groups for m in torchvision_net.modules() if isinstance(m, nn.Conv2d)} == {1}
    assert not any(isinstance(m, nn.LocalResponseNorm) for m in torchvision_net.modules())
    assert torchvision_net.features[0].padding == (2, 2)


# --- four-layer nets for CIFAR-10 --------------------------------------------------------------------------

FIGURE_1 = {
    "conv1": (32, 32, 32),
    "lrn1": (32, 32, 32),
    "pool1": (32, 16, 16),
    "conv2": (32, 16, 16),
    "lrn2": (32, 16, 16),
    "pool2": (32, 8, 8),
    "conv3": (64, 8, 8),
    "pool3": (64, 4, 4),
    "fc": (10,),
}
SECTION_3_3 = {
    "conv1": (64, 32, 32),
    "lrn1": (64, 32, 32),
    "pool1": (64, 16, 16),
    "conv2": (64, 16, 16),
    "lrn2": (64, 16, 16),
    "pool2": (64, 8, 8),
    "local3": (32, 8, 8),
    "local4": (32, 8, 8),
    "fc": (10,),
}


@pytest.mark.parametrize(("local", "table"), [(False, FIGURE_1), (True, SECTION_3_3)])
def test_outputs_of_the_cifar_nets(local, table):
    assert output_shapes(on_meta(alexnet_cifar, lrn=True, local=local), (3, 32, 32)) == table
    plain = {name: shape for name, shape in table.items() if not name.startswith("lrn")}
    assert output_shapes(on_meta(alexnet_cifar, local=local), (3, 32, 32)) == plain


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("lrn", [False, True])
def test_parameters_of_the_cifar_nets(activation, lrn):
    shared = 32 * (75 + 1) + 32 * (800 + 1) + 64 * (800 + 1) + 10 * (64 * 4 * 4 + 1)
    assert count_parameters(on_meta(alexnet_cifar, activation=activation, lrn=lrn)) == shared == 89_578
    unshared = 64 * (75 + 1) + 64 * (1600 + 1) + 8 * 8 * 32 * (576 + 1) + 8 * 8 * 32 * (288 + 1) + 10 * (2048 + 1)
    assert (
        count_parameters(on_meta(alexnet_cifar, activation=activation, lrn=lrn, local=True))
        == unshared
        == 1_901_386
    )


def test_cifar_net_has_four_weighted_layers():
    weighted = [m for m in on_meta(alexnet_cifar).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 4


def test_relu_and_tanh_nets_differ_in_the_activation_only():
    nets = {}
    for activation in ("relu", "tanh"):
        torch.manual_seed(0)
        nets[activation] = alexnet_cifar(activation=activation).eval()
    for a, b in zip(nets["relu"].parameters(), nets["tanh"].parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(2, 3, 32, 32)
    w = nets["tanh"]
    for activation, function in (("relu", torch.relu), ("tanh", torch.tanh)):
        y = F.max_pool2d(function(w.conv1(x)), 3, 2, ceil_mode=True)
        y = F.avg_pool2d(function(w.conv2(y)), 3, 2, ceil_mode=True)
        y = F.avg_pool2d(function(w.conv3(y)), 3, 2, ceil_mode=True)
        torch.testing.assert_close(nets[activation](x), w.fc(y.flatten(1)))


def test_locally_connected_layer_with_equal_filters_equals_a_convolution():
    torch.manual_seed(0)
    local, conv = LocallyConnected(5, 32, 8), nn.Conv2d(5, 32, 3, padding=1)
    with torch.no_grad():
        local.weight.copy_(conv.weight.flatten(1).expand(64, -1, -1))
        local.bias.copy_(conv.bias[:, None].expand(-1, 64))
    x = torch.randn(2, 5, 8, 8)
    torch.testing.assert_close(local(x), conv(x), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        local.weight[9] += 1  # the filters of row 1, column 1
    difference = (local(x) - conv(x)).abs().amax(dim=(0, 1))
    assert difference[1, 1] > 0.1
    difference[1, 1] = 0
    assert difference.max() < 1e-5


def test_initial_weights_of_the_cifar_net_are_those_of_cuda_convnet():
    torch.manual_seed(0)
    network = alexnet_cifar(local=True)
    expected = {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc": 0.01}
    for name, std in expected.items():
        row = network.get_submodule(name)
        assert row.weight.std().item() == pytest.approx(std, abs=5 * std / (2 * row.weight.numel()) ** 0.5)
        assert not row.bias.any()


def test_normalisation_of_the_cifar_nets_is_that_of_cuda_convnet():
    network = on_meta(alexnet_cifar, lrn=True)
    for row in (network.lrn1, network.lrn2):  # cuda-convnet divides 0.001 by the size 5, as PyTorch does
        assert (row.size, row.k, row.beta) == (5, 1, 0.75)
        assert row.alpha == pytest.approx(0.001)


def test_dense_cifar_net_equals_forward_on_32_pixels_and_reads_larger_images():
    torch.manual_seed(0)
    network = alexnet_cifar(lrn=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.dense(x), network(x), atol=1e-6, rtol=1e-5)
        assert network.score_map(torch.randn(1, 3, 40, 48)).shape == (1, 10, 2, 3)  # maps of 5 x 6


def test_locally_connected_layers_cannot_be_applied_densely():
    with pytest.raises(
        ValueError, match="alexnet_cifar cannot be applied densely: the filters of local3 belong to"
    ):
        on_meta(alexnet_cifar, local=True).dense(torch.zeros(1, 3, 40, 40, device="meta"))


def test_invalid_use_of_the_cifar_nets_raises():
    with pytest.raises(ValueError, match=r"activation must be relu or tanh \(Figure 1\), not 'gelu'"):
        alexnet_cifar(activation="gelu")
    with pytest.raises(ValueError, match="alexnet_cifar reads images of 32 x 32 pixels, not 28 x 28"):
        on_meta(alexnet_cifar)(torch.zeros(1, 3, 28, 28, device="meta"))
