"""Random draws as functions of (seed, purpose, step)."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.data.order import batch_indices, derive_seed, epoch_stream, permutation, seeded_generator


def test_seed_is_the_top_63_bits_of_a_sha256():
    digest = hashlib.sha256(b'[7, "augment", 3]').digest()
    assert derive_seed(7, "augment", 3) == int.from_bytes(digest, "big") >> (256 - 63)


def test_seeds_differ_between_arguments():
    arguments = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a", "1"), (0, "a1"), (0, "a", 1, ""), (-1,)]
    assert len({derive_seed(*values) for values in arguments}) == len(arguments)
    assert all(0 <= derive_seed(*values) < 2**63 for values in arguments)


def test_generators_are_new_and_independent():
    first, again = (torch.rand(4, generator=seeded_generator(0, "a", 1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.rand(4, generator=seeded_generator(0, "a", 2)))


def test_epochs_and_seeds_have_different_permutations():
    epochs = [permutation(0, epoch, 50) for epoch in range(3)]
    assert all(epoch.sort().values.tolist() == list(range(50)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], permutation(1, 0, 50))


@pytest.mark.parametrize(("n", "batch_size"), [(10, 5), (10, 3), (10, 1), (10, 10), (3, 10), (7, 4)])
def test_batches_are_slices_of_the_concatenated_permutations(n, batch_size):
    row = torch.cat([permutation(5, epoch, n) for epoch in range(20)])
    for step in range(n * 20 // batch_size):
        expected = row[step * batch_size : (step + 1) * batch_size]
        assert torch.equal(batch_indices(5, step, batch_size, n), expected)


def test_epoch_has_each_image_once_when_batches_span_epochs():
    n, batch_size = 10, 4
    row = torch.cat([batch_indices(0, step, batch_size, n) for step in range(5)])  # 20 positions: 2 epochs
    assert torch.bincount(row[:n], minlength=n).tolist() == [1] * n
    assert torch.bincount(row[n:], minlength=n).tolist() == [1] * n


def test_batch_does_not_depend_on_earlier_batches():
    forwards = [batch_indices(0, step, 4, 10) for step in range(30)]
    backwards = [batch_indices(0, step, 4, 10) for step in reversed(range(30))]
    assert all(torch.equal(batch, other) for batch, other in zip(forwards, reversed(backwards), strict=True))


def test_changing_a_batch_does_not_change_the_next_call():
    before = batch_indices(0, 1, 3, 10).clone()
    batch_indices(0, 1, 3, 10).zero_()
    assert torch.equal(batch_indices(0, 1, 3, 10), before)
    epoch_stream(0, 0, 10, 10).zero_()
    assert torch.equal(batch_indices(0, 1, 3, 10), before)


def test_new_process_draws_the_same():
    code = "from pipeline.data.order import *; print(derive_seed(3, 'x', 1), batch_indices(3, 7, 4, 10).tolist())"
    home = Path(pipeline.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=home)
    assert run.stdout.strip() == f"{derive_seed(3, 'x', 1)} {batch_indices(3, 7, 4, 10).tolist()}"
