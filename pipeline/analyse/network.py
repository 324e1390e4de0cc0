"""Counts of one network: parameters, multiply-adds, activations, shapes, receptive fields."""

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
    ReceptiveField,
    SkipInitialisation,
    Tracer,
    is_weighted_layer,
)
from pipeline.common.errors import UserError

COUNTS = ("parameters", "weights", "multiply_adds", "activations", "connections", "convolutions")

PLAIN_ATTRIBUTES = int | float | bool | str | tuple  # what an attribute may be that a claim can name


class NetworkAnalysis:
    """One network, run once on one image of zeros.

    `initialised` builds it with its weights, for what is said of them; None: the network has them.
    """

    def __init__(
        self,
        network: nn.Module,
        image: tuple[int, int, int],
        initialised: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.network = network.eval()
        self.image = image
        self.outputs: dict[str, Tensor] = {}
        self.reach: dict[str, ReceptiveField] = {}
        self._initialised = initialised
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        zeros = torch.zeros(1, *image, device=device)
        tracing = Tracer(zeros)
        hooks = []
        for name, module in network.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(self._enter(name, tracing)))
                hooks.append(module.register_forward_hook(self._leave(name, tracing)))
        with torch.no_grad(), tracing:
            scores = network(zeros)
        for hook in hooks:
            hook.remove()
        self.additions, self.longest_path = tracing.additions, tracing.reach[scores].path
        self._multiply_adds = tracing.multiply_adds
        self.multiply_adds = tracing.multiply_adds[""]

    def _enter(self, name: str, tracing: Tracer) -> Any:
        return lambda _module, _inputs: tracing.within.append(name)

    def _leave(self, name: str, tracing: Tracer) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            tracing.within.pop()
            if not isinstance(output, Tensor):
                return
            window = getattr(module, "window", None)  # LeNet-5's sub-sampling is no pooling that torch knows
            if window:
                tracing.reach[output] = tracing.reach[inputs[0]].through(window, window).weighted()
            self.outputs[name] = output.to("meta")  # its shape is all that is asked of it
            self.reach[name] = tracing.reach.get(output, ReceptiveField())

        return keep

    @cached_property
    def initialised(self) -> nn.Module:
        """The network with its initial weights."""
        return self._initialised() if self._initialised else self.network

    def measure(self, metric: str) -> Any:
        """The value of `metric`, such as "parameters", "count/Dropout" or "layer/conv1/output"."""
        kind, _, rest = metric.partition("/")
        if kind == "layer":
            names, _, what = rest.rpartition("/")
            return self.layers(names.split("+"), what)
        if kind == "count":
            return sum(type(module).__name__ == rest for module in self.network.modules())
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
                isinstance(module, WEIGHTED) and ".shortcut." not in name
                for name, module in self.network.named_modules()
            ),
            "longest_path": lambda: self.longest_path,
            "additions": lambda: self.additions,
            "input": lambda: list(self.image),
            "batchnorms_per_convolution": self.batchnorms_per_convolution,
            "init_gain": self.init_gain,
        }
        if kind not in simple or rest:
            known = ", ".join(simple)
            raise UserError(f"no metric model/{metric}; known: {known}, count/CLASS, own/NAME, layer/NAME/WHAT")
        return simple[kind]()

    def layers(self, names: Sequence[str], what: str) -> Any:
        """`layer` of one, or the sum of a count over several."""
        if len(names) == 1:
            return self.layer(names[0], what)
        if what not in COUNTS:
            raise UserError(
                f"{what!r} is of one layer; over {'+'.join(names)} only {', '.join(COUNTS)} are summed"
            )
        return sum(self.layer(name, what) for name in names)

    def layer(self, name: str, what: str) -> Any:
        """One layer's `output` (C, H, W), a count, its receptive field, initial weights, or an attribute of it."""
        modules = dict(self.network.named_modules())
        if not name or name not in modules:
            known = ", ".join(child for child, _ in self.network.named_children())
            raise UserError(f"the network has no layer {name!r}; its layers: {known}")
        if what in COUNTS:
            return self.count(name, what)
        if what in ("init_std", "init_mean", "init_bias"):
            return initial_statistic(self.initialised.get_submodule(name), name, what)
        if what in ("output", "receptive_field") and name not in self.outputs:
            raise UserError(f"layer {name!r} is not used when evaluating, so it has no {what}")
        if what == "output":
            return list(self.outputs[name].shape[1:])
        if what == "receptive_field":
            return self.reach[name].field
        known = ", ".join(("output", *COUNTS, "receptive_field", "init_std", "init_mean", "init_bias"))
        return plain_attribute(modules[name], what, "a layer", f"; known: {known}, or an attribute of it")

    def count(self, name: str, what: str) -> int:
        """A count over layer `name` and all in it; "" is the whole network."""
        module = self.network.get_submodule(name)
        if what == "parameters":
            return count_parameters(module)
        if what == "multiply_adds":
            return self._multiply_adds[name]
        within = {f"{name}.{inner}".strip("."): part for inner, part in module.named_modules()}
        if what == "convolutions":
            return sum(isinstance(part, nn.Conv2d) for part in within.values())
        if what == "weights":
            return sum(part.weight.numel() for part in within.values() if is_weighted_layer(part))
        if what == "activations":
            return sum(
                self.outputs[path][0].numel()
                for path, part in within.items()
                if is_weighted_layer(part) and path in self.outputs
            )
        return sum(self.connections(path) for path in within if path in self.outputs)

    def connections(self, name: str) -> int:
        """Connections into one layer's units; 0 for what has none of its own."""
        module, output = self.network.get_submodule(name), self.outputs[name]
        counted: Any = getattr(module, "connections", None)  # LeNet-5's layers count their own
        if counted:
            return int(counted(output))
        if isinstance(module, WEIGHTED):
            fan_in = module.weight[0].numel() + (module.bias is not None)
            return fan_in * output[0].numel()
        return 0

    def memory_values(self) -> int:
        """Numbers held when every output of a convolution, pooling or full connection is kept, and the input."""
        kept = (
            output[0].numel()
            for name, output in self.outputs.items()
            if is_weighted_layer(module := self.network.get_submodule(name))
            or isinstance(module, POOLING)
            or hasattr(module, "window")
        )
        return sum(kept) + torch.Size(self.image).numel()

    def batchnorms_per_convolution(self) -> float:
        """Batch normalisations, divided by convolutions."""
        convolutions = self.measure("count/Conv2d")
        if not convolutions:
            raise UserError("the network has no convolution of torch's own kind to normalise after")
        return float(self.measure("count/BatchNorm2d") / convolutions)

    def init_gain(self) -> float:
        """Variance times fan-in of the convolutions' initial weights, all pooled: 2 for He initialisation."""
        weights = [module.weight for module in self.initialised.modules() if isinstance(module, nn.Conv2d)]
        if not weights:
            raise UserError(
                "the network has no convolution of torch's own kind whose initial weights could be told"
            )
        scaled = torch.cat([(weight * weight[0].numel() ** 0.5).flatten() for weight in weights])
        return float(scaled.detach().double().square().mean())


