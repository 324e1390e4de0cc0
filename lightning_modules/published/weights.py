"""Load weights that others published into our networks.

Each file of this folder lists, for one paper, the networks of other libraries that compute the same function as
ours and the rules that rename their parameters. `catalogue.py` joins the lists.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

RenameKey = Callable[[str], str | None]  # their state-dict key -> ours; None drops it


@dataclass(frozen=True)
class PublishedNetwork:
    """Network of another library and the network of ours that computes the same function."""

    source: Literal["torchvision", "timm", "pytorch_resnet_cifar10"]
    model: str  # name in that library
    network: str  # name of our builder in `networks.NETWORKS`
    args: Mapping[str, Any]  # arguments of the builder that give the same function
    rename: RenameKey
    differs: str = ""  # difference between `args` and the paper: "stride 2 in the 3x3 of a block, not ..."
    departure_args: tuple[str, ...] = ()  # arguments that cause this difference
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each channel in training, pixels in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)  # of each channel in training
    protocol: str = "1-crop-224-of-256"  # usual test protocol of the library's weights of this network
    stated_top1_error_pct: float | None = None  # by the publisher, if the weights file does not contain it


def renamer(*rules: tuple[str, str | None]) -> RenameKey:
    """Return a function that renames by the first (regular expression, replacement) that matches the whole name.

    A replacement of None drops the name. A name that no rule matches is returned unchanged.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str | None:
        for pattern, replacement in compiled:
            match = pattern.fullmatch(name)
            if match:
                return None if replacement is None else match.expand(replacement)
        return name

    return rename


def rename_state_dict(state: Mapping[str, Tensor], rename: RenameKey) -> dict[str, Tensor]:
    """Return `state` with our names, without the keys that `rename` drops.

    Raises ValueError if two keys get the same name.
    """
    result: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        ours = rename(theirs)
        if ours is None:
            continue
        if ours in result:
            raise ValueError(f"two parameters map to {ours!r}, one of them {theirs!r}")
        result[ours] = tensor
    return result


def state_dict_mismatch(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return the mismatch between `state` and the state dict of `network`, or "" if it fits.

    Counters of batches (`num_batches_tracked`) may be missing.
    """
    own = network.state_dict()
    required = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [name for name in required if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} has shape {format_shape(state[name])}, expected {format_shape(own[name])}"
        for name in required
        if name in state and linear_weight(state[name], own[name]).shape != own[name].shape
    ]
    messages = [
        f"missing weights: {len(missing)} of {len(required)}, first {missing[0]!r}" if missing else "",
        f"unknown weights: {len(unknown)}, first {unknown[0]!r}" if unknown else "",
        shapes[0] + (f" (and {len(shapes) - 1} more shapes differ)" if len(shapes) > 1 else "") if shapes else "",
    ]
    return "; ".join(message for message in messages if message)


def linear_weight(theirs: Tensor, own: Tensor) -> Tensor:
    """Return `theirs`, flattened if it is the weight of a convolution that equals our fully connected layer."""
    if theirs.dim() == 4 and own.dim() == 2 and theirs.flatten(1).shape == own.shape:
        return theirs.flatten(1)  # timm's VGG
    return theirs


def format_shape(tensor: Tensor) -> str:
    """Return the shape as text: "64 x 3 x 7 x 7", or "scalar"."""
    return " x ".join(map(str, tensor.shape)) or "scalar"


def load_published_state_dict(
    network: nn.Module, state: Mapping[str, Tensor], renames: Sequence[RenameKey]
) -> None:
    """Load `state` into `network` with our names or with the first of `renames` with which it fits.

    Raises ValueError with the mismatch of the closest naming if none fits.
    """
    mismatches, own = [], network.state_dict()
    for rename in (lambda name: name, *renames):
        ours = rename_state_dict(state, rename)
        mismatch = state_dict_mismatch(network, ours)
        if not mismatch:
            network.load_state_dict({name: linear_weight(t, own[name]) for name, t in ours.items()}, strict=False)
            return
        mismatches.append((len(set(own) ^ set(ours)), mismatch))
    raise ValueError(min(mismatches)[1])
