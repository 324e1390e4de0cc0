"""Networks by name, and their costs.

`repro analyse resnet-50` and `repro evaluate resnet-50` refer to the variant of that name in any experiment. The
name of a builder, such as resnet_cifar, refers to that network with its default arguments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_modules.names import nearest
from lightning_modules.networks import NETWORKS, check_arguments
from pipeline.analyse.measure import analysis_of, class_count, published_image_shape
from pipeline.analyse.network import NetworkAnalysis
from pipeline.common.errors import UserError
from pipeline.declare.data_settings import Data
from pipeline.declare.experiment import Experiment, PublishedRecipe
from pipeline.declare.recipe import Model

COMPLEXITY = "complexity/architecture"  # prints the accuracies of the chart as top1_NETWORK

BYTES = 4  # of a number in fp32


@dataclass(frozen=True)
class NamedNetwork:
    """A network with its name, arguments and data set."""

    name: str
    paper: str  # folder of the experiment; "" if no experiment declares the network
    variant: PublishedRecipe

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of the input."""
        return published_image_shape(self.variant)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return class_count(self.variant.data)


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one network for one image."""

    name: str
    paper: str
    image: tuple[int, int, int]
    layers: int  # with weights, on the longest path from image to scores
    parameters: int
    multiply_adds: int
    activations: int
    memory_mb: float  # 1e6 bytes: parameters, input, outputs of convolutional, pooling and fully connected layers
    top1_pct: float | None  # published accuracy, read from the chart of arXiv:1605.07678
    forward_s: tuple[float, ...] = ()  # measured on this machine

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)


def catalogue(experiments: Sequence[Experiment]) -> dict[str, NamedNetwork]:
    """Return all variants of all experiments by name.

    If several experiments declare a name, the one of the network's own paper counts, then those that do not merely
    compare networks.
    """
    found: dict[str, NamedNetwork] = {}
    for experiment in sorted(experiments, key=lambda e: (e.name == COMPLEXITY, e.folder == "ilsvrc", e.name)):
        for name in experiment.variants:
            variant = experiment.published(name)
            network = NETWORKS.get(variant.model.name)
            is_own = network is None or network.build.__module__.rpartition(".")[2].startswith(experiment.folder)
            if name not in found or (is_own and found[name].paper != experiment.folder):
                found[name] = NamedNetwork(name, experiment.folder, variant)
    return found


def find_network(
    name: str, experiments: Sequence[Experiment], changes: Mapping[str, Any] | None = None
) -> NamedNetwork:
    """Return the network called `name`, with the arguments in `changes`.

    Raises UserError with the nearest name for an unknown network, and for an unknown argument.
    """
    known = catalogue(experiments)
    if name in known:
        named = known[name]
    elif name in NETWORKS:
        channels, side, _ = NETWORKS[name].image
        data_set = {1: "mnist", 3: "cifar10" if side <= 32 else "imagenet"}.get(channels, "imagenet")
        data = Data(name=data_set, pad_to=32 if data_set == "mnist" else None)
        named = NamedNetwork(name, "", PublishedRecipe(model=Model(name=name), data=data, train=None))
    else:
        hint = nearest(name, [*known, *NETWORKS], "; list all networks with: repro analyse")
        raise UserError(f"network {name!r} not found{hint}")
    if not changes:
        return named
    model = Model(**{**named.variant.model.args, **changes, "name": named.variant.model.name})
    try:
        check_arguments(model.name, {**model.args, **changes})
    except ValueError as error:
        raise UserError(str(error)) from None
    label = ", ".join(f"{key} {value}" for key, value in changes.items())
    return NamedNetwork(f"{named.name} ({label})", named.paper, named.variant.model_copy(update={"model": model}))


def network_cost(named: NamedNetwork, accuracies: Mapping[str, float]) -> NetworkCost:
    """Return the cost of a network, without forward times; `accuracies` as of `published_accuracies`."""
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
    """Return the distinct networks: of variants that differ only in training, the first."""
    found: dict[tuple[Any, ...], NamedNetwork] = {}
    for network in named.values():
        found.setdefault((network.variant.model.model_dump_json(), network.classes, network.image), network)
    return list(found.values())


def published_accuracies(experiments: Sequence[Experiment]) -> dict[str, float]:
    """Return the accuracies in percent that the complexity experiment prints, by network."""
    printed = {key: fact for e in experiments if e.name == COMPLEXITY for key, fact in e.printed.items()}
    return {key.removeprefix("top1_"): float(p.value) for key, p in printed.items() if key.startswith("top1_")}
