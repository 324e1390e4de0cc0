"""Huffman coding of whole numbers, by canonical codes."""

import heapq
from itertools import count

import numpy as np

DECODER_WINDOW = 2**20  # bits of a stream that are decoded at once


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
