"""Subsets of samples, renumbered."""

import torch

from pipeline.data.samples import SampleSubset


class FakeSamples:
    """Ten fake image files."""

    labels = torch.arange(10) * 10

    def __len__(self):
        return 10

    def read(self, indices):
        assert all(type(i) is int for i in indices)
        return [f"image {i}".encode() for i in indices]

    def where(self, index):
        return f"sample {index}"


def test_subset_is_renumbered():
    subset = SampleSubset(FakeSamples(), torch.tensor([7, 2, 9]))
    assert len(subset) == 3
    assert subset.labels.tolist() == [70, 20, 90]
    assert subset.read([2, 0, 0]) == [b"image 9", b"image 7", b"image 7"]
    assert subset.read([]) == []
    assert subset.where(1) == "sample 2"


def test_subset_of_a_subset_is_renumbered():
    twice = SampleSubset(SampleSubset(FakeSamples(), torch.tensor([7, 2, 9])), torch.tensor([2, 1]))
    assert twice.read([0, 1]) == [b"image 9", b"image 2"]
    assert twice.labels.tolist() == [90, 20]
    assert twice.where(0) == "sample 9"
