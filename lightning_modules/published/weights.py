"""Weights that others published: which network of ours they fit, under which names.

A file of this folder lists, for one paper, the networks of torchvision and timm that compute the same function as
ours with certain arguments; `catalogue.py` joins the lists.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Rename = Callable[[str], str | None]  # their parameter's name -> ours, or None for one that we do not have


@dataclass(frozen=True)
class Published:
    """One network of another library, and the network of ours that it is."""

    source: Literal["torchvision", "timm", "pytorch_resnet_cifar10"]
    model: str  # its name there
    network: str  # our builder, in `networks.NETWORKS`
    args: Mapping[str, Any]  # the builder's arguments that make the same function
    rename: Rename
    differs: str = ""  # where those arguments depart from the paper: "stride 2 in the 3x3 of a block, not ..."
    switches: tuple[str, ...] = ()  # the arguments that do so
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each channel, pixels in [0, 1], as they were trained with
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    stated_top1_error_pct: float | None = None  # by their publisher, where the weights do not say themselves


def renamer(*rules: tuple[str, str | None]) -> Rename:
    """A `rename` from (regular expression, replacement) pairs: the first that matches the whole name is used.

    A replacement of None drops the name; one that no rule matches stays as it is, and so fits nothing.
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(name: str) -> str | None:
        for pattern, replacement in compiled:
            match = pattern.fullmatch(name)
            if match:
                return None if replacement is None else match.expand(replacement)
        return name

    return rename


def translated(state: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    """`state` under our names; what `rename` drops is left out. ValueError where two become one."""
    result: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        ours = rename(theirs)
        if ours is None:
            continue
        if ours in result:
            raise ValueError(f"two weights would be called {ours!r}, one of them {theirs!r}")
        result[ours] = tensor
    return result


def unfit(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Why `state` does not fit `network`, in a few words; "" where it does. Batch counters may be missing."""
    own = network.state_dict()
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} is {shown(state[name])} where {shown(own[name])} is needed"
        for name in needed
        if name in state and as_needed(state[name], own[name]).shape != own[name].shape
    ]
    said = [
        f"{len(missing)} of {len(needed)} weights are missing, {missing[0]!r} first" if missing else "",
        f"{len(unknown)} of its weights are unknown, {unknown[0]!r} first" if unknown else "",
        shapes[0] + (f" (and {len(shapes) - 1} more shapes differ)" if len(shapes) > 1 else "") if shapes else "",
    ]
    return "; ".join(part for part in said if part)


def as_needed(theirs: Tensor, own: Tensor) -> Tensor:
    """`theirs`; the weights of a convolution that reads its whole input, as those of the full connection it is."""
    if theirs.dim() == 4 and own.dim() == 2 and theirs.flatten(1).shape == own.shape:
        return theirs.flatten(1)  # timm's VGG
    return theirs


def shown(tensor: Tensor) -> str:
    """A shape in words: "64 x 3 x 7 x 7"."""
    return " x ".join(map(str, tensor.shape)) or "a single number"


def carry_over(network: nn.Module, state: Mapping[str, Tensor], renames: Sequence[Rename]) -> None:
    """Load `state` into `network` under the first of the naming schemes, or our own, under which it fits.

    ValueError, with what is missing or too much under the nearest scheme, where none fits.
    """
    reasons, own = [], network.state_dict()
    for rename in (lambda name: name, *renames):
        ours = translated(state, rename)
        reason = unfit(network, ours)
        if not reason:
            network.load_state_dict({name: as_needed(t, own[name]) for name, t in ours.items()}, strict=False)
            return
        reasons.append((len(set(own) ^ set(ours)), reason))
    raise ValueError(min(reasons)[1])
