"""Deep Compression of a network's weights (Han, Mao, Dally 2016, arXiv:1510.00149), and its file format.

    pruning          keeps the weights of the largest magnitude in each layer and sets the others to 0  (section 2)
    weight sharing   quantises the kept weights of a layer to at most 2^bits values, by k-means that
                     starts from values evenly spaced between the smallest and the largest weight       (section 3)
    Huffman coding   encodes the indices of the shared values and the distances between kept weights    (section 4)

The position of a kept weight is stored as its distance from the previous one, at most 2^8 in convolutions and 2^5
in fully connected layers. Across a larger gap, zeros are stored in between (section 2 and Figure 2), and 0 is then
one of the layer's shared values. Layers are parameters of two or more dimensions. All other tensors (biases, batch
normalisation) are stored unchanged and counted.

Departures from the paper:
  * The network is not retrained after pruning or sharing, so errors are higher than printed.
  * One density for all layers; the paper finds a threshold for each layer by experiment.
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

MAX_GAP: dict[LayerKind, int] = {"conv": 2**8, "fc": 2**5}  # largest distance between two stored weights

KMEANS_ITERATIONS = 1000  # at most

DECODER_WINDOW = 2**20  # bits of a stream that are decoded at once


def compressible_layers(network: nn.Module) -> dict[str, LayerKind]:
    """Return name and kind of the parameters that are compressed: those of two or more dimensions."""
    found = {name: value.dim() for name, value in network.named_parameters() if value.dim() > 1}
    return {name: "fc" if dimensions == 2 else "conv" for name, dimensions in found.items()}


def prune_layers(
    weights: Mapping[str, Tensor], kinds: Mapping[str, LayerKind], density: float
) -> dict[str, Tensor]:
    """Return a copy of a state dict whose layers `kinds` are pruned."""
    return {name: prune(value, density) if name in kinds else value.clone() for name, value in weights.items()}


def prune(value: Tensor, density: float) -> Tensor:
    """Return `value` with only the fraction `density` of largest magnitude kept, at least one; the others are 0.

    Of equal magnitudes the first is kept.
    """
    flat = value.flatten()
    kept = max(1, round(density * flat.numel()))
    order = flat.abs().argsort(descending=True, stable=True)[:kept]
    return torch.zeros_like(flat).index_copy_(0, order, flat[order]).view_as(value)


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


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Return the length in bits of each symbol's Huffman code, uint8; 0 for a symbol that does not occur.

    Of subtrees with equal counts, the one that was created first is merged first.
    """
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
    """Return the symbols in the order of the canonical Huffman code, and their code words.

    A code word is a uint64 whose most significant bits are the code.
    """
    symbols = np.lexsort((np.arange(len(lengths)), lengths))
    symbols = symbols[lengths[symbols] > 0]
    steps = np.uint64(1) << (np.uint64(64) - lengths[symbols].astype(np.uint64))
    return symbols, np.concatenate([np.zeros(1, np.uint64), np.cumsum(steps, dtype=np.uint64)[:-1]])


def huffman_encode(values: np.ndarray, lengths: np.ndarray) -> bytes:
    """Encode symbols as a stream of bits, padded to whole bytes."""
    symbols, words = canonical_codes(lengths)
    word = np.zeros(len(lengths), np.uint64)
    word[symbols] = words
    sizes, codes = lengths[values].astype(np.int64), word[values]
    starts = np.cumsum(sizes) - sizes
    bits = np.zeros(int(sizes.sum()), np.uint8)
    for bit in range(int(sizes.max(initial=0))):
        longer = sizes > bit
        bits[starts[longer] + bit] = (codes[longer] >> np.uint64(63 - bit)) & np.uint64(1)
    return np.packbits(bits).tobytes()


def huffman_decode(content: bytes, lengths: np.ndarray, number: int) -> np.ndarray:
    """Decode the first `number` symbols of a stream. Raises ValueError if it holds fewer.

    For each offset of a window, the bits from there on determine one symbol. The decoder then follows the symbols'
    lengths from offset to offset.
    """
    symbols, words = canonical_codes(lengths)
    sizes = lengths[symbols].astype(np.int64)
    longest = int(sizes.max(initial=1))
    bits = np.concatenate([np.unpackbits(np.frombuffer(content, np.uint8)), np.zeros(longest, np.uint8)])
    end = len(bits) - longest
    decoded = np.empty(number, np.int64)
    done, start = 0, 0
    while done < number:
        if start >= end:
            raise ValueError(f"a stream of {number} symbols ends after {done}")
        size = min(DECODER_WINDOW, end - start)
        window = np.zeros(size, np.uint64)  # the bits that follow each offset
        for bit in range(longest):
            window |= bits[start + bit : start + bit + size].astype(np.uint64) << np.uint64(63 - bit)
        ranks = np.searchsorted(words, window, side="right") - 1  # of the code word at each offset
        offsets: list[int] = []
        following, offset = (np.arange(size) + sizes[ranks]).tolist(), 0
        while offset < size and done + len(offsets) < number:
            offsets.append(offset)
            offset = following[offset]
        decoded[done : done + len(offsets)] = symbols[ranks[offsets]]
        done, start = done + len(offsets), start + offset
    return decoded


