"""Counts of one network: parameters, multiply-adds, activations, shapes, receptive fields, initial weights."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules.networks import build
from pipeline.analyse.tracing import (
    POOLING,
    WEIGHTED,
    SkipInitialisation,
    Trace,
    is_weighted_layer,
    trace_forward,
)
from pipeline.common.errors import UserError
from pipeline.declare.claim_tables import SQUARE_SIZES

COUNTS = ("parameters", "weights", "multiply_adds", "activations", "connections", "convolutions")

INITIAL_STATISTICS = ("init_std", "init_mean", "init_bias")

PLAIN_ATTRIBUTES = (int, float, bool, str, tuple)  # types of the attributes that a claim can name


class NetworkAnalysis:
    """Counts of one network, and of its forward pass on one image of shape (C, H, W).

    `initialised` builds the network with its initial weights; None if `network` already holds them. The forward
    pass and the initial weights are computed on first use.
    """

    def __init__(
        self,
        network: nn.Module,
        image: tuple[int, int, int],
        initialised: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.network = network.eval()
        self.image = image
        self._initialised = initialised

    @cached_property
    def trace(self) -> Trace:
        """Forward pass of one image. Raises UserError for an image that the network cannot read."""
        try:
            return trace_forward(self.network, self.image)
        except ValueError as error:
            raise UserError(str(error)) from None

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """All modules by name; "" is the network."""
        return dict(self.network.named_modules())

    @cached_property
    def initialised(self) -> nn.Module:
        """The network with its initial weights."""
        return self._initialised() if self._initialised else self.network

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the convolutions and full connections for one image, without biases."""
        return self.trace.multiply_adds[""]

    def measure(self, metric: str) -> Any:
        """Return the value of `metric`, such as "parameters", "count/Dropout" or "layer/conv1/output".

        Raises UserError for an unknown metric or layer.
        """
        kind, _, rest = metric.partition("/")
        if kind == "layer":
            names, _, what = rest.rpartition("/")
            return self.layers(names.split("+"), what)
        if kind == "count":
            return sum(type(module).__name__ == rest for module in self.modules.values())
        if kind == "own":
            return plain_attribute(self.network, rest, "the network")
        simple: dict[str, Callable[[], Any]] = {
            "parameters": lambda: count_parameters(self.network),
            "weights": lambda: self.count("", "weights"),
            "multiply_adds": lambda: self.multiply_adds,
            "activations": lambda: self.count("", "activations"),
            "memory_values": self.memory_values,
            "connections": lambda: self.count("", "connections"),
            "depth": lambda: sum(
                isinstance(module, WEIGHTED) and ".shortcut." not in name for name, module in self.modules.items()
            ),
            "longest_path": lambda: self.trace.longest_path,
            "additions": lambda: self.trace.additions,
            "input": lambda: list(self.image),
            "batchnorms_per_convolution": self.batchnorms_per_convolution,
            "init_gain": self.init_gain,
        }
        if kind not in simple or rest:
            known = ", ".join(simple)
            raise UserError(
                f"unknown metric model/{metric}; known: {known}, count/CLASS, own/NAME, layer/NAME/WHAT"
            )
        return simple[kind]()

    def layers(self, names: Sequence[str], what: str) -> Any:
        """Return `layer` of a single name, or the sum of a count over several layers."""
        if len(names) == 1:
            return self.layer(names[0], what)
        if what not in COUNTS:
            raise UserError(
                f"{what!r} is a metric of one layer; for {'+'.join(names)} use a count: {', '.join(COUNTS)}"
            )
        return sum(self.layer(name, what) for name in names)

    def layer(self, name: str, what: str) -> Any:
        """Return one metric of a layer: `output` (C, H, W), a count, its receptive field, a statistic of its
        initial weights, or an attribute."""
        if not name or name not in self.modules:
            known = ", ".join(child for child, _ in self.network.named_children())
            raise UserError(f"the network has no layer {name!r}; its layers: {known}")
        if what in COUNTS:
            return self.count(name, what)
        if what in INITIAL_STATISTICS:
            return initial_statistic(self.initialised.get_submodule(name), name, what)
        if what in ("output", "receptive_field") and name not in self.trace.outputs:
            raise UserError(f"layer {name!r} is not used in evaluation, so it has no {what}")
        if what == "output":
            return list(self.trace.outputs[name].shape[1:])
        if what == "receptive_field":
            return self.trace.fields[name].field
        known = ", ".join(("output", *COUNTS, "receptive_field", *INITIAL_STATISTICS))
        value = plain_attribute(
            self.modules[name], what, "a layer", f"; known: {known}, or an attribute of the layer"
        )
        is_square = what in SQUARE_SIZES and isinstance(
            value, int
        )  # a pooling has one number for height and width
        return [value, value] if is_square else value

    def count(self, name: str, what: str) -> int:
        """Return a count over layer `name` and all layers inside it; "" is the whole network."""
        module = self.modules[name]
        if what == "parameters":
            return count_parameters(module)
        if what == "multiply_adds":
            return self.trace.multiply_adds[name]
        inside = {f"{name}.{inner}".strip("."): part for inner, part in module.named_modules()}
        if what == "convolutions":
            return sum(isinstance(part, nn.Conv2d) for part in inside.values())
        if what == "weights":
            return sum(part.weight.numel() for part in inside.values() if is_weighted_layer(part))
        outputs = self.trace.outputs
        if what == "activations":
            return sum(
                outputs[path][0].numel()
                for path, part in inside.items()
                if is_weighted_layer(part) and path in outputs
            )
        return sum(self.connections(path) for path in inside if path in outputs)

    def connections(self, name: str) -> int:
        """Return the number of connections into one layer's units; 0 for a layer without weights."""
        module, output = self.modules[name], self.trace.outputs[name]
        counted: Any = getattr(module, "connections", None)  # the layers of LeNet-5 have a method for it
        if counted:
            return int(counted(output))
        if isinstance(module, WEIGHTED):
            fan_in = module.weight[0].numel() + (module.bias is not None)
            return fan_in * output[0].numel()
        return 0

    def memory_values(self) -> int:
        """Return the number of values in the input and the outputs of convolutions, poolings, full connections."""
        kept = (
            output[0].numel()
            for name, output in self.trace.outputs.items()
            if is_weighted_layer(module := self.modules[name])
            or isinstance(module, POOLING)
            or hasattr(module, "window")
        )
        return sum(kept) + torch.Size(self.image).numel()

    def batchnorms_per_convolution(self) -> float:
        """Return the number of batch normalisations divided by the number of convolutions."""
        convolutions = self.measure("count/Conv2d")
        if not convolutions:
            raise UserError("the network has no nn.Conv2d, so batchnorms_per_convolution is undefined")
        return float(self.measure("count/BatchNorm2d") / convolutions)

    def init_gain(self) -> float:
        """Return variance times fan-in of the initial weights, pooled over all convolutions: 2 for He's method."""
        weights = [module.weight for module in self.initialised.modules() if isinstance(module, nn.Conv2d)]
        if not weights:
            raise UserError("the network has no nn.Conv2d, so init_gain is undefined")
        scaled = torch.empty(sum(weight.numel() for weight in weights), dtype=torch.float64)
        start = 0
        for weight in weights:
            scaled[start : start + weight.numel()] = (weight.detach() * weight[0].numel() ** 0.5).flatten()
            start += weight.numel()
        return float(scaled.square_().mean())


