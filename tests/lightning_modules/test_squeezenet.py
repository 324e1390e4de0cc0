"""Test SqueezeNet against Table 1 and sections 3, 5 and 6 of arXiv:1602.07360, and against torchvision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.published.squeezenet import PUBLISHED
from lightning_modules.published.weights import rename_state_dict, state_dict_mismatch
from lightning_modules.squeezenet import fire_module_sizes, squeezenet, squeezenet_1_1
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

TABLE_1 = {  # layer: output, parameters before compression
    "conv1": ((96, 111, 111), 14_208),
    "maxpool1": ((96, 55, 55), 0),
    "fire2": ((128, 55, 55), 11_920),
    "fire3": ((128, 55, 55), 12_432),
    "fire4": ((256, 55, 55), 45_344),
    "maxpool4": ((256, 27, 27), 0),
    "fire5": ((256, 27, 27), 49_440),
    "fire6": ((384, 27, 27), 104_880),
    "fire7": ((384, 27, 27), 111_024),
    "fire8": ((512, 27, 27), 188_992),
    "maxpool8": ((512, 13, 13), 0),
    "fire9": ((512, 13, 13), 197_184),
    "dropout9": ((512, 13, 13), 0),  # section 3.3.1; no row in the table
    "conv10": ((1000, 13, 13), 513_000),
    "avgpool10": ((1000, 1, 1), 0),
}
FIRE = {  # s1x1, e1x1, e3x3
    "fire2": (16, 64, 64),
    "fire3": (16, 64, 64),
    "fire4": (32, 128, 128),
    "fire5": (32, 128, 128),
    "fire6": (48, 192, 192),
    "fire7": (48, 192, 192),
    "fire8": (64, 256, 256),
    "fire9": (64, 256, 256),
}
BYPASSES = [None, "simple", "complex"]


def hand_count(conv1: int, kernel: int, fire: dict[str, tuple[int, int, int]]) -> int:
    """Count weights and biases: conv1 on 3 channels, three convolutions per fire module, conv10 to 1000."""
    total, channels = conv1 * (3 * kernel**2 + 1), conv1
    for s1x1, e1x1, e3x3 in fire.values():
        total += s1x1 * (channels + 1) + e1x1 * (s1x1 + 1) + e3x3 * (9 * s1x1 + 1)
        channels = e1x1 + e3x3
    return total + 1000 * (channels + 1)


def multiply_adds(network: nn.Module) -> int:
    """Return half the operations that PyTorch counts for one 227 x 227 image."""
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 227, 227))
    return counter.get_total_flops() // 2


def test_children_follow_table_1():
    assert [name for name, _ in on_meta(squeezenet).named_children()] == list(TABLE_1)


@pytest.mark.parametrize("bypass", BYPASSES)
def test_layer_outputs_match_table_1(bypass):
    shapes = output_shapes(on_meta(squeezenet, bypass=bypass), (3, 227, 227))
    assert {name: shapes[name] for name in TABLE_1} == {name: row[0] for name, row in TABLE_1.items()}


def test_printed_input_of_224_gives_conv1_109_x_109():
    shapes = output_shapes(on_meta(squeezenet), (3, 224, 224))
    assert shapes["conv1"] == (96, (224 - 7) // 2 + 1, 109)


@pytest.mark.parametrize("bypass", [None, "simple"])
def test_parameter_counts_match_table_1(bypass):
    network = on_meta(squeezenet, bypass=bypass)
    assert {name: count_parameters(layer) for name, layer in network.named_children()} == {
        name: row[1] for name, row in TABLE_1.items()
    }
    assert (
        count_parameters(network)
        == hand_count(96, 7, FIRE)
        == sum(row[1] for row in TABLE_1.values())
        == 1_248_424
    )


def test_complex_bypass_adds_four_1x1_convolutions():
    network = on_meta(squeezenet, bypass="complex")
    expected = {
        "fire2": 96 * 128 + 128,
        "fire4": 128 * 256 + 256,
        "fire6": 256 * 384 + 384,
        "fire8": 384 * 512 + 512,
    }
    added = {
        name: count_parameters(network.get_submodule(name).bypass)
        for name in FIRE
        if isinstance(network.get_submodule(name).bypass, nn.Conv2d)
    }
    assert added == expected
    assert count_parameters(network) == 1_248_424 + 341_248 == 1_589_672


def test_simple_bypass_is_in_fire_3_5_7_and_9():
    network = on_meta(squeezenet, bypass="simple")
    assert [name for name in FIRE if network.get_submodule(name).bypass is not None] == [
        "fire3",
        "fire5",
        "fire7",
        "fire9",
    ]


def test_fire_module_output_matches_section_3_2():
    fire = squeezenet().fire4.eval()
    x = torch.randn(2, 128, 6, 6)
    s = F.relu(F.conv2d(x, fire.squeeze1x1.weight, fire.squeeze1x1.bias))
    e1x1 = F.conv2d(s, fire.expand1x1.weight, fire.expand1x1.bias)
    e3x3 = F.conv2d(F.pad(s, (1, 1, 1, 1)), fire.expand3x3.weight, fire.expand3x3.bias)
    torch.testing.assert_close(fire(x), torch.cat([e1x1.relu(), e3x3.relu()], 1), atol=1e-5, rtol=0)


def test_fire4_reads_the_sum_of_the_outputs_of_fire2_and_fire3():
    """Section 6, simple bypass."""
    torch.manual_seed(0)
    network = squeezenet(bypass="simple").eval()
    seen = {}
    for name in ("fire2", "fire4"):
        hook = lambda _m, inputs, output, name=name: seen.update({name: (inputs[0], output)})  # noqa: E731
        network.get_submodule(name).register_forward_hook(hook)
    network(torch.randn(1, 3, 67, 67))
    fire2 = seen["fire2"][1]
    fire3 = network.fire3
    s = F.relu(fire3.squeeze1x1(fire2))
    without_bypass = torch.cat([fire3.expand1x1(s), fire3.expand3x3(s)], 1).relu()
    torch.testing.assert_close(seen["fire4"][0], fire2 + without_bypass)
    assert not torch.allclose(seen["fire4"][0], without_bypass)


def test_metaparameters_of_section_5_1_give_table_1():
    assert fire_module_sizes(128, 128, 0.5, 2, 0.125) == FIRE


@pytest.mark.parametrize(
    ("args", "megabytes"),
    [({}, 4.8), ({"sr": 0.5}, 13), ({"sr": 0.75}, 19)],
)
def test_model_sizes_match_sections_4_and_5(args, megabytes):
    """Four bytes per parameter, in MiB, rounded up to the printed digits."""
    size = 4 * count_parameters(on_meta(squeezenet, **args)) / 2**20
    unit = 0.1 if megabytes == 4.8 else 1
    assert megabytes - unit < size <= megabytes


def test_filter_counts_for_other_metaparameters():
    fire = fire_module_sizes(64, 32, 0.25, 3, 0.5)  # e = 64, 64, 64, 96, 96, 96, 128, 128
    assert list(fire.values()) == [(32, 48, 16)] * 3 + [(48, 72, 24)] * 3 + [(64, 96, 32)] * 2
    args = {"base_e": 64, "incr_e": 32, "pct_3x3": 0.25, "freq": 3, "sr": 0.5}
    assert count_parameters(on_meta(squeezenet, **args)) == hand_count(96, 7, fire)
    assert fire_module_sizes(128, 128, 0.01, 2, 0.5)["fire2"] == (64, 127, 1)  # 1.28 filters, rounded
    assert fire_module_sizes(128, 128, 0.99, 2, 0.5)["fire2"] == (64, 1, 127)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"pct_3x3": 0.0}, "fire2 would have 16 squeeze, 128 1x1 and 0 3x3 filters; each must be >= 1"),
        ({"pct_3x3": 1.0}, "fire2 would have 16 squeeze, 0 1x1 and 128 3x3 filters"),
        ({"sr": 0.001}, "fire2 would have 0 squeeze, .* sr from 0.125 to 1 "),
        ({"base_e": 0}, "fire2 would have 0 squeeze, 0 1x1 and 0 3x3 filters; .* base_e 128"),
        ({"incr_e": -64}, "fire6 would have 0 squeeze"),
        ({"sr": 1.5}, r"pct_3x3 and sr must be from 0 to 1, not 0\.5 and 1\.5"),
        ({"pct_3x3": -0.1}, r"pct_3x3 and sr must be from 0 to 1, not -0\.1 and 0\.125"),
        ({"freq": 0}, "freq must be an integer >= 1, not 0"),
        ({"bypass": "both"}, "bypass 'both' is not one of section 6: None, 'simple', 'complex'"),
    ],
)
def test_invalid_arguments_raise_value_error(args, message):
    with pytest.raises(ValueError, match=message):
        on_meta(squeezenet, **args)


@pytest.mark.parametrize(("build", "min_size"), [(squeezenet, 21), (squeezenet_1_1, 17)])
def test_smallest_image_leaves_one_value_and_a_smaller_one_raises(build, min_size):
    network = on_meta(build)
    assert output_shapes(network, (3, min_size, min_size))["conv10"] == (1000, 1, 1)
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=f"SqueezeNet reads images of {min_size} x {min_size} pixels"),
    ):
        network(torch.zeros(1, 3, min_size, min_size - 1))


@pytest.mark.parametrize("build", [squeezenet, squeezenet_1_1])
def test_initial_weights_follow_the_released_configuration(build):
    """Caffe's xavier, uniform with variance 1 / fan-in; conv10 normal with 0.01; biases zero."""
    torch.manual_seed(0)
    network = build()
    rest = [m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and name != "conv10"]
    scaled = torch.cat([m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in rest])
    assert scaled.square().mean().item() == pytest.approx(1, abs=0.01)
    assert scaled.abs().max().item() <= 3**0.5 + 1e-4  # bounded, so uniform
    assert network.conv10.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert network.conv10.weight.abs().max().item() > 0.035
    assert not any(m.bias.any() for m in (*rest, network.conv10))


