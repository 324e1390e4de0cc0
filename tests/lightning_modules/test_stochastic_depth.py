"""Stochastic depth against sections 3 and 4 of arXiv:1603.09382."""

from functools import cache
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from looking import on_meta, output_shapes, parameters
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
    survival_of,
)

NETS = {110: (54, 1_727_962), 152: (75, 2_408_474), 1202: (600, 19_421_274)}  # depth: blocks, parameters
LAYERS = {
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


def by_hand(depth: int) -> int:
    """Parameters from the table: 3x3 weights, batch-norm's two a channel, fc; the shortcuts have none."""
    n = (depth - 2) // 6
    total, channels = 3 * 16 * 9 + 2 * 16, 16
    for width in (16, 32, 64):
        for _ in range(n):
            total += channels * width * 9 + width * width * 9 + 2 * (2 * width)
            channels = width
    return total + 64 * 10 + 10


@cache
def published(depth: int) -> nn.Module:
    return on_meta(stochastic_depth_cifar, depth=depth)


def blocks_of(network: nn.Module) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


def net(depth: int = 20, seed: int = 0, **args) -> StochasticDepth:
    """A small net, batch-norm statistics and shifts drawn at random so that they count."""
    torch.manual_seed(seed)
    network = stochastic_depth_cifar(depth=depth, **args)
    for bn in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(bn.bias, std=0.1)
        bn.running_mean.normal_(std=0.1)
        bn.running_var.uniform_(0.5, 1.5)
    return network


def fixed(network: StochasticDepth, monkeypatch: pytest.MonkeyPatch, alive: list[int]) -> StochasticDepth:
    """The network in training, its blocks alive where `alive` has a 1."""
    monkeypatch.setattr(network, "draw", lambda: torch.tensor(alive, dtype=torch.bool))
    return network.train()


def images(n: int = 4, side: int = 8) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


# --- section 4: the networks ------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "row"), NETS.items())
def test_blocks_layers_and_parameters(depth, row):
    blocks, count = row
    network = published(depth)
    assert network.blocks == len(blocks_of(network)) == blocks
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == depth
    assert parameters(network) == by_hand(depth) == count


def test_three_groups_of_18_blocks_with_16_32_and_64_filters():
    network = published(110)
    for name, width in (("map32", 16), ("map16", 32), ("map8", 64)):
        group = network.get_submodule(name)
        assert len(group) == 18
        assert {block.f.conv2.out_channels for block in group} == {width}


def test_outputs_are_the_tables():
    seen = output_shapes(published(110), (3, 32, 32))
    assert {name: seen[name] for name in LAYERS} == LAYERS


def test_f_is_conv_bn_relu_conv_bn():
    network = on_meta(stochastic_depth_cifar, depth=8)
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "bn1", "relu1", "map32", "map16", "map8", "pool", "flatten", "fc")
    ]
    assert [name for name, _ in network.map32[0].f.named_children()] == ["conv1", "bn1", "relu1", "conv2", "bn2"]


def test_where_maps_shrink_the_shortcut_averages_and_appends_zeros():
    shortcut = net().map16[0].shortcut
    x = torch.arange(2 * 16 * 4 * 4, dtype=torch.float32).view(2, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 2, 2)
    for row in (0, 1):
        for column in (0, 1):
            square = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            torch.testing.assert_close(y[:, :16, row, column], square.mean((2, 3)))
    assert not y[:, 16:].any()
    assert not torch.equal(y[:, :16], x[:, :, ::2, ::2])  # as option A of He et al. would have it


def test_imagenet_is_resnet_152_with_50_bottlenecks():
    network = on_meta(stochastic_depth_imagenet)
    assert network.blocks == 50
    assert [len(stage) for stage in list(network)[4:8]] == [3, 8, 36, 3]
    weighted = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in weighted if "shortcut" not in name]) == 152
    assert sum(isinstance(m, Projection) for m in network.modules()) == 4  # where dimensions do not match
    assert parameters(network) == parameters(on_meta(resnet_imagenet, depth=152)) == 60_192_808
    seen = output_shapes(network, (3, 224, 224))
    assert [seen[name] for name in ("conv1", "pool1", "conv2_x")] == [(64, 112, 112), (64, 56, 56), (256, 56, 56)]
    assert [seen[name] for name in ("conv3_x", "conv4_x")] == [(512, 28, 28), (1024, 14, 14)]
    assert [seen[name] for name in ("conv5_x", "fc")] == [(2048, 7, 7), (1000,)]


