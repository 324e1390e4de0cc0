"""The CIFAR nets against arXiv:1603.05027: Figures 2, 4 and 5, Tables 1 to 4, the appendix."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from looking import on_meta, output_shapes, parameters
from torch import nn

from lightning_modules.layers import PadShortcut, Projection
from lightning_modules.preact_resnet import FIGURE_4, Unit, preact_resnet_cifar
from lightning_modules.published.weights import renamer, translated
from lightning_modules.resnet import plain_cifar, resnet_cifar

FULL = "full pre-activation"
TABLE_4 = {  # depth, layers of a unit: parameters with full pre-activation
    (110, 2): 1_727_962,
    (110, 1): 1_727_962,
    (164, 3): 1_703_258,
    (1001, 3): 10_327_706,
}
ORDER = {  # Figure 4: a unit after the first
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
TO_RESNET = renamer(  # our names -> those of `resnet`
    (r"(map\d+\.\d+)\.residual\.(.+)", r"\1.\2"), (r"(map\d+\.\d+\.shortcut\..+|(conv1|bn1|fc)\..+)", r"\1")
)


def by_hand(depth: int, per_unit: int, activation: str = FULL) -> int:
    """Parameters from the table: conv1 and its BN, each unit's weights and a BN for each, projections, fc."""
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
def counted(depth: int, per_unit: int, activation: str = FULL) -> nn.Module:
    """A large net without memory for its weights, built once."""
    return on_meta(preact_resnet_cifar, depth=depth, layers_per_unit=per_unit, activation=activation)


def small(seed: int = 0, **args) -> nn.Module:
    """Two units on each size of map, in evaluation mode, with batch-norm that does something."""
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


def original(**args) -> nn.Module:
    return small(activation="original", **args)


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("depth", "per_unit"), TABLE_4)
@pytest.mark.parametrize("activation", [FULL, "original"])
def test_parameters_are_those_counted_by_hand(depth, per_unit, activation):
    network = counted(depth, per_unit, activation)
    assert parameters(network) == by_hand(depth, per_unit, activation)
    projections = 2 * (64 + 128 + 256) if per_unit == 3 and activation == "original" else 0
    assert parameters(network) == TABLE_4[depth, per_unit] + projections


def test_without_batch_norm_and_bias_1001_layers_have_table_4s_10_2_million():
    network = counted(1001, 3)
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert weights == 10_178_480


@pytest.mark.parametrize("activation", FIGURE_4)
def test_all_activations_consist_of_the_same_components(activation):
    """Figure 4's caption."""
    network = counted(110, 2, activation)
    assert parameters(network) == 1_727_962
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
def test_outputs_and_units_are_the_tables(depth, per_unit, units, widths):
    network = counted(depth, per_unit)
    assert [len(network.get_submodule(name)) for name in ("map32", "map16", "map8")] == [units] * 3
    if depth == 1001:
        return  # its units are those of 164
    seen = output_shapes(network, (3, 32, 32))
    expected = {"conv1": (16, 32, 32), "last": (widths[2], 8, 8), "pool": (widths[2], 1, 1), "fc": (10,)}
    for name, width, side in zip(("map32", "map16", "map8"), widths, (32, 16, 8), strict=True):
        expected |= {name: (width, side, side)} | {f"{name}.{i}": (width, side, side) for i in range(units)}
    assert {name: seen[name] for name in expected} == expected


def test_a_bottleneck_reduces_and_restores_as_the_appendix_says():
    unit = preact_resnet_cifar(depth=20, layers_per_unit=3).map32[1]
    shapes = [tuple(m.weight.shape) for m in unit.residual if isinstance(m, nn.Conv2d)]
    assert shapes == [(16, 64, 1, 1), (16, 16, 3, 3), (64, 16, 1, 1)]


@pytest.mark.parametrize("per_unit", [1, 2, 3])
def test_weighted_layers_without_shortcuts_are_the_depth(per_unit):
    network = on_meta(preact_resnet_cifar, depth=6 * per_unit + 2, layers_per_unit=per_unit)
    weighted = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(".shortcut." not in name for name in weighted) == 6 * per_unit + 2


def test_children_read_like_the_table():
    names = [name for name, _ in on_meta(preact_resnet_cifar, depth=8, layers_per_unit=2).named_children()]
    assert names == ["conv1", "bn1", "map32", "map16", "map8", "last", "pool", "fc"]


