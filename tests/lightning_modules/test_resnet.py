"""Test the CIFAR networks against section 4.2 and Table 6 of arXiv:1512.03385."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.layers import PadShortcut
from lightning_modules.resnet import CentredPadShortcut, ResNetCifar, plain_cifar, resnet_cifar
from tests.support.network_inspection import count_parameters

TABLE_6 = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
OUTPUTS = {
    "conv1": (16, 32, 32),
    "map32": (16, 32, 32),
    "map16": (32, 16, 16),
    "map8": (64, 8, 8),
    "pool": (64, 1, 1),
}


def hand_count(depth: int) -> int:
    """Count parameters with option A from the table: 3x3 weights, two of batch-norm per channel, fc."""
    n = (depth - 2) // 6
    total = 3 * 16 * 9 + 2 * 16
    channels = 16
    for width in (16, 32, 64):
        for _ in range(n):
            total += channels * width * 9 + width * width * 9 + 2 * (2 * width)
            channels = width
    return total + 64 * 10 + 10


@pytest.mark.parametrize(("depth", "count"), TABLE_6.items())
def test_parameter_counts_match_table_6(depth, count):
    assert hand_count(depth) == count
    assert count_parameters(resnet_cifar(depth=depth)) == count
    assert count_parameters(plain_cifar(depth=depth)) == count  # option A adds none


def test_resnet_1202_has_19_4_million_parameters():
    with torch.device("meta"):  # counting needs no memory for weights
        network = resnet_cifar(depth=1202)
    assert count_parameters(network) == hand_count(1202) == 19_421_274


@pytest.mark.parametrize(("layer", "shape"), OUTPUTS.items())
def test_layer_outputs_match_the_table(layer, shape):
    outputs = []
    network = resnet_cifar(depth=20).eval()
    network.get_submodule(layer).register_forward_hook(lambda *args: outputs.append(args[2]))
    network(torch.zeros(2, 3, 32, 32))
    assert tuple(outputs[0].shape) == (2, *shape)


@pytest.mark.parametrize("build", [plain_cifar, resnet_cifar])
def test_number_of_weighted_layers_equals_the_depth(build):
    weighted = [m for m in build(depth=32).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 32


@pytest.mark.parametrize(("option", "projections"), [("A", 0), ("B", 2), ("C", 9)])
def test_options_have_projections_as_in_section_3_3(option, projections):
    network = resnet_cifar(depth=20, shortcut=option)
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) for m in network.modules()) == projections


def test_option_a_keeps_every_second_pixel_and_appends_zero_channels():
    x = torch.arange(2 * 16 * 4 * 4, dtype=torch.float32).view(2, 16, 4, 4)
    y = PadShortcut(16, 2)(x)
    assert y.shape == (2, 32, 2, 2)
    assert torch.equal(y[:, :16], x[:, :, [0, 2]][:, :, :, [0, 2]])
    assert not y[:, 16:].any()


def test_pad_around_puts_half_of_the_zero_channels_first():
    shortcut = resnet_cifar(depth=8, pad_around=True).map16[0].shortcut
    assert isinstance(shortcut, CentredPadShortcut)
    x = torch.randn(2, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (2, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_block_adds_its_shortcut_before_the_last_relu():
    block = resnet_cifar(depth=20).eval().map32[0]
    x = torch.randn(2, 16, 8, 8)
    inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(inner + x))


def test_plain_network_has_the_residual_networks_layers_without_shortcuts():
    torch.manual_seed(0)
    plain = plain_cifar(depth=20).eval()
    torch.manual_seed(0)
    residual = resnet_cifar(depth=20).eval()
    for a, b in zip(plain.parameters(), residual.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(4, 3, 32, 32)
    assert not torch.allclose(plain(x), residual(x))


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
def test_block_output_matches_torchvisions_basic_block(shortcut):
    """torchvision's block gives the same output with the same weights; its downsample is our shortcut."""
    from torchvision.models.resnet import BasicBlock

    ours = resnet_cifar(depth=20, shortcut=shortcut).eval().map16[0]
    theirs = BasicBlock(16, 32, stride=2, downsample=ours.shortcut).eval()
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("shortcut")}
    theirs.load_state_dict(state | {k: v for k, v in theirs.state_dict().items() if k.startswith("downsample")})
    x = torch.randn(2, 16, 16, 16)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)


def test_initial_weights_are_normal_with_variance_2_over_fan_in_and_biases_zero():
    torch.manual_seed(0)
    network = resnet_cifar(depth=56)
    weights = torch.cat([m.weight.flatten() * (m.weight[0].numel()) ** 0.5 for m in convolutions(network)])
    assert weights.var().item() == pytest.approx(2, abs=5 * 2 * (2 / len(weights)) ** 0.5)
    kurtosis = ((weights / weights.std()) ** 4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.05)  # normal; 1.8 if uniform
    assert not network.fc.bias.any()
    assert network.fc.weight.var().item() == pytest.approx(2 / 64, rel=0.25)


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_the_same_seed_gives_the_same_weights():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(resnet_cifar(depth=20).conv1.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("build", [plain_cifar, resnet_cifar])
def test_every_parameter_gets_a_gradient(build):
    network = build(depth=20)
    F.cross_entropy(network(torch.randn(8, 3, 16, 16)), torch.arange(8)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("build", [plain_cifar, resnet_cifar])
def test_network_overfits_one_batch(build):
    torch.manual_seed(0)
    network = build(depth=20)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    for _ in range(60):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_bf16_and_channels_last_outputs_are_close():
    torch.manual_seed(0)
    network = resnet_cifar(depth=20).eval()
    x = torch.randn(4, 3, 32, 32)
    exact = network(x)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(x), exact, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x).float()
    assert (rough - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    ("depth", "nearest"), [(21, "20 and 26"), (2, "8 and 14"), (55, "50 and 56"), (-4, "8 and 14")]
)
def test_invalid_depth_error_has_the_nearest_valid_depths(depth, nearest):
    with pytest.raises(ValueError, match=rf"depth {depth} is not 6n \+ 2 .*nearest valid depths are {nearest}"):
        resnet_cifar(depth=depth)


def test_unknown_shortcut_error_lists_the_options():
    with pytest.raises(ValueError, match=r"'D' is not one of the options of section 3\.3: A, B, C"):
        resnet_cifar(depth=20, shortcut="D")


def test_children_follow_the_table():
    names = [name for name, _ in ResNetCifar(20, "A", num_classes=10, in_channels=3).named_children()]
    assert names == ["conv1", "bn1", "map32", "map16", "map8", "pool", "fc"]
