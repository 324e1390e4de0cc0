"""Test Huffman coding: a textbook example, the entropy bound, and that streams decode to their symbols."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.derive.huffman import code_lengths, huffman_decode, huffman_encode


def test_code_lengths_equal_a_textbook_example():
    """CLRS, figure 16.3: a to f occur 45, 13, 12, 16, 9 and 5 times and take 1, 3, 3, 3, 4 and 4 bits: 224."""
    counts = np.array([45, 13, 12, 16, 9, 5])
    lengths = code_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    assert int((lengths * counts).sum()) == 224


def test_single_symbol_takes_one_bit():
    assert code_lengths(np.array([0, 7, 0])).tolist() == [0, 1, 0]
    assert len(huffman_encode(np.ones(9, np.int64), code_lengths(np.array([0, 9])))) == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=400))
def test_stream_is_decoded_to_its_symbols(values):
    stream = np.array(values)
    lengths = code_lengths(np.bincount(stream))
    content = huffman_encode(stream, lengths)
    assert huffman_decode(content, lengths, len(stream)).tolist() == values
    bits = sum(int(lengths[symbol]) * n for symbol, n in Counter(values).items())
    assert len(content) == -(-bits // 8)
    entropy = -sum(n * math.log2(n / len(values)) for n in Counter(values).values())
    assert bits <= entropy + len(values)  # Huffman coding is within one bit per symbol of the entropy


def test_stream_longer_than_the_window_is_decoded(monkeypatch):
    monkeypatch.setattr("pipeline.derive.huffman.DECODER_WINDOW", 13)
    stream = np.random.default_rng(0).geometric(0.3, 5000)  # some symbols extend over two windows
    lengths = code_lengths(np.bincount(stream))
    assert lengths.max() > 8
    assert np.array_equal(huffman_decode(huffman_encode(stream, lengths), lengths, len(stream)), stream)


def test_truncated_stream_is_refused():
    stream = np.random.default_rng(0).integers(0, 9, 500)
    lengths = code_lengths(np.bincount(stream))
    with pytest.raises(ValueError, match=r"a stream of 500 symbols ends after \d+"):
        huffman_decode(huffman_encode(stream, lengths)[:-20], lengths, 500)
