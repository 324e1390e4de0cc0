"""What a recipe does to weights beside optimizer steps: averages, copies, a limit on the norm of filters."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_modules.names import nearest


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


def copied_layers(state: Mapping[str, Tensor], network: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the part of another network's `state` that belongs to `layers` of `network`, or all of it.

    Raises ValueError for a layer that one of them lacks, or whose weights have another shape.
    """
    own = network.state_dict()
    for layer in layers:
        for names in (own, state):
            if not any(name.startswith(f"{layer}.") for name in names):
                whose = "this network" if names is own else "the network to start from"
                raise ValueError(f"{whose} has no layer {layer!r} with weights")
    chosen = {
        name: value
        for name, value in state.items()
        if not layers or any(name.startswith(f"{layer}.") for layer in layers)
    }
    for name, value in chosen.items():
        if name not in own or own[name].shape != value.shape:
            shape = tuple(own[name].shape) if name in own else "none"
            raise ValueError(f"{name} of the network to start from has shape {tuple(value.shape)}, here {shape}")
    if not layers and (missing := own.keys() - chosen.keys()):
        raise ValueError(f"the network to start from has no {min(missing)}")
    return chosen


def start_from(network: nn.Module, state: Mapping[str, Tensor], layers: Sequence[str]) -> None:
    """Copy `layers` of another network's `state` into `network`; all of them if none is given."""
    network.load_state_dict(copied_layers(state, network, layers), strict=False)


def layer_parameters(network: nn.Module, layer: str) -> list[nn.Parameter]:
    """Return the parameters of a layer and of all layers inside it. Raises ValueError if there are none."""
    found = [value for name, value in network.named_parameters() if name.startswith(f"{layer}.")]
    if not found:
        layers = [
            name for name, module in network.named_modules() if name and any(True for _ in module.parameters())
        ]
        raise ValueError(f"the network has no layer {layer!r} with weights{nearest(layer, layers, '')}")
    return found


def train_only(network: nn.Module, layers: Sequence[str]) -> None:
    """Freeze all parameters but those of `layers` and of the layers inside them.

    Raises ValueError for an unknown layer, and for batch normalisation that would be frozen: its statistics would
    still change.
    """
    trained = {id(value) for layer in layers for value in layer_parameters(network, layer)}
    for name, module in network.named_modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not all(id(value) in trained for value in own):
            raise ValueError(f"batch normalisation {name!r} cannot be frozen: its statistics would still change")
    for value in network.parameters():
        value.requires_grad_(id(value) in trained)


@torch.no_grad()
def gradient_magnitude(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the mean magnitude of the gradients, float64 (): the L1 norm divided by the number of parameters.

    The gradient of a parameter that took no part in the step is zero.
    """
    zero = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    norms = [value.grad.abs().sum(dtype=torch.float64) for value in parameters if value.grad is not None]
    return sum(norms, zero) / sum(value.numel() for value in parameters)


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
