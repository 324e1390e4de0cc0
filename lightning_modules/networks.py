"""From a network's name to its builder: the one map of all networks."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_modules.lenet5 import lenet5, lenet5_modern
from lightning_modules.names import nearest
from lightning_modules.resnet import plain_cifar, resnet_cifar


@dataclass(frozen=True)
class Network:
    """A builder, called with its paper's arguments and `num_classes` and `in_channels`; and what the paper feeds it."""

    build: Callable[..., nn.Module]
    image: tuple[int, int, int]  # channels, height, width
    classes: int


NETWORKS: dict[str, Network] = {
    "lenet5": Network(lenet5, (1, 32, 32), 10),
    "lenet5_modern": Network(lenet5_modern, (1, 32, 32), 10),
    "plain_cifar": Network(plain_cifar, (3, 32, 32), 10),
    "resnet_cifar": Network(resnet_cifar, (3, 32, 32), 10),
}


def build(name: str, args: Mapping[str, Any], *, num_classes: int, in_channels: int) -> nn.Module:
    """The network `name` with its paper's arguments `args`; ValueError with the nearest name otherwise."""
    if name not in NETWORKS:
        raise ValueError(f"network {name!r} is unknown{nearest(name, NETWORKS)}")
    builder = NETWORKS[name].build
    known = inspect.signature(builder).parameters
    for argument in args:
        if argument not in known:
            own = [a for a in known if a not in ("num_classes", "in_channels")]
            raise ValueError(f"network {name!r} has no argument {argument!r}{nearest(argument, own)}")
    required = [a for a, p in known.items() if p.default is p.empty and a not in args]
    missing = [a for a in required if a not in ("num_classes", "in_channels")]
    if missing:
        raise ValueError(f"network {name!r} needs the argument {missing[0]!r}")
    return builder(**args, num_classes=num_classes, in_channels=in_channels)