# --- section 3: survival ----------------------------------------------------------------------------------


def test_survival_falls_in_a_line_from_1_to_p_l():
    survival = survival_of(54, 0.5, "linear")
    assert survival[0] == 1 - 0.5 / 54  # l = 1
    assert survival[26] == pytest.approx(0.75)  # l = 27, half way
    assert survival[53] == 0.5
    steps = {round(a - b, 12) for a, b in pairwise(survival)}
    assert steps == {round(0.5 / 54, 12)}
    assert survival_of(54, 0.5, "uniform") == [0.5] * 54


@pytest.mark.parametrize(("depth", "blocks"), [(110, 54), (152, 75), (1202, 600)])
def test_expected_blocks_are_a_quarter_of_3l_minus_1(depth, blocks):
    network = published(depth)
    assert network.expected_blocks == pytest.approx((3 * blocks - 1) / 4)
    assert network.subnetworks == 2**blocks


def test_uniform_and_constant_depth():
    assert on_meta(stochastic_depth_cifar, depth=110, rule="uniform", p_L=0.25).expected_blocks == 54 / 4
    constant = on_meta(stochastic_depth_cifar, depth=110, p_L=1.0)
    assert (constant.expected_blocks, constant.subnetworks, constant.expected_saving) == (54, 1, 0)


def test_blocks_are_alive_as_often_as_they_should_be():
    network = stochastic_depth_cifar(depth=20)
    torch.manual_seed(0)
    draws = torch.stack([network.draw() for _ in range(4000)]).double()
    p = torch.tensor(network.survival).double()
    assert ((draws.mean(0) - p).abs() < 4 * (p * (1 - p) / 4000).sqrt()).all()
    together = torch.corrcoef(draws.T) - torch.eye(9)
    assert together.abs().max() < 4 / 4000**0.5 + 0.01  # blocks are drawn independently
    assert draws.sum(1).mean().item() == pytest.approx((3 * 9 - 1) / 4, abs=0.1)


def test_the_same_seed_draws_the_same_and_evaluation_draws_nothing():
    network = net()
    torch.manual_seed(5)
    first = [network.draw().tolist() for _ in range(5)]
    torch.manual_seed(5)
    assert [network.draw().tolist() for _ in range(5)] == first
    assert len({tuple(draw) for draw in first}) > 1
    before = torch.get_rng_state()
    network.eval()(images())
    assert torch.equal(torch.get_rng_state(), before)


def test_one_draw_for_all_blocks_of_a_pass(monkeypatch):
    network, calls = net().train(), []
    drawn = network.draw
    monkeypatch.setattr(network, "draw", lambda: calls.append(1) or drawn())
    for _ in range(3):
        network(images())
    assert len(calls) == 3


# --- equations 2, 3 and 5 ---------------------------------------------------------------------------------


def by_equation(network: StochasticDepth, x: Tensor, weights: list[float]) -> Tensor:
    """H_l = ReLU(w_l f_l(H_l-1) + id(H_l-1)), all of it computed."""
    x = F.relu(network.bn1(network.conv1(x)))
    for block, weight in zip(blocks_of(network), weights, strict=True):
        x = F.relu(weight * block.f(x) + block.shortcut(x))
    return network.fc(x.mean((2, 3)))


@pytest.mark.parametrize("alive", [[1] * 9, [0] * 9, [1, 0, 0, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1, 0, 1]])
def test_training_is_equation_2(monkeypatch, alive):
    network = fixed(net(), monkeypatch, alive)
    with torch.no_grad():
        torch.testing.assert_close(network(images()), by_equation(network, images(), alive))


def test_evaluation_is_equation_5():
    network = net().eval()
    survival = [1 - l / 9 * 0.5 for l in range(1, 10)]  # noqa: E741
    with torch.no_grad():
        expected = by_equation(network, images(), survival)
        torch.testing.assert_close(network(images()), expected)
        assert (by_equation(network, images(), [1.0] * 9) - expected).abs().max() > 1e-3  # the weights matter


def test_a_block_that_is_not_alive_hands_its_input_on():
    network = net()
    x = torch.rand(2, 16, 8, 8)
    assert network.map32[1].bypass(x) is x  # equation 3
    block = network.map16[0]
    torch.testing.assert_close(block.bypass(x), block.shortcut(x))


