"""Deep Compression of a network's weights (Han, Mao, Dally 2016, arXiv:1510.00149), and its file.

    pruning          in each layer the weights of the largest magnitude stay, the others are 0     (section 2)
    weight sharing   a layer's kept weights become at most 2^bits values, by k-means that begins
                     with values evenly spaced from the least to the largest                        (section 3)
    Huffman coding   of the numbers of the shared values, and of the distances between weights      (section 4)

Of a kept weight its distance to the one before is stored, at most 2^8 in convolutions and 2^5 in full
connections; where the next is farther away, a 0 is put between (section 2 and Figure 2), which is then one of the
layer's values. Layers are parameters of two dimensions or more; whatever else a network holds (biases, batch
normalisation) is stored as it is, and counted.

Departures from the paper:
  * Nothing is retrained, neither after pruning nor after sharing, so errors are higher than printed.
  * One density for all layers; the paper finds each layer's threshold by trying.
"""

import heapq
import json
import math
import struct
from collections.abc import Mapping
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.declare.derived import CompressionSpec
from pipeline.derive.context import DerivedContext, DerivedResult

FILE_MAGIC = b"RDC1"

LayerKind = Literal["conv", "fc"]

MAX_GAP: dict[LayerKind, int] = {"conv": 2**8, "fc": 2**5}  # distance between two stored weights

ROUNDS = 1000  # of k-means, at most

OFFSETS = 2**20  # bits of a stream looked at at once, when decoding


def layers_of(network: nn.Module) -> dict[str, LayerKind]:
    """The weights that are compressed, by name: parameters of two dimensions, or more in convolutions."""
    found = {name: value.dim() for name, value in network.named_parameters() if value.dim() > 1}
    return {name: "fc" if dimensions == 2 else "conv" for name, dimensions in found.items()}


def pruned(weights: Mapping[str, Tensor], kinds: Mapping[str, LayerKind], density: float) -> dict[str, Tensor]:
    """A network's weights; in the layers `kinds` all but the largest are 0."""
    return {name: prune(value, density) if name in kinds else value.clone() for name, value in weights.items()}


def prune(value: Tensor, density: float) -> Tensor:
    """`value` with all but its `density` largest magnitudes 0, of equals the first; at least one stays."""
    flat = value.flatten()
    kept = max(1, round(density * flat.numel()))
    order = flat.abs().argsort(descending=True, stable=True)[:kept]
    return torch.zeros_like(flat).index_copy_(0, order, flat[order]).view_as(value)


