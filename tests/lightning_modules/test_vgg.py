"""Test VGG against Tables 1 and 2 and sections 2 and 3 of arXiv:1409.1556, torchvision and timm."""

import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from lightning_modules.published import vgg as published
from lightning_modules.published.weights import load_published_state_dict, rename_state_dict, state_dict_mismatch
from lightning_modules.vgg import VGG, conv_stack, glorot_uniform, vgg
from lightning_modules.weights import copied_layers
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

# Columns of Table 1: filters of each convolution (3x3 unless noted); M is max pooling.
TABLE_1 = {
    "A": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "A-LRN": "64 LRN M 128 M 256 256 M 512 512 M 512 512 M",
    "B": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "C": "64 64 M 128 128 M 256 256 1x1-256 M 512 512 1x1-512 M 512 512 1x1-512 M",
    "D": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "E": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
WEIGHTED_LAYERS = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}  # Table 1, first row
MILLIONS = {"A": 133, "A-LRN": 133, "B": 133, "C": 134, "D": 138, "E": 144}  # Table 2
FC = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000


def hand_counts(column: str) -> tuple[dict[str, tuple[int, ...]], int, int]:
    """Return a column's layer outputs, the parameters of its convolutions and its number of weighted layers."""
    outputs: dict[str, tuple[int, ...]] = {}
    channels, side, stage, number, total, weighted = 3, 224, 1, 0, 0, 0
    for layer in column.split():
        if layer == "M":
            side //= 2
            outputs[f"pool{stage}"] = (channels, side, side)
            stage, number = stage + 1, 0
        elif layer == "LRN":
            outputs[f"lrn{stage}"] = (channels, side, side)
        else:
            kernel, width = (1, int(layer[4:])) if layer.startswith("1x1-") else (3, int(layer))
            total += channels * width * kernel**2 + width
            channels, number, weighted = width, number + 1, weighted + 1
            outputs[f"conv{stage}_{number}"] = (channels, side, side)
    outputs |= {"fc6": (4096,), "dropout6": (4096,), "fc7": (4096,), "dropout7": (4096,), "fc8": (1000,)}
    return outputs, total, weighted + 3


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}


def narrow_vgg(configuration: str, units: int = 8) -> VGG:
    """Return the network with 1/16 of its filters and few units, small enough to run."""
    network = on_meta(vgg, configuration=configuration)
    channels = 3
    for name, conv in convolutions(network).items():
        width = conv.out_channels // 16
        setattr(network, name, nn.Conv2d(channels, width, conv.kernel_size, padding=conv.padding))
        channels = width
    network.fc6, network.fc7 = nn.Linear(channels * 49, units), nn.Linear(units, units)
    network.fc8 = nn.Linear(units, 5)
    torch.manual_seed(0)
    return network.apply(glorot_uniform)


@pytest.fixture
def small_vgg() -> VGG:
    network = narrow_vgg("A")
    for module in network.modules():  # zero biases would hide a missing bias
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


# --- Table 1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("configuration", "column"), TABLE_1.items())
def test_layers_and_outputs_match_table_1(configuration, column):
    outputs, _, weighted = hand_counts(column)
    network = on_meta(vgg, configuration=configuration)
    assert output_shapes(network, (3, 224, 224)) == outputs
    assert [name for name, _ in network.named_children()] == list(outputs)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == weighted == WEIGHTED_LAYERS[configuration]


@pytest.mark.parametrize(
    ("configuration", "count"),
    [
        ("A", 132_863_336),
        ("A-LRN", 132_863_336),
        ("B", 133_047_848),
        ("C", 133_638_952),
        ("D", 138_357_544),
        ("E", 143_667_240),
    ],
)
def test_parameter_counts_match_table_2(configuration, count):
    _, convolutional, _ = hand_counts(TABLE_1[configuration])
    assert count_parameters(on_meta(vgg, configuration=configuration)) == count == convolutional + FC
    assert round(count / 1e6) == MILLIONS[configuration]