def test_a_projection_is_rectified():
    """On ImageNet a shortcut may be negative: ReLU stays when f is left out."""
    torch.manual_seed(0)
    with torch.device("meta"):
        block = stochastic_depth_imagenet(depth=50).conv2_x[0]
    block = block.to_empty(device="cpu")
    for p in block.parameters():
        nn.init.normal_(p)
    assert block.shortcut(x := torch.rand(2, 64, 4, 4)).min() < 0
    assert block.bypass(x).min() == 0


@pytest.mark.parametrize("alive", [[0] * 9, [1, 0, 0, 0, 1, 1, 0, 1, 0]])
def test_what_is_not_alive_is_not_computed(monkeypatch, alive):
    network = fixed(net(), monkeypatch, alive)
    calls = []
    for number, block in enumerate(blocks_of(network)):
        for part in block.f.modules():
            part.register_forward_hook(lambda *_, number=number: calls.append(number))
    network(images())
    assert sorted(set(calls)) == [number for number, b in enumerate(alive) if b]
    assert len(calls) == 6 * sum(alive)  # f, two convolutions, two batch norms, one ReLU
    counted = [int(block.f.bn1.num_batches_tracked) for block in blocks_of(network)]
    assert counted == alive


def operations(network: nn.Module, x: Tensor) -> int:
    """torch's count for one pass forward and backward."""
    with FlopCounterMode(display=False) as counter:
        network(x).sum().backward()
    return counter.get_total_flops()


def test_neither_forward_nor_backward_costs_an_operation(monkeypatch):
    network = net(depth=20)
    whole = operations(fixed(network, monkeypatch, [1] * 9), images())
    block = 3 * 2 * 4 * 2 * 9 * 16 * 16 * 8 * 8  # forward and two backward; 4 images; 2 convolutions of 16 on 8x8
    assert whole - operations(fixed(network, monkeypatch, [1, 0, 1, 1, 1, 1, 1, 1, 1]), images()) == block
    none = operations(fixed(network, monkeypatch, [0] * 9), images())
    stem_and_fc = 2 * 2 * 4 * 27 * 16 * 8 * 8 + 3 * 2 * 4 * 64 * 10  # the image needs no gradient
    assert none == stem_and_fc


@pytest.mark.parametrize(
    ("build", "args", "side"),
    [
        (stochastic_depth_cifar, {"depth": 110}, 32),
        (stochastic_depth_cifar, {"depth": 38, "p_L": 0.2}, 32),
        (stochastic_depth_cifar, {"depth": 20, "rule": "uniform"}, 32),
        (stochastic_depth_imagenet, {"depth": 152}, 224),
    ],
)
def test_expected_saving_is_that_of_the_operations_counted(build, args, side):
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


def test_a_line_to_a_half_saves_a_quarter_and_to_a_fifth_two_fifths():
    """Section 3: about 25 % for p_L = 0.5, 40 % for 0.2."""
    assert published(110).expected_saving == pytest.approx(0.25, abs=0.005)
    assert on_meta(stochastic_depth_cifar, depth=110, p_L=0.2).expected_saving == pytest.approx(0.4, abs=0.01)


# --- learning ---------------------------------------------------------------------------------------------


def test_gradients_of_what_is_not_alive_are_zero_and_of_all_else_not(monkeypatch):
    alive = [1, 0, 0, 0, 1, 1, 0, 1, 0]
    network = fixed(net(), monkeypatch, alive)
    F.cross_entropy(network(images()), torch.arange(4)).backward()
    idle = {p for block, b in zip(blocks_of(network), alive, strict=True) if not b for p in block.f.parameters()}
    assert len(idle) == 5 * 6
    for p in network.parameters():
        assert p.grad is not None
        assert bool(p.grad.any()) == (p not in idle)
        assert p.grad.shape == p.shape


def test_weight_decay_goes_on_where_a_block_is_not_alive(monkeypatch):
    network = fixed(net(), monkeypatch, [0, *[1] * 8])
    weight = network.map32[0].f.conv1.weight
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    network(images()).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.01 * 1.9))  # 1.9: Nesterov's first step


