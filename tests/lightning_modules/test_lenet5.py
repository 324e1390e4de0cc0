"""LeNet-5 against section II-B, Table I and Appendix A of LeCun et al. 1998."""

import math

import pytest
import torch
from torch import nn

from lightning_modules.lenet5 import (
    TABLE_I,
    contiguous_runs,
    digit_codes,
    lenet5,
    lenet5_modern,
    map_loss,
    mle_loss,
    squash,
)
from tests.support.network_inspection import count_parameters

ROWS = {  # layer: output, parameters, connections (section II-B)
    "c1": ((6, 28, 28), 156, 122_304),
    "s2": ((6, 14, 14), 12, 5_880),
    "c3": ((16, 10, 10), 1_516, 151_600),
    "s4": ((16, 5, 5), 32, 2_000),
    "c5": ((120, 1, 1), 48_120, 48_120),
    "f6": ((84,), 10_164, 10_164),
    "output": ((10,), 0, 840),
}


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return lenet5()


def test_children_read_like_the_table(network):
    assert [name for name, _ in network.named_children()] == list(ROWS)


def test_every_row_of_the_table(network):
    x = torch.zeros(2, 1, 32, 32)
    for (name, layer), (shape, parameters, connections) in zip(
        network.named_children(), ROWS.values(), strict=True
    ):
        x = layer(x)
        assert (name, tuple(x.shape[1:]), count_parameters(layer)) == (name, shape, parameters)
        assert layer.connections(x[:1]) == connections


def test_totals_are_those_of_the_paper(network):
    assert count_parameters(network) == 60_000
    assert sum(row[2] for row in ROWS.values()) == 340_908


def test_table_i_has_the_pattern_of_the_paper():
    contiguous = [{(start + i) % 6 for i in range(n)} for n in (3, 4) for start in range(6)]  # modulo 6
    assert [set(row) for row in TABLE_I[:12]] == contiguous or sorted(map(sorted, TABLE_I[:12])) == sorted(
        map(sorted, contiguous)
    )
    assert [len(row) for row in TABLE_I] == [3] * 6 + [4] * 9 + [6]
    for row in TABLE_I[12:15]:  # "discontinuous": two pairs with a gap between them
        assert {(map_ + 3) % 6 in row for map_ in row} == {True}
    assert set(TABLE_I[15]) == set(range(6))


def test_c3_has_the_number_and_contiguity_of_its_input_maps(network):
    assert network.c3.reads == (3,) * 6 + (4,) * 9 + (6,)
    assert network.c3.runs == (1,) * 12 + (2,) * 3 + (1,)  # (0, 1, 5) is contiguous, (0, 1, 3, 4) is not
    assert [contiguous_runs(inputs, 6) for inputs in ((2,), (0, 5), (0, 2, 4))] == [1, 1, 3]


def test_c3_reads_only_the_maps_of_table_i(network):
    x = torch.randn(1, 6, 14, 14)
    for index in range(6):
        changed = x.clone()
        changed[:, index] += 1
        affected = (network.c3(x) != network.c3(changed)).flatten(2).any(2)[0]
        assert affected.tolist() == [index in row for row in TABLE_I]


def test_squashing_function_is_1_at_1():
    """A and S are chosen so that f(1) = 1 and f(-1) = -1 (Appendix A)."""
    torch.testing.assert_close(squash(torch.tensor([1.0, -1.0])), torch.tensor([1.0, -1.0]), atol=2e-4, rtol=0)
    assert squash(torch.tensor(100.0)).item() == pytest.approx(1.7159)


def test_subsampling_is_a_scaled_and_shifted_sum(network):
    with torch.no_grad():
        network.s2.weight.copy_(torch.arange(6.0) / 10)
        network.s2.bias.copy_(torch.arange(6.0) / 100)
    x = torch.randn(1, 6, 28, 28)
    total = x[:, :, 0::2, 0::2] + x[:, :, 0::2, 1::2] + x[:, :, 1::2, 0::2] + x[:, :, 1::2, 1::2]
    expected = squash(total * (torch.arange(6.0) / 10)[:, None, None] + (torch.arange(6.0) / 100)[:, None, None])
    torch.testing.assert_close(network.s2(x), expected)


def test_single_pattern_gives_the_output_of_a_batch(network):
    x = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(torch.stack([network(one) for one in x]), network(x), atol=1e-4, rtol=1e-5)


