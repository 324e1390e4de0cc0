"""VGG against Tables 1 and 2 and sections 2 and 3 of arXiv:1409.1556, and against torchvision's and timm's."""

import itertools
import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from looking import on_meta, output_shapes, parameters
from torch import nn

from lightning_modules.published import vgg as published
from lightning_modules.published.weights import carry_over, translated, unfit
from lightning_modules.vgg import VGG, conv_stack, glorot_uniform, start_from_a, vgg

# Table 1 by columns, in the paper's notation but for the names of the rows; M is a pooling.
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


def by_hand(column: str) -> tuple[dict[str, tuple[int, ...]], int, int]:
    """Of a column of TABLE_1: the layers' outputs, the convolutions' parameters, the layers with weights."""
    outputs: dict[str, tuple[int, ...]] = {}
    channels, side, stage, place, total, weighted = 3, 224, 1, 0, 0, 0
    for word in column.split():
        if word == "M":
            side //= 2
            outputs[f"pool{stage}"] = (channels, side, side)
            stage, place = stage + 1, 0
        elif word == "LRN":
            outputs[f"lrn{stage}"] = (channels, side, side)
        else:
            kernel, width = (1, int(word[4:])) if word.startswith("1x1-") else (3, int(word))
            total += channels * width * kernel**2 + width
            channels, place, weighted = width, place + 1, weighted + 1
            outputs[f"conv{stage}_{place}"] = (channels, side, side)
    outputs |= {"fc6": (4096,), "dropout6": (4096,), "fc7": (4096,), "dropout7": (4096,), "fc8": (1000,)}
    return outputs, total, weighted + 3


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}


def narrow(configuration: str, units: int = 8) -> VGG:
    """The net with a sixteenth of its filters and few units, which the tests can run."""
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
def small() -> VGG:
    network = narrow("A")
    for module in network.modules():  # biases of zero would hide a lost one
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network


# --- the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("configuration", "column"), TABLE_1.items())
def test_layers_and_outputs_are_table_1s(configuration, column):
    outputs, _, weighted = by_hand(column)
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
def test_parameters_are_table_2s(configuration, count):
    _, convolved, _ = by_hand(TABLE_1[configuration])
    assert parameters(on_meta(vgg, configuration=configuration)) == count == convolved + FC
    assert round(count / 1e6) == MILLIONS[configuration]


