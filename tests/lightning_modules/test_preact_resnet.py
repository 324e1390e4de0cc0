"""Test the CIFAR networks against arXiv:1603.05027: Figures 2, 4 and 5, Tables 1 to 4, the appendix."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.layers import PadShortcut, Projection
from lightning_modules.preact_resnet import FIGURE_4, ResidualUnit, preact_resnet_cifar
from lightning_modules.published.weights import rename_state_dict, renamer
from lightning_modules.resnet import plain_cifar, resnet_cifar
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

FULL = "full pre-activation"
TABLE_4 = {  # depth, layers per unit: parameters with full pre-activation
    (110, 2): 1_727_962,
    (110, 1): 1_727_962,
    (164, 3): 1_703_258,
    (1001, 3): 10_327_706,
}
LAYER_ORDER = {  # Figure 4: a unit after the first
    "original": "Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d + ReLU",
    "BN after addition": "Conv2d BatchNorm2d ReLU Conv2d + BatchNorm2d ReLU",
    "ReLU before addition": "Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU +",
    "ReLU-only pre-activation": "ReLU Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d +",
    "full pre-activation": "BatchNorm2d ReLU Conv2d BatchNorm2d ReLU Conv2d +",
}
TABLE_1 = {
    "constant scaling": {"on_shortcut": 0.5, "on_f": 0.5},
    "exclusive gating": {"b_g": -6.0},
    "shortcut-only gating": {"b_g": -6.0},
    "1x1 conv shortcut": {},
    "dropout shortcut": {},
}
TO_RESNET = renamer(  # parameter names -> those of `resnet`
    (r"(map\d+\.\d+)\.residual\.(.+)", r"\1.\2"), (r"(map\d+\.\d+\.shortcut\..+|(conv1|bn1|fc)\..+)", r"\1")
)


def hand_count(depth: int, per_unit: int, activation: str = FULL) -> int:
    """Count parameters from the table: conv1 and its BN, each unit's weight layers with BN, projections, fc."""
    n = (depth - 2) // (3 * per_unit)
    total, channels = 3 * 3 * 3 * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        filters = {1: [(9, width)], 2: [(9, width)] * 2, 3: [(1, width), (9, width), (1, 4 * width)]}[per_unit]
        for unit in range(n):
            entry = channels
            for area, out in filters:
                total += channels * area * out + 2 * out
                channels = out
            if per_unit == 3 and unit == 0:
                total += entry * channels + (0 if activation == FULL else 2 * channels)
    return total + channels * 10 + 10


@cache
def meta_network(depth: int, per_unit: int, activation: str = FULL) -> nn.Module:
    """Return a network on the meta device, built once."""
    return on_meta(preact_resnet_cifar, depth=depth, layers_per_unit=per_unit, activation=activation)


def small_network(seed: int = 0, **args) -> nn.Module:
    """Return a network with two units per map size, in evaluation mode, with random batch-norm state."""
    torch.manual_seed(seed)
    args = {"layers_per_unit": 2, **args}
    network = preact_resnet_cifar(depth=6 * args["layers_per_unit"] + 2, **args).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def original_network(**args) -> nn.Module:
    return small_network(activation="original", **args)


def layer_types(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("depth", "per_unit"), TABLE_4)
@pytest.mark.parametrize("activation", [FULL, "original"])
def test_parameter_count_matches_hand_count(depth, per_unit, activation):
    network = meta_network(depth, per_unit, activation)
    assert count_parameters(network) == hand_count(depth, per_unit, activation)
    projections = 2 * (64 + 128 + 256) if per_unit == 3 and activation == "original" else 0
    assert count_parameters(network) == TABLE_4[depth, per_unit] + projections


def test_1001_layers_have_the_10_2_million_weights_of_table_4():
    network = meta_network(1001, 3)
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert weights == 10_178_480


@pytest.mark.parametrize("activation", FIGURE_4)
def test_all_activations_consist_of_the_same_components(activation):
    """Caption of Figure 4."""
    network = meta_network(110, 2, activation)
    assert count_parameters(network) == 1_727_962
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        assert sum(isinstance(m, kind) for m in network.modules()) == 109


