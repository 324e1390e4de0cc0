"""Test the ImageNet networks against Tables 7 and 8 of arXiv:1605.07146, torchvision and timm."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_modules.networks import build
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from lightning_modules.published.wide_resnet import PUBLISHED
from lightning_modules.resnet_imagenet import resnet_imagenet
from lightning_modules.wide_resnet_imagenet import wide_resnet_imagenet
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

IMAGE = (3, 224, 224)
PARAMETERS = {  # depth, k: parameters
    (18, 1): 11_689_512,
    (18, 1.5): 25_875_816,
    (18, 2): 45_618_216,
    (18, 3): 101_783_976,
    (34, 1): 21_797_672,
    (34, 1.5): 48_613_608,
    (34, 2): 86_036_008,
    (50, 1): 25_557_032,
    (50, 2): 68_883_240,
}
PRINTED = {  # depth, k: millions of parameters in Table 7, for depth 50 in Table 8
    **{(18, 1): 11.7, (18, 1.5): 25.9, (18, 2): 45.6, (18, 3): 101.8},
    **{(34, 1): 21.8, (34, 1.5): 48.6, (34, 2): 86.0, (50, 1): 25.6, (50, 2): 68.9},
}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def hand_count(depth: int, k: float) -> int:
    """Count parameters from the table: BN after every convolution, projections where the width changes, fc."""
    total, channels = 49 * 3 * 64 + 2 * 64, 64
    for blocks, base in zip(BLOCKS[depth], (64, 128, 256, 512), strict=True):
        wide = int(base * k)
        filters = [(1, wide), (9, wide), (1, 4 * base)] if depth == 50 else [(9, wide), (9, wide)]
        for _ in range(blocks):
            entry = channels
            for area, out in filters:
                total += channels * area * out + 2 * out
                channels = out
            total += entry * channels + 2 * channels if entry != channels else 0
    return total + channels * 1000 + 1000


@pytest.mark.parametrize(("depth", "k"), PARAMETERS)
def test_parameter_count_matches_hand_count_and_printed_count(depth, k):
    count = count_parameters(on_meta(wide_resnet_imagenet, depth=depth, k=k))
    assert count == hand_count(depth, k) == PARAMETERS[depth, k]
    assert round(count / 1e6, 1) == PRINTED[depth, k]


@pytest.mark.parametrize(("depth", "k"), [(18, 1.5), (34, 2), (50, 2)])
def test_layer_outputs_and_block_counts_match_the_table(depth, k):
    network = on_meta(wide_resnet_imagenet, depth=depth, k=k)
    assert tuple(len(network.get_submodule(f"conv{i}")) for i in range(2, 6)) == BLOCKS[depth]
    seen = output_shapes(network, IMAGE)
    widths = [256, 512, 1024, 2048] if depth == 50 else [int(k * base) for base in (64, 128, 256, 512)]
    expected = {"conv1": (64, 112, 112), "pool1": (64, 56, 56), "avg_pool": (widths[3], 1, 1), "fc": (1000,)}
    for i, (width, side) in enumerate(zip(widths, (56, 28, 14, 7), strict=True), start=2):
        expected[f"conv{i}"] = (width, side, side)
    assert {name: seen[name] for name in expected} == expected
    names = [name for name, _ in network.named_children()]
    assert names == ["conv1", "bn1", "pool1", "conv2", "conv3", "conv4", "conv5", "avg_pool", "fc"]


def test_bottleneck_widens_its_inner_layers_and_has_its_stride_in_the_3x3():
    block = on_meta(wide_resnet_imagenet, depth=50, k=2).conv3[0]
    shapes = [tuple(m.weight.shape) for m in (block.conv1, block.conv2, block.conv3)]
    assert shapes == [(256, 256, 1, 1), (256, 256, 3, 3), (512, 256, 1, 1)]
    assert [m.stride for m in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


def random_batchnorm(network: nn.Module) -> nn.Module:
    """Return `network` in evaluation mode, with random batch-norm state."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network.eval()


def library_network(source: str, model: str) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False)
    return torchvision.models.get_model(model, weights=None)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.source)
@torch.no_grad()
def test_output_matches_torchvision_and_timm_with_their_weights(entry):
    torch.manual_seed(0)
    theirs = random_batchnorm(library_network(entry.source, entry.model))
    ours = build(entry.network, entry.args, num_classes=1000, in_channels=3).eval()
    state = rename_state_dict(theirs.state_dict(), entry.rename)
    assert state_dict_mismatch(ours, state) == ""
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    expected = theirs(x)
    torch.testing.assert_close(ours(x), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
    assert entry.differs == ""


@pytest.mark.parametrize(("depth", "args"), [(18, {}), (34, {}), (50, {"stride_in_3x3": True})])
@torch.no_grad()
def test_k_1_equals_the_residual_network_of_the_same_depth(depth, args):
    theirs = on_meta(resnet_imagenet, depth=depth, **args)
    ours = on_meta(wide_resnet_imagenet, depth=depth, k=1)
    names = {name: name.replace("_x.", ".") for name in theirs.state_dict()}
    assert state_dict_mismatch(ours, {names[name]: value for name, value in theirs.state_dict().items()}) == ""
    if depth != 18:
        return
    torch.manual_seed(0)
    theirs = random_batchnorm(resnet_imagenet(depth=depth, **args))
    ours = wide_resnet_imagenet(depth=depth, k=1).eval()
    ours.load_state_dict({names[name]: value for name, value in theirs.state_dict().items()})
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_initial_weights_follow_the_authors_code():
    torch.manual_seed(0)
    network = wide_resnet_imagenet(depth=18, k=1)
    weight = network.conv5[1].conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 512), rel=0.02)
    assert network.fc.weight.abs().max().item() <= 512**-0.5
    assert network.fc.weight.std().item() == pytest.approx((512 * 3) ** -0.5, rel=0.02)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 101, "k": 2}, "depth 101 is not one of Tables 7 and 8: 18, 34, 50"),
        ({"depth": 34, "k": 3}, r"k 3 is not one of depth 34 in Tables 7 and 8: 1, 1\.5, 2"),
        ({"depth": 50, "k": 1.5}, "k 1.5 is not one of depth 50 in Tables 7 and 8: 1, 2"),
    ],
)
def test_invalid_arguments_raise_value_error(args, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet_imagenet(**args)


def test_image_smaller_than_32_x_32_raises():
    network = on_meta(wide_resnet_imagenet, depth=18, k=1)
    with pytest.raises(ValueError, match="reads images of 32 x 32 pixels or more, not 32 x 31"):
        network(torch.zeros(1, 3, 32, 31, device="meta"))
