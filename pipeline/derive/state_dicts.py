"""Find state dicts in checkpoints, as many programs write them, and the names of the network's own parameters.

A checkpoint may hold several sets of weights (`state_dict` and `state_dict_ema`), and wrappers of modules put
their own names before or between those of the network (`_orig_mod.module.conv1.weight`).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.common.words import plural, some_of

MAX_DEPTH = 4  # of dicts in a checkpoint that are searched
MAX_PREFIXES = 5  # names that wrappers put one before the other
MAX_LISTED = 8  # keys named in a message

# Keys that hold the weights themselves, before keys of other sets in a checkpoint.
USUAL_KEYS = ("", "state_dict", "model", "network", "model_state_dict", "model_state", "net", "params")

# Names that wrappers of modules add anywhere: DataParallel and DistributedDataParallel, torch.compile, FSDP,
# checkpointed activations, DeepSpeed.
WRAPPER_NAMES = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)

# OpenMMLab's classifiers keep their layers in `backbone` and `head`: head.fc.weight is torchvision's fc.weight.
OPENMMLAB = re.compile(r"(backbone|head)\.")


@dataclass(frozen=True)
class StateDict:
    """Tensors by name, found in a checkpoint."""

    key: str  # of the checkpoint: "state_dict", "ema.model"; "" for the checkpoint itself
    tensors: Mapping[str, Tensor]

    @property
    def where(self) -> str:
        """The key and the number of tensors for a message: "state_dict (122 tensors)"."""
        return f"{self.key or 'the top level'} ({plural(len(self.tensors), 'tensor')})"


@dataclass(frozen=True)
class Naming:
    """One reading of the names in a state dict."""

    tensors: Mapping[str, Tensor]  # by the names of the network's own parameters
    left_out: tuple[str, ...] = ()  # names in the file that are not the network's, such as a loss's weights


def find_state_dicts(content: Mapping[str, Any]) -> list[StateDict]:
    """Return all sets of tensors in a checkpoint, the one of the usual key first, others in their order.

    Optimizer states are no sets of weights: their keys are numbers.
    """
    found = list(_search(content, "", 1))
    rank = {key: number for number, key in enumerate(USUAL_KEYS)}
    return sorted(found, key=lambda one: rank.get(one.key, len(rank)))


def _search(content: Mapping[Any, Any], key: str, depth: int) -> Iterator[StateDict]:
    """Yield the sets of tensors in `content` and in the mappings below it."""
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        yield StateDict(key, tensors)
    if depth < MAX_DEPTH:
        for name, value in named.items():
            if isinstance(value, Mapping):
                yield from _search(value, f"{key}.{name}" if key else name, depth + 1)


def select_state_dict(found: list[StateDict], key: str, file: Path) -> StateDict:
    """Return the set of tensors of a key: of the checkpoint, or the first part of names ("teacher").

    Raises UserError that names the keys of the file if there is none.
    """
    for one in found:
        if one.key == key:
            return one
    for one in found:
        inside = f"{key.removeprefix(f'{one.key}.')}."
        tensors = {name.removeprefix(inside): t for name, t in one.tensors.items() if name.startswith(inside)}
        if tensors:
            return StateDict(key, tensors)
    raise UserError(f"{file} has no weights under the key {key!r}; it holds tensors in {list_keys(found)}")


def list_keys(found: list[StateDict]) -> str:
    """Return the keys that hold tensors, with their number."""
    return some_of([one.where for one in found], MAX_LISTED)


def namings(tensors: Mapping[str, Tensor]) -> Iterator[Naming]:
    """Yield the possible readings of a state dict's names, the most literal first.

    The names that wrappers add are removed wherever they are; then first parts that all names share, one by one;
    then first parts that only some names have, whose other tensors are listed in `left_out`.
    """
    seen = set()
    for one in _readings(tensors):
        key = frozenset(one.tensors), one.left_out
        if key not in seen:
            seen.add(key)
            yield one


def _readings(tensors: Mapping[str, Tensor]) -> Iterator[Naming]:
    """Yield the readings of `namings`, some of them twice."""
    yield Naming(tensors)
    unwrapped = _renamed(tensors, {name: _without_wrappers(name) for name in tensors})
    if unwrapped is None:  # two names would be equal
        unwrapped = dict(tensors)
    for _ in range(MAX_PREFIXES):
        yield Naming(unwrapped)
        if all(OPENMMLAB.match(name) for name in unwrapped):
            bare = _renamed(unwrapped, {name: OPENMMLAB.sub("", name, count=1) for name in unwrapped})
            if bare is not None:
                yield Naming(bare)
        firsts = Counter(name.partition(".")[0] for name in unwrapped if "." in name)
        if len(firsts) != 1 or firsts.total() != len(unwrapped):
            break
        unwrapped = {name.partition(".")[2]: tensor for name, tensor in unwrapped.items()}
    for first, _ in firsts.most_common():
        inside = f"{first}."
        part = {name.removeprefix(inside): t for name, t in unwrapped.items() if name.startswith(inside)}
        others = tuple(name for name in unwrapped if not name.startswith(inside))
        yield Naming(part, others)
        if len(part) > len(others):
            yield from (Naming(one.tensors, others + one.left_out) for one in _readings(part))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPER_NAMES)


def _renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor] | None:
    """Return the tensors with new names; None if two would have the same."""
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) else None


def check_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise UserError for tensors that are no plain numbers, and for NaN or infinite values."""
    bad: list[str] = []
    for name, tensor in tensors.items():
        if kind := _unusual_kind(name, tensor):
            raise UserError(f"{file}: {name} is {kind}; save the state_dict with plain floating-point tensors")
        values = tensor.float() if tensor.element_size() == 1 else tensor  # 8-bit floats have no isfinite
        if tensor.is_floating_point() and not torch.isfinite(values).all():
            bad.append(name)
    if bad:
        raise UserError(
            f"{file} has NaN or infinite values in {len(bad)} of {plural(len(tensors), 'tensor')}: {some_of(bad)};"
            " the training diverged, or the file is damaged"
        )


def _unusual_kind(name: str, tensor: Tensor) -> str:
    """Return what a tensor is that a network cannot take; "" for a plain one."""
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.layout is not torch.strided:
        return "a sparse tensor"
    if tensor.is_meta:
        return "a tensor without values (on the device meta)"
    if tensor.is_complex():
        return "a tensor of complex numbers"
    if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
        return f"a tensor of {str(tensor.dtype).removeprefix('torch.')}"
    return ""