@pytest.mark.parametrize(
    ("depth", "per_unit", "units", "widths"),
    [
        (110, 1, 36, (16, 32, 64)),
        (110, 2, 18, (16, 32, 64)),
        (164, 3, 18, (64, 128, 256)),
        (1001, 3, 111, (64, 128, 256)),
    ],
)
def test_layer_outputs_and_unit_counts_match_the_table(depth, per_unit, units, widths):
    network = meta_network(depth, per_unit)
    assert [len(network.get_submodule(name)) for name in ("map32", "map16", "map8")] == [units] * 3
    if depth == 1001:
        return  # the units equal those of 164
    seen = output_shapes(network, (3, 32, 32))
    expected = {"conv1": (16, 32, 32), "last": (widths[2], 8, 8), "pool": (widths[2], 1, 1), "fc": (10,)}
    for name, width, side in zip(("map32", "map16", "map8"), widths, (32, 16, 8), strict=True):
        expected |= {name: (width, side, side)} | {f"{name}.{i}": (width, side, side) for i in range(units)}
    assert {name: seen[name] for name in expected} == expected


def test_bottleneck_unit_reduces_and_restores_channels():
    unit = preact_resnet_cifar(depth=20, layers_per_unit=3).map32[1]
    shapes = [tuple(m.weight.shape) for m in unit.residual if isinstance(m, nn.Conv2d)]
    assert shapes == [(16, 64, 1, 1), (16, 16, 3, 3), (64, 16, 1, 1)]


@pytest.mark.parametrize("per_unit", [1, 2, 3])
def test_weighted_layers_outside_shortcuts_equal_the_depth(per_unit):
    network = on_meta(preact_resnet_cifar, depth=6 * per_unit + 2, layers_per_unit=per_unit)
    weighted = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(".shortcut." not in name for name in weighted) == 6 * per_unit + 2


def test_children_follow_the_table():
    names = [name for name, _ in on_meta(preact_resnet_cifar, depth=8, layers_per_unit=2).named_children()]
    assert names == ["conv1", "bn1", "map32", "map16", "map8", "last", "pool", "fc"]


@pytest.mark.parametrize("activation", LAYER_ORDER)
def test_layer_order_of_a_unit_matches_figure_4(activation):
    unit = small_network(activation=activation).map32[1]
    assert (
        " ".join([*layer_types(unit.pre), *layer_types(unit.residual), "+", *layer_types(unit.post)])
        == LAYER_ORDER[activation]
    )
    types = {"weight": "Conv2d", "BN": "BatchNorm2d", "ReLU": "ReLU", "addition": "+"}
    assert " ".join(types[name] for name in unit.order.split()) == LAYER_ORDER[activation]


