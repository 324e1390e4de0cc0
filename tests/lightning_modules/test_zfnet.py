"""Test ZFNet against section 3, Figure 3 and Table 3 of Zeiler & Fergus, arXiv:1311.2901."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.alexnet import alexnet
from lightning_modules.zfnet import zfnet
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

IMAGE = (3, 224, 224)
FIGURE_3 = {
    "layer1.conv": (96, 110, 110),
    "layer1": (96, 55, 55),
    "layer2.conv": (256, 26, 26),
    "layer2": (256, 13, 13),
    "layer3": (384, 13, 13),
    "layer4": (384, 13, 13),
    "layer5.conv": (256, 13, 13),
    "layer5": (256, 6, 6),
    "layer6": (4096,),
    "layer7": (4096,),
    "output": (1000,),
}
PARAMETERS = {
    "layer1": 96 * (7 * 7 * 3 + 1),
    "layer2": 256 * (5 * 5 * 96 + 1),
    "layer3": 384 * (3 * 3 * 256 + 1),
    "layer4": 384 * (3 * 3 * 384 + 1),
    "layer5": 256 * (3 * 3 * 384 + 1),
    "layer6": 4096 * (9216 + 1),
    "layer7": 4096 * (4096 + 1),
    "output": 1000 * (4096 + 1),
}


def random_images(n: int = 2) -> torch.Tensor:
    """Return random images with pixels "roughly in the [-128, 128] range" (section 3)."""
    return 60 * torch.randn(n, *IMAGE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layer", "shape"), FIGURE_3.items())
def test_layer_outputs_match_figure_3(layer, shape):
    assert output_shapes(on_meta(zfnet), IMAGE)[layer] == shape


def test_children_and_parameter_counts_match_figure_3():
    network = on_meta(zfnet)
    assert {name: count_parameters(layer) for name, layer in network.named_children()} == PARAMETERS
    assert count_parameters(network) == sum(PARAMETERS.values()) == 62_357_608


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("units", [2048, 4096, 8192])
def test_sizes_of_table_3(wide, units):
    network = on_meta(zfnet, wide=wide, units=units)
    a, b, c = (512, 1024, 512) if wide else (384, 384, 256)
    outputs = output_shapes(network, IMAGE)
    assert [outputs[layer][0] for layer in ("layer3", "layer4", "layer5")] == [a, b, c]
    assert outputs["layer6"] == outputs["layer7"] == (units,)
    convolutions = 14_208 + 614_656 + a * (9 * 256 + 1) + b * (9 * a + 1) + c * (9 * b + 1)
    full = units * (36 * c + 1) + units * (units + 1) + 1000 * (units + 1)
    assert count_parameters(network) == convolutions + full


def test_wide_network_has_107_627_624_parameters():
    assert count_parameters(on_meta(zfnet, wide=True)) == 107_627_624


def test_convolutions_equal_alexnets_except_in_layers_1_and_2_and_groups():
    ours, theirs = on_meta(zfnet), on_meta(alexnet)
    convolutions = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (ours, theirs)]
    assert [[m.out_channels for m in row] for row in convolutions] == [[96, 256, 384, 384, 256]] * 2
    kernels_and_strides = [[(m.kernel_size[0], m.stride[0]) for m in row] for row in convolutions]
    assert kernels_and_strides[0] == [(7, 2), (5, 2), (3, 1), (3, 1), (3, 1)]
    assert kernels_and_strides[1] == [(11, 4), (5, 1), (3, 1), (3, 1), (3, 1)]
    assert [{m.groups for m in row} for row in convolutions] == [{1}, {1, 2}]


def test_layer_1_rectifies_pools_then_normalises_across_maps():
    torch.manual_seed(0)
    layer = zfnet(units=8, num_classes=4).layer1
    x = random_images(1)
    with torch.no_grad():
        pooled = F.max_pool2d(layer.conv(x).relu(), 3, 2, ceil_mode=True)
        neighbours = sum(F.pad(pooled.square(), (0, 0, 0, 0, 2, 2))[:, i : i + 96] for i in range(5))
        torch.testing.assert_close(layer(x), pooled / (2 + 1e-4 * neighbours) ** 0.75, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "parts"),
    [
        ("layer1", ["conv", "relu", "pool", "norm"]),
        ("layer2", ["conv", "relu", "pool", "norm"]),
        ("layer3", ["conv", "relu"]),
        ("layer4", ["conv", "relu"]),
        ("layer5", ["conv", "relu", "pool"]),
        ("layer6", ["flatten", "fc", "relu", "dropout"]),
        ("layer7", ["flatten", "fc", "relu", "dropout"]),
    ],
)
def test_parts_of_a_layer_follow_the_order_of_the_caption(layer, parts):
    assert [name for name, _ in on_meta(zfnet).get_submodule(layer).named_children()] == parts


def test_only_rounding_up_gives_all_pooled_sizes():
    """Pooling 3x3 with stride 2 must map 110 -> 55, 26 -> 13, 13 -> 6."""
    expected = {110: 55, 26: 13, 13: 6}

    def pooled_sizes(padding: int, ceil_mode: bool) -> dict[int, int]:
        pool = nn.MaxPool2d(3, stride=2, padding=padding, ceil_mode=ceil_mode)
        return {size: pool(torch.zeros(1, 1, size, size)).shape[-1] for size in expected}

    assert pooled_sizes(0, ceil_mode=True) == expected
    for padding, ceil_mode in ((0, False), (1, False), (1, True)):
        assert pooled_sizes(padding, ceil_mode) != expected


def test_layer_1_pads_only_before_the_first_row_and_column():
    """Padding 1 on all sides equals padding on two: 110 positions reach the last pixel, 2 * 109 + 6 - 1 = 223."""
    torch.manual_seed(0)
    conv = zfnet(units=8, num_classes=4).layer1.conv
    x = random_images(1)
    with torch.no_grad():
        expected = F.conv2d(F.pad(x, (1, 0, 1, 0)), conv.weight, conv.bias, stride=2)
        torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-5)


def test_initial_weights_are_normal_with_standard_deviation_0_01_and_biases_zero():
    torch.manual_seed(0)
    for name, p in zfnet(units=512, num_classes=100).named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        else:
            n = p.numel()
            assert p.mean().item() == pytest.approx(0, abs=5 * 0.01 / n**0.5), name
            assert p.std().item() == pytest.approx(0.01, abs=5 * 0.01 / (2 * n) ** 0.5), name
            assert (p / p.std()).pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5), name


def test_dropout_is_in_layers_6_and_7_and_active_only_in_training():
    torch.manual_seed(0)
    network = zfnet(units=64, num_classes=4)
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"layer6.dropout": 0.5, "layer7.dropout": 0.5}
    with torch.no_grad():
        network.layer6.fc.bias += 1  # gives dropout nonzero inputs
        x = random_images(1)
        assert not torch.equal(network(x), network(x))
        assert torch.equal(network.eval()(x), network(x))


def test_dense_equals_forward_on_224_x_224():
    torch.manual_seed(0)
    network = zfnet(units=16, num_classes=5).eval()
    with torch.no_grad():
        assert network.score_map(random_images()).shape == (2, 5, 1, 1)
        torch.testing.assert_close(network.dense(random_images()), network(random_images()), atol=1e-6, rtol=1e-5)


def test_dense_applies_the_fully_connected_layers_at_every_position_of_the_last_maps():
    """As in section 3.2 of VGG (arXiv:1409.1556); dropout is active only in training."""
    torch.manual_seed(0)
    network = zfnet(units=16, num_classes=5).eval()
    x = 60 * torch.randn(1, 3, 288, 256)
    with torch.no_grad():
        maps = nn.Sequential(*network[:5])(x)
        assert maps.shape == (1, 256, 8, 7)
        scores = torch.empty(1, 5, 3, 2)
        for i in range(3):
            for j in range(2):
                scores[:, :, i, j] = nn.Sequential(*network[5:])(maps[:, :, i : i + 6, j : j + 6])
        torch.testing.assert_close(network.score_map(x), scores, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(network.dense(x), scores.mean((2, 3)), atol=1e-6, rtol=1e-4)
        assert not torch.equal(network.train().dense(x), network.dense(x))


def test_dense_rejects_images_smaller_than_224_x_224():
    with pytest.raises(
        ValueError, match="zfnet, applied densely, reads images of 224 x 224 pixels or more, not 223"
    ):
        on_meta(zfnet).dense(torch.zeros(1, 3, 223, 300, device="meta"))


def test_scores_are_not_rectified():
    torch.manual_seed(0)
    network = zfnet(units=8, num_classes=4).eval()
    with torch.no_grad():
        network.output.bias -= 1
        assert (network(random_images(1)) < 0).all()


def test_invalid_units_and_image_size_raise_value_error():
    with pytest.raises(
        ValueError, match="units must be an integer >= 1, not 0; the paper has 2048, 4096 and 8192"
    ):
        zfnet(units=0)
    with pytest.raises(ValueError, match="zfnet reads images of 224 x 224 pixels, not 227 x 227"):
        on_meta(zfnet)(torch.zeros(1, 3, 227, 227, device="meta"))