def plain_attribute(module: nn.Module, name: str, whose: str, known: str = "") -> Any:
    """Return an attribute or property of a module that is a number, a string or a sequence of these."""
    value = None if name.startswith("_") else getattr(module, name, None)
    if not isinstance(value, PLAIN_ATTRIBUTES):
        raise UserError(f"unknown metric {name!r} of {whose}{known}")
    return list(value) if isinstance(value, tuple) else value


def initial_statistic(module: nn.Module, name: str, what: str) -> float:
    """Return the standard deviation or mean of a layer's initial weights, or the mean of its biases."""
    values: Any = getattr(module, "bias" if what == "init_bias" else "weight", None)
    if not isinstance(values, Tensor):
        raise UserError(f"layer {name!r} has no {'biases' if what == 'init_bias' else 'weights'} of its own")
    values = values.detach().double()
    return float(values.std() if what == "init_std" else values.mean())


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def analyse_network(name: str, args: str, classes: int, image: tuple[int, int, int]) -> NetworkAnalysis:
    """Return the analysis of network `name` with the arguments `args` (JSON) on an image of shape (C, H, W).

    Raises ValueError for an unknown network or argument.
    """

    def build_network() -> nn.Module:
        return build(name, json.loads(args), num_classes=classes, in_channels=image[0])

    def initialised() -> nn.Module:
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(0)
            return build_network()

    with torch.device("meta"), SkipInitialisation():
        network = build_network()
    return NetworkAnalysis(network, image, initialised)


@contextmanager
def one_thread() -> Iterator[None]:
    """Context in which torch uses one thread. Two threads on a busy machine take eight times as long here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
