"""What a recipe does to weights beside optimizer steps: averages, copies, a limit on the norm of filters."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def average_of(network: nn.Module, decay: float | None, *, batch_norm: bool) -> AveragedModel:
    """Return an average of the weights of `network`, empty until its first `update_parameters(network)`.

    Args:
        decay: of an exponential moving average, decay * average + (1 - decay) * weights. None: the plain mean of
            all weights so far (Polyak averaging).
        batch_norm: average the statistics of batch normalisation as well; otherwise the last ones are used.
    """
    average = AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(decay) if decay is not None else plain_mean,
        use_buffers=batch_norm,
    )
    return average.requires_grad_(False)


@torch.no_grad()
def plain_mean(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor | int) -> None:
    """Update in place the means of `count` tensors so far by one more of each."""
    for average, weight in zip(averages, weights, strict=True):
        if average.is_floating_point():
            average.add_((weight - average) / (int(count) + 1))
        else:  # a counter
            average.copy_(weight)


def frozen_copy(network: nn.Module) -> nn.Module:
    """Return a copy of `network` that no optimizer changes."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy all parameters and buffers of `source` into `target`, a network of the same structure."""
    values = source.state_dict()
    for name, value in target.state_dict().items():
        value.copy_(values[name])


@torch.no_grad()
def limit_filters(network: nn.Module, rms: float) -> None:
    """Scale each filter of a convolution whose root mean square exceeds `rms` back to it.

    Zeiler and Fergus 2013 (arXiv:1311.2901), section 3: a fixed radius of 0.1. Biases are left as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight
            found = weight.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            weight.mul_((rms / found).clamp(max=1.0).nan_to_num(nan=1.0))
