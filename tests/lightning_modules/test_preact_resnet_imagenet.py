"""Test the ImageNet networks against section 5 of arXiv:1603.05027 and against timm's ResNetV2."""

import pytest
import timm
import torch
from timm.models.resnetv2 import ResNetV2
from torch import nn

from lightning_modules.preact_resnet import FIGURE_4
from lightning_modules.preact_resnet_imagenet import PreActResNetImageNet, preact_resnet_imagenet
from lightning_modules.published.weights import rename_state_dict, renamer, state_dict_mismatch
from lightning_modules.resnet_imagenet import resnet_imagenet
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

IMAGE = (3, 224, 224)
FULL = "full pre-activation"
UNITS = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
PARAMETERS = {101: 44_541_480, 152: 60_185_128, 200: 64_666_152}
OUTPUTS = {
    "conv1": (64, 112, 112),
    "pool1": (64, 56, 56),
    "conv2_x": (256, 56, 56),
    "conv3_x": (512, 28, 28),
    "conv4_x": (1024, 14, 14),
    "conv5_x": (2048, 7, 7),
    "last": (2048, 7, 7),
    "pool5": (2048, 1, 1),
    "fc": (1000,),
}
FROM_TIMM = renamer(
    (r"stem\.conv\.(.+)", r"conv1.\1"),
    (r"stages\.0\.blocks\.0\.norm1\.(.+)", r"bn1.\1"),
    *(
        (rf"stages\.{stage}\.blocks\.(\d+)\.{theirs}", rf"conv{stage + 2}_x.\1.{ours}")
        for stage in range(4)
        for theirs, ours in (
            (r"norm1\.(.+)", r"pre.bn.\2"),
            (r"norm2\.(.+)", r"residual.bn1.\2"),
            (r"norm3\.(.+)", r"residual.bn2.\2"),
            (r"(conv\d\..+)", r"residual.\2"),
            (r"downsample\.conv\.(.+)", r"shortcut.conv.\2"),
        )
    ),
    (r"norm\.(.+)", r"last.bn.\1"),
    (r"head\.fc\.(.+)", r"fc.\1"),
)
TO_RESNET = renamer((r"(conv\d_x\.\d+)\.residual\.(.+)", r"\1.\2"), (r"(.+)", r"\1"))


def hand_count(depth: int, activation: str = FULL) -> int:
    """Count parameters from the table: conv1 and its BN, each unit's weight layers with BN, projections, fc."""
    total, channels = 7 * 7 * 3 * 64 + 2 * 64, 64
    for units, width in zip(UNITS[depth], (64, 128, 256, 512), strict=True):
        for unit in range(units):
            total += channels * width + 2 * width + 9 * width * width + 2 * width + width * 4 * width + 8 * width
            if unit == 0:
                total += channels * 4 * width + (0 if activation == FULL else 8 * width)
            channels = 4 * width
    return total + channels * 1000 + 1000


def flatten_fc(state: dict) -> dict:
    """Return `state` with timm's 1x1 convolutional classifier as the matrix of a fully connected layer."""
    return {name: value.flatten(1) if name == "fc.weight" else value for name, value in state.items()}


@pytest.mark.parametrize("depth", UNITS)
def test_parameter_count_matches_hand_count(depth):
    assert count_parameters(on_meta(preact_resnet_imagenet, depth=depth)) == hand_count(depth) == PARAMETERS[depth]


@pytest.mark.parametrize("activation", ["original", "BN after addition"])
def test_other_activations_batch_normalise_the_four_projections(activation):
    network = on_meta(preact_resnet_imagenet, depth=101, activation=activation)
    projections = 2 * (256 + 512 + 1024 + 2048)
    assert count_parameters(network) == hand_count(101, activation) == PARAMETERS[101] + projections


@pytest.mark.parametrize("depth", UNITS)
def test_layer_outputs_and_unit_counts_match_the_table(depth):
    network = on_meta(preact_resnet_imagenet, depth=depth)
    assert tuple(len(network.get_submodule(f"conv{i}_x")) for i in range(2, 6)) == UNITS[depth]
    seen = output_shapes(network, IMAGE)
    assert {name: seen[name] for name in OUTPUTS} == OUTPUTS
    assert [n for n, _ in network.named_children()] == ["conv1", "bn1", *list(OUTPUTS)[1:]]
    weighted = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(".shortcut." not in name for name in weighted) == depth