@pytest.mark.parametrize("activation", ORDER)
def test_a_unit_is_figure_4s(activation):
    unit = small(activation=activation).map32[1]
    assert " ".join([*kinds(unit.pre), *kinds(unit.residual), "+", *kinds(unit.post)]) == ORDER[activation]
    words = {"weight": "Conv2d", "BN": "BatchNorm2d", "ReLU": "ReLU", "addition": "+"}
    assert " ".join(words[word] for word in unit.order.split()) == ORDER[activation]


@pytest.mark.parametrize("activation", ORDER)
def test_a_unit_computes_what_figure_4_draws(activation):
    unit = small(activation=activation).map32[1]
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
    assert torch.equal(x, before)  # no layer overwrites what the shortcut carries


@pytest.mark.parametrize("activation", ["ReLU-only pre-activation", FULL])
@pytest.mark.parametrize("per_unit", [1, 2, 3])
def test_first_and_last_unit_are_the_appendixs(activation, per_unit):
    network = small(activation=activation, layers_per_unit=per_unit)
    pre = {"full pre-activation": ["BatchNorm2d", "ReLU"], "ReLU-only pre-activation": ["ReLU"]}[activation]
    units = [m for m in network.modules() if isinstance(m, Unit)]
    assert [kinds(unit.pre) for unit in units] == [[], *[pre] * 5]
    assert kinds(network.last) == pre
    seen = []
    units[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    x = images()
    network(x)
    assert torch.equal(seen[0], F.relu(network.bn1(network.conv1(x))))  # both of its paths see this


@pytest.mark.parametrize("activation", ["original", "BN after addition", "ReLU before addition"])
def test_other_nets_have_no_activation_of_their_own_at_the_end(activation):
    assert len(small(activation=activation).last) == 0


def test_figure_5_activating_only_the_path_of_f_after_the_addition_is_pre_activation():
    network = small()
    x = images()
    y = F.relu(network.bn1(network.conv1(x)))
    activated = y
    units = [m for m in network.modules() if isinstance(m, Unit)]
    following = [unit.pre for unit in units[1:]] + [network.last]  # the activation after each addition
    for unit, f_hat in zip(units, following, strict=True):
        y = unit.shortcut(y) + unit.residual(activated)
        activated = f_hat(y)
    expected = network.fc(activated.mean((2, 3)))
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(("activation", "adds_up"), [(FULL, True), ("original", False)])
def test_equation_4_a_deep_map_is_a_shallow_one_and_all_residuals_between(activation, adds_up):
    group = small(activation=activation).map32
    residuals = []
    for unit in group:
        unit.residual.register_forward_hook(lambda _module, _inputs, output: residuals.append(output))
    x = torch.randn(2, 16, 8, 8)
    deep = group(x)
    assert torch.allclose(deep, x + sum(residuals), atol=1e-5) is adds_up


@pytest.mark.parametrize(("activation", "passes"), [(FULL, True), ("original", False)])
def test_equation_5_the_gradient_arrives_unchanged_where_f_is_silent(activation, passes):
    group = small(activation=activation).map32
    for unit in group:
        unit.residual.register_forward_hook(lambda _module, _inputs, output: output.detach() * 0)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    gradient = torch.randn(2, 16, 8, 8)
    group(x).backward(gradient)
    assert torch.equal(x.grad, gradient) is passes


def test_projections_are_three_and_come_after_the_pre_activation():
    network = small(layers_per_unit=3)
    projecting = [m for m in network.modules() if isinstance(m, Unit) and m.projects]
    assert projecting == [network.map32[0], network.map16[0], network.map8[0]]
    unit = network.map16[0]
    x = torch.randn(2, 64, 8, 8)
    activated = F.relu(unit.pre.bn(x))
    assert kinds(unit.shortcut) == ["Conv2d"]
    projected = F.conv2d(activated, unit.shortcut.conv.weight, stride=2)
    torch.testing.assert_close(unit(x), projected + unit.residual(activated))


def test_projections_of_other_activations_are_batch_normalised():
    assert isinstance(original(layers_per_unit=3).map16[0].shortcut, Projection)


@pytest.mark.parametrize("per_unit", [1, 2])
def test_units_of_one_and_two_layers_pad_what_was_not_activated(per_unit):
    unit = small(layers_per_unit=per_unit).map16[0]
    x = torch.randn(2, 16, 8, 8)
    padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16))
    assert isinstance(unit.shortcut, PadShortcut)
    torch.testing.assert_close(unit(x), padded + unit.residual(F.relu(unit.pre.bn(x))))