def test_scores_can_be_learned_from_while_blocks_come_and_go():
    network, x, labels = net(depth=14), images(8), torch.arange(8)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    torch.manual_seed(0)
    for _ in range(60):
        loss = F.cross_entropy(network.train()(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert F.cross_entropy(network.eval()(x), labels) < 1 < F.cross_entropy(net(depth=14).eval()(x), labels)


def test_weights_start_normal_with_variance_2_over_fan_in():
    torch.manual_seed(0)
    network = stochastic_depth_cifar(depth=110)
    weights = [
        m.weight.flatten() * m.weight[0].numel() ** 0.5 for m in network.modules() if isinstance(m, nn.Conv2d)
    ]
    joined = torch.cat(weights)
    assert joined.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(joined)) ** 0.5)
    assert not network.fc.bias.any()


# --- the same as others, and not --------------------------------------------------------------------------


def test_with_p_l_1_it_is_the_resnet_but_for_the_two_shortcuts_that_shrink():
    ours, resnet = net(depth=20, p_L=1.0).eval(), resnet_cifar(depth=20).eval()
    resnet.load_state_dict({key.replace(".f.", "."): value for key, value in ours.state_dict().items()})
    with torch.no_grad():
        assert not torch.allclose(ours(images()), resnet(images()))
        resnet.map16[0].shortcut, resnet.map8[0].shortcut = ours.map16[0].shortcut, ours.map8[0].shortcut
        torch.testing.assert_close(ours(images()), resnet(images()))


def test_with_p_l_1_it_is_the_resnet_for_imagenet_with_the_stride_in_the_3x3():
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


def test_torchvisions_function_of_that_name_is_another():
    """It computes what it drops, and divides by p in training instead of multiplying by p at test."""
    y = torch.ones(1, 2, 3, 3)
    torch.manual_seed(0)
    seen = {
        torchvision.ops.stochastic_depth(y, p=0.5, mode="batch", training=True).max().item() for _ in range(20)
    }
    assert seen == {0.0, 2.0}  # in the paper 0 and 1
    assert torch.equal(torchvision.ops.stochastic_depth(y, p=0.5, mode="batch", training=False), y)  # there 0.5


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "args", "sentence"),
    [
        (stochastic_depth_cifar, {"depth": 111}, r"depth 111 is not 6n \+ 2 .*nearest that are: 110, 116"),
        (
            stochastic_depth_cifar,
            {"depth": 110, "p_L": 0},
            "p_L is 0; a block survives with a probability above 0",
        ),
        (stochastic_depth_cifar, {"depth": 110, "p_L": 1.5}, "p_L is 1.5; a block survives with .* up to 1"),
        (
            stochastic_depth_cifar,
            {"depth": 110, "rule": "sudden"},
            "'sudden' is not one of section 3: linear, uniform",
        ),
        (
            stochastic_depth_imagenet,
            {"depth": 34},
            "depth 34 is not that of a ResNet with bottlenecks: 50, 101, 152",
        ),
        (stochastic_depth_imagenet, {"p_L": -1}, "p_L is -1; a block survives"),
    ],
)
def test_impossible_arguments(build, args, sentence):
    with pytest.raises(ValueError, match=sentence):
        on_meta(build, **args)


@pytest.mark.parametrize("side", [4, 5, 7, 28])
def test_any_size_from_4_x_4(side):
    network = net(depth=8)
    assert network.eval()(torch.zeros(1, 3, side, side)).shape == (1, 10)
    assert network.train()(torch.zeros(2, 3, side, side)).shape == (2, 10)


def test_images_that_are_too_small():
    with pytest.raises(ValueError, match="reads images of 4 x 4 pixels or more, not 3 x 3"):
        net(depth=8)(torch.zeros(1, 3, 3, 3))
    with pytest.raises(ValueError, match="reads images of 32 x 32 pixels or more, not 31 x 40"):
        on_meta(stochastic_depth_imagenet, depth=50)(torch.zeros(1, 3, 31, 40, device="meta"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch, looking at x
def test_compiled_training_makes_a_few_graphs_not_one_for_each_draw():
    from torch._dynamo.testing import CompileCounter

    network, counter = net(depth=32).train(), CompileCounter()
    compiled = torch.compile(network, backend=counter)
    torch.manual_seed(0)
    for _ in range(30):
        compiled(images()).sum().backward()
    settled = counter.frame_count
    for _ in range(30):
        compiled(images()).sum().backward()
    assert counter.frame_count == settled < 20
    torch.compiler.reset()
