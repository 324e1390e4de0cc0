"""What arithmetic alone can say of a network: shapes, parameters, multiply-adds, activations, receptive fields.

A network is built without memory for its weights and run once on one image, in evaluation mode; only what is said
of its initial weights builds it in full. Counting rules:

  parameters       all trainable numbers: weights, biases, batch-norm scale and shift
  weights          of them, those of convolutions and fully connected layers, without biases
  multiply_adds    of one forward pass of one image, as the papers count ("FLOPs" there); biases not counted.
                   torch's own formulas (FlopCounterMode's) count two operations each, so half of their count.
  activations      numbers in the outputs of all convolutions and fully connected layers
  memory_values    numbers in the input and in the outputs of all convolutions, poolings and fully connected layers
  connections      weights and biases feeding a unit, times its units (LeCun et al. 1998)
  depth            layers with weights: convolutions and fully connected ones, projection shortcuts left out
  longest_path     convolutions and fully connected layers on the longest way from the input to the output
  additions        sums of two maps of the same shape, as shortcuts make them
  receptive_field  side in input pixels of what one unit of a layer can see, the padding around the image included
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_modules.names import nearest
from lightning_modules.networks import NETWORKS, build
from pipeline.experiment import Data, Experiment, Recipe
from pipeline.mistakes import UserError
from pipeline.protocol import read_protocol

WEIGHTED = (nn.Conv2d, nn.Linear)
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
SHAPES = {  # data set: classes, channels and side in pixels, known without reading it
    "digits": (10, 1, 8),
    "mnist": (10, 1, 28),
    "fashion-mnist": (10, 1, 28),
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "cifar10-jpeg": (10, 3, 32),
    "noise": (10, 3, 16),
}
IMAGENET = "imagenet"  # 1000 classes; the image is as large as the network's paper has it
IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "fashion-mnist": 60_000}
COUNTS = ("parameters", "weights", "multiply_adds", "activations", "connections", "convolutions")
NORMALISING = (torch.ops.aten.native_batch_norm, torch.ops.aten._native_batch_norm_legit_no_training)
FILLS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_, torch.Tensor.fill_)
PLAIN = int | float | bool | str | tuple  # what an attribute may be that a claim can name


@dataclass(frozen=True)
class Reach:
    """What one unit of a tensor sees of the image, and how many weighted layers are behind it."""

    field: int = 1  # side of the receptive field, in input pixels
    jump: int = 1  # distance in input pixels between the fields of two neighbours
    path: int = 0  # weighted layers on the longest way here

    def through(self, kernel: int, stride: int = 1, dilation: int = 1) -> "Reach":
        """After a window of `kernel` places moved by `stride`."""
        return Reach(self.field + (kernel - 1) * dilation * self.jump, self.jump * stride, self.path)

    def weighted(self) -> "Reach":
        """After one more layer with weights."""
        return Reach(self.field, self.jump, self.path + 1)


class Tracing(TorchDispatchMode):
    """Follows every tensor that comes of the image through torch's operations, and counts these."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.reach = WeakTensorKeyDictionary()
        self.reach[image] = Reach()
        self.additions = 0
        self.within = [""]  # the modules being computed, by name; "" is the network
        self.multiply_adds: Counter[str] = Counter()  # of each module and all in it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and note what it costs and how far the result sees."""
        if func.overloadpacket in NORMALISING and args[0].is_meta:  # torch takes milliseconds to see the shape
            result = torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        else:
            result = func(*args, **(kwargs or {}))
        operations = flop_registry.get(func.overloadpacket)
        if operations:
            for name in self.within:
                self.multiply_adds[name] += operations(*args, **(kwargs or {}), out_val=result) // 2
        sources = [t for t in tensors(args) if t in self.reach]
        if sources:
            known = [self.reach[t] for t in sources]
            joined = Reach(*(max(getattr(r, name) for r in known) for name in ("field", "jump", "path")))
            after = self.after(func.overloadpacket, joined, sources[0], args)
            for output in tensors(result if isinstance(result, tuple | list) else (result,)):
                self.reach[output] = after if output.dim() >= 4 else whole(after, sources[0])
        return result

    def after(self, operation: Any, reach: Reach, source: Tensor, args: Any) -> Reach:
        """The reach of what `operation` makes of `source`."""
        aten = torch.ops.aten
        if operation is aten.convolution:
            weight, stride, dilation = args[1], args[3], args[5]
            return reach.through(weight.shape[-1], stride[-1], dilation[-1]).weighted()
        if operation in (aten.addmm, aten.mm, aten.bmm):
            return reach.weighted()
        if operation in (aten.max_pool2d_with_indices, aten.avg_pool2d):
            kernel = args[1]
            stride = args[2] if len(args) > 2 and args[2] else kernel
            return reach.through(kernel[-1], stride[-1])
        if operation in (aten.mean, aten._adaptive_avg_pool2d) and source.dim() == 4:
            return whole(reach, source)
        if operation is aten.slice and len(args) > 4 and args[1] % source.dim() == source.dim() - 1:
            return reach.through(1, args[4])  # every second column; rows go alike
        if operation in (aten.add, aten.add_) and source.dim() == 4:
            self.additions += sum(t.shape == source.shape and t in self.reach for t in tensors(args)) == 2
        return reach


