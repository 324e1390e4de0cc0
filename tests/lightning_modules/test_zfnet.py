"""ZFNet against section 3, Figure 3 and Table 3 of Zeiler & Fergus, arXiv:1311.2901."""

import pytest
import torch
import torch.nn.functional as F
from looking import on_meta, output_shapes, parameters
from torch import nn

from lightning_modules.alexnet import alexnet
from lightning_modules.zfnet import zfnet

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


def photos(n: int = 2) -> torch.Tensor:
    """Pixels "roughly in the [-128, 128] range" (section 3)."""
    return 60 * torch.randn(n, *IMAGE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layer", "shape"), FIGURE_3.items())
def test_outputs_are_figure_3s(layer, shape):
    assert output_shapes(on_meta(zfnet), IMAGE)[layer] == shape


def test_children_are_figure_3s_layers_and_so_are_their_parameters():
    network = on_meta(zfnet)
    assert {name: parameters(layer) for name, layer in network.named_children()} == PARAMETERS
    assert parameters(network) == sum(PARAMETERS.values()) == 62_357_608


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("units", [2048, 4096, 8192])
def test_table_3s_sizes(wide, units):
    network = on_meta(zfnet, wide=wide, units=units)
    a, b, c = (512, 1024, 512) if wide else (384, 384, 256)
    outputs = output_shapes(network, IMAGE)
    assert [outputs[layer][0] for layer in ("layer3", "layer4", "layer5")] == [a, b, c]
    assert outputs["layer6"] == outputs["layer7"] == (units,)
    convolutions = 14_208 + 614_656 + a * (9 * 256 + 1) + b * (9 * a + 1) + c * (9 * b + 1)
    full = units * (36 * c + 1) + units * (units + 1) + 1000 * (units + 1)
    assert parameters(network) == convolutions + full


def test_the_wide_net_has_107_627_624_parameters():
    assert parameters(on_meta(zfnet, wide=True)) == 107_627_624


def test_it_is_alexnet_but_for_layers_1_and_2_and_the_groups():
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
    x = photos(1)
    with torch.no_grad():
        pooled = F.max_pool2d(layer.conv(x).relu(), 3, 2, ceil_mode=True)
        near = sum(F.pad(pooled.square(), (0, 0, 0, 0, 2, 2))[:, i : i + 96] for i in range(5))
        torch.testing.assert_close(layer(x), pooled / (2 + 1e-4 * near) ** 0.75, atol=1e-5, rtol=1e-5)


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
def test_parts_of_a_layer_are_in_the_captions_order(layer, parts):
    assert [name for name, _ in on_meta(zfnet).get_submodule(layer).named_children()] == parts


def test_rounding_up_is_the_one_rule_that_gives_all_sizes():
    """Pooling 3/2 must make 110 -> 55, 26 -> 13, 13 -> 6."""
    wanted = {110: 55, 26: 13, 13: 6}

    def sizes(padding: int, up: bool) -> dict[int, int]:
        pool = nn.MaxPool2d(3, stride=2, padding=padding, ceil_mode=up)
        return {side: pool(torch.zeros(1, 1, side, side)).shape[-1] for side in wanted}

    assert sizes(0, up=True) == wanted
    assert wanted not in (sizes(0, up=False), sizes(1, up=False), sizes(1, up=True))


def test_layer_1_pads_only_before_the_first_row_and_column():
    """Padding 1 on all sides equals padding on two: 110 places reach pixel 2 * 109 + 6 - 1 = 223, the last."""
    torch.manual_seed(0)
    conv = zfnet(units=8, num_classes=4).layer1.conv
    x = photos(1)
    with torch.no_grad():
        expected = F.conv2d(F.pad(x, (1, 0, 1, 0)), conv.weight, conv.bias, stride=2)
        torch.testing.assert_close(conv(x), expected, atol=1e-4, rtol=1e-5)


def test_weights_start_normal_with_standard_deviation_0_01_and_biases_at_zero():
    torch.manual_seed(0)
    for name, p in zfnet(units=512, num_classes=100).named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        else:
            n = p.numel()
            assert p.mean().item() == pytest.approx(0, abs=5 * 0.01 / n**0.5), name
            assert p.std().item() == pytest.approx(0.01, abs=5 * 0.01 / (2 * n) ** 0.5), name
            assert (p / p.std()).pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5), name


def test_dropout_is_of_layers_6_and_7_and_only_in_training():
    torch.manual_seed(0)
    network = zfnet(units=64, num_classes=4)
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
    assert rates == {"layer6.dropout": 0.5, "layer7.dropout": 0.5}
    with torch.no_grad():
        network.layer6.fc.bias += 1  # so that there is something to drop
        x = photos(1)
        assert not torch.equal(network(x), network(x))
        assert torch.equal(network.eval()(x), network(x))


def test_dense_on_224_pixels_is_the_ordinary_net():
    torch.manual_seed(0)
    network = zfnet(units=16, num_classes=5).eval()
    with torch.no_grad():
        assert network.score_map(photos()).shape == (2, 5, 1, 1)
        torch.testing.assert_close(network.dense(photos()), network(photos()), atol=1e-6, rtol=1e-5)


def test_dense_slides_the_fully_connected_layers_over_the_last_maps():
    """As VGG's section 3.2 does (arXiv:1409.1556); dropout only in training."""
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


def test_dense_needs_224_pixels_at_least():
    with pytest.raises(
        ValueError, match="zfnet, applied densely, reads images of 224 x 224 pixels or more, not 223"
    ):
        on_meta(zfnet).dense(torch.zeros(1, 3, 223, 300, device="meta"))


def test_scores_are_not_rectified():
    torch.manual_seed(0)
    network = zfnet(units=8, num_classes=4).eval()
    with torch.no_grad():
        network.output.bias -= 1
        assert (network(photos(1)) < 0).all()


def test_wrong_arguments_and_images_are_named():
    with pytest.raises(
        ValueError, match="layers 6 and 7 need at least 1 unit, not 0; the paper tries 2048, 4096 and 8192"
    ):
        zfnet(units=0)
    with pytest.raises(ValueError, match="zfnet reads images of 224 x 224 pixels, not 227 x 227"):
        on_meta(zfnet)(torch.zeros(1, 3, 227, 227, device="meta"))
