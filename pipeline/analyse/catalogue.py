"""All networks by name: every variant that some experiment declares, and what arithmetic says of each.

`repro analyse resnet-50` and `repro evaluate resnet-50` mean the variant of that name; a network's own name, such
as resnet_cifar, means that network with its builder's own defaults.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_modules.networks import NETWORKS, check_arguments
from pipeline.analyse.measure import analysis_of, class_count, published_image_shape
from pipeline.analyse.network import NetworkAnalysis
from pipeline.common.errors import UserError
from pipeline.declare.experiment import Experiment, PublishedRecipe
from pipeline.declare.recipe import Data, Model

COMPLEXITY = "complexity/architecture"  # whose printed accuracies, top1_NETWORK, the chart shows

BYTES = 4  # of a number in single precision


@dataclass(frozen=True)
class NamedNetwork:
    """A network that has a name."""

    name: str
    paper: str  # the folder of its first experiment; "" for one that no experiment declares
    variant: PublishedRecipe

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of what it reads."""
        return published_image_shape(self.variant)

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return class_count(self.variant.data)


@dataclass(frozen=True)
class NetworkCost:
    """What one network costs, for one image."""

    name: str
    paper: str
    image: tuple[int, int, int]
    layers: int  # with weights, on the longest path
    parameters: int
    multiply_adds: int
    activations: int
    memory_mb: (
        float  # of parameters, and of input and outputs of convolutions, poolings, full connections; 1e6 bytes
    )
    top1_pct: float | None  # published accuracy, read off the chart of arXiv:1605.07678
    forward_s: tuple[float, ...] = ()  # measured here

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def catalogue(experiments: Sequence[Experiment]) -> dict[str, NamedNetwork]:
    """All variants by name; the same network under the same name in two experiments is there once.

    A paper's own file comes before one that only compares: the first in which the folder is the network's paper.
    """
    found: dict[str, NamedNetwork] = {}
    for experiment in sorted(experiments, key=lambda e: (e.name == COMPLEXITY, e.folder == "ilsvrc", e.name)):
        for name in experiment.variants:
            variant = experiment.published(name)
            own = NETWORKS.get(variant.model.name)
            home = own is None or own.build.__module__.rpartition(".")[2].startswith(experiment.folder)
            if name not in found or (home and found[name].paper != experiment.folder):
                found[name] = NamedNetwork(name, experiment.folder, variant)
    return found


def find_network(
    name: str, experiments: Sequence[Experiment], changes: Mapping[str, Any] | None = None
) -> NamedNetwork:
    """The network called `name`, its builder's arguments changed by `changes`; UserError with the nearest name."""
    known = catalogue(experiments)
    if name in known:
        named = known[name]
    elif name in NETWORKS:
        channels, side, _ = NETWORKS[name].image
        of = {1: "mnist", 3: "cifar10" if side <= 32 else "imagenet"}.get(channels, "imagenet")
        data = Data(name=of, pad_to=32 if of == "mnist" else None)
        named = NamedNetwork(name, "", PublishedRecipe(model=Model(name=name), data=data, train=None))
    else:
        close = difflib.get_close_matches(name, [*known, *NETWORKS], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; repro analyse lists them all"
        raise UserError(f"there is no network {name!r}{hint}")
    if not changes:
        return named
    model = Model(**{**named.variant.model.args, **changes, "name": named.variant.model.name})
    try:
        check_arguments(model.name, {**model.args, **changes})
    except ValueError as error:
        raise UserError(str(error)) from None
    said = ", ".join(f"{key} {value}" for key, value in changes.items())
    return NamedNetwork(f"{named.name} ({said})", named.paper, named.variant.model_copy(update={"model": model}))


def network_cost(named: NamedNetwork, accuracies: Mapping[str, float]) -> NetworkCost:
    """What `named` costs by arithmetic."""
    found: NetworkAnalysis = analysis_of(named.variant)
    return NetworkCost(
        name=named.name,
        paper=named.paper,
        image=named.image,
        layers=found.trace.longest_path,
        parameters=found.measure("parameters"),
        multiply_adds=found.multiply_adds,
        activations=found.measure("activations"),
        memory_mb=BYTES * (found.measure("parameters") + found.memory_values()) / 1e6,
        top1_pct=accuracies.get(named.name),
    )


def distinct_networks(named: Mapping[str, NamedNetwork]) -> list[NamedNetwork]:
    """The networks that differ: of variants that only learn otherwise, the first."""
    found: dict[tuple[Any, ...], NamedNetwork] = {}
    for one in named.values():
        found.setdefault((one.variant.model.model_dump_json(), one.classes, one.image), one)
    return list(found.values())


def published_accuracies(experiments: Sequence[Experiment]) -> dict[str, float]:
    """The accuracies in percent that the complexity comparison prints, by network."""
    printed = {key: fact for e in experiments if e.name == COMPLEXITY for key, fact in e.printed.items()}
    return {key.removeprefix("top1_"): float(p.value) for key, p in printed.items() if key.startswith("top1_")}