@pytest.mark.parametrize("configuration", TABLE_1)
def test_every_filter_is_3x3_but_the_third_of_cs_last_stages(configuration):
    ones = {"conv3_3", "conv4_3", "conv5_3"} if configuration == "C" else set()
    for name, conv in convolutions(on_meta(vgg, configuration=configuration)).items():
        side = 1 if name in ones else 3
        assert (conv.kernel_size, conv.stride, conv.padding) == ((side, side), (1, 1), (side // 2, side // 2))


def test_pooling_is_2x2_stride_2_and_dropout_one_half():
    network = on_meta(vgg, configuration="D")
    pools = [m for m in network.modules() if isinstance(m, nn.MaxPool2d)]
    assert [(m.kernel_size, m.stride) for m in pools] == [(2, 2)] * 5
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_lrn_is_krizhevskys_and_the_only_difference_of_a_lrn(small):
    with_lrn = narrow("A-LRN")
    with_lrn.load_state_dict(small.state_dict())
    x = 20 * torch.randn(1, 3, 224, 224)
    y = F.relu(small.conv1_1(x))
    squares = F.pad(y.square(), (0, 0, 0, 0, 2, 2))  # n = 5: two maps on each side
    normalised = y / (2 + 1e-4 * sum(squares[:, i : i + 4] for i in range(5))) ** 0.75
    torch.testing.assert_close(with_lrn.lrn1(y), normalised)
    plain = small(x)
    small.pool1.register_forward_pre_hook(lambda *_: normalised)
    torch.testing.assert_close(with_lrn(x), small(x))
    assert not torch.allclose(small(x), plain, rtol=0.01)


def test_relu_follows_every_weighted_layer_but_the_last(small):
    """Written out once more, in torch's functions alone."""
    x = torch.randn(2, 3, 224, 224)
    y = x
    for name, layer in small.named_children():
        if name.startswith("pool"):
            y = F.max_pool2d(y, 2, 2)
        elif name.startswith("conv"):
            y = torch.clamp(F.conv2d(y, layer.weight, layer.bias, padding=1), min=0)
    y = torch.clamp(F.linear(y.reshape(2, -1), small.fc6.weight, small.fc6.bias), min=0)
    y = torch.clamp(F.linear(y, small.fc7.weight, small.fc7.bias), min=0)
    y = F.linear(y, small.fc8.weight, small.fc8.bias)
    torch.testing.assert_close(small(x), y)
    assert (y < 0).any()


def test_dropout_acts_only_when_training(small):
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(small(x), small(x))
    small.train()
    assert not torch.equal(small(x), small(x))


# --- section 2.3 and 4.1: large filters and stacks of small ones -------------------------------------------


def reach(network: nn.Module, layer: str, side: int = 33) -> int:
    """Pixels across, of those that a change of moves the middle unit of `layer`."""
    seen = {}
    handle = network.get_submodule(layer).register_forward_hook(lambda *args: seen.update(out=args[2]))
    x = torch.randn(1, next(network.parameters()).shape[1], side, side, requires_grad=True)
    network(x)
    handle.remove()
    seen["out"][0, :, side // 2, side // 2].sum().backward()
    return int(x.grad[0].abs().sum(0).any(0).sum())


@pytest.mark.parametrize(("kernel", "layers", "field"), [(3, 1, 3), (3, 2, 5), (3, 3, 7), (5, 1, 5), (7, 1, 7)])
def test_a_stack_of_small_filters_sees_what_a_large_one_sees(kernel, layers, field):
    torch.manual_seed(0)
    assert reach(conv_stack(kernel=kernel, layers=layers, in_channels=4), f"conv{layers}") == field
    network = on_meta(conv_stack, kernel=kernel, layers=layers, in_channels=4)
    assert output_shapes(network, (4, 33, 33))[f"conv{layers}"] == (4, 33, 33)


def test_three_3x3_have_27_c_squared_weights_and_one_7x7_49():
    c = 64
    for kernel, layers, each in ((3, 3, 27), (7, 1, 49)):
        stack = convolutions(on_meta(conv_stack, kernel=kernel, layers=layers, in_channels=c)).values()
        assert sum(conv.weight.numel() for conv in stack) == each * c**2
        assert len(stack) == layers
    assert round(100 * 49 / 27 - 100) == 81  # per cent more


def test_a_stack_has_a_relu_after_each_of_its_layers():
    network = conv_stack(layers=3, in_channels=4)
    assert [type(m).__name__ for m in network][:6] == ["Conv2d", "ReLU"] * 3


@pytest.mark.parametrize("kernel", [4, 0, -3])
def test_a_stack_of_even_filters_is_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel {kernel} is not odd"):
        conv_stack(kernel=kernel)


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match=r"0 layers make no stack; section 2\.3 has 1, 2 and 3"):
        conv_stack(layers=0)


def test_the_shallow_net_of_section_4_1_has_one_5x5_for_each_pair_of_bs():
    network = on_meta(vgg, configuration="B-5x5")
    assert [conv.kernel_size for conv in convolutions(network).values()] == [(5, 5)] * 5
    widths = [3, 64, 128, 256, 512, 512]
    expected = sum(25 * a * b + b for a, b in itertools.pairwise(widths)) + FC
    assert parameters(network) == expected == 134_503_528
    shapes, of_b = (output_shapes(on_meta(vgg, configuration=c), (3, 224, 224)) for c in ("B-5x5", "B"))
    assert all(shapes[f"pool{stage}"] == of_b[f"pool{stage}"] for stage in range(1, 6))


# --- section 3.1: how weights begin ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glorot() -> VGG:
    torch.manual_seed(0)
    return vgg(configuration="A")


def test_by_default_weights_are_glorots_and_biases_zero(glorot):
    """Uniform within sqrt(6 / (fan-in + fan-out))."""
    fans = {"conv1_1": 9 * (3 + 64), "conv5_2": 9 * (512 + 512), "fc6": 25088 + 4096, "fc8": 4096 + 1000}
    for name, fan in fans.items():
        layer = glorot.get_submodule(name)
        bound = math.sqrt(6 / fan)
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not layer.bias.any()


@pytest.mark.slow
def test_as_the_paper_began_weights_are_normal_with_variance_one_hundredth_and_biases_zero():
    torch.manual_seed(0)
    network = vgg(configuration="A", init="normal")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.var().item() == pytest.approx(0.01, rel=0.1)
            assert not module.bias.any()
    weight = network.conv5_2.weight  # 2.4 million
    assert weight.mean().item() == pytest.approx(0, abs=3e-4)
    assert (weight / 0.1).pow(4).mean().item() == pytest.approx(3, abs=0.05)  # of a normal; a uniform one has 1.8


@pytest.mark.parametrize("configuration", ["B", "C", "D", "E"])
def test_deeper_nets_start_from_as_first_four_convolutions_and_last_three_layers(small, configuration):
    deeper = narrow(configuration)
    torch.manual_seed(1)
    deeper.apply(glorot_uniform)
    before = {name: value.clone() for name, value in deeper.state_dict().items()}
    start_from_a(deeper, small)
    copied = {"conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"}
    for name, value in deeper.state_dict().items():
        if name.partition(".")[0] in copied:
            assert torch.equal(value, small.state_dict()[name])
        else:
            assert torch.equal(value, before[name])
    assert not torch.equal(deeper.conv1_1.weight, before["conv1_1.weight"])
    assert torch.equal(deeper.conv1_2.weight, before["conv1_2.weight"])


def test_only_net_a_is_copied_from(small):
    with pytest.raises(ValueError, match=r"start from configuration A or A-LRN \(section 3\.1\), not B"):
        start_from_a(small, on_meta(vgg, configuration="B"))


def test_what_does_not_fit_is_not_copied(small):
    words = r"conv1_1.weight of configuration A has shape \(4, 3, 3, 3\); .* B-5x5 has one of shape \(4, 3, 5, 5\)"
    with pytest.raises(ValueError, match=words):
        start_from_a(narrow("B-5x5"), small)
    wider = narrow("D", units=9)
    before = wider.conv1_1.weight.clone()
    with pytest.raises(ValueError, match=r"fc6.weight of configuration A .* D has one of shape \(9, 1568\)"):
        start_from_a(wider, small)
    assert torch.equal(wider.conv1_1.weight, before)  # nothing is copied by halves


# --- section 3.2: dense evaluation -------------------------------------------------------------------------


def test_dense_on_224_pixels_is_the_ordinary_net(small):
    x = torch.randn(2, 3, 224, 224)
    assert small.score_map(x).shape == (2, 5, 1, 1)
    torch.testing.assert_close(small.dense(x), small(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("height", "width", "map_of"), [(256, 320, (2, 4)), (300, 225, (3, 1))])
def test_dense_slides_the_fully_connected_layers_over_the_last_map(small, height, width, map_of):
    x = torch.randn(1, 3, height, width)
    maps = small.maps(x)
    assert maps.shape == (1, 32, height // 32, width // 32)
    scores = torch.empty(5, *map_of)
    for i in range(map_of[0]):
        for j in range(map_of[1]):
            window = maps[0, :, i : i + 7, j : j + 7].flatten()
            scores[:, i, j] = small.fc8(F.relu(small.fc7(F.relu(small.fc6(window)))))
    torch.testing.assert_close(small.score_map(x)[0], scores.detach(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(small.dense(x)[0], scores.detach().mean((1, 2)), atol=1e-6, rtol=1e-4)


def test_dense_is_the_net_slid_by_32_pixels_if_filters_do_not_reach_into_the_padding(small):
    """Padding is at other places in a crop and in the whole image; a filter with but its middle tap reads none."""
    with torch.no_grad():
        for conv in convolutions(small).values():
            middle = conv.weight[:, :, 1, 1].clone()
            conv.weight.zero_()[:, :, 1, 1] = 3 * middle
        x = torch.randn(1, 3, 224 + 64, 224 + 32)
        found = small.score_map(x)
        for i in range(3):
            for j in range(2):
                crop = x[:, :, 32 * i : 32 * i + 224, 32 * j : 32 * j + 224]
                torch.testing.assert_close(found[:, :, i, j], small(crop), atol=1e-5, rtol=1e-4)
    assert found.shape == (1, 5, 3, 2)
    assert found.std((2, 3)).min() > 1e-3


def test_dense_of_two_images_side_by_side_notices_both(small):
    """A window that does not slide would see the left one only."""
    left, right, other = (torch.randn(1, 3, 224, 224) for _ in range(3))
    one, two = (small.dense(torch.cat([left, x], dim=3)) for x in (right, other))
    assert not torch.allclose(one, two, rtol=1e-3)


# --- what is refused ---------------------------------------------------------------------------------------


def test_another_image_size_is_refused(small):
    with pytest.raises(ValueError, match="vgg reads images of 224 x 224 pixels, not 256 x 224"):
        small(torch.zeros(1, 3, 256, 224))
    with pytest.raises(ValueError, match=r"densely, reads images of 224 x 224 pixels or more, not 300 x 223"):
        small.dense(torch.zeros(1, 3, 300, 223))


def test_an_unknown_configuration_or_start_names_the_known_ones():
    with pytest.raises(ValueError, match="configuration 'F' is not one of Table 1: A, A-LRN, B, C, D, E, B-5x5"):
        vgg(configuration="F")
    with pytest.raises(ValueError, match=r"init 'he' is not one of section 3\.1: glorot, normal"):
        vgg(configuration="A", init="he")


# --- second opinions ---------------------------------------------------------------------------------------


def theirs(source: str, model: str, **args) -> nn.Module:
    if source == "timm":
        return timm.create_model(model, pretrained=False, **args).eval()
    return getattr(torchvision.models, model)(weights=None, **args).eval()


@pytest.mark.parametrize("known", published.PUBLISHED, ids=lambda known: f"{known.source}-{known.model}")
def test_published_weights_have_our_names_and_shapes(known):
    with torch.device("meta"):
        state = theirs(known.source, known.model).state_dict()
    ours = on_meta(vgg, **known.args)
    assert unfit(ours, translated(state, known.rename)) == ""
    assert parameters(ours) == sum(value.numel() for value in state.values())


def test_every_size_that_both_publish_without_batch_norm_is_there():
    sizes = {"vgg11", "vgg13", "vgg16", "vgg19"}
    assert {name for name in timm.list_models("vgg*") if not name.endswith("_bn")} == sizes
    assert {(known.source, known.model) for known in published.PUBLISHED} == {
        (source, name) for source in ("torchvision", "timm") for name in sizes
    }


def test_another_size_or_a_batch_normalised_one_does_not_fit():
    with torch.device("meta"):
        deeper = torchvision.models.vgg16(weights=None).state_dict()
        normalised = torchvision.models.vgg11_bn(weights=None).state_dict()
    rename = {known.model: known.rename for known in published.TORCHVISION}
    assert "of 22 weights are missing" in unfit(
        on_meta(vgg, configuration="A"), translated(deeper, rename["vgg11"])
    )
    assert unfit(on_meta(vgg, configuration="A"), translated(normalised, rename["vgg11"]))


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(published.TORCHVISION[0], id="torchvision"),
        pytest.param(published.TIMM[0], id="timm", marks=pytest.mark.slow),
    ],
)
def test_second_opinion_vgg11_gives_the_same_scores_with_the_same_weights(known):
    torch.manual_seed(0)
    other = theirs(known.source, known.model, num_classes=10)
    with torch.no_grad():
        for module in other.modules():  # biases of zero would hide a lost one
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.bias.uniform_(-0.5, 0.5)
    ours = on_meta(vgg, **known.args, num_classes=10).to_empty(device="cpu")
    carry_over(ours, other.state_dict(), [known.rename])
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        mine, expected = ours(x), other(x)
    assert expected.std() > 0.01
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)