def share_weights(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` values for float (N,) `values`, float32 and rising, and which of them each becomes (N,).

    k-means in one dimension (Lloyd), from evenly spaced values; sums are of sorted numbers in float64.
    """
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.unique(np.linspace(ordered[0], ordered[-1], most))
    before: np.ndarray | None = None
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2, side="right")
        if before is not None and np.array_equal(ends, before):
            break
        before = ends
        edges = np.concatenate([[0], ends, [len(ordered)]])
        sizes = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(sizes, 1)
        centres = np.where(sizes > 0, means, centres)  # one without weights stays where it is
    centres = np.unique(centres.astype(np.float32))
    number = np.searchsorted((centres[1:].astype(np.float64) + centres[:-1]) / 2, values, side="left")
    used = np.unique(number)
    return centres[used], np.searchsorted(used, number)


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol's code, uint8; 0 for a symbol that does not occur. Of equals the smaller comes first."""
    lengths = np.zeros(len(counts), dtype=np.uint8)
    order = count()
    heap = [(int(n), next(order), [symbol]) for symbol, n in enumerate(counts) if n]
    heapq.heapify(heap)
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    while len(heap) > 1:
        (low, _, left), (high, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (low + high, next(order), left + right))
    return lengths


def canonical_codes(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The canonical code: the symbols in its order, and their code words, uint64, the first bit foremost of 64."""
    symbols = np.lexsort((np.arange(len(lengths)), lengths))
    symbols = symbols[lengths[symbols] > 0]
    steps = np.uint64(1) << (np.uint64(64) - lengths[symbols].astype(np.uint64))
    return symbols, np.concatenate([np.zeros(1, np.uint64), np.cumsum(steps, dtype=np.uint64)[:-1]])


def huffman_encode(values: np.ndarray, lengths: np.ndarray) -> bytes:
    """Symbols as a stream of bits, filled up to a whole byte."""
    symbols, words = canonical_codes(lengths)
    word = np.zeros(len(lengths), np.uint64)
    word[symbols] = words
    sizes, own = lengths[values].astype(np.int64), word[values]
    starts = np.cumsum(sizes) - sizes
    bits = np.zeros(int(sizes.sum()), np.uint8)
    for place in range(int(sizes.max(initial=0))):
        there = sizes > place
        bits[starts[there] + place] = (own[there] >> np.uint64(63 - place)) & np.uint64(1)
    return np.packbits(bits).tobytes()


def huffman_decode(content: bytes, lengths: np.ndarray, number: int) -> np.ndarray:
    """The first `number` symbols of a stream; ValueError where it holds fewer."""
    symbols, words = canonical_codes(lengths)
    sizes = lengths[symbols].astype(np.int64)
    longest = int(sizes.max(initial=1))
    bits = np.concatenate([np.unpackbits(np.frombuffer(content, np.uint8)), np.zeros(longest, np.uint8)])
    end = len(bits) - longest
    found = np.empty(number, np.int64)
    done, at = 0, 0
    while done < number:
        if at >= end:
            raise ValueError(f"a stream of {number} symbols ends after {done}")
        size = min(OFFSETS, end - at)
        window = np.zeros(size, np.uint64)  # the bits that follow each offset
        for place in range(longest):
            window |= bits[at + place : at + place + size].astype(np.uint64) << np.uint64(63 - place)
        which = np.searchsorted(words, window, side="right") - 1
        places: list[int] = []
        next_, here = (np.arange(size) + sizes[which]).tolist(), 0
        while here < size and done + len(places) < number:
            places.append(here)
            here = next_[here]
        found[done : done + len(places)] = symbols[which[places]]
        done, at = done + len(places), at + here
    return found


def compress(
    weights: Mapping[str, Tensor], kinds: Mapping[str, LayerKind], *, density: float, conv_bits: int, fc_bits: int
) -> bytes:
    """The file of a network, its layers `kinds` pruned, shared and coded; `decompress` gives what it means."""
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, value in weights.items():
        kind = kinds.get(name)
        array = value.detach().cpu().contiguous().numpy()
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "kind": kind or ""}
        if kind:
            bits = conv_bits if kind == "conv" else fc_bits
            coded = coded_layer(prune(value.float(), density).numpy().ravel(), bits, MAX_GAP[kind])
        else:
            entry["type"] = array.dtype.str
            coded = {"other": array.tobytes()}
        entry["parts"] = {part: len(content) for part, content in coded.items() if part != "number"}
        if kind:
            entry["number"] = int.from_bytes(coded.pop("number"), "little")
        entries.append(entry)
        parts += coded.values()
    header = json.dumps(entries, separators=(",", ":")).encode()
    return b"".join([FILE_MAGIC, struct.pack("<I", len(header)), header, *parts])


def coded_layer(flat: np.ndarray, bits: int, farthest: int) -> dict[str, bytes]:
    """A pruned layer's parts: its values, two code tables, and two streams."""
    places = np.flatnonzero(flat)
    if not len(places):  # a layer of nothing but zeros
        places = np.zeros(1, np.int64)
    distances = np.diff(places, prepend=-1)
    fillers = (distances - 1) // farthest  # zeros put before each weight
    values, numbers = share_weights(flat[places], 2**bits - bool(fillers.any()))
    if fillers.any():
        zero = int(np.searchsorted(values, 0.0))
        numbers = numbers + (numbers >= zero)
        values = np.insert(values, zero, np.float32(0.0))
        ends = np.cumsum(fillers + 1) - 1  # where the weights themselves come to stand
        spread = np.full(int(ends[-1]) + 1, zero)
        spread[ends] = numbers
        apart = np.full(len(spread), farthest)
        apart[ends] = distances - fillers * farthest
        numbers, distances = spread, apart
    tables = [code_lengths(np.bincount(stream)) for stream in (numbers, distances)]
    return {
        "number": len(numbers).to_bytes(8, "little"),
        "codebook": values.astype("<f4").tobytes(),
        "index_table": tables[0].tobytes(),
        "position_table": tables[1].tobytes(),
        "indices": huffman_encode(numbers, tables[0]),
        "positions": huffman_encode(distances, tables[1]),
    }


def decompress(content: bytes) -> dict[str, Tensor]:
    """The network of a file; ValueError for what is none."""
    result = {}
    for entry, parts in read_layers(content):
        if not entry["kind"]:
            array = np.frombuffer(parts["other"], np.dtype(entry["type"])).reshape(entry["shape"])
            result[entry["name"]] = torch.from_numpy(array.copy())
            continue
        tables = [np.frombuffer(parts[name], np.uint8) for name in ("index_table", "position_table")]
        numbers = huffman_decode(parts["indices"], tables[0], entry["number"])
        distances = huffman_decode(parts["positions"], tables[1], entry["number"])
        flat = np.zeros(math.prod(entry["shape"]), np.float32)
        flat[np.cumsum(distances) - 1] = np.frombuffer(parts["codebook"], "<f4")[numbers]
        result[entry["name"]] = torch.from_numpy(flat.reshape(entry["shape"]))
    return result


def read_layers(content: bytes) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    """Of each tensor in a file: what is said of it, and its parts."""
    if content[:4] != FILE_MAGIC:
        raise ValueError("this is no compressed network")
    (size,) = struct.unpack("<I", content[4:8])
    entries, at, found = json.loads(content[8 : 8 + size]), 8 + size, []
    for entry in entries:
        parts = {}
        for part, length in entry["parts"].items():
            parts[part], at = content[at : at + length], at + length
        found.append((entry, parts))
    if at != len(content):
        raise ValueError(f"a compressed network of {at} bytes has {len(content)}")
    return found


def size_breakdown(content: bytes) -> dict[str, float]:
    """Bytes of a file, in all and by what they are for; and of the same network with 4 bytes a weight."""
    found = dict.fromkeys(("codebook", "table", "indices", "positions", "other"), 0)
    original = weights = 0
    for entry, parts in read_layers(content):
        for part, data in parts.items():
            found["table" if part.endswith("table") else part] += len(data)
        original += 4 * math.prod(entry["shape"]) if entry["kind"] else len(parts["other"])
        weights += entry.get("number", 0)
    found["header"] = len(content) - sum(found.values())
    named = {f"{part}_bytes": float(value) for part, value in found.items()}
    return named | {
        "bytes": float(len(content)),
        "original_bytes": float(original),
        "stored_weights": float(weights),
    }


def run_compression(context: DerivedContext) -> DerivedResult:
    """Return the errors of the network as trained, as pruned, and as decoded from the file; and the file."""
    spec, network = context.derived.spec, context.networks[0]
    assert isinstance(spec, CompressionSpec)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metrics = context.errors([network], "original")
    kinds = layers_of(network)
    network.load_state_dict(pruned(weights, kinds, spec.density))
    metrics |= context.errors([network], "pruned")
    content = compress(weights, kinds, density=spec.density, conv_bits=spec.conv_bits, fc_bits=spec.fc_bits)
    network.load_state_dict(decompress(content))
    metrics |= context.errors([network])
    metrics |= {f"compressed/{name}": value for name, value in size_breakdown(content).items()}
    ratio = metrics["compressed/original_bytes"] / metrics["compressed/bytes"]
    return DerivedResult(metrics | {"compressed/ratio": ratio}, f"compressed {ratio:.1f} times", content)
