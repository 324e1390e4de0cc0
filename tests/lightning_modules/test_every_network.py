"""Tests for every network: reproducible initialisation, gradients, overfitting, export, compilation, bfloat16.

Each network is tested once, in the smallest configuration that has all its kinds of layers.
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
    """A build_small configuration of one network."""

    image: tuple[int, int, int]
    args: dict[str, Any] = field(default_factory=dict)
    classes: int = 10
    lr: float = 1e-3  # of Adam, to overfit one batch
    slow: bool = False  # overfitting, exporting, tracing or bfloat16 takes seconds
    blocks: int | None = (
        None  # blocks per side of the images, if initial weights are too build_small for pixel noise
    )
    dropout: bool = True  # False: overfit without dropout, because with it overfitting takes too many steps


CASES: dict[str, Case] = {
    "alexnet": Case((3, 227, 227), {"units": 256}, lr=3e-4, slow=True, blocks=8),
    "alexnet_cifar": Case((3, 32, 32), {"lrn": True, "local": True}, lr=0.003),
    "bn_alexnet": Case((3, 224, 224), lr=3e-4, slow=True, blocks=8),
    "zfnet": Case((3, 224, 224), {"units": 256}, lr=3e-4, slow=True, blocks=8),
    "inception_v3": Case((3, 75, 75), {"aux": False}, slow=True),  # with aux: 299 x 299, in its own test
    "inception_resnet_v1": Case((3, 75, 75), slow=True),
    "inception_resnet_v2": Case((3, 75, 75), slow=True),
    "inception_v4": Case((3, 75, 75), slow=True),
    "lenet5": Case((1, 32, 32), lr=0.003),
    "lenet5_modern": Case((1, 32, 32), lr=0.01),
    "lenet_300_100": Case((1, 28, 28)),
    "lenet5_caffe": Case((1, 28, 28)),
    "preact_resnet_cifar": Case((3, 8, 8), {"depth": 11, "layers_per_unit": 3}, lr=0.01),
    "preact_resnet_imagenet": Case((3, 32, 32), {"depth": 101}, slow=True),
    "plain_cifar": Case((3, 16, 16), {"depth": 8}, lr=0.01),
    "resnet_cifar": Case((3, 16, 16), {"depth": 8, "shortcut": "B"}, lr=0.01),
    "plain_imagenet": Case((3, 64, 64), {"depth": 18}, slow=True),
    "resnet_imagenet": Case((3, 64, 64), {"depth": 50}, slow=True),
    "resnext_cifar": Case((3, 16, 16), {"cardinality": 2, "width": 4}),
    "resnext_imagenet": Case((3, 64, 64), {"depth": 50, "cardinality": 2, "width": 4}, slow=True),
    "squeezenet": Case((3, 51, 51), {"bypass": "complex"}, lr=5e-4),
    "squeezenet_1_1": Case((3, 47, 47), lr=5e-4, slow=True),
    "googlenet": Case((3, 224, 224), lr=1e-4, slow=True, blocks=7, dropout=False),
    "inception_naive": Case((8, 8, 8), lr=0.01),
    "inception_bottleneck": Case((8, 8, 8), lr=0.01),
    "wide_resnet_cifar": Case((3, 16, 16), {"depth": 10, "k": 2, "dropout": 0.3}, lr=0.01),
    "wide_resnet_imagenet": Case((3, 32, 32), {"depth": 50, "k": 1}, slow=True),
    "vgg": Case((3, 224, 224), {"configuration": "A-LRN"}, lr=1e-4, slow=True, blocks=7, dropout=False),
    "vgg_boxes": Case(
        (3, 224, 224),
        {"configuration": "A-LRN", "regression": "single-class"},
        lr=1e-4,
        slow=True,
        blocks=7,
        dropout=False,
    ),
    "conv_stack": Case((8, 16, 16), lr=0.01),
    "nin": Case((3, 8, 8)),
    "nin_imagenet": Case((3, 87, 87), lr=3e-4, slow=True, blocks=8, dropout=False),
    "bn_nin": Case((3, 224, 224), lr=3e-4, slow=True, blocks=8),
    "fractalnet": Case((3, 4, 4), {"widths": [8, 8], "drop_path": 0, "global_share": 0, "dropout": []}, lr=0.01),
    "fractalnet_plain": Case((3, 4, 4), {"depth": 4, "widths": [8, 8]}, lr=0.01),
    "stochastic_depth_cifar": Case((3, 16, 16), {"depth": 14, "p_L": 1.0}, lr=0.01),
    "stochastic_depth_imagenet": Case((3, 64, 64), {"depth": 50, "p_L": 1.0}, slow=True),
    "densenet_cifar": Case(
        (3, 16, 16), {"depth": 10, "k": 8, "bottleneck": True, "theta": 0.5, "memory_efficient": True}, lr=0.01
    ),
    "densenet_imagenet": Case((3, 32, 32), {"depth": 121}, slow=True),
    "stack_cnn": Case((3, 8, 8), {"kernel": 3, "layers": 2, "relu": "last"}, lr=0.003, slow=True),
    "lrn_cnn": Case((3, 8, 8), {"normalise": True}),
    "head_cnn": Case((3, 8, 8), {"head": "fc"}),
    "inception_cnn": Case((3, 8, 8), {"module": "bottleneck"}),
    "chain_cifar": Case((3, 8, 8), {"depth": 7, "k": 8}, lr=0.01),
}
NETWORK_NAMES = [pytest.param(name, id=name) for name in CASES]
WITH_SLOW_MARK = [
    pytest.param(name, id=name, marks=pytest.mark.slow if case.slow else ()) for name, case in CASES.items()
]
# VGG has 133 million parameters and BN-AlexNet 61 million. Smaller networks have the same kinds of layers.
SLOW_LARGE = [
    pytest.param(name, id=name, marks=pytest.mark.slow if name in ("vgg", "vgg_boxes", "bn_alexnet") else ())
    for name in CASES
]


def build_small(name: str, seed: int = 0) -> nn.Module:
    case = CASES[name]
    torch.manual_seed(seed)
    return build(name, case.args, num_classes=case.classes, in_channels=case.image[0])


def images(name: str, n: int = 2) -> Tensor:
    (channels, *size), blocks = CASES[name].image, CASES[name].blocks
    noise_size = [blocks, blocks] if blocks else size
    noise = torch.randn(n, channels, *noise_size, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=size) if blocks else noise


def total_loss(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, summed over the scores and any auxiliary scores; a box counts as four scores."""
    outputs = network(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.stack([F.cross_entropy(scores.flatten(1), labels) for scores in outputs]).sum()


def disable_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def test_every_network_has_a_case():
    assert set(CASES) == set(NETWORKS)


@pytest.mark.parametrize("name", SLOW_LARGE)
def test_initial_weights_depend_on_the_seed_only(name):
    one, same, other = (build_small(name, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", SLOW_LARGE)
def test_every_parameter_gets_a_gradient(name):
    """After one backward pass with a few images every parameter has a finite gradient that is not all zeros."""
    network = build_small(name).train()
    disable_dropout(network)
    total_loss(network, images(name, 4), torch.arange(4)).backward()
    dead = [
        key
        for key, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert dead == []


@pytest.mark.parametrize("name", WITH_SLOW_MARK)
def test_overfits_one_batch(name):
    network, x, labels = build_small(name), images(name, 4), torch.arange(4)
    if not CASES[name].dropout:
        disable_dropout(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=CASES[name].lr)
    for _ in range(300):
        network.train()
        optimizer.zero_grad()
        loss = total_loss(network, x, labels)
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    assert loss < 0.1


@pytest.mark.parametrize("name", WITH_SLOW_MARK)
def test_exported_network_gives_equal_output(name):
    network, x = build_small(name).eval(), images(name)
    exported = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", WITH_SLOW_MARK)
def test_traces_to_one_graph_with_the_same_output(name):
    network, x = build_small(name).eval(), images(name)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes of compiling for a hundred layers
@pytest.mark.parametrize("name", NETWORK_NAMES)
def test_compiled_network_gives_the_same_output_and_trains(name):
    network, x = build_small(name).eval(), images(name)
    compiled = torch.compile(network)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), rtol=1e-3, atol=1e-3)
    network.train()
    total_loss(compiled, x, torch.arange(2)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    torch.compiler.reset()


@pytest.mark.parametrize("name", WITH_SLOW_MARK)
def test_bfloat16_output_is_close(name):
    network, x = build_small(name).eval(), images(name)
    with torch.no_grad():
        exact = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            approximate = network(x).float()
    assert approximate.isfinite().all()
    assert (approximate - exact).norm() < 0.1 * exact.norm() + 1e-3
