"""Prune the layers of a network, and quantise the kept weights of each layer to a few shared values."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_modules.names import nearest
from pipeline.declare.derived import CompressionSpec

SettingValue = TypeVar("SettingValue")

LayerKind = Literal["conv", "fc"]

KMEANS_ITERATIONS = 1000  # at most


@dataclass(frozen=True)
class LayerSettings:
    """How one layer is compressed."""

    kind: LayerKind
    density: float  # fraction of the weights to keep
    bits: int  # of the index of a shared value
    index_bits: int  # of the distance between two stored weights

    @property
    def max_gap(self) -> int:
        """Largest distance between two stored weights; zeros are stored across larger ones."""
        return int(2**self.index_bits)


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """A layer whose kept weights share a few values."""

    shape: tuple[int, ...]
    positions: np.ndarray  # int64 (N,), of the kept weights in the flattened layer, ascending
    values: np.ndarray  # float32 (k,), the shared values
    indices: np.ndarray  # int64 (N,), of each kept weight's value

    def weights(self) -> Tensor:
        """Return the layer, float32; weights that are not kept are 0."""
        flat = np.zeros(int(np.prod(self.shape)), np.float32)
        flat[self.positions] = self.values[self.indices]
        return torch.from_numpy(flat.reshape(self.shape))


def compressible_layers(network: nn.Module) -> dict[str, LayerKind]:
    """Return name and kind of the parameters that are compressed: those of two or more dimensions."""
    found = {name: value.dim() for name, value in network.named_parameters() if value.dim() > 1}
    return {name: "fc" if dimensions == 2 else "conv" for name, dimensions in found.items()}


def layer_settings(spec: CompressionSpec, kinds: Mapping[str, LayerKind]) -> dict[str, LayerSettings]:
    """Return the settings of each compressed parameter.

    Raises ValueError for a layer that the network does not have, and for one whose density is not declared.
    """
    if isinstance(spec.density, float):
        densities = dict.fromkeys(kinds, spec.density)
    else:
        densities = by_parameter("density", spec.density, kinds)
    missing = [layer_name(name) for name in kinds if name not in densities]
    if missing:
        raise ValueError(f"density should name every layer with weights; missing: {', '.join(missing)}")
    bits = {name: spec.conv_bits if kind == "conv" else spec.fc_bits for name, kind in kinds.items()}
    bits |= by_parameter("bits", spec.bits, kinds)
    index_bits = {"conv": spec.conv_index_bits, "fc": spec.fc_index_bits}
    return {
        name: LayerSettings(kind, densities[name], bits[name], index_bits[kind]) for name, kind in kinds.items()
    }


def by_parameter(key: str, declared: Mapping[str, SettingValue], names: Iterable[str]) -> dict[str, SettingValue]:
    """Return parameter -> the value that `declared` has for its layer, or for a module that contains the layer.

    The longest name counts. Parameters without a declared value are left out. Raises ValueError for a declared
    name that is none of the network's.
    """
    found: dict[str, SettingValue] = {}
    unused = set(declared)
    for parameter in names:
        layer = layer_name(parameter)
        owners = [name for name in declared if layer == name or layer.startswith(f"{name}.")]
        unused -= set(owners)
        if owners:
            found[parameter] = declared[max(owners, key=len)]
    if unused:
        name, layers = min(unused), [layer_name(parameter) for parameter in names]
        raise ValueError(f"{key}: no layer with weights has the name {name!r}{nearest(name, layers)}")
    return found


def layer_name(parameter: str) -> str:
    """Return the name of a parameter's layer: "fc1" of "fc1.weight"."""
    return parameter.removesuffix(".weight")


def prune_layers(weights: Mapping[str, Tensor], densities: Mapping[str, float]) -> dict[str, Tensor]:
    """Return a copy of a state dict whose layers `densities` are pruned."""
    return {
        name: prune(value, densities[name]) if name in densities else value.clone()
        for name, value in weights.items()
    }


def prune(value: Tensor, density: float) -> Tensor:
    """Return `value` with only the fraction `density` of largest magnitude kept, at least one; the others are 0.

    Of equal magnitudes the first is kept.
    """
    flat = value.flatten()
    kept = max(1, round(density * flat.numel()))
    order = flat.abs().argsort(descending=True, stable=True)[:kept]
    return torch.zeros_like(flat).index_copy_(0, order, flat[order]).view_as(value)


def share_layer(value: Tensor, settings: LayerSettings) -> SharedLayer:
    """Quantise the weights of a pruned layer that are not 0 to at most 2^bits values.

    If zeros have to be stored across a large gap, 0 is one of these values.
    """
    flat = value.detach().float().cpu().numpy().ravel()
    positions = np.flatnonzero(flat)
    if not len(positions):  # all weights are zero
        positions = np.zeros(1, np.int64)
    has_fillers = bool((np.diff(positions, prepend=-1) > settings.max_gap).any())
    values, indices = share_weights(flat[positions], 2**settings.bits - has_fillers)
    return SharedLayer(tuple(value.shape), positions, values, indices)


def share_weights(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantise float (N,) `values` to at most `most` shared values.

    Return the shared values, float32 in ascending order, and for each value the index of its shared value, (N,).
    k-means in one dimension (Lloyd's algorithm), from evenly spaced values, with float64 sums of sorted values.
    """
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.unique(np.linspace(ordered[0], ordered[-1], most))
    before: np.ndarray | None = None
    for _ in range(KMEANS_ITERATIONS):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
        if before is not None and np.array_equal(ends, before):
            break
        before = ends
        edges = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        centres = np.where(sizes > 0, means, centres)  # an empty cluster keeps its centre
    centres = np.unique(centres.astype(np.float32))
    indices = np.searchsorted((centres[1:].astype(np.float64) + centres[:-1]) / 2, values, side="left")
    used = np.unique(indices)
    return centres[used], np.searchsorted(used, indices)
