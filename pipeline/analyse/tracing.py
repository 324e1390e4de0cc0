"""Trace one forward pass: output shapes, multiply-adds and receptive fields of each layer."""

from collections import Counter
from collections.abc import Callable, Iterable
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

INIT_FUNCTIONS = (
    nn.init.constant_,
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
    torch.Tensor.zero_,
    torch.Tensor.fill_,
)

aten = torch.ops.aten

BATCH_NORM = (aten.native_batch_norm, aten._native_batch_norm_legit_no_training)

ELEMENTWISE = (aten.relu, aten.tanh, aten.neg, aten.add, aten.sub, aten.mul, aten.div, aten.pow)

ELEMENTWISE_IN_PLACE = (aten.relu_, aten.add_, aten.sub_, aten.mul_, aten.div_)

MetaResult = tuple[list[tuple[torch.Size, tuple[int, ...], torch.dtype]], bool, int]
"""Results of an operation (shape, stride, dtype), True for several results, and multiply-adds."""

_meta_results: dict[Any, MetaResult] = {}  # by operation and arguments; networks repeat their layers


@dataclass(frozen=True)
class ReceptiveField:
    """Receptive field of one unit of a tensor, and the number of weighted layers before it."""

    field: int = 1  # side of the receptive field, in input pixels
    jump: int = 1  # distance in input pixels between the fields of two neighbours
    path: int = 0  # weighted layers on the longest path from the image

    def through(self, kernel: int, stride: int = 1, dilation: int = 1) -> "ReceptiveField":
        """Return the field after a window of side `kernel`."""
        return ReceptiveField(self.field + (kernel - 1) * dilation * self.jump, self.jump * stride, self.path)

    def weighted(self) -> "ReceptiveField":
        """Return the field after one more layer with weights."""
        return ReceptiveField(self.field, self.jump, self.path + 1)


@dataclass(frozen=True)
class Trace:
    """One forward pass of one image. Names are those of `named_modules`; "" is the network."""

    outputs: dict[str, Tensor]  # of each module, on the meta device: (1, C, H, W) or (1, C)
    fields: dict[str, ReceptiveField]  # of each module's output
    multiply_adds: Counter[str]  # of each module, with the modules inside it
    additions: int  # of two feature maps
    longest_path: int  # weighted layers from the image to the scores


def trace_forward(network: nn.Module, image: tuple[int, int, int]) -> Trace:
    """Run `network` once on an image of zeros with shape (C, H, W) and return what each module computed."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    zeros = torch.zeros(1, *image, device=device)
    tracer = Tracer(zeros)
    hooks = []
    for name, module in network.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(tracer.enter_hook(name)))
            hooks.append(module.register_forward_hook(tracer.leave_hook(name)))
    try:
        with torch.no_grad(), tracer:
            scores = network(zeros)
    finally:
        for hook in hooks:
            hook.remove()
    longest_path = tracer.reach[scores].path
    return Trace(tracer.outputs, tracer.fields, tracer.multiply_adds, tracer.additions, longest_path)


class Tracer(TorchDispatchMode):
    """Follow every tensor computed from `image` through torch's operations, and count multiply-adds."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.reach = WeakTensorKeyDictionary()
        self.reach[image] = ReceptiveField()
        self.additions = 0
        self.inside = [""]  # names of the modules that are being computed
        self.multiply_adds: Counter[str] = Counter()
        self.outputs: dict[str, Tensor] = {}
        self.fields: dict[str, ReceptiveField] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True, torch's default, imports torch._dynamo, which takes longer than all traces

    def enter_hook(self, name: str) -> Callable[[nn.Module, Any], None]:
        """Return the forward pre-hook of module `name`."""
        return lambda _module, _inputs: self.inside.append(name)

    def leave_hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return the forward hook of module `name`."""

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self.inside.pop()
            if not isinstance(output, Tensor):
                return
            window = getattr(module, "window", None)  # LeNet-5's sub-sampling is not a torch pooling operation
            if window:
                self.reach[output] = self.reach[inputs[0]].through(window, window).weighted()
            self.outputs[name] = output.to("meta")
            self.fields[name] = self.reach.get(output, ReceptiveField())

        return leave

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, count multiply-adds and record the receptive field of the result."""
        result, multiply_adds = compute(func, args, kwargs or {})
        if multiply_adds:
            for name in self.inside:
                self.multiply_adds[name] += multiply_adds
        sources = [t for t in tensors_in(args) if t in self.reach]
        if sources:
            known = [self.reach[t] for t in sources]
            joined = ReceptiveField(
                max(r.field for r in known), max(r.jump for r in known), max(r.path for r in known)
            )
            after = self.field_after(func.overloadpacket, joined, sources[0], args)
            for output in tensors_in(result if isinstance(result, tuple | list) else (result,)):
                self.reach[output] = after if output.dim() >= 4 else global_field(after, sources[0])
        return result

    def field_after(self, operation: Any, reach: ReceptiveField, source: Tensor, args: Any) -> ReceptiveField:
        """Return the receptive field of the result of `operation` on `source`."""
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
            return reach.through(1, args[4])  # subsampled columns; rows are subsampled alike
        if operation in (aten.add, aten.add_) and source.dim() == 4:
            self.additions += sum(t.shape == source.shape and t in self.reach for t in tensors_in(args)) == 2
        return reach


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int]:
    """Return the result of an operation and its multiply-adds.

    A meta tensor has a shape and no values, and torch takes about a millisecond for the shape of a result. So the
    shapes are computed once for the same operation and arguments; not of operations that write to or alias one.
    """
    tensors = tensors_in(args)
    on_meta = bool(tensors) and all(tensor.is_meta for tensor in tensors)
    if on_meta and func.overloadpacket in ELEMENTWISE_IN_PLACE:
        return args[0], 0
    if not (on_meta and returns_new_tensors(func)):
        result = func(*args, **kwargs)
        return result, count_multiply_adds(func, args, kwargs, result)
    key = (func, tuple(map(meta_key, args)), tuple((name, meta_key(value)) for name, value in kwargs.items()))
    if key not in _meta_results:
        result = compute_meta(func, args, kwargs)
        several = isinstance(result, tuple | list)
        shapes = [(t.shape, t.stride(), t.dtype) for t in (result if several else (result,))]
        _meta_results[key] = shapes, several, count_multiply_adds(func, args, kwargs, result)
    shapes, several, multiply_adds = _meta_results[key]
    results = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in shapes]
    return tuple(results) if several else results[0], multiply_adds


