"""Some of other samples, numbered anew."""

import torch

from pipeline.data.samples import SampleSubset


class Ten:
    """Ten made-up pictures."""

    labels = torch.arange(10) * 10

    def __len__(self):
        return 10

    def read(self, indices):
        assert all(type(i) is int for i in indices)
        return [f"picture {i}".encode() for i in indices]

    def where(self, index):
        return f"sample {index}"


def test_the_chosen_are_numbered_anew():
    chosen = SampleSubset(Ten(), torch.tensor([7, 2, 9]))
    assert len(chosen) == 3
    assert chosen.labels.tolist() == [70, 20, 90]
    assert chosen.read([2, 0, 0]) == [b"picture 9", b"picture 7", b"picture 7"]
    assert chosen.read([]) == []
    assert chosen.where(1) == "sample 2"


def test_chosen_of_chosen():
    twice = SampleSubset(SampleSubset(Ten(), torch.tensor([7, 2, 9])), torch.tensor([2, 1]))
    assert twice.read([0, 1]) == [b"picture 9", b"picture 2"]
    assert twice.labels.tolist() == [90, 20]
    assert twice.where(0) == "sample 9"