@pytest.mark.parametrize("configuration", TABLE_1)
def test_filters_are_3x3_except_the_third_of_the_last_stages_of_c(configuration):
    pointwise = {"conv3_3", "conv4_3", "conv5_3"} if configuration == "C" else set()
    for name, conv in convolutions(on_meta(vgg, configuration=configuration)).items():
        size = 1 if name in pointwise else 3
        assert (conv.kernel_size, conv.stride, conv.padding) == ((size, size), (1, 1), (size // 2, size // 2))


def test_pooling_is_2x2_stride_2_and_dropout_is_0_5():
    network = on_meta(vgg, configuration="D")
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride) for m in pools] == [(2, 2)] * 5
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_a_lrn_differs_from_a_only_in_krizhevskys_lrn(small_vgg):
    with_lrn = narrow_vgg("A-LRN")
    with_lrn.load_state_dict(small_vgg.state_dict())
    x = 20 * torch.randn(1, 3, 224, 224)
    y = F.relu(small_vgg.conv1_1(x))
    squares = F.pad(y.square(), (0, 0, 0, 0, 2, 2))  # n = 5: two maps on each side
    normalised = y / (2 + 1e-4 * sum(squares[:, i : i + 4] for i in range(5))) ** 0.75
    torch.testing.assert_close(with_lrn.lrn1(y), normalised)
    plain = small_vgg(x)
    small_vgg.pool1.register_forward_pre_hook(lambda *_: normalised)
    torch.testing.assert_close(with_lrn(x), small_vgg(x))
    assert not torch.allclose(small_vgg(x), plain, rtol=0.01)


def test_relu_follows_every_weighted_layer_but_the_last(small_vgg):
    """Recompute the scores with PyTorch's functions."""
    x = torch.randn(2, 3, 224, 224)
    y = x
    for name, layer in small_vgg.named_children():
        if name.startswith("pool"):
            y = F.max_pool2d(y, 2, 2)
        elif name.startswith("conv"):
            y = torch.clamp(F.conv2d(y, layer.weight, layer.bias, padding=1), min=0)
    y = torch.clamp(F.linear(y.reshape(2, -1), small_vgg.fc6.weight, small_vgg.fc6.bias), min=0)
    y = torch.clamp(F.linear(y, small_vgg.fc7.weight, small_vgg.fc7.bias), min=0)
    y = F.linear(y, small_vgg.fc8.weight, small_vgg.fc8.bias)
    torch.testing.assert_close(small_vgg(x), y)
    assert (y < 0).any()


def test_dropout_is_active_only_in_training(small_vgg):
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(small_vgg(x), small_vgg(x))
    small_vgg.train()
    assert not torch.equal(small_vgg(x), small_vgg(x))


# --- sections 2.3 and 4.1: large filters and stacks of small filters ---------------------------------------


