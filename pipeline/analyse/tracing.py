"""Trace one forward pass: shapes, operations and receptive fields of each layer."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakTensorKeyDictionary

WEIGHTED = (nn.Conv2d, nn.Linear)

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

SHAPE_OPERATIONS = {  # data set: classes, channels and side in pixels, known without reading it
    "digits": (10, 1, 8),
    "mnist": (10, 1, 28),
    "fashion-mnist": (10, 1, 28),
    "cifar10": (10, 3, 32),
    "cifar100": (100, 3, 32),
    "cifar10-jpeg": (10, 3, 32),
    "noise": (10, 3, 16),
}

NORMALISING = (torch.ops.aten.native_batch_norm, torch.ops.aten._native_batch_norm_legit_no_training)

INIT_FUNCTIONS = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_, torch.Tensor.fill_)


@dataclass(frozen=True)
class ReceptiveField:
    """What one unit of a tensor sees of the image, and how many weighted layers are behind it."""

    field: int = 1  # side of the receptive field, in input pixels
    jump: int = 1  # distance in input pixels between the fields of two neighbours
    path: int = 0  # weighted layers on the longest way here

    def through(self, kernel: int, stride: int = 1, dilation: int = 1) -> "ReceptiveField":
        """After a window of `kernel` places moved by `stride`."""
        return ReceptiveField(self.field + (kernel - 1) * dilation * self.jump, self.jump * stride, self.path)

    def weighted(self) -> "ReceptiveField":
        """After one more layer with weights."""
        return ReceptiveField(self.field, self.jump, self.path + 1)


class Tracer(TorchDispatchMode):
    """Follows every tensor that comes of the image through torch's operations, and counts these."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.reach = WeakTensorKeyDictionary()
        self.reach[image] = ReceptiveField()
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
        sources = [t for t in tensors_in(args) if t in self.reach]
        if sources:
            known = [self.reach[t] for t in sources]
            joined = ReceptiveField(*(max(getattr(r, name) for r in known) for name in ("field", "jump", "path")))
            after = self.after(func.overloadpacket, joined, sources[0], args)
            for output in tensors_in(result if isinstance(result, tuple | list) else (result,)):
                self.reach[output] = after if output.dim() >= 4 else global_field(after, sources[0])
        return result

    def after(self, operation: Any, reach: ReceptiveField, source: Tensor, args: Any) -> ReceptiveField:
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
            return global_field(reach, source)
        if operation is aten.slice and len(args) > 4 and args[1] % source.dim() == source.dim() - 1:
            return reach.through(1, args[4])  # every second column; rows go alike
        if operation in (aten.add, aten.add_) and source.dim() == 4:
            self.additions += sum(t.shape == source.shape and t in self.reach for t in tensors_in(args)) == 2
        return reach


class SkipInitialisation(TorchFunctionMode):
    """Within: initial weights are not filled in. What has no memory would still take a millisecond each."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Nothing for a fill, anything else as always."""
        return args[0] if func in INIT_FUNCTIONS else func(*args, **(kwargs or {}))


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in arguments or results, lists looked into."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(value)
    return found


def global_field(reach: ReceptiveField, source: Tensor) -> ReceptiveField:
    """After all places of a map have been joined, as flattening and global pooling do."""
    return reach.through(max(source.shape[2:])) if source.dim() == 4 else reach


def is_weighted_layer(module: nn.Module) -> bool:
    """Whether a module is one layer with weights: a convolution, a full connection, one of LeNet-5's."""
    return isinstance(module, WEIGHTED) or (hasattr(module, "connections") and hasattr(module, "weight"))