def compute_meta(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation on meta tensors.

    Torch's own functions for the shapes of some common operations import torch._dynamo, which takes seconds. The
    shapes of these are computed here.
    """
    operation = func.overloadpacket
    if operation in BATCH_NORM:
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    if operation in ELEMENTWISE:
        tensors = tensors_in(args)
        return tensors[0].new_empty(torch.broadcast_shapes(*(tensor.shape for tensor in tensors)))
    if operation is aten.addmm:
        return args[0].new_empty(args[1].shape[0], args[2].shape[1])
    if operation is aten.mean:
        return torch.amax(*args, **kwargs)
    if operation is aten.cat:
        dim = args[1] if len(args) > 1 else 0
        shape = list(args[0][0].shape)
        shape[dim] = sum(tensor.shape[dim] for tensor in args[0])
        return args[0][0].new_empty(shape)
    return func(*args, **kwargs)


def returns_new_tensors(func: Any) -> bool:
    """Return True for an operation that returns tensors and neither writes to an argument nor returns a view."""
    schema = func._schema
    return all(argument.alias_info is None for argument in schema.arguments) and all(
        str(value.type) == "Tensor" for value in schema.returns
    )


def meta_key(value: Any) -> Any:
    """Return a hashable key of an argument: all that decides the shapes of results."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(meta_key, value))
    return type(value), value


def count_multiply_adds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Return the multiply-adds of a convolution or matrix product, 0 for any other operation."""
    operations = flop_registry.get(func.overloadpacket)
    return operations(*args, **kwargs, out_val=result) // 2 if operations else 0


class SkipInitialisation(TorchFunctionMode):
    """Context in which initial weights are not filled in; on the meta device each fill takes a millisecond."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor unchanged instead of filling it; run any other function."""
        if func not in INIT_FUNCTIONS:
            return func(*args, **(kwargs or {}))
        return args[0] if args else (kwargs or {})["tensor"]


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in arguments or results, also those inside lists."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += tensors_in(value)
    return found


def global_field(reach: ReceptiveField, source: Tensor) -> ReceptiveField:
    """Return the field after all places of a map are joined, as by flattening and global pooling."""
    return reach.through(max(source.shape[2:])) if source.dim() == 4 else reach


def is_weighted_layer(module: nn.Module) -> bool:
    """Return True for one layer with weights: convolution, full connection, or a layer of LeNet-5."""
    return isinstance(module, WEIGHTED) or (hasattr(module, "connections") and hasattr(module, "weight"))