def test_the_stride_of_a_bottleneck_is_in_its_first_convolution():
    unit = on_meta(preact_resnet_cifar, depth=11, layers_per_unit=3).map8[0]
    assert [m.stride for m in unit.residual if isinstance(m, nn.Conv2d)] == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("args", "same"),
    [
        ({}, lambda: resnet_cifar(depth=14, shortcut="A")),
        (
            {"shortcut": "constant scaling", "on_shortcut": 0, "on_f": 1},
            lambda: plain_cifar(depth=14),
        ),  # the remark
        ({"shortcut": "1x1 conv shortcut"}, lambda: resnet_cifar(depth=14, shortcut="C")),
    ],
    ids=["original", "constant scaling 0 and 1", "1x1 conv shortcut"],
)
def test_rows_of_table_1_are_nets_of_the_resnet_paper(args, same):
    ours, theirs = original(**args), same().eval()
    theirs.load_state_dict(translated(ours.state_dict(), TO_RESNET))
    torch.testing.assert_close(ours(images()), theirs(images()))


@pytest.mark.parametrize(("on_shortcut", "on_f"), [(0.5, 1), (0.5, 0.5)])
def test_constant_scaling_scales_the_shortcut_and_f(on_shortcut, on_f):
    for name in ("map32.1", "map16.0"):
        unit = original(shortcut="constant scaling", on_shortcut=on_shortcut, on_f=on_f).get_submodule(name)
        x = torch.randn(2, 16, 8, 8)
        expected = F.relu(on_shortcut * unit.shortcut(x) + on_f * unit.residual(x))
        torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize(("kind", "exclusive"), [("exclusive gating", True), ("shortcut-only gating", False)])
@pytest.mark.parametrize("name", ["map32.1", "map16.0"])
def test_gates_are_figure_2s(kind, exclusive, name):
    unit = original(shortcut=kind, b_g=-1.0).get_submodule(name)
    x = torch.randn(2, 16, 8, 8)
    gate = unit.addition.gate
    g = torch.sigmoid(F.conv2d(x, gate.weight, stride=gate.stride) + gate.bias[:, None, None])
    f = unit.residual(x)
    torch.testing.assert_close(unit(x), F.relu((1 - g) * unit.shortcut(x) + (g * f if exclusive else f)))


@pytest.mark.parametrize("b_g", [0.0, -6.0, -7.0])
def test_gates_start_at_their_bias_b_g(b_g):
    network = preact_resnet_cifar(
        depth=8, layers_per_unit=2, activation="original", shortcut="shortcut-only gating", b_g=b_g
    )
    biases = torch.cat([u.addition.gate.bias for u in network.modules() if isinstance(u, Unit)])
    assert len(biases) == 16 + 32 + 64
    assert (biases == b_g).all()


def test_a_gate_biased_far_below_zero_leaves_the_identity_and_at_zero_it_does_not():
    gated, plain = ({b: original(shortcut="shortcut-only gating", b_g=b) for b in (-1000.0, 0.0)}, original())
    for network in gated.values():
        network.load_state_dict(plain.state_dict(), strict=False)
    x = images()
    torch.testing.assert_close(gated[-1000.0](x), plain(x))
    assert not torch.allclose(gated[0.0](x), plain(x), atol=1e-1)


def test_dropout_is_on_the_output_of_the_shortcut_and_only_when_training():
    network = original(shortcut="dropout shortcut")
    for name in ("map32.1", "map16.0"):
        unit = network.get_submodule(name)
        x = torch.rand(2, 16, 8, 8) + 1
        kept = unit.shortcut.identity(x)
        assert torch.equal(unit.shortcut(x), kept)
        dropped = unit.shortcut.train()(x)
        assert bool(((dropped == 0) | (dropped == 2 * kept)).all())  # ratio 0.5: what stays counts twice
        share = (dropped[kept > 0] == 0).float().mean().item()
        assert share == pytest.approx(0.5, abs=0.1)  # of 1024 or 2048 numbers


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1_is_applied_to_all_54_units(name):
    network = on_meta(
        preact_resnet_cifar, depth=110, layers_per_unit=2, activation="original", shortcut=name, **TABLE_1[name]
    )
    matrices = 18 * 16 * 16 + 16 * 32 + 17 * 32 * 32 + 32 * 64 + 17 * 64 * 64  # a 1x1 convolution in each unit
    each = 18 * (16 + 32 + 64)  # one number for each channel of each unit
    added = {"exclusive gating": matrices + each, "1x1 conv shortcut": matrices + 2 * each}
    added["shortcut-only gating"] = added["exclusive gating"]
    assert parameters(network) == 1_727_962 + added.get(name, 0)
    kinds_needed = {"dropout shortcut": nn.Dropout, "1x1 conv shortcut": Projection}
    if name in kinds_needed:
        assert sum(isinstance(m, kinds_needed[name]) for m in network.modules()) == 54
    if name == "constant scaling":
        assert [m.addition.on_shortcut for m in network.modules() if isinstance(m, Unit)] == [0.5] * 54


