"""Helpers that inspect a network: output shapes by layer, parameter counts, construction on the meta device."""

from collections.abc import Callable

import torch
from torch import nn


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameter values in `module`."""
    return sum(p.numel() for p in module.parameters())


def on_meta(build: Callable[..., nn.Module], **args) -> nn.Module:
    """Build the network in evaluation mode on the meta device, which allocates no memory for weights."""
    with torch.device("meta"):
        return build(**args).eval()


def output_shapes(network: nn.Module, image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the output shape of each layer, (C, H, W) or (features,), for one image; `network` is on meta."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str):
        return lambda _module, _inputs, output: shapes.update({name: tuple(output.shape[1:])})

    hooks = [module.register_forward_hook(record(name)) for name, module in network.named_modules() if name]
    with torch.no_grad(), torch.device("meta"):
        network(torch.zeros(1, *image))
    for hook in hooks:
        hook.remove()
    return shapes


def randomize_batchnorm(network: nn.Module) -> nn.Module:
    """Randomize batch-norm statistics, scales and shifts in place, so that swapped layers change the output."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return network


def conv_bn(*sizes: int) -> int:
    """Count the parameters of consecutive convolutions with batch normalisation and without biases.

    `sizes` is (input channels, kernel area, filters, kernel area, filters, ...). Batch normalisation adds a scale
    and a shift per filter.
    """
    total, channels = 0, sizes[0]
    for area, filters in zip(sizes[1::2], sizes[2::2], strict=True):
        total += channels * area * filters + 2 * filters
        channels = filters
    return total