class Unfilled(TorchFunctionMode):
    """Within: initial weights are not filled in. What has no memory would still take a millisecond each."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing for a fill, anything else as always."""
        return args[0] if func in FILLS else func(*args, **(kwargs or {}))


def tensors(values: Any) -> list[Tensor]:
    """The tensors in arguments or results, lists looked into."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors(value)
    return found


def whole(reach: Reach, source: Tensor) -> Reach:
    """After all places of a map have been joined, as flattening and global pooling do."""
    return reach.through(max(source.shape[2:])) if source.dim() == 4 else reach


class Analysis:
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
        self.reach: dict[str, Reach] = {}
        self._initialised = initialised
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        zeros = torch.zeros(1, *image, device=device)
        tracing = Tracing(zeros)
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

    def _enter(self, name: str, tracing: Tracing) -> Any:
        return lambda _module, _inputs: tracing.within.append(name)

    def _leave(self, name: str, tracing: Tracing) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            tracing.within.pop()
            if not isinstance(output, Tensor):
                return
            window = getattr(module, "window", None)  # LeNet-5's sub-sampling is no pooling that torch knows
            if window:
                tracing.reach[output] = tracing.reach[inputs[0]].through(window, window).weighted()
            self.outputs[name] = output.to("meta")  # its shape is all that is asked of it
            self.reach[name] = tracing.reach.get(output, Reach())

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
            return plain(self.network, rest, "the network")
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
            return initial(self.initialised.get_submodule(name), name, what)
        if what in ("output", "receptive_field") and name not in self.outputs:
            raise UserError(f"layer {name!r} is not used when evaluating, so it has no {what}")
        if what == "output":
            return list(self.outputs[name].shape[1:])
        if what == "receptive_field":
            return self.reach[name].field
        known = ", ".join(("output", *COUNTS, "receptive_field", "init_std", "init_mean", "init_bias"))
        return plain(modules[name], what, "a layer", f"; known: {known}, or an attribute of it")

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
            return sum(part.weight.numel() for part in within.values() if weighted(part))
        if what == "activations":
            return sum(
                self.outputs[path][0].numel()
                for path, part in within.items()
                if weighted(part) and path in self.outputs
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
            if weighted(module := self.network.get_submodule(name))
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


def weighted(module: nn.Module) -> bool:
    """Whether a module is one layer with weights: a convolution, a full connection, one of LeNet-5's."""
    return isinstance(module, WEIGHTED) or (hasattr(module, "connections") and hasattr(module, "weight"))


def plain(module: nn.Module, name: str, whose: str, known: str = "") -> Any:
    """A number, word, or row of them that a module has as an attribute or property."""
    value = None if name.startswith("_") else getattr(module, name, None)
    if not isinstance(value, PLAIN):
        raise UserError(f"no metric {name!r} of {whose}{known}")
    return list(value) if isinstance(value, tuple) else value


