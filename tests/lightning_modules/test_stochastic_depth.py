"""Test stochastic depth against sections 3 and 4 of arXiv:1603.09382."""

from functools import cache
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.layers import Projection
from lightning_modules.resnet import resnet_cifar
from lightning_modules.resnet_imagenet import resnet_imagenet
from lightning_modules.stochastic_depth import (
    Block,
    StochasticDepth,
    stochastic_depth_cifar,
    stochastic_depth_imagenet,
    survival_probabilities,
)
from tests.support.network_inspection import count_parameters, on_meta, output_shapes

NETWORKS = {110: (54, 1_727_962), 152: (75, 2_408_474), 1202: (600, 19_421_274)}  # depth: blocks, parameters
OUTPUTS = {
    "conv1": (16, 32, 32),
    "map32": (16, 32, 32),
    "map16.0.shortcut.pool": (16, 16, 16),
    "map16.0.shortcut": (32, 16, 16),
    "map16": (32, 16, 16),
    "map8.0.shortcut": (64, 8, 8),
    "map8": (64, 8, 8),
    "pool": (64, 1, 1),
    "fc": (10,),
}


def hand_count(depth: int) -> int:
    """Count parameters from the table: 3x3 weights, two of batch-norm per channel, fc; shortcuts have none."""
    n = (depth - 2) // 6
    total, channels = 3 * 16 * 9 + 2 * 16, 16
    for width in (16, 32, 64):
        for _ in range(n):
            total += channels * width * 9 + width * width * 9 + 2 * (2 * width)
            channels = width
    return total + 64 * 10 + 10


@cache
def meta_network(depth: int) -> nn.Module:
    return on_meta(stochastic_depth_cifar, depth=depth)


def blocks_of(network: nn.Module) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


def small_network(depth: int = 20, seed: int = 0, **args) -> StochasticDepth:
    """Return a small network with random batch-norm statistics and shifts."""
    torch.manual_seed(seed)
    network = stochastic_depth_cifar(depth=depth, **args)
    for bn in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(bn.bias, std=0.1)
        bn.running_mean.normal_(std=0.1)
        bn.running_var.uniform_(0.5, 1.5)
    return network


def with_active(network: StochasticDepth, monkeypatch: pytest.MonkeyPatch, active: list[int]) -> StochasticDepth:
    """Put the network in training mode with the blocks active where `active` is 1."""
    monkeypatch.setattr(network, "draw", lambda: torch.tensor(active, dtype=torch.bool))
    return network.train()


def images(n: int = 4, side: int = 8) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


# --- section 4: networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "row"), NETWORKS.items())
def test_number_of_blocks_layers_and_parameters(depth, row):
    blocks, count = row
    network = meta_network(depth)
    assert network.blocks == len(blocks_of(network)) == blocks
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth
    assert count_parameters(network) == hand_count(depth) == count


def test_three_groups_of_18_blocks_with_16_32_and_64_filters():
    network = meta_network(110)
    for name, width in (("map32", 16), ("map16", 32), ("map8", 64)):
        group = network.get_submodule(name)
        assert len(group) == 18
        assert {block.f.conv2.out_channels for block in group} == {width}


def test_layer_outputs_match_the_table():
    seen = output_shapes(meta_network(110), (3, 32, 32))
    assert {name: seen[name] for name in OUTPUTS} == OUTPUTS


def test_f_is_conv_bn_relu_conv_bn():
    network = on_meta(stochastic_depth_cifar, depth=8)
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "bn1", "relu1", "map32", "map16", "map8", "pool", "flatten", "fc")
    ]
    assert [name for name, _ in network.map32[0].f.named_children()] == ["conv1", "bn1", "relu1", "conv2", "bn2"]


def test_shortcut_averages_and_appends_zeros_where_maps_shrink():
    shortcut = small_network().map16[0].shortcut
    x = torch.arange(2 * 16 * 4 * 4, dtype=torch.float32).view(2, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 2, 2)
    for row in (0, 1):
        for column in (0, 1):
            square = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(y[:, :16, row, column], square.mean((2, 3)))
    assert not y[:, 16:].any()
    assert not torch.equal(y[:, :16], x[:, :, ::2, ::2])  # option A of He et al.