def plain_attribute(module: nn.Module, name: str, whose: str, known: str = "") -> Any:
    """A number, word, or row of them that a module has as an attribute or property."""
    value = None if name.startswith("_") else getattr(module, name, None)
    if not isinstance(value, PLAIN_ATTRIBUTES):
        raise UserError(f"no metric {name!r} of {whose}{known}")
    return list(value) if isinstance(value, tuple) else value


def initial_statistic(module: nn.Module, name: str, what: str) -> float:
    """Spread or mean of a layer's initial weights, or the mean of its biases."""
    values: Any = getattr(module, "bias" if what == "init_bias" else "weight", None)
    if not isinstance(values, Tensor):
        raise UserError(f"layer {name!r} has no {'biases' if what == 'init_bias' else 'weights'} of its own")
    values = values.detach().double()
    return float(values.std() if what == "init_std" else values.mean())


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def _analysis(name: str, args: str, classes: int, image: tuple[int, int, int]) -> NetworkAnalysis:
    def made() -> nn.Module:
        return build(name, json.loads(args), num_classes=classes, in_channels=image[0])

    def initialised() -> nn.Module:
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(0)
            return made()

    with torch.device("meta"), SkipInitialisation():
        network = made()
    return NetworkAnalysis(network, image, initialised)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch uses one thread. On a busy machine two take eight times as long for layers so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
