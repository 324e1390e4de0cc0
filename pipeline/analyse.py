"""What arithmetic alone can say of a network: parameters, multiply-adds, connections, shapes.

Counting rules:
  parameters       all trainable numbers: weights, biases, batch-norm scale and shift
  multiply_adds    of one forward pass of one image, as the papers count ("FLOPs" there); biases not counted.
                   torch's FlopCounterMode counts two operations per multiply-add, so half of its count.
  connections      weights and biases feeding a unit, times its units (LeCun et al. 1998)
  depth            layers with weights: convolutions and fully connected ones, projection shortcuts left out
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.networks import build
from pipeline.experiment import Experiment, Recipe
from pipeline.mistakes import UserError

WEIGHTED = (nn.Conv2d, nn.Linear)
SHAPES = {  # data set: classes, channels and side in pixels, known without reading it
    "digits": (10, 1, 8),
    "mnist": (10, 1, 28),
    "fashion-mnist": (10, 1, 28),
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "cifar10-jpeg": (10, 3, 32),
    "noise": (10, 3, 16),
}


class Analysis:
    """One network, built on the CPU, run once on one image of zeros."""

    def __init__(self, network: nn.Module, image: tuple[int, int, int]) -> None:
        self.network = network.eval()
        self.outputs: dict[str, Tensor] = {}
        hooks = [
            module.register_forward_hook(self._watch(name)) for name, module in network.named_modules() if name
        ]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, *image))
        for hook in hooks:
            hook.remove()
        self.multiply_adds = counter.get_total_flops() // 2

    def _watch(self, name: str) -> Any:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self.outputs[name] = output.to("meta")  # its shape is all that is asked of it

        return keep

    def measure(self, metric: str) -> Any:
        """The value of `metric`, such as "parameters", "count/Dropout" or "layer/conv1/output"."""
        kind, _, rest = metric.partition("/")
        if kind == "layer":
            name, _, what = rest.rpartition("/")
            return self.layer(name, what)
        if kind == "count":
            return sum(type(module).__name__ == rest for module in self.network.modules())
        simple = {
            "parameters": lambda: count_parameters(self.network),
            "multiply_adds": lambda: self.multiply_adds,
            "connections": lambda: sum(self.connections(name) for name in self.outputs),
            "depth": lambda: sum(
                isinstance(module, WEIGHTED) and ".shortcut." not in name
                for name, module in self.network.named_modules()
            ),
            "batchnorms_per_convolution": lambda: self.measure("count/BatchNorm2d") / self.measure("count/Conv2d"),
            "init_gain": self.init_gain,
        }
        if kind not in simple or rest:
            raise UserError(f"no metric model/{metric}; known: {', '.join(simple)}, count/CLASS, layer/NAME/WHAT")
        return simple[kind]()

    def layer(self, name: str, what: str) -> Any:
        """One layer's `output` (C, H, W), `parameters`, `connections` or number of `convolutions`."""
        if name not in self.outputs:
            known = ", ".join(child for child, _ in self.network.named_children())
            raise UserError(f"the network has no layer {name!r}; its layers: {known}")
        module = self.network.get_submodule(name)
        if what == "output":
            return list(self.outputs[name].shape[1:])
        if what == "parameters":
            return count_parameters(module)
        if what == "connections":
            return self.connections(name)
        if what == "convolutions":
            return sum(isinstance(inner, nn.Conv2d) for inner in module.modules())
        raise UserError(f"no metric {what!r} of a layer; known: output, parameters, connections, convolutions")

    def connections(self, name: str) -> int:
        """Connections into a layer's units; 0 for what has none of its own."""
        module, output = self.network.get_submodule(name), self.outputs[name]
        counted: Any = getattr(module, "connections", None)  # LeNet-5's layers count their own
        if counted:
            return int(counted(output))
        if isinstance(module, WEIGHTED):
            fan_in = module.weight[0].numel() + (module.bias is not None)
            return fan_in * output[0].numel()
        return 0

    def init_gain(self) -> float:
        """Variance times fan-in of the convolutions' initial weights, all pooled: 2 for He initialisation."""
        weights: list[Tensor] = [
            module.weight for module in self.network.modules() if isinstance(module, nn.Conv2d)
        ]
        scaled = torch.cat([(weight * weight[0].numel() ** 0.5).flatten() for weight in weights])
        return float(scaled.detach().double().square().mean())


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure(metric: str, experiment: Experiment, variant: str) -> Any:
    """An exact claim's measured value: `model/…` of the network as built, `recipe/…` of what is declared.

    Both at paper scale. UserError for a metric that does not exist.
    """
    recipe = experiment.recipe(variant, "paper")
    kind, _, rest = metric.partition("/")
    if kind == "model":
        return analysis(recipe).measure(rest)
    if kind != "recipe":
        raise UserError(f"{experiment.name}: {metric!r} is not exact; exact metrics start with model/ or recipe/")
    value: Any = recipe.model_dump(mode="json")
    for part in rest.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{experiment.name}: the recipe has no setting {rest!r}")
        value = value[part]
    return value


def analysis(recipe: Recipe) -> Analysis:
    """The analysis of a recipe's network on its data's image size."""
    image = image_shape(recipe)
    classes, *_ = SHAPES[recipe.data.name]
    return _analysis(recipe.model.name, json.dumps(recipe.model.args, sort_keys=True), classes, image)


@cache
def _analysis(name: str, args: str, classes: int, image: tuple[int, int, int]) -> Analysis:
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(0)
        try:
            network = build(name, json.loads(args), num_classes=classes, in_channels=image[0])
        except ValueError as error:  # an unknown network, an argument it does not take
            raise UserError(str(error)) from None
        return Analysis(network, image)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch uses one thread. On a busy machine two take eight times as long for layers so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def image_shape(recipe: Recipe) -> tuple[int, int, int]:
    """(C, H, W) of a known data set's images, padded as the recipe says."""
    if recipe.data.name not in SHAPES:
        raise UserError(f"the image size of data set {recipe.data.name!r} is not known without reading it")
    _, channels, side = SHAPES[recipe.data.name]
    side = recipe.data.pad_to or side
    return channels, side, side