def compress(
    weights: Mapping[str, Tensor], kinds: Mapping[str, LayerKind], *, density: float, conv_bits: int, fc_bits: int
) -> bytes:
    """Return a file of a state dict whose layers `kinds` are pruned, quantised and coded; `decompress` reads it.

    `conv_bits` and `fc_bits` are the bits of a shared value's index before Huffman coding.
    """
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, value in weights.items():
        kind = kinds.get(name)
        array = value.detach().cpu().contiguous().numpy()
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "kind": kind or ""}
        if kind:
            bits = conv_bits if kind == "conv" else fc_bits
            coded = encode_layer(prune(value.float(), density).numpy().ravel(), bits, MAX_GAP[kind])
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


def encode_layer(flat: np.ndarray, bits: int, max_gap: int) -> dict[str, bytes]:
    """Encode a pruned, flattened layer as its parts: number of weights, codebook, two code tables, two streams."""
    positions = np.flatnonzero(flat)
    if not len(positions):  # all weights are zero
        positions = np.zeros(1, np.int64)
    distances = np.diff(positions, prepend=-1)
    fillers = (distances - 1) // max_gap  # zeros stored before each weight
    values, indices = share_weights(flat[positions], 2**bits - bool(fillers.any()))
    if fillers.any():
        zero = int(np.searchsorted(values, 0.0))
        indices = indices + (indices >= zero)
        values = np.insert(values, zero, np.float32(0.0))
        weight_places = np.cumsum(fillers + 1) - 1  # of the kept weights among weights and fillers
        filled_indices = np.full(int(weight_places[-1]) + 1, zero)
        filled_indices[weight_places] = indices
        filled_distances = np.full(len(filled_indices), max_gap)
        filled_distances[weight_places] = distances - fillers * max_gap
        indices, distances = filled_indices, filled_distances
    tables = [code_lengths(np.bincount(stream)) for stream in (indices, distances)]
    return {
        "number": len(indices).to_bytes(8, "little"),
        "codebook": values.astype("<f4").tobytes(),
        "index_table": tables[0].tobytes(),
        "position_table": tables[1].tobytes(),
        "indices": huffman_encode(indices, tables[0]),
        "positions": huffman_encode(distances, tables[1]),
    }


def decompress(content: bytes) -> dict[str, Tensor]:
    """Return the state dict in a file. Raises ValueError for a damaged file or one of another format."""
    result = {}
    for entry, parts in read_layers(content):
        if not entry["kind"]:
            array = np.frombuffer(parts["other"], np.dtype(entry["type"])).reshape(entry["shape"])
            result[entry["name"]] = torch.from_numpy(array.copy())
            continue
        tables = [np.frombuffer(parts[name], np.uint8) for name in ("index_table", "position_table")]
        indices = huffman_decode(parts["indices"], tables[0], entry["number"])
        distances = huffman_decode(parts["positions"], tables[1], entry["number"])
        flat = np.zeros(math.prod(entry["shape"]), np.float32)
        flat[np.cumsum(distances) - 1] = np.frombuffer(parts["codebook"], "<f4")[indices]
        result[entry["name"]] = torch.from_numpy(flat.reshape(entry["shape"]))
    return result


def read_layers(content: bytes) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    """Return header entry and parts of each tensor in a file. Raises ValueError for another format or length."""
    if content[:4] != FILE_MAGIC:
        raise ValueError("the content is not a compressed network")
    (size,) = struct.unpack("<I", content[4:8])
    entries, end, found = json.loads(content[8 : 8 + size]), 8 + size, []
    for entry in entries:
        parts = {}
        for part, length in entry["parts"].items():
            parts[part], end = content[end : end + length], end + length
        found.append((entry, parts))
    if end != len(content):
        raise ValueError(f"the compressed network has {len(content)} bytes, expected {end}")
    return found


def size_breakdown(content: bytes) -> dict[str, float]:
    """Return the bytes of a file in total and by part, and the bytes of the network with 4 bytes per weight."""
    found = dict.fromkeys(("codebook", "table", "indices", "positions", "other"), 0)
    original = weights = 0
    for entry, parts in read_layers(content):
        for part, data in parts.items():
            found["table" if part.endswith("table") else part] += len(data)
        original += 4 * math.prod(entry["shape"]) if entry["kind"] else len(parts["other"])
        weights += entry.get("number", 0)
    found["header"] = len(content) - sum(found.values())
    by_part = {f"{part}_bytes": float(value) for part, value in found.items()}
    return by_part | {
        "bytes": float(len(content)),
        "original_bytes": float(original),
        "stored_weights": float(weights),
    }


def run_compression(context: DerivedContext) -> DerivedResult:
    """Return the errors of the network as trained, pruned, and decoded from the file, with the file's content."""
    spec, network = context.derived.spec, context.networks[0]
    assert isinstance(spec, CompressionSpec)
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    metrics = context.errors([network], "original")
    kinds = compressible_layers(network)
    network.load_state_dict(prune_layers(weights, kinds, spec.density))
    metrics |= context.errors([network], "pruned")
    content = compress(weights, kinds, density=spec.density, conv_bits=spec.conv_bits, fc_bits=spec.fc_bits)
    network.load_state_dict(decompress(content))
    metrics |= context.errors([network])
    metrics |= {f"compressed/{name}": value for name, value in size_breakdown(content).items()}
    ratio = metrics["compressed/original_bytes"] / metrics["compressed/bytes"]
    return DerivedResult(metrics | {"compressed/ratio": ratio}, f"compressed {ratio:.1f} times", content)