def test_imagenet_is_resnet_152_with_50_bottlenecks():
    network = on_meta(stochastic_depth_imagenet)
    assert network.blocks == 50
    assert [len(stage) for stage in list(network)[4:8]] == [3, 8, 36, 3]
    weighted = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in weighted if "shortcut" not in name]) == 152
    assert sum(isinstance(m, Projection) for m in network.modules()) == 4  # where dimensions do not match
    assert count_parameters(network) == count_parameters(on_meta(resnet_imagenet, depth=152)) == 60_192_808
    seen = output_shapes(network, (3, 224, 224))
    assert [seen[name] for name in ("conv1", "pool1", "conv2_x")] == [(64, 112, 112), (64, 56, 56), (256, 56, 56)]
    assert [seen[name] for name in ("conv3_x", "conv4_x")] == [(512, 28, 28), (1024, 14, 14)]
    assert [seen[name] for name in ("conv5_x", "fc")] == [(2048, 7, 7), (1000,)]


# --- section 3: survival ----------------------------------------------------------------------------------


def test_survival_decays_linearly_from_1_to_p_l():
    survival = survival_probabilities(54, 0.5, "linear")
    assert survival[0] == 1 - 0.5 / 54  # l = 1
    assert survival[26] == pytest.approx(0.75)  # l = 27, halfway
    assert survival[53] == 0.5
    differences = {round(a - b, 12) for a, b in pairwise(survival)}
    assert differences == {round(0.5 / 54, 12)}
    assert survival_probabilities(54, 0.5, "uniform") == [0.5] * 54


@pytest.mark.parametrize(("depth", "blocks"), [(110, 54), (152, 75), (1202, 600)])
def test_expected_blocks_equal_a_quarter_of_3l_minus_1(depth, blocks):
    network = meta_network(depth)
    assert network.expected_blocks == pytest.approx((3 * blocks - 1) / 4)
    assert network.subnetworks == 2**blocks


def test_expected_blocks_for_uniform_survival_and_constant_depth():
    assert on_meta(stochastic_depth_cifar, depth=110, rule="uniform", p_L=0.25).expected_blocks == 54 / 4
    constant = on_meta(stochastic_depth_cifar, depth=110, p_L=1.0)
    assert (constant.expected_blocks, constant.subnetworks, constant.expected_saving) == (54, 1, 0)