def test_network_is_fully_convolutional_and_accepts_320_pixels():
    assert output_shapes(on_meta(preact_resnet_imagenet, depth=101), (3, 320, 320))["conv5_x"] == (2048, 10, 10)


def test_original_activation_equals_the_resnet_paper():
    ours = on_meta(preact_resnet_imagenet, depth=152, activation="original")
    theirs = on_meta(resnet_imagenet, depth=152)
    assert state_dict_mismatch(theirs, rename_state_dict(ours.state_dict(), TO_RESNET)) == ""
    torch.manual_seed(0)
    ours = preact_resnet_imagenet(depth=101, activation="original").eval()
    theirs = resnet_imagenet(depth=101).eval()
    theirs.load_state_dict(rename_state_dict(ours.state_dict(), TO_RESNET))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("model", ["resnetv2_101", "resnetv2_152"])
def test_timms_network_has_the_same_parameter_shapes(model):
    """Shapes alone do not show that timm computes another function; the next test does."""
    with torch.device("meta"):
        theirs = timm.create_model(model, pretrained=False)
    ours = on_meta(preact_resnet_imagenet, depth=int(model[-3:]))
    assert state_dict_mismatch(ours, flatten_fc(rename_state_dict(theirs.state_dict(), FROM_TIMM))) == ""


def timms_and_ours(min_bn_weight: float) -> tuple[nn.Module, PreActResNetImageNet]:
    """Return timm's and our network of four units with equal weights; BN weights are in [min_bn_weight, 1.5]."""
    torch.manual_seed(0)
    theirs = ResNetV2(
        [1, 1, 1, 1],
        num_classes=10,
        norm_layer=timm.layers.BatchNormAct2d,
        conv_layer=timm.layers.create_conv2d,
    ).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, min_bn_weight, 1.5)
            nn.init.normal_(module.bias)
    ours = PreActResNetImageNet((1, 1, 1, 1), FULL, num_classes=10, in_channels=3).eval()
    ours.load_state_dict(flatten_fc(rename_state_dict(theirs.state_dict(), FROM_TIMM)))
    return theirs, ours


def move_strides_to_the_3x3(network: PreActResNetImageNet) -> None:
    for name in ("conv3_x", "conv4_x", "conv5_x"):
        residual = network.get_submodule(f"{name}.0.residual")
        residual.conv1.stride, residual.conv2.stride = (1, 1), (2, 2)


@pytest.mark.parametrize(
    ("min_bn_weight", "move_strides", "equal"),
    [
        (0.5, False, False),  # timm has the stride in the 3x3
        (0.5, True, True),
        (-1.5, True, False),  # timm activates after pool1, which is equal only for positive BN weights
    ],
)
@torch.no_grad()
def test_timms_network_differs_in_strides_and_in_the_order_of_activation_and_pool1(
    min_bn_weight, move_strides, equal
):
    theirs, ours = timms_and_ours(min_bn_weight)
    if move_strides:
        move_strides_to_the_3x3(ours)
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5 * float(theirs(x).abs().max()), rtol=0) is equal


def test_initial_weights_have_variance_2_over_fan_in_and_fc_bias_is_zero():
    torch.manual_seed(0)
    network = PreActResNetImageNet((1, 1, 1, 1), FULL, num_classes=1000, in_channels=3)
    weight = network.conv5_x[0].residual.conv2.weight
    assert weight.var().item() == pytest.approx(2 / (9 * 512), rel=0.02)
    assert network.fc.weight.var().item() == pytest.approx(2 / 2048, rel=0.02)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 50}, "depth 50 is not one of section 5: 101, 152, 200"),
        ({"depth": 200, "activation": "none"}, "activation 'none' is not one of Figure 4: " + ", ".join(FIGURE_4)),
    ],
)
def test_invalid_arguments_raise_value_error(args, message):
    with pytest.raises(ValueError, match=message):
        preact_resnet_imagenet(**args)


def test_image_smaller_than_32_x_32_raises():
    network = on_meta(preact_resnet_imagenet, depth=101)
    with pytest.raises(ValueError, match="reads images of 32 x 32 pixels or more, not 31 x 32"):
        network(torch.zeros(1, 3, 31, 32, device="meta"))
