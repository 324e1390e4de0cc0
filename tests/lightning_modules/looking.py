"""How the tests look at a network: its outputs by layer, without memory for weights, and its counts."""

from collections.abc import Callable

import torch
from torch import nn


def parameters(module: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in module.parameters())


def on_meta(build: Callable[..., nn.Module], **args) -> nn.Module:
    """The network without memory for its weights: seconds less for the large ones."""
    with torch.device("meta"):
        return build(**args).eval()


def output_shapes(network: nn.Module, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Layer name -> (C, H, W) or (features,) for one image; give the network from `on_meta`."""
    seen: dict[str, tuple[int, ...]] = {}

    def watch(name: str):
        return lambda _module, _inputs, output: seen.update({name: tuple(output.shape[1:])})

    hooks = [module.register_forward_hook(watch(name)) for name, module in network.named_modules() if name]
    with torch.no_grad(), torch.device("meta"):
        network(torch.zeros(1, *image))
    for hook in hooks:
        hook.remove()
    return seen


def shaken(network: nn.Module) -> nn.Module:
    """The network with batch-norm statistics and scales unlike those of the start, so that a mix-up shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return network


def unit(*sizes: int) -> int:
    """Parameters of convolutions in a row, (channels, kernel area, filters, kernel area, filters, ...), with
    batch normalisation's two a filter."""
    total, channels = 0, sizes[0]
    for area, filters in zip(sizes[1::2], sizes[2::2], strict=True):
        total += channels * area * filters + 2 * filters
        channels = filters
    return total