def test_codes_are_ten_different_bitmaps_of_7_by_12():
    codes = digit_codes()
    assert codes.shape == (10, 7 * 12)
    ink = (codes > 0).view(10, 12, 7)
    assert ink[4].any(1).nonzero().flatten().tolist() == list(range(3, 12))  # only the 4 reaches the last two rows
    assert not ink[[digit for digit in range(10) if digit != 4], 10:].any()
    assert ink[7, 0].all()  # the bar of the 7
    assert not ink[7, 1, :5].any()
    assert set(codes.flatten().tolist()) == {-1.0, 1.0}
    differing = (codes[:, None] != codes[None]).sum(-1) + 84 * torch.eye(10, dtype=torch.int64)
    assert differing.min() >= 5  # no two digits are nearly equal


def test_nearest_code_has_the_largest_score(network):
    scores = network.output(digit_codes() + 0.3 * torch.randn(10, 84))
    assert scores.argmax(1).tolist() == list(range(10))
    torch.testing.assert_close(network.output(digit_codes()).diagonal(), torch.zeros(10))


def test_map_loss_is_equation_9():
    scores, labels, j = -torch.rand(4, 10) * 3, torch.tensor([1, 0, 9, 5]), 0.7
    expected = 0.0
    for row, label in zip((-scores).tolist(), labels.tolist(), strict=True):
        expected += row[label] + math.log(math.exp(-j) + sum(math.exp(-y) for y in row))
    assert map_loss(scores, labels, j=j).item() == pytest.approx(expected / 4, rel=1e-5)
    assert mle_loss(scores, labels).item() == pytest.approx(-sum(scores[range(4), labels].tolist()) / 4)


def test_map_loss_gradient_and_large_penalties():
    scores = (-torch.rand(3, 10, dtype=torch.float64) * 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: map_loss(s, torch.tensor([0, 3, 7]), j=1.0), scores)
    large = map_loss(torch.full((1, 10), -1e4), torch.tensor([0]), j=1.0)  # no overflow, no log of zero
    assert large.item() == pytest.approx(1e4 - 1.0)


def test_map_loss_requires_a_positive_constant():
    with pytest.raises(ValueError, match="j, the constant of equation 9, must be positive, not 0"):
        map_loss(torch.zeros(1, 10), torch.tensor([0]), j=0.0)


@pytest.mark.parametrize(("layer", "fan_in"), [("c1", 25), ("s2", 4), ("s4", 4), ("c5", 400), ("f6", 120)])
@pytest.mark.parametrize(
    ("init", "range_of"), [("appendix_a", lambda n: 2.4 / n), ("efficient_backprop", lambda n: (3 / n) ** 0.5)]
)
def test_weights_start_uniform_within_the_range_of_their_fan_in(layer, fan_in, init, range_of):
    torch.manual_seed(0)
    weight = lenet5(init=init).get_submodule(layer).weight
    bound = range_of(fan_in)
    assert weight.abs().max() <= bound
    if weight.numel() > 100:
        assert weight.abs().max() > 0.95 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_initial_weights_depend_on_the_seed_only():
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(lenet5().c5.weight)
    assert torch.equal(networks[0], networks[1])
    assert not torch.equal(networks[0], networks[2])


@pytest.mark.parametrize("build", [lenet5, lenet5_modern])
def test_every_parameter_gets_a_gradient(build):
    torch.manual_seed(0)
    network = build()
    map_loss(network(torch.randn(8, 1, 32, 32)), torch.arange(8), j=1.0).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize("build", [lenet5, lenet5_modern])
def test_overfits_one_batch(build):
    torch.manual_seed(0)
    network = build()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    x, y = torch.randn(10, 1, 32, 32), torch.arange(10)
    for _ in range(150):
        loss = map_loss(network(x), y, j=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network(x).argmax(1) == y).all()


def test_modern_variant_has_61_706_parameters():
    assert count_parameters(lenet5_modern()) == 156 + 2_416 + 48_120 + 10_164 + 850 == 61_706


@pytest.mark.parametrize(("classes", "channels"), [(26, 1), (10, 3)])
def test_other_data_than_digits_raises_and_names_lenet5_modern(classes, channels):
    with pytest.raises(ValueError, match=r"lenet5 has 1 input channel and 10 classes, not .*lenet5_modern"):
        lenet5(num_classes=classes, in_channels=channels)