def test_blocks_are_active_with_their_survival_probability():
    network = stochastic_depth_cifar(depth=20)
    torch.manual_seed(0)
    draws = torch.stack([network.draw() for _ in range(4000)]).double()
    p = torch.tensor(network.survival).double()
    assert ((draws.mean(0) - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all()
    correlation = torch.corrcoef(draws.T) - torch.eye(9)
    assert correlation.abs().max() < 4 / 4000**0.5 + 0.01  # blocks are drawn independently
    assert draws.sum(1).mean().item() == pytest.approx((3 * 9 - 1) / 4, abs=0.1)


def test_the_same_seed_draws_the_same_and_evaluation_draws_nothing():
    network = small_network()
    torch.manual_seed(5)
    first = [network.draw().tolist() for _ in range(5)]
    torch.manual_seed(5)
    assert [network.draw().tolist() for _ in range(5)] == first
    assert len({tuple(draw) for draw in first}) > 1
    before = torch.get_rng_state()
    network.eval()(images())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_pass_draws_once_for_all_blocks(monkeypatch):
    network, calls = small_network().train(), []
    draw = network.draw
    monkeypatch.setattr(network, "draw", lambda: calls.append(1) or draw())
    for _ in range(3):
        network(images())
    assert len(calls) == 3


# --- equations 2, 3 and 5 ---------------------------------------------------------------------------------


def by_equation(network: StochasticDepth, x: Tensor, weights: list[float]) -> Tensor:
    """Compute H_l = ReLU(w_l f_l(H_l-1) + id(H_l-1)) for all blocks."""
    x = F.relu(network.bn1(network.conv1(x)))
    for block, weight in zip(blocks_of(network), weights, strict=True):
        x = F.relu(weight * block.f(x) + block.shortcut(x))
    return network.fc(x.mean((2, 3)))


@pytest.mark.parametrize("active", [[1] * 9, [0] * 9, [1, 0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1, 0, 1]])
def test_training_matches_equation_2(monkeypatch, active):
    network = with_active(small_network(), monkeypatch, active)
    with torch.no_grad():
        torch.testing.assert_close(network(images()), by_equation(network, images(), active))


def test_evaluation_matches_equation_5():
    network = small_network().eval()
    survival = [1 - l / 9 * 0.5 for l in range(1, 10)]  # noqa: E741
    with torch.no_grad():
        expected = by_equation(network, images(), survival)
        torch.testing.assert_close(network(images()), expected)
        assert (by_equation(network, images(), [1.0] * 9) - expected).abs().max() > 1e-3  # p_l changes the scores


def test_inactive_block_returns_its_input_or_shortcut():
    network = small_network()
    x = torch.rand(2, 16, 8, 8)
    assert network.map32[1].bypass(x) is x  # equation 3
    block = network.map16[0]
    torch.testing.assert_close(block.bypass(x), block.shortcut(x))


def test_inactive_block_applies_relu_to_its_projection():
    """On ImageNet a projection shortcut can be negative."""
    torch.manual_seed(0)
    with torch.device("meta"):
        block = stochastic_depth_imagenet(depth=50).conv2_x[0]
    block = block.to_empty(device="cpu")
    for p in block.parameters():
        nn.init.normal_(p)
    assert block.shortcut(x := torch.rand(2, 64, 4, 4)).min() < 0
    assert block.bypass(x).min() == 0


@pytest.mark.parametrize("active", [[0] * 9, [1, 0, 0, 0, 1, 1, 0, 1, 0]])
def test_inactive_blocks_are_not_computed(monkeypatch, active):
    network = with_active(small_network(), monkeypatch, active)
    calls = []
    for number, block in enumerate(blocks_of(network)):
        for part in block.f.modules():
            part.register_forward_hook(lambda *_, number=number: calls.append(number))
    network(images())
    assert sorted(set(calls)) == [number for number, b in enumerate(active) if b]
    assert len(calls) == 6 * sum(active)  # f, two convolutions, two batch norms, one ReLU
    batches_tracked = [int(block.f.bn1.num_batches_tracked) for block in blocks_of(network)]
    assert batches_tracked == active


def operations(network: nn.Module, x: Tensor) -> int:
    """Return the operations that PyTorch counts for one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    return counter.get_total_flops()


def test_inactive_block_costs_no_operation_forward_or_backward(monkeypatch):
    network = small_network(depth=20)
    all_active = operations(with_active(network, monkeypatch, [1] * 9), images())
    block = 3 * 2 * 4 * 2 * 9 * 16 * 16 * 8 * 8  # forward and two backward; 4 images; 2 convolutions of 16 on 8x8
    assert (
        all_active - operations(with_active(network, monkeypatch, [1, 0, 1, 1, 1, 1, 1, 1, 1]), images()) == block
    )
    none_active = operations(with_active(network, monkeypatch, [0] * 9), images())
    conv1_and_fc = 2 * 2 * 4 * 27 * 16 * 8 * 8 + 3 * 2 * 4 * 64 * 10  # the image needs no gradient
    assert none_active == conv1_and_fc


@pytest.mark.parametrize(
    ("build", "args", "side"),
    [
        (stochastic_depth_cifar, {"depth": 110}, 32),
        (stochastic_depth_cifar, {"depth": 38, "p_L": 0.2}, 32),
        (stochastic_depth_cifar, {"depth": 20, "rule": "uniform"}, 32),
        (stochastic_depth_imagenet, {"depth": 152}, 224),
    ],
)
def test_expected_saving_matches_counted_operations(build, args, side):
    network = on_meta(build, **args)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side, device="meta"))
    counts = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    root = type(network).__name__
    total = sum(counts[f"{root}.{name}"] for name, m in network.named_modules() if isinstance(m, nn.Conv2d))
    saved = sum(
        (1 - module.survival) * counts[f"{root}.{name}.f"]
        for name, module in network.named_modules()
        if isinstance(module, Block)
    )
    assert network.expected_saving == pytest.approx(saved / total)


def test_linear_decay_saves_25_and_40_percent():
    """Section 3: about 25 % for p_L = 0.5, 40 % for 0.2."""
    assert meta_network(110).expected_saving == pytest.approx(0.25, abs=0.005)
    assert on_meta(stochastic_depth_cifar, depth=110, p_L=0.2).expected_saving == pytest.approx(0.4, abs=0.01)


# --- training ---------------------------------------------------------------------------------------------


def test_only_inactive_blocks_have_zero_gradients(monkeypatch):
    active = [1, 0, 0, 0, 1, 1, 0, 1, 0]
    network = with_active(small_network(), monkeypatch, active)
    F.cross_entropy(network(images()), torch.arange(4)).backward()
    blocks = zip(blocks_of(network), active, strict=True)
    inactive = {p for block, b in blocks if not b for p in block.f.parameters()}
    assert len(inactive) == 5 * 6
    for p in network.parameters():
        assert p.grad is not None
        assert bool(p.grad.any()) == (p not in inactive)
        assert p.grad.shape == p.shape


def test_weight_decay_applies_to_inactive_blocks(monkeypatch):
    network = with_active(small_network(), monkeypatch, [0, *[1] * 8])
    weight = network.map32[0].f.conv1.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    network(images()).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.01 * 1.9))  # 1.9: first Nesterov step


def test_network_overfits_one_batch():
    network, x, labels = small_network(depth=14), images(8), torch.arange(8)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    torch.manual_seed(0)
    for _ in range(60):
        loss = F.cross_entropy(network.train()(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (
        F.cross_entropy(network.eval()(x), labels) < 1 < F.cross_entropy(small_network(depth=14).eval()(x), labels)
    )


def test_initial_weights_have_variance_2_over_fan_in():
    torch.manual_seed(0)
    network = stochastic_depth_cifar(depth=110)
    weights = [
        m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in network.modules() if isinstance(m, nn.Conv2d)
    ]
    joined = torch.cat(weights)
    assert joined.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(joined)) ** 0.5)
    assert not network.fc.bias.any()


# --- other networks and libraries -------------------------------------------------------------------------


def test_p_l_1_equals_the_resnet_except_for_two_shortcuts():
    ours, resnet = small_network(depth=20, p_L=1.0).eval(), resnet_cifar(depth=20).eval()
    resnet.load_state_dict({key.replace(".f.", "."): value for key, value in ours.state_dict().items()})
    with torch.no_grad():
        assert not torch.allclose(ours(images()), resnet(images()))
        resnet.map16[0].shortcut, resnet.map8[0].shortcut = ours.map16[0].shortcut, ours.map8[0].shortcut
        torch.testing.assert_close(ours(images()), resnet(images()))


def test_p_l_1_equals_the_imagenet_resnet_with_its_stride_in_the_3x3():
    torch.manual_seed(0)
    ours = stochastic_depth_imagenet(depth=50, p_L=1.0, num_classes=5).eval()
    with torch.device("meta"):
        resnet = resnet_imagenet(depth=50, stride_in_3x3=True, num_classes=5).eval()
    resnet.load_state_dict(
        {key.replace(".f.", "."): value for key, value in ours.state_dict().items()}, assign=True
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), resnet(x), atol=1e-5, rtol=1e-5)


def test_torchvisions_stochastic_depth_scales_in_training():
    """torchvision computes dropped blocks and divides by p in training instead of multiplying by p at test."""
    y = torch.ones(1, 2, 3, 3)
    torch.manual_seed(0)
    seen = {
        torchvision.ops.stochastic_depth(y, p=0.5, mode="batch", training=True).max().item() for _ in range(20)
    }
    assert seen == {0.0, 2.0}  # in the paper 0 and 1
    assert torch.equal(
        torchvision.ops.stochastic_depth(y, p=0.5, mode="batch", training=False), y
    )  # 0.5 y in the paper


# --- invalid arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "message"),
    [
        (
            stochastic_depth_cifar,
            {"depth": 111},
            r"depth 111 is not 6n \+ 2 \(section 4\); .*depths are 110 and 116",
        ),
        (
            stochastic_depth_cifar,
            {"depth": 110, "p_L": 0},
            "p_L must be > 0 and <= 1, not 0",
        ),
        (stochastic_depth_cifar, {"depth": 110, "p_L": 1.5}, r"p_L must be > 0 and <= 1, not 1\.5"),
        (
            stochastic_depth_cifar,
            {"depth": 110, "rule": "sudden"},
            "'sudden' is not one of section 3: linear, uniform",
        ),
        (
            stochastic_depth_imagenet,
            {"depth": 34},
            "depth 34 is not one of the ResNets with bottlenecks: 50, 101, 152",
        ),
        (stochastic_depth_imagenet, {"p_L": -1}, "p_L must be > 0 and <= 1, not -1"),
    ],
)
def test_invalid_arguments_raise_value_error(build, args, message):
    with pytest.raises(ValueError, match=message):
        on_meta(build, **args)


@pytest.mark.parametrize("side", [4, 5, 7, 28])
def test_network_accepts_any_image_size_from_4_x_4(side):
    network = small_network(depth=8)
    assert network.eval()(torch.zeros(1, 3, side, side)).shape == (1, 10)
    assert network.train()(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_too_small_image_raises():
    with pytest.raises(ValueError, match="reads images of 4 x 4 pixels or more, not 3 x 3"):
        small_network(depth=8)(torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="reads images of 32 x 32 pixels or more, not 31 x 40"):
        on_meta(stochastic_depth_imagenet, depth=50)(torch.zeros(1, 3, 31, 40, device="meta"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # raised by PyTorch for x
def test_compiled_training_makes_a_few_graphs_instead_of_one_per_draw():
    from torch._dynamo.testing import CompileCounter

    network, counter = small_network(depth=32).train(), CompileCounter()
    compiled = torch.compile(network, backend=counter)
    torch.manual_seed(0)
    for _ in range(30):
        compiled(images()).sum().backward()
    frame_count = counter.frame_count
    for _ in range(30):
        compiled(images()).sum().backward()
    assert counter.frame_count == frame_count < 20
    torch.compiler.reset()