@pytest.mark.parametrize("kind", ["PreActBasic", "PreActBottleneck"])
def test_second_opinion_timms_pre_activation_blocks(kind):
    """timm's blocks, given our weights, compute the same where the map keeps its size."""
    import timm.layers
    import timm.models.resnetv2

    per_unit, width = (2, 16) if kind == "PreActBasic" else (3, 64)
    ours = small(layers_per_unit=per_unit).map32[1]
    theirs = getattr(timm.models.resnetv2, kind)(
        width, width, norm_layer=timm.layers.BatchNormAct2d, conv_layer=timm.layers.create_conv2d
    ).eval()
    rename = renamer(
        (r"pre\.bn\.(.+)", r"norm1.\1"),
        (r"residual\.bn1\.(.+)", r"norm2.\1"),
        (r"residual\.bn2\.(.+)", r"norm3.\1"),
        (r"residual\.(conv.+)", r"\1"),
    )
    theirs.load_state_dict(translated(ours.state_dict(), rename))
    x = torch.randn(2, width, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_weights_start_normal_with_variance_2_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = preact_resnet_cifar(depth=56, layers_per_unit=3)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    weights = torch.cat([m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in convolutions])
    assert weights.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(weights)) ** 0.5)
    assert ((weights / weights.std()) ** 4).mean().item() == pytest.approx(3, abs=0.05)  # normal, not uniform
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"depth": 111}, r"depth 111 is not 6n \+ 2 .*nearest that are: 110, 116"),
        ({"depth": 2}, "nearest that are: 8, 14"),
        ({"depth": 110, "layers_per_unit": 3, "activation": FULL}, None),  # 9 x 12 + 2
        ({"depth": 1000, "layers_per_unit": 3, "activation": FULL}, r"not 9n \+ 2 .*nearest that are: 992, 1001"),
        ({"layers_per_unit": 4}, r"layers_per_unit 4 is not one of section 4\.1: 1, 2, 3"),
        (
            {"activation": "post"},
            r"'post' is not one of Figure 4: original, BN after addition, .*full pre-activation",
        ),
        ({"shortcut": "gate"}, r"'gate' is not one of Table 1: identity, constant scaling, exclusive gating"),
        ({"shortcut": "constant scaling"}, r"takes on_shortcut and on_f \(Table 1\), and was given none"),
        ({"shortcut": "exclusive gating"}, "takes b_g .*given none"),
        ({"shortcut": "1x1 conv shortcut", "b_g": -6.0}, "takes no number .*given b_g"),
        ({"b_g": 0.0}, "shortcut 'identity' takes no number"),
        (
            {"shortcut": "dropout shortcut", "activation": FULL},
            r"needs layers_per_unit 2 and activation 'original' \(Table 1\)",
        ),
        ({"shortcut": "dropout shortcut", "layers_per_unit": 1}, "needs layers_per_unit 2"),
    ],
)
def test_impossible_arguments_are_refused_with_what_fits(args, sentence):
    args = {"depth": 14 if args.get("layers_per_unit") != 1 else 11, **args}
    args = {"layers_per_unit": 2, "activation": "original", **args}
    if sentence is None:
        on_meta(preact_resnet_cifar, **args)
        return
    with pytest.raises(ValueError, match=sentence):
        preact_resnet_cifar(**args)


def test_an_image_too_small_for_map8_is_refused():
    network = preact_resnet_cifar(depth=8, layers_per_unit=2).eval()
    assert network(torch.zeros(1, 3, 4, 4)).shape == (1, 10)
    with pytest.raises(ValueError, match="reads images of 4 x 4 pixels or more, not 3 x 4"):
        network(torch.zeros(1, 3, 3, 4))
