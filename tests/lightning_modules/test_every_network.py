"""What holds for every network: it is built the same from a seed, it learns, and torch's own tools take it.

Each network is tried once in the smallest form that has all its parts.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.networks import NETWORKS, build


@dataclass(frozen=True)
class Case:
    """A small form of one network."""

    image: tuple[int, int, int]
    args: dict[str, Any] = field(default_factory=dict)
    classes: int = 10
    lr: float = 1e-3  # with which Adam learns one batch by heart
    slow: bool = False  # learning one batch by heart takes more than a few seconds


CASES: dict[str, Case] = {
    "lenet5": Case((1, 32, 32), lr=0.003),
    "lenet5_modern": Case((1, 32, 32), lr=0.01),
    "plain_cifar": Case((3, 16, 16), {"depth": 8}, lr=0.01),
    "resnet_cifar": Case((3, 16, 16), {"depth": 8, "shortcut": "B"}, lr=0.01),
}
ALL = [pytest.param(name, id=name) for name in CASES]
SLOW = [pytest.param(name, id=name, marks=pytest.mark.slow if case.slow else ()) for name, case in CASES.items()]


def small(name: str, seed: int = 0) -> nn.Module:
    case = CASES[name]
    torch.manual_seed(seed)
    return build(name, case.args, num_classes=case.classes, in_channels=case.image[0])


def images(name: str, n: int = 2) -> Tensor:
    return torch.randn(n, *CASES[name].image, generator=torch.Generator().manual_seed(1))


def loss_of(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; where training gives auxiliary scores too, of all of them."""
    scores = network(x)
    every = scores if isinstance(scores, tuple) else (scores,)
    return torch.stack([F.cross_entropy(some, labels) for some in every]).sum()


def test_every_network_has_a_case():
    assert set(CASES) == set(NETWORKS)


@pytest.mark.parametrize("name", ALL)
def test_one_seed_gives_the_same_weights_and_another_gives_others(name):
    one, same, other = (small(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", ALL)
def test_no_parameter_is_dead(name):
    """After one backward pass of a few images, every parameter has a finite gradient that is not zero throughout."""
    network = small(name).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loss_of(network, images(name, 4), torch.arange(4)).backward()
    dead = [
        key
        for key, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("name", SLOW)
def test_it_learns_one_batch_by_heart(name):
    network, x, labels = small(name), images(name, 4), torch.arange(4)
    optimizer = torch.optim.Adam(network.parameters(), lr=CASES[name].lr)
    for _ in range(300):
        network.train()
        optimizer.zero_grad()
        loss = loss_of(network, x, labels)
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    assert loss < 0.1


@pytest.mark.parametrize("name", ALL)
def test_exported_it_gives_equal_output(name):
    network, x = small(name).eval(), images(name)
    exported = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_traced_by_the_compiler_it_gives_the_same_output_in_one_graph(name):
    network, x = small(name).eval(), images(name)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_compiled_it_gives_the_same_output_and_trains(name):
    network, x = small(name).eval(), images(name)
    compiled = torch.compile(network)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-3, atol=1e-3)
    network.train()
    loss_of(compiled, x, torch.arange(2)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    torch.compiler.reset()


@pytest.mark.parametrize("name", ALL)
def test_in_bfloat16_it_stays_near_its_output(name):
    network, x = small(name).eval(), images(name)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network(x).float()
    assert rough.isfinite().all()
    assert (rough - exact).norm() < 0.1 * exact.norm() + 1e-3