@pytest.mark.parametrize("activation", LAYER_ORDER)
def test_unit_output_matches_figure_4(activation):
    unit = small_network(activation=activation).map32[1]
    x = torch.randn(2, 16, 8, 8)
    conv1, conv2 = unit.residual.conv1, unit.residual.conv2
    bn = [m for m in unit.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {
        "original": lambda: F.relu(x + bn[1](conv2(F.relu(bn[0](conv1(x)))))),
        "BN after addition": lambda: F.relu(bn[1](x + conv2(F.relu(bn[0](conv1(x)))))),
        "ReLU before addition": lambda: x + F.relu(bn[1](conv2(F.relu(bn[0](conv1(x)))))),
        "ReLU-only pre-activation": lambda: x + bn[1](conv2(F.relu(bn[0](conv1(F.relu(x)))))),
        "full pre-activation": lambda: x + conv2(F.relu(bn[1](conv1(F.relu(bn[0](x)))))),
    }
    before = x.clone()
    torch.testing.assert_close(unit(x), expected[activation]())
    assert torch.equal(x, before)  # no in-place layer changes the shortcut's input


@pytest.mark.parametrize("activation", ["ReLU-only pre-activation", FULL])
@pytest.mark.parametrize("per_unit", [1, 2, 3])
def test_first_pre_activation_and_last_activation_follow_the_appendix(activation, per_unit):
    network = small_network(activation=activation, layers_per_unit=per_unit)
    pre = {"full pre-activation": ["BatchNorm2d", "ReLU"], "ReLU-only pre-activation": ["ReLU"]}[activation]
    units = [m for m in network.modules() if isinstance(m, ResidualUnit)]
    assert [layer_types(unit.pre) for unit in units] == [[], *[pre] * 5]
    assert layer_types(network.last) == pre
    seen = []
    units[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    x = images()
    network(x)
    assert torch.equal(seen[0], F.relu(network.bn1(network.conv1(x))))  # both paths read this


@pytest.mark.parametrize("activation", ["original", "BN after addition", "ReLU before addition"])
def test_other_activations_have_no_extra_last_activation(activation):
    assert len(small_network(activation=activation).last) == 0


def test_figure_5_asymmetric_after_add_activation_equals_pre_activation():
    network = small_network()
    x = images()
    y = F.relu(network.bn1(network.conv1(x)))
    activated = y
    units = [m for m in network.modules() if isinstance(m, ResidualUnit)]
    following = [unit.pre for unit in units[1:]] + [network.last]  # the activation after each addition
    for unit, f_hat in zip(units, following, strict=True):
        y = unit.shortcut(y) + unit.residual(activated)
        activated = f_hat(y)
    expected = network.fc(activated.mean((2, 3)))
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(("activation", "adds_up"), [(FULL, True), ("original", False)])
def test_equation_4_deep_output_is_input_plus_all_residuals(activation, adds_up):
    stage = small_network(activation=activation).map32
    residuals = []
    for unit in stage:
        unit.residual.register_forward_hook(lambda _module, _inputs, output: residuals.append(output))
    x = torch.randn(2, 16, 8, 8)
    deep = stage(x)
    assert torch.allclose(deep, x + sum(residuals), atol=1e-5) is adds_up


@pytest.mark.parametrize(("activation", "passes"), [(FULL, True), ("original", False)])
def test_equation_5_gradient_is_unchanged_where_f_is_zero(activation, passes):
    stage = small_network(activation=activation).map32
    for unit in stage:
        unit.residual.register_forward_hook(lambda _module, _inputs, output: output.detach() * 0)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    gradient = torch.randn(2, 16, 8, 8)
    stage(x).backward(gradient)
    assert torch.equal(x.grad, gradient) is passes


def test_three_projections_read_the_pre_activation():
    network = small_network(layers_per_unit=3)
    projecting = [m for m in network.modules() if isinstance(m, ResidualUnit) and m.projects]
    assert projecting == [network.map32[0], network.map16[0], network.map8[0]]
    unit = network.map16[0]
    x = torch.randn(2, 64, 8, 8)
    activated = F.relu(unit.pre.bn(x))
    assert layer_types(unit.shortcut) == ["Conv2d"]
    projected = F.conv2d(activated, unit.shortcut.conv.weight, stride=2)
    torch.testing.assert_close(unit(x), projected + unit.residual(activated))


def test_projections_are_batch_normalised_with_original_activation():
    assert isinstance(original_network(layers_per_unit=3).map16[0].shortcut, Projection)


@pytest.mark.parametrize("per_unit", [1, 2])
def test_units_of_one_and_two_layers_pad_the_input_before_activation(per_unit):
    unit = small_network(layers_per_unit=per_unit).map16[0]
    x = torch.randn(2, 16, 8, 8)
    padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
    assert isinstance(unit.shortcut, PadShortcut)
    torch.testing.assert_close(unit(x), padded + unit.residual(F.relu(unit.pre.bn(x))))


def test_bottleneck_stride_is_in_the_first_convolution():
    unit = on_meta(preact_resnet_cifar, depth=11, layers_per_unit=3).map8[0]
    assert [m.stride for m in unit.residual if isinstance(m, nn.Conv2d)] == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("args", "build_equal"),
    [
        ({}, lambda: resnet_cifar(depth=14, shortcut="A")),
        (
            {"shortcut": "constant scaling", "on_shortcut": 0, "on_f": 1},
            lambda: plain_cifar(depth=14),
        ),  # the remark in Table 1
        ({"shortcut": "1x1 conv shortcut"}, lambda: resnet_cifar(depth=14, shortcut="C")),
    ],
    ids=["original", "constant scaling 0 and 1", "1x1 conv shortcut"],
)
def test_rows_of_table_1_equal_networks_of_the_resnet_paper(args, build_equal):
    ours, theirs = original_network(**args), build_equal().eval()
    theirs.load_state_dict(rename_state_dict(ours.state_dict(), TO_RESNET))
    torch.testing.assert_close(ours(images()), theirs(images()))


@pytest.mark.parametrize(("on_shortcut", "on_f"), [(0.5, 1), (0.5, 0.5)])
def test_constant_scaling_scales_the_shortcut_and_f(on_shortcut, on_f):
    for name in ("map32.1", "map16.0"):
        unit = original_network(shortcut="constant scaling", on_shortcut=on_shortcut, on_f=on_f).get_submodule(
            name
        )
        x = torch.randn(2, 16, 8, 8)
        expected = F.relu(on_shortcut * unit.shortcut(x) + on_f * unit.residual(x))
        torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize(("gating", "exclusive"), [("exclusive gating", True), ("shortcut-only gating", False)])
@pytest.mark.parametrize("name", ["map32.1", "map16.0"])
def test_gated_unit_output_matches_figure_2(gating, exclusive, name):
    unit = original_network(shortcut=gating, b_g=-1.0).get_submodule(name)
    x = torch.randn(2, 16, 8, 8)
    gate = unit.addition.gate
    g = torch.sigmoid(F.conv2d(x, gate.weight, stride=gate.stride) + gate.bias[:, None, None])
    f = unit.residual(x)
    torch.testing.assert_close(unit(x), F.relu((1 - g) * unit.shortcut(x) + (g * f if exclusive else f)))


@pytest.mark.parametrize("b_g", [0.0, -6.0, -7.0])
def test_initial_gate_biases_are_b_g(b_g):
    network = preact_resnet_cifar(
        depth=8, layers_per_unit=2, activation="original", shortcut="shortcut-only gating", b_g=b_g
    )
    biases = torch.cat([u.addition.gate.bias for u in network.modules() if isinstance(u, ResidualUnit)])
    assert len(biases) == 16 + 32 + 64
    assert (biases == b_g).all()


def test_shortcut_only_gate_approaches_the_identity_for_a_very_negative_bias():
    gated = {b: original_network(shortcut="shortcut-only gating", b_g=b) for b in (-1000.0, 0.0)}
    ungated = original_network()
    for network in gated.values():
        network.load_state_dict(ungated.state_dict(), strict=False)
    x = images()
    torch.testing.assert_close(gated[-1000.0](x), ungated(x))
    assert not torch.allclose(gated[0.0](x), ungated(x), atol=1e-1)


def test_dropout_applies_to_the_shortcut_output_only_in_training():
    network = original_network(shortcut="dropout shortcut")
    for name in ("map32.1", "map16.0"):
        unit = network.get_submodule(name)
        x = torch.rand(2, 16, 8, 8) + 1
        kept = unit.shortcut.identity(x)
        assert torch.equal(unit.shortcut(x), kept)
        dropped = unit.shortcut.train()(x)
        assert bool(((dropped == 0) | (dropped == 2 * kept)).all())  # ratio 0.5: kept values are doubled
        dropped_fraction = (dropped[kept > 0] == 0).float().mean().item()
        assert dropped_fraction == pytest.approx(0.5, abs=0.1)  # of 1024 or 2048 numbers


@pytest.mark.parametrize("name", TABLE_1)
def test_shortcut_type_applies_to_all_54_units(name):
    network = on_meta(
        preact_resnet_cifar, depth=110, layers_per_unit=2, activation="original", shortcut=name, **TABLE_1[name]
    )
    weights = 18 * 16 * 16 + 16 * 32 + 17 * 32 * 32 + 32 * 64 + 17 * 64 * 64  # a 1x1 convolution in each unit
    channels = 18 * (16 + 32 + 64)  # output channels of all units
    added = {"exclusive gating": weights + channels, "1x1 conv shortcut": weights + 2 * channels}
    added["shortcut-only gating"] = added["exclusive gating"]
    assert count_parameters(network) == 1_727_962 + added.get(name, 0)
    module_type = {"dropout shortcut": nn.Dropout, "1x1 conv shortcut": Projection}
    if name in module_type:
        assert sum(isinstance(m, module_type[name]) for m in network.modules()) == 54
    if name == "constant scaling":
        assert [m.addition.on_shortcut for m in network.modules() if isinstance(m, ResidualUnit)] == [0.5] * 54


@pytest.mark.parametrize("block_type", ["PreActBasic", "PreActBottleneck"])
def test_unit_output_matches_timms_pre_activation_block(block_type):
    """timm's blocks with the same weights give the same output where the map keeps its size."""
    import timm.layers
    import timm.models.resnetv2

    per_unit, width = (2, 16) if block_type == "PreActBasic" else (3, 64)
    ours = small_network(layers_per_unit=per_unit).map32[1]
    theirs = getattr(timm.models.resnetv2, block_type)(
        width, width, norm_layer=timm.layers.BatchNormAct2d, conv_layer=timm.layers.create_conv2d
    ).eval()
    rename = renamer(
        (r"pre\.bn\.(.+)", r"norm1.\1"),
        (r"residual\.bn1\.(.+)", r"norm2.\1"),
        (r"residual\.bn2\.(.+)", r"norm3.\1"),
        (r"residual\.(conv.+)", r"\1"),
    )
    theirs.load_state_dict(rename_state_dict(ours.state_dict(), rename))
    x = torch.randn(2, width, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_initial_weights_are_normal_with_variance_2_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = preact_resnet_cifar(depth=56, layers_per_unit=3)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    weights = torch.cat([m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in convolutions])
    assert weights.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(weights)) ** 0.5)
    assert ((weights / weights.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # normal, not uniform
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 111}, r"depth 111 is not 6n \+ 2 .*nearest valid depths are 110 and 116"),
        ({"depth": 2}, "nearest valid depths are 8 and 14"),
        ({"depth": 110, "layers_per_unit": 3, "activation": FULL}, None),  # 9 x 12 + 2
        (
            {"depth": 1000, "layers_per_unit": 3, "activation": FULL},
            r"not 9n \+ 2 .*nearest valid depths are 992 and 1001",
        ),
        ({"layers_per_unit": 4}, r"layers_per_unit 4 is not one of section 4\.1: 1, 2, 3"),
        (
            {"activation": "post"},
            r"'post' is not one of Figure 4: original, BN after addition, .*full pre-activation",
        ),
        ({"shortcut": "gate"}, r"'gate' is not one of Table 1: identity, constant scaling, exclusive gating"),
        ({"shortcut": "constant scaling"}, r"takes on_shortcut and on_f \(Table 1\); given: none"),
        ({"shortcut": "exclusive gating"}, "takes b_g .*given: none"),
        ({"shortcut": "1x1 conv shortcut", "b_g": -6.0}, "takes no constant .*given: b_g"),
        ({"b_g": 0.0}, "shortcut 'identity' takes no constant"),
        (
            {"shortcut": "dropout shortcut", "activation": FULL},
            r"requires layers_per_unit 2 and activation 'original' \(Table 1\)",
        ),
        ({"shortcut": "dropout shortcut", "layers_per_unit": 1}, "requires layers_per_unit 2"),
    ],
)
def test_invalid_arguments_raise_value_error(args, message):
    args = {"depth": 14 if args.get("layers_per_unit") != 1 else 11, **args}
    args = {"layers_per_unit": 2, "activation": "original", **args}
    if message is None:
        on_meta(preact_resnet_cifar, **args)
        return
    with pytest.raises(ValueError, match=message):
        preact_resnet_cifar(**args)


def test_image_smaller_than_4_x_4_raises():
    network = preact_resnet_cifar(depth=8, layers_per_unit=2).eval()
    assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ValueError, match="reads images of 4 x 4 pixels or more, not 3 x 4"):
        network(torch.zeros(1, 3, 3, 4))
