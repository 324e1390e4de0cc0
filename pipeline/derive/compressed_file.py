"""The file of a compressed network: what is stored of each layer, and how many bytes it takes.

The kept weights of a layer are stored as two streams of Huffman codes: the indices of their shared values, and the
distances between their positions. Across a distance larger than the layer's `max_gap`, zeros are stored in between
(Han et al. 2016, section 2 and Figure 2), and 0 is then one of the shared values.

    "RDC1"             4 bytes
    length of header   4 bytes
    header             JSON, for each tensor: name, shape, kind, number of stored weights, bytes of each part
    parts              of each layer: codebook (4 bytes per shared value), two tables with the lengths of the codes
                       (a byte per symbol), two streams; of every other tensor its values
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.derive.huffman import code_lengths, huffman_decode, huffman_encode
from pipeline.derive.quantise import LayerSettings, SharedLayer

FILE_MAGIC = b"RDC1"


def compress(
    weights: Mapping[str, Tensor], layers: Mapping[str, SharedLayer], settings: Mapping[str, LayerSettings]
) -> bytes:
    """Return the file of a state dict with the quantised `layers`; `decompress` reads it.

    All other tensors (biases, batch normalisation) are stored unchanged.
    """
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, value in weights.items():
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "kind": ""}
        if name in layers:
            entry["kind"] = settings[name].kind
            coded = encode_layer(layers[name], settings[name].max_gap)
        else:
            array = value.detach().cpu().contiguous().numpy()
            entry["type"] = array.dtype.str
            coded = {"other": array.tobytes()}
        entry["parts"] = {part: len(content) for part, content in coded.items() if part != "number"}
        if name in layers:
            entry["number"] = int.from_bytes(coded.pop("number"), "little")
        entries.append(entry)
        parts += coded.values()
    header = json.dumps(entries, separators=(",", ":")).encode()
    return b"".join([FILE_MAGIC, struct.pack("<I", len(header)), header, *parts])


def encode_layer(layer: SharedLayer, max_gap: int) -> dict[str, bytes]:
    """Encode a layer as its parts: number of stored weights, codebook, two code tables, two streams."""
    values, indices, distances = with_fillers(in_ascending_order(layer), max_gap)
    tables = [code_lengths(np.bincount(stream)) for stream in (indices, distances)]
    return {
        "number": len(indices).to_bytes(8, "little"),
        "codebook": values.astype("<f4").tobytes(),
        "index_table": tables[0].tobytes(),
        "position_table": tables[1].tobytes(),
        "indices": huffman_encode(indices, tables[0]),
        "positions": huffman_encode(distances, tables[1]),
    }


def in_ascending_order(layer: SharedLayer) -> SharedLayer:
    """Return the same layer with ascending shared values; training may have changed their order."""
    order = np.argsort(layer.values, kind="stable")
    return replace(layer, values=layer.values[order], indices=np.argsort(order, kind="stable")[layer.indices])


def with_fillers(layer: SharedLayer, max_gap: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the shared values, and index and distance of each stored weight, none larger than `max_gap`.

    Stored are the kept weights, and zeros wherever the distance to the next one is too large; 0 is then added to
    the shared values, which are ascending.
    """
    distances = np.diff(layer.positions, prepend=-1)
    fillers = (distances - 1) // max_gap  # zeros stored before each weight
    if not fillers.any():
        return layer.values, layer.indices, distances
    zero = int(np.searchsorted(layer.values, 0.0))
    places = np.cumsum(fillers + 1) - 1  # of the kept weights among weights and fillers
    indices = np.full(int(places[-1]) + 1, zero)
    indices[places] = layer.indices + (layer.indices >= zero)
    filled = np.full(len(indices), max_gap)
    filled[places] = distances - fillers * max_gap
    return np.insert(layer.values, zero, np.float32(0.0)), indices, filled


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


def quantised_bytes(content: bytes, settings: Mapping[str, LayerSettings]) -> int:
    """Return the size of the same file with codes of fixed length in place of Huffman codes and their tables."""
    size = len(content)
    for entry, parts in read_layers(content):
        if entry["kind"]:
            layer = settings[entry["name"]]
            size += -(-entry["number"] * (layer.bits + layer.index_bits) // 8)
            size -= sum(len(data) for part, data in parts.items() if part != "codebook")
    return size