def test_dropout9_drops_half_of_the_values_only_in_training():
    network = squeezenet(num_classes=3)
    seen = []
    network.dropout9.register_forward_hook(lambda _m, inputs, output: seen.append((inputs[0], output)))
    x = torch.randn(1, 3, 67, 67)
    network.train()(x)
    network.eval()(x)
    (before, after), (same, kept) = seen
    positive = before > 0
    assert (after[positive] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(same, kept)


def test_scores_are_averages_of_conv10_after_relu():
    network = squeezenet(num_classes=5).eval()
    seen = []
    network.conv10.register_forward_hook(lambda *args: seen.append(args[2]))
    scores = network(torch.randn(2, 3, 67, 67))
    torch.testing.assert_close(scores, seen[0].relu().mean((2, 3)))
    assert (scores >= 0).all()


# --- SqueezeNet 1.1, and the libraries -------------------------------------------------------------------------


def test_version_1_1_matches_the_released_configuration():
    network = on_meta(squeezenet_1_1)
    shapes = output_shapes(network, (3, 227, 227))
    names = [name for name, _ in network.named_children()]
    assert [name for name in names if name.startswith("maxpool")] == ["maxpool1", "maxpool3", "maxpool5"]
    assert shapes["conv1"] == (64, 113, 113)
    assert (shapes["maxpool1"], shapes["maxpool3"], shapes["maxpool5"]) == (
        (64, 56, 56),
        (128, 28, 28),
        (256, 14, 14),
    )
    assert shapes["conv10"] == (1000, 14, 14)
    assert count_parameters(network) == hand_count(64, 3, FIRE) == 1_235_496


def hand_multiply_adds(conv1: int, kernel: int, sides: tuple[int, ...], conv10: int) -> int:
    """Count multiply-adds; `sides` are the map sizes of conv1 and fire2 to fire9, `conv10` that of conv10."""
    total, channels = conv1 * 3 * kernel**2 * sides[0] ** 2, conv1
    for (s1x1, e1x1, e3x3), side in zip(FIRE.values(), sides[1:], strict=True):
        total += (channels * s1x1 + s1x1 * e1x1 + 9 * s1x1 * e3x3) * side**2
        channels = e1x1 + e3x3
    return total + 512 * 1000 * conv10**2


def test_multiply_adds_of_the_released_versions():
    """The authors state 1.72 billion operations for 1.0 (two per multiply-add), 2.4 times those of 1.1.

    The first holds for the released conv10, which pads its input by one pixel (15 x 15 instead of the 13 x 13 of
    Table 1). The second does not: with maps rounded up as in Caffe the ratio is 2.2.
    """
    sides, sides_1_1 = (111, 55, 55, 55, 27, 27, 27, 27, 13), (113, 56, 56, 28, 28, 14, 14, 14, 14)
    version_1_0, version_1_1 = multiply_adds(on_meta(squeezenet)), multiply_adds(on_meta(squeezenet_1_1))
    assert version_1_0 == hand_multiply_adds(96, 7, sides, 13) == 832_667_936
    assert version_1_1 == hand_multiply_adds(64, 3, sides_1_1, 14) == 387_747_520
    assert 2 * hand_multiply_adds(96, 7, sides, 15) / 1e9 == pytest.approx(1.72, abs=0.005)
    assert hand_multiply_adds(96, 7, sides, 15) / version_1_1 == pytest.approx(2.2, abs=0.05)
    assert version_1_0 / version_1_1 == pytest.approx(2.1, abs=0.05)
    on_224 = hand_multiply_adds(96, 7, (109, 54, 54, 54, 27, 27, 27, 27, 13), 13) / hand_multiply_adds(
        64, 3, (111, 55, 55, 27, 27, 13, 13, 13, 13), 13
    )
    assert on_224 == pytest.approx(2.3, abs=0.05)


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.model)
@pytest.mark.parametrize("size", [99, 96])
def test_output_matches_torchvision_with_its_weights(entry, size):
    """torchvision's network gives the same scores with the same weights for odd and even image sizes."""
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.get_model(entry.model, weights=None).eval()
    ours = {"squeezenet": squeezenet, "squeezenet_1_1": squeezenet_1_1}[entry.network](**entry.args).eval()
    state = rename_state_dict(theirs.state_dict(), entry.rename)
    assert state_dict_mismatch(ours, state) == ""
    ours.load_state_dict(state)
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)
    assert count_parameters(ours) == count_parameters(theirs)


def test_swapped_weights_change_the_output():
    """The comparison with torchvision detects wrong weights."""
    import torchvision

    theirs = torchvision.models.squeezenet1_0(weights=None).eval()
    ours = squeezenet().eval()
    state = rename_state_dict(theirs.state_dict(), PUBLISHED[0].rename)
    state["fire3.expand1x1.weight"] = theirs.state_dict()["features.3.expand1x1.weight"]  # fire2's
    ours.load_state_dict(state)
    x = torch.randn(1, 3, 67, 67)
    with torch.no_grad():
        assert not torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_weights_of_one_version_do_not_fit_the_other():
    import torchvision

    with torch.device("meta"):
        theirs = torchvision.models.squeezenet1_1(weights=None).state_dict()
    mismatch = state_dict_mismatch(on_meta(squeezenet), rename_state_dict(theirs, PUBLISHED[1].rename))
    assert mismatch.startswith("conv1.weight has shape 64 x 3 x 3 x 3, expected 96 x 3 x 7 x 7")
