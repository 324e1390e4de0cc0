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
    slow: bool = False  # learning one batch by heart, or being traced, takes more than a few seconds
    blocks: int | None = None  # images of so many blocks a side, where weights start too small to tell noise apart
    dropout: bool = True  # False: it learns by heart without, where with dropout it takes too many steps


CASES: dict[str, Case] = {
    "alexnet": Case((3, 227, 227), {"units": 256}, lr=3e-4, slow=True, blocks=8),
    "alexnet_cifar": Case((3, 32, 32), {"lrn": True, "local": True}, lr=0.003),
    "zfnet": Case((3, 224, 224), {"units": 256}, lr=3e-4, slow=True, blocks=8),
    "inception_resnet_v2": Case((3, 75, 75), slow=True),
    "inception_v4": Case((3, 75, 75), slow=True),
    "lenet5": Case((1, 32, 32), lr=0.003),
    "lenet5_modern": Case((1, 32, 32), lr=0.01),
    "preact_resnet_cifar": Case((3, 8, 8), {"depth": 11, "layers_per_unit": 3}, lr=0.01),
    "preact_resnet_imagenet": Case((3, 32, 32), {"depth": 101}, slow=True),
    "plain_cifar": Case((3, 16, 16), {"depth": 8}, lr=0.01),
    "resnet_cifar": Case((3, 16, 16), {"depth": 8, "shortcut": "B"}, lr=0.01),
    "plain_imagenet": Case((3, 64, 64), {"depth": 18}, slow=True),
    "resnet_imagenet": Case((3, 64, 64), {"depth": 50}, slow=True),
    "resnext_cifar": Case((3, 16, 16), {"cardinality": 2, "width": 4}),
    "resnext_imagenet": Case((3, 64, 64), {"depth": 50, "cardinality": 2, "width": 4}),
    "squeezenet": Case((3, 51, 51), {"bypass": "complex"}, lr=5e-4),
    "squeezenet_1_1": Case((3, 47, 47), lr=5e-4, slow=True),
    "googlenet": Case((3, 224, 224), lr=1e-4, slow=True, blocks=7, dropout=False),
    "inception_naive": Case((8, 8, 8), lr=0.01),
    "inception_bottleneck": Case((8, 8, 8), lr=0.01),
    "wide_resnet_cifar": Case((3, 16, 16), {"depth": 10, "k": 2, "dropout": 0.3}, lr=0.01),
    "wide_resnet_imagenet": Case((3, 32, 32), {"depth": 50, "k": 1}, slow=True),
    "vgg": Case((3, 224, 224), {"configuration": "A-LRN"}, lr=1e-4, slow=True, blocks=7, dropout=False),
    "conv_stack": Case((8, 16, 16), lr=0.01),
    "nin": Case((3, 8, 8)),
    "fractalnet": Case((3, 4, 4), {"widths": [8, 8], "drop_path": 0, "global_share": 0, "dropout": []}, lr=0.01),
    "fractalnet_plain": Case((3, 4, 4), {"depth": 4, "widths": [8, 8]}, lr=0.01),
    "stochastic_depth_cifar": Case((3, 16, 16), {"depth": 14, "p_L": 1.0}, lr=0.01),
    "stochastic_depth_imagenet": Case((3, 64, 64), {"depth": 50, "p_L": 1.0}),
    "densenet_cifar": Case(
        (3, 16, 16), {"depth": 10, "k": 8, "bottleneck": True, "theta": 0.5, "memory_efficient": True}, lr=0.01
    ),
    "densenet_imagenet": Case((3, 32, 32), {"depth": 121}),
}
ALL = [pytest.param(name, id=name) for name in CASES]
SLOW = [pytest.param(name, id=name, marks=pytest.mark.slow if case.slow else ()) for name, case in CASES.items()]


def small(name: str, seed: int = 0) -> nn.Module:
    case = CASES[name]
    torch.manual_seed(seed)
    return build(name, case.args, num_classes=case.classes, in_channels=case.image[0])


def images(name: str, n: int = 2) -> Tensor:
    (channels, *size), blocks = CASES[name].image, CASES[name].blocks
    drawn = [blocks, blocks] if blocks else size
    noise = torch.randn(n, channels, *drawn, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=size) if blocks else noise


def loss_of(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; where training gives auxiliary scores too, of all of them."""
    scores = network(x)
    every = scores if isinstance(scores, tuple) else (scores,)
    return torch.stack([F.cross_entropy(some, labels) for some in every]).sum()


def without_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_every_network_has_a_case():
    assert set(CASES) == set(NETWORKS)


@pytest.mark.parametrize("name", ALL)
def test_one_seed_gives_the_same_weights_and_another_gives_others(name):
    one, same, other = (small(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", ALL)
def test_no_parameter_is_dead(name):
    """After one backward pass of a few images, every parameter has a finite gradient, not zero throughout."""
    network = small(name).train()
    without_dropout(network)
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
    if not CASES[name].dropout:
        without_dropout(network)
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


@pytest.mark.parametrize("name", SLOW)
def test_traced_by_the_compiler_it_gives_the_same_output_in_one_graph(name):
    network, x = small(name).eval(), images(name)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes of compiling for a hundred layers
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
