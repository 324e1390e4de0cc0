"""Inception-v3 against Table 1 of arXiv:1512.00567, the released network, torchvision and timm."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_modules.inception_v3 import inception_v3
from lightning_modules.published.inception_v3 import PUBLISHED
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from pipeline.analyse.network import NetworkAnalysis
from tests.support.network_inspection import (
    conv_bn,
    count_parameters,
    on_meta,
    output_shapes,
    randomize_batchnorm,
)

# Output sizes of Table 1 (each row prints its input) where the released network has them too.
TABLE_1 = {
    "conv1": (32, 149, 149),
    "conv2": (32, 147, 147),
    "conv3": (64, 147, 147),
    "pool1": (64, 73, 73),
    "inception_a3": (288, 35, 35),
    "reduction_a": (768, 17, 17),
    "inception_b4": (768, 17, 17),
    "reduction_b": (1280, 8, 8),
    "inception_c2": (2048, 8, 8),
    "pool": (2048,),
    "fc": (1000,),
}
RELEASED = {  # comments in slim/nets/inception_v3
    "conv4": (80, 73, 73),
    "conv5": (192, 71, 71),
    "pool2": (192, 35, 35),
    "inception_a1": (256, 35, 35),
    "inception_a2": (288, 35, 35),
    "inception_b1": (768, 17, 17),
    "inception_c1": (2048, 8, 8),
}


def inception_a(channels: int, pool: int) -> int:
    return (
        conv_bn(channels, 1, 64)
        + conv_bn(channels, 1, 48, 25, 64)
        + conv_bn(channels, 1, 64, 9, 96, 9, 96)
        + conv_bn(channels, 1, pool)
    )


def inception_b(c: int) -> int:
    return (
        conv_bn(768, 1, 192) * 2 + conv_bn(768, 1, c, 7, c, 7, 192) + conv_bn(768, 1, c, 7, c, 7, c, 7, c, 7, 192)
    )


def inception_c(channels: int) -> int:
    return (
        conv_bn(channels, 1, 320)
        + conv_bn(channels, 1, 384)
        + conv_bn(channels, 1, 448, 9, 384)
        + 4 * conv_bn(384, 3, 384)
        + conv_bn(channels, 1, 192)
    )


BY_HAND = {
    "conv1": conv_bn(3, 9, 32),
    "conv2": conv_bn(32, 9, 32),
    "conv3": conv_bn(32, 9, 64),
    "conv4": conv_bn(64, 1, 80),
    "conv5": conv_bn(80, 9, 192),
    "inception_a1": inception_a(192, 32),
    "inception_a2": inception_a(256, 64),
    "inception_a3": inception_a(288, 64),
    "reduction_a": conv_bn(288, 9, 384) + conv_bn(288, 1, 64, 9, 96, 9, 96),
    "inception_b1": inception_b(128),
    "inception_b2": inception_b(160),
    "inception_b3": inception_b(160),
    "inception_b4": inception_b(192),
    "reduction_b": conv_bn(768, 1, 192, 9, 320) + conv_bn(768, 1, 192, 7, 192, 7, 192, 9, 192),
    "inception_c1": inception_c(1280),
    "inception_c2": inception_c(2048),
    "fc": 2048 * 1000 + 1000,
    "aux": conv_bn(768, 1, 128, 25, 768) + 768 * 1000 + 1000,
}
TORCHVISION, TIMM = PUBLISHED


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The network with its auxiliary classifier, without weights."""
    return on_meta(inception_v3)


@pytest.fixture(scope="module")
def shapes(network) -> dict[str, tuple[int, ...]]:
    return output_shapes(network, (3, 299, 299))


@pytest.mark.parametrize(("layer", "shape"), (TABLE_1 | RELEASED).items())
def test_outputs_equal_table_1_and_the_released_network(shapes, layer, shape):
    assert shapes[layer] == shape


def test_children_are_the_rows_in_order(network):
    rows = ["conv1", "conv2", "conv3", "pool1", "conv4", "conv5", "pool2"]
    rows += [*(f"inception_a{i}" for i in (1, 2, 3)), "reduction_a", *(f"inception_b{i}" for i in (1, 2, 3, 4))]
    rows += ["reduction_b", "inception_c1", "inception_c2", "pool", "dropout", "fc", "aux"]
    assert [name for name, _ in network.named_children()] == rows


@pytest.mark.parametrize(("layer", "count"), BY_HAND.items())
def test_parameters_of_a_block_equal_its_row(network, layer, count):
    assert count_parameters(network.get_submodule(layer)) == count


def test_network_has_23_8_million_parameters_and_27_2_with_aux(network):
    assert sum(BY_HAND.values()) == 27_161_264
    assert sum(BY_HAND.values()) - BY_HAND["aux"] == 23_834_568
    assert count_parameters(network) == 27_161_264
    assert count_parameters(on_meta(inception_v3, aux=False)) == 23_834_568