def initial(module: nn.Module, name: str, what: str) -> float:
    """Spread or mean of a layer's initial weights, or the mean of its biases."""
    values: Any = getattr(module, "bias" if what == "init_bias" else "weight", None)
    if not isinstance(values, Tensor):
        raise UserError(f"layer {name!r} has no {'biases' if what == 'init_bias' else 'weights'} of its own")
    values = values.detach().double()
    return float(values.std() if what == "init_std" else values.mean())


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def measure(metric: str, experiment: Experiment, variant: str | None) -> Any:
    """An exact claim's measured value, as published, before any scale.

    `model/…` of the network as built, `recipe/…` of what is declared, `printed/…` of what the paper says itself.
    `recipe/test_views/PROTOCOL`: how many images of a picture a declared test protocol shows the network;
    `recipe/test_scales/PROTOCOL`: at how many sizes of the picture;
    `recipe/distinct_crops`: squares of the declared side in the declared centre, twice as many if mirrored too.
    UserError for a metric that does not exist.
    """
    kind, _, rest = metric.partition("/")
    if kind == "printed":
        if rest not in experiment.printed:
            raise UserError(
                f"{experiment.name}: nothing printed is called {rest!r}{nearest(rest, experiment.printed)}"
            )
        value = experiment.printed[rest].value
        return list(value) if isinstance(value, tuple) else value
    if kind not in ("model", "recipe") or variant is None:
        raise UserError(
            f"{experiment.name}: {metric!r} is not exact; exact metrics start with model/, recipe/ or printed/"
        )
    published = experiment.published(variant)
    if kind == "model":
        try:
            return analysis(published).measure(rest)
        except UserError as error:
            raise UserError(f"{experiment.name}, {variant}: {error}") from None
    if published.train and rest in ("epochs", "drop_epochs"):
        return in_epochs(Recipe(**dict(published)), rest)
    asked, _, protocol = rest.partition("/")
    if asked in ("test_views", "test_scales"):
        return of_protocol(published.data, protocol, asked, experiment.name)
    if rest == "distinct_crops" and published.data.crop and published.data.crop.centre:
        places = (published.data.crop.centre - published.data.crop.side + 1) ** 2
        places = 5 if published.data.crop.at == "five" else places
        return places * (2 if "flip" in published.data.augment else 1)
    value = published.model_dump(mode="json")
    for part in rest.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{experiment.name}: the recipe has no setting {rest!r}")
        value = value[part]
    return value


def of_protocol(data: Data, name: str, what: str, experiment: str) -> int:
    """The `test_views` or `test_scales` of the protocol `name`; UserError unless `data` declares it."""
    if name not in data.test:
        raise UserError(f"{experiment}: the recipe has no test protocol {name!r}{nearest(name, data.test)}")
    protocol = read_protocol(name)
    if what == "test_views":
        return protocol.views
    return len({short for part in protocol.parts for short in part.shorts})


def in_epochs(recipe: Recipe, what: str) -> Any:
    """`epochs` trained, or the `drop_epochs` at which the rate falls (every so many: one number), to 0.01."""
    if recipe.data.name not in IMAGES:
        raise UserError(f"how many images data set {recipe.data.name!r} has is not known without reading it")
    images = recipe.data.train or IMAGES[recipe.data.name] - recipe.data.val

    def epochs(updates: int) -> float:
        return round(updates * recipe.train.batch_size / images, 2)

    if what == "epochs":
        return epochs(recipe.train.steps)
    drops = recipe.train.lr_drops
    if drops is None:
        return []
    return [epochs(at) for at in drops.at] if drops.at else epochs(drops.every or 0)


def analysis(variant: Any) -> Analysis:
    """The analysis of a variant's network (anything with `model` and `data`) on its data's images."""
    model, classes = variant.model, classes_of(variant.data)
    image = image_shape(variant)
    try:
        return _analysis(model.name, json.dumps(model.args, sort_keys=True), classes, image)
    except ValueError as error:  # an unknown network, an argument it does not take, an image it cannot read
        raise UserError(str(error)) from None


@cache
def _analysis(name: str, args: str, classes: int, image: tuple[int, int, int]) -> Analysis:
    def made() -> nn.Module:
        return build(name, json.loads(args), num_classes=classes, in_channels=image[0])

    def initialised() -> nn.Module:
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(0)
            return made()

    with torch.device("meta"), Unfilled():
        network = made()
    return Analysis(network, image, initialised)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch uses one thread. On a busy machine two take eight times as long for layers so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def classes_of(data: Data) -> int:
    """How many classes a known data set has."""
    if data.name == IMAGENET:
        return 1000
    if data.name not in SHAPES:
        raise UserError(f"the image size of data set {data.name!r} is not known without reading it")
    return SHAPES[data.name][0]


def image_shape(variant: Any) -> tuple[int, int, int]:
    """(C, H, W) of a known data set's images, padded as the recipe says; for imagenet, as the network has them."""
    data = variant.data
    if data.name == IMAGENET:
        if variant.model.name not in NETWORKS:
            raise UserError(f"network {variant.model.name!r} is unknown{nearest(variant.model.name, NETWORKS)}")
        return NETWORKS[variant.model.name].image
    classes_of(data)  # or a UserError
    _, channels, side = SHAPES[data.name]
    side = data.pad_to or side
    return channels, side, side