def receptive_field(network: nn.Module, layer: str, side: int = 33) -> int:
    """Return the width in pixels of the receptive field of the middle unit of `layer`."""
    outputs = []
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: outputs.append(args[2]))
    x = torch.randn(1, next(network.parameters()).shape[1], side, side, requires_grad=True)
    network(x)
    handle.remove()
    outputs[0][0, :, side // 2, side // 2].sum().backward()
    return int(x.grad[0].abs().sum(0).any(0).sum())


@pytest.mark.parametrize(("kernel", "layers", "field"), [(3, 1, 3), (3, 2, 5), (3, 3, 7), (5, 1, 5), (7, 1, 7)])
def test_stack_of_small_filters_has_the_receptive_field_of_a_large_filter(kernel, layers, field):
    torch.manual_seed(0)
    assert receptive_field(conv_stack(kernel=kernel, layers=layers, in_channels=4), f"conv{layers}") == field
    network = on_meta(conv_stack, kernel=kernel, layers=layers, in_channels=4)
    assert output_shapes(network, (4, 33, 33))[f"conv{layers}"] == (4, 33, 33)


def test_three_3x3_layers_have_27_c_squared_weights_and_one_7x7_has_49():
    c = 64
    for kernel, layers, factor in ((3, 3, 27), (7, 1, 49)):
        stack = convolutions(on_meta(conv_stack, kernel=kernel, layers=layers, in_channels=c)).values()
        assert sum(conv.weight.numel() for conv in stack) == factor * c**2
        assert len(stack) == layers
    assert round(100 * 49 / 27 - 100) == 81  # per cent more


def test_relu_follows_each_layer_of_a_stack():
    network = conv_stack(layers=3, in_channels=4)
    assert [type(m).__name__ for m in network][:6] == ["Conv2d", "ReLU"] * 3


@pytest.mark.parametrize("kernel", [4, 0, -3])
def test_even_kernel_size_raises(kernel):
    with pytest.raises(ValueError, match=f"kernel must be an odd integer >= 1, not {kernel}"):
        conv_stack(kernel=kernel)


def test_empty_stack_raises():
    with pytest.raises(ValueError, match=r"layers must be an integer >= 1, not 0; section 2\.3 has 1, 2 and 3"):
        conv_stack(layers=0)


def test_shallow_network_of_section_4_1_has_one_5x5_for_each_pair_of_3x3_of_b():
    network = on_meta(vgg, configuration="B-5x5")
    assert [conv.kernel_size for conv in convolutions(network).values()] == [(5, 5)] * 5
    widths = [3, 64, 128, 256, 512, 512]
    expected = sum(25 * a * b + b for a, b in itertools.pairwise(widths)) + FC
    assert count_parameters(network) == expected == 134_503_528
    shapes, of_b = (output_shapes(on_meta(vgg, configuration=c), (3, 224, 224)) for c in ("B-5x5", "B"))
    assert all(shapes[f"pool{stage}"] == of_b[f"pool{stage}"] for stage in range(1, 6))


# --- section 3.1: initialisation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glorot() -> VGG:
    torch.manual_seed(0)
    return vgg(configuration="A")


def test_default_initialisation_is_glorot_with_zero_biases(glorot):
    """Uniform within +-sqrt(6 / (fan-in + fan-out))."""
    fans = {"conv1_1": 9 * (3 + 64), "conv5_2": 9 * (512 + 512), "fc6": 25088 + 4096, "fc8": 4096 + 1000}
    for name, fan in fans.items():
        layer = glorot.get_submodule(name)
        bound = math.sqrt(6 / fan)
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not layer.bias.any()


@pytest.mark.slow
def test_normal_initialisation_has_variance_0_01_and_zero_biases():
    torch.manual_seed(0)
    network = vgg(configuration="A", init="normal")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.var().item() == pytest.approx(0.01, rel=0.1)
            assert not module.bias.any()
    weight = network.conv5_2.weight  # 2.4 million
    assert weight.mean().item() == pytest.approx(0, abs=3e-4)
    assert (weight / 0.1).pow(4).mean().item() == pytest.approx(3, abs=0.05)  # normal; 1.8 if uniform


LAYERS_FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8")  # section 3.1


@pytest.mark.parametrize("configuration", ["B", "C", "D", "E"])
def test_deeper_nets_can_start_from_the_layers_of_a(small_vgg, configuration):
    copied = copied_layers(small_vgg.state_dict(), narrow_vgg(configuration), LAYERS_FROM_A)
    assert {name.partition(".")[0] for name in copied} == set(LAYERS_FROM_A)


def test_the_shallow_net_cannot_start_from_a(small_vgg):
    with pytest.raises(ValueError, match="this network has no layer 'conv3_2'"):
        copied_layers(small_vgg.state_dict(), narrow_vgg("B-5x5"), LAYERS_FROM_A)


# --- section 3.2: dense evaluation -------------------------------------------------------------------------


def test_dense_equals_forward_on_224_x_224(small_vgg):
    x = torch.randn(2, 3, 224, 224)
    assert small_vgg.score_map(x).shape == (2, 5, 1, 1)
    torch.testing.assert_close(small_vgg.dense(x), small_vgg(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "score_map_size"), [(256, 320, (2, 4)), (300, 225, (3, 1))])
def test_dense_applies_the_fully_connected_layers_at_every_position_of_the_last_map(
    small_vgg, height, width, score_map_size
):
    x = torch.randn(1, 3, height, width)
    maps = small_vgg.feature_maps(x)
    assert maps.shape == (1, 32, height // 32, width // 32)
    scores = torch.empty(5, *score_map_size)
    for i in range(score_map_size[0]):
        for j in range(score_map_size[1]):
            window = maps[0, :, i : i + 7, j : j + 7].flatten()
            scores[:, i, j] = small_vgg.fc8(F.relu(small_vgg.fc7(F.relu(small_vgg.fc6(window)))))
    torch.testing.assert_close(small_vgg.score_map(x)[0], scores.detach(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(small_vgg.dense(x)[0], scores.detach().mean((1, 2)), atol=1e-6, rtol=1e-4)


def test_dense_equals_crops_every_32_pixels_without_the_effect_of_padding(small_vgg):
    """Padding is at other positions in a crop than in the image; filters with only a middle tap read none."""
    with torch.no_grad():
        for conv in convolutions(small_vgg).values():
            middle_tap = conv.weight[:, :, 1, 1].clone()
            conv.weight.zero_()[:, :, 1, 1] = 3 * middle_tap
        x = torch.randn(1, 3, 224 + 64, 224 + 32)
        score_map = small_vgg.score_map(x)
        for i in range(3):
            for j in range(2):
                crop = x[:, :, 32 * i : 32 * i + 224, 32 * j : 32 * j + 224]
                torch.testing.assert_close(score_map[:, :, i, j], small_vgg(crop), atol=1e-5, rtol=1e-4)
    assert score_map.shape == (1, 5, 3, 2)
    assert score_map.std((2, 3)).min() > 1e-3


def test_dense_reads_the_whole_of_a_wide_image(small_vgg):
    """The scores depend on the right half of the image too."""
    left, right, other = (torch.randn(1, 3, 224, 224) for _ in range(3))
    one, two = (small_vgg.dense(torch.cat([left, x], dim=3)) for x in (right, other))
    assert not torch.allclose(one, two, rtol=1e-3)


# --- invalid arguments -------------------------------------------------------------------------------------


def test_invalid_image_size_raises(small_vgg):
    with pytest.raises(ValueError, match="vgg reads images of 224 x 224 pixels, not 256 x 224"):
        small_vgg(torch.zeros(1, 3, 256, 224))
    with pytest.raises(ValueError, match=r"densely, reads images of 224 x 224 pixels or more, not 300 x 223"):
        small_vgg.dense(torch.zeros(1, 3, 300, 223))


def test_unknown_configuration_or_initialisation_error_lists_the_known_ones():
    with pytest.raises(ValueError, match="configuration 'F' is not one of Table 1: A, A-LRN, B, C, D, E, B-5x5"):
        vgg(configuration="F")
    with pytest.raises(ValueError, match=r"init 'he' is not one of section 3\.1: glorot, normal"):
        vgg(configuration="A", init="he")


# --- other libraries ---------------------------------------------------------------------------------------


def library_network(source: str, model: str, **args) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False, **args).eval()
    return getattr(torchvision.models, model)(weights=None, **args).eval()


@pytest.mark.parametrize("entry", published.PUBLISHED, ids=lambda entry: f"{entry.source}-{entry.model}")
def test_published_state_dict_fits(entry):
    with torch.device("meta"):
        state = library_network(entry.source, entry.model).state_dict()
    ours = on_meta(vgg, **entry.args)
    assert state_dict_mismatch(ours, rename_state_dict(state, entry.rename)) == ""
    assert count_parameters(ours) == sum(value.numel() for value in state.values())


def test_published_lists_all_models_without_batch_norm():
    sizes = {"vgg11", "vgg13", "vgg16", "vgg19"}
    assert {name for name in timm.list_models("vgg*") if not name.endswith("_bn")} == sizes
    assert {(entry.source, entry.model) for entry in published.PUBLISHED} == {
        (source, name) for source in ("torchvision", "timm") for name in sizes
    }


def test_state_dict_of_another_depth_or_with_batch_norm_does_not_fit():
    with torch.device("meta"):
        vgg16 = torchvision.models.vgg16(weights=None).state_dict()
        vgg11_bn = torchvision.models.vgg11_bn(weights=None).state_dict()
    rename = {entry.model: entry.rename for entry in published.TORCHVISION}
    assert "of 22, first" in state_dict_mismatch(
        on_meta(vgg, configuration="A"), rename_state_dict(vgg16, rename["vgg11"])
    )
    assert state_dict_mismatch(on_meta(vgg, configuration="A"), rename_state_dict(vgg11_bn, rename["vgg11"]))


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(published.TORCHVISION[0], id="torchvision"),
        pytest.param(published.TIMM[0], id="timm", marks=pytest.mark.slow),
    ],
)
def test_vgg11_output_matches_other_libraries_with_their_weights(entry):
    torch.manual_seed(0)
    theirs = library_network(entry.source, entry.model, num_classes=10)
    with torch.no_grad():
        for module in theirs.modules():  # zero biases would hide a missing bias
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.bias.uniform_(-0.5, 0.5)
    ours = on_meta(vgg, **entry.args, num_classes=10).to_empty(device="cpu")
    load_published_state_dict(ours, theirs.state_dict(), [entry.rename])
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        scores, expected = ours(x), theirs(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