def test_multiply_adds_by_hand():
    """Places of the maps times weights, for each convolution; fc last."""

    def blocks_a(channels: int, pool: int) -> int:
        return (
            64 * channels
            + (48 * channels + 48 * 64 * 25)
            + (64 * channels + 64 * 96 * 9 + 96 * 96 * 9)
            + pool * channels
        )

    def blocks_b(c: int) -> int:
        return 2 * 192 * 768 + (c * 768 + 7 * c * c + 7 * c * 192) + (c * 768 + 3 * 7 * c * c + 7 * c * 192)

    def blocks_c(channels: int) -> int:
        return (320 + 384 + 448 + 192) * channels + 448 * 384 * 9 + 4 * 384 * 384 * 3

    stem = 149**2 * 27 * 32 + 147**2 * (288 * 32 + 288 * 64) + 73**2 * 64 * 80 + 71**2 * 720 * 192
    at_35 = blocks_a(192, 32) + blocks_a(256, 64) + blocks_a(288, 64) + 288 * 64 + 576 * 96  # and into reduction_a
    at_17 = 9 * 288 * 384 + 9 * 96 * 96 + blocks_b(128) + 2 * blocks_b(160) + blocks_b(192)
    at_17 += 192 * 768 + (192 * 768 + 2 * 7 * 192 * 192)  # and into reduction_b
    at_8 = 9 * 192 * 320 + 9 * 192 * 192 + blocks_c(1280) + blocks_c(2048)
    by_hand = stem + 35**2 * at_35 + 17**2 * at_17 + 8**2 * at_8 + 2048 * 1000
    assert by_hand == 5_713_216_096
    assert NetworkAnalysis(on_meta(inception_v3), (3, 299, 299)).multiply_adds == by_hand


def test_only_stem_reductions_and_aux_are_unpadded_and_no_convolution_has_a_bias(network):
    convolutions = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    # Stem 5, A 7, reductions 4 and 6, B 10, C 9, aux 2.
    assert len(convolutions) == 5 + 3 * 7 + 4 + 4 * 10 + 6 + 2 * 9 + 2
    assert sum(isinstance(m, nn.BatchNorm2d) and m.eps == 0.001 for m in network.modules()) == len(convolutions)
    assert all(m.bias is None for m in convolutions.values())
    valid = {
        n.partition(".")[0] for n, m in convolutions.items() if m.kernel_size != (1, 1) and m.padding == (0, 0)
    }
    assert valid == {"conv1", "conv2", "conv5", "reduction_a", "reduction_b", "aux"}


def test_training_returns_the_scores_of_aux_and_its_loss_reaches_only_the_layers_below():
    torch.manual_seed(0)
    network = inception_v3(num_classes=10).train()
    scores, aux_scores = network(torch.randn(2, 3, 299, 299))
    assert scores.shape == aux_scores.shape == (2, 10)
    F.cross_entropy(aux_scores, torch.tensor([0, 1])).backward()
    with_gradient = {name.partition(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    above = {"reduction_b", "inception_c1", "inception_c2", "fc"}
    assert with_gradient == {name for name, m in network.named_children() if count_parameters(m)} - above
    assert all(p.grad.any() for p in network.aux.parameters())


def test_aux_is_used_in_training_only(network):
    assert network.aux_weight == 0.4
    with torch.device("meta"):
        x = torch.zeros(1, 3, 299, 299)
        assert isinstance(network(x), torch.Tensor)
        without = inception_v3(aux=False).train()
        assert isinstance(without(torch.zeros(2, 3, 75, 75)), torch.Tensor)


def test_smallest_images(network):
    assert output_shapes(network, (3, 75, 75))["inception_c2"] == (2048, 1, 1)
    with pytest.raises(ValueError, match="inception_v3 reads images of 75 x 75 pixels or more, not 74 x 80"):
        network(torch.zeros(1, 3, 74, 80, device="meta"))
    with torch.device("meta"):
        training = inception_v3().train()
    message = (
        "inception_v3, trained with its auxiliary classifier, reads images of 299 x 299 pixels or more, not 298"
    )
    with pytest.raises(ValueError, match=message):
        training(torch.zeros(2, 3, 298, 299, device="meta"))


@pytest.mark.parametrize("entry", [TORCHVISION, TIMM], ids=lambda entry: entry.source)
def test_weights_of_the_libraries_fit(entry):
    with torch.device("meta"):
        theirs = (
            torchvision.models.inception_v3(init_weights=False)
            if entry is TORCHVISION
            else timm.create_model(entry.model)
        )
        ours = inception_v3(**entry.args)
    state = rename_state_dict(theirs.state_dict(), entry.rename)
    assert len(state) == len(theirs.state_dict())
    assert state_dict_mismatch(ours, state) == ""


def test_scores_equal_torchvision_if_the_padding_is_counted():
    torch.manual_seed(0)
    theirs = randomize_batchnorm(torchvision.models.inception_v3(num_classes=10, init_weights=False)).eval()
    state = rename_state_dict(theirs.state_dict(), TORCHVISION.rename)
    ours, authors = (inception_v3(count_padding=c, num_classes=10).eval() for c in (True, False))
    ours.load_state_dict(state)
    authors.load_state_dict(state)
    x = torch.randn(1, 3, 107, 107)  # last maps of 2 x 2, to test the last pooling
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
        assert (authors(x) - expected).abs().max() > 1e-3


def test_scores_equal_timm():
    torch.manual_seed(0)
    theirs = randomize_batchnorm(timm.create_model(TIMM.model, num_classes=10)).eval()
    ours = inception_v3(**TIMM.args, num_classes=10).eval()
    ours.load_state_dict(rename_state_dict(theirs.state_dict(), TIMM.rename))
    x = torch.randn(1, 3, 107, 107)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_scores_of_aux_equal_torchvision():
    torch.manual_seed(0)
    theirs = randomize_batchnorm(torchvision.models.inception_v3(num_classes=10, init_weights=False)).eval()
    ours = inception_v3(num_classes=10).eval()
    ours.load_state_dict(rename_state_dict(theirs.state_dict(), TORCHVISION.rename))
    maps = torch.randn(2, 768, 17, 17)
    with torch.no_grad():
        torch.testing.assert_close(ours.aux(maps), theirs.AuxLogits(maps), atol=1e-5, rtol=1e-5)
