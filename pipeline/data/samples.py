"""Interface of sets of image files, read by number: shards and class folders implement it."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Samples(Protocol):
    """Numbered image files of any size, each with a label; safe to read from several threads at once."""

    labels: Tensor  # int64 (N,)

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the files' bytes, verified where a checksum exists; DataError names a damaged file."""
        ...

    def where(self, index: int) -> str:
        """Location of an image for a message, such as 'sets/pets/train-00003.tar, sample 17 of train'."""
        ...


class SampleSubset:
    """A subset of other samples, renumbered from 0, such as the training or the validation part."""

    def __init__(self, samples: Samples, indices: Tensor) -> None:
        self.samples, self.indices = samples, indices
        self.labels = samples.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the bytes of the files; see Samples."""
        return self.samples.read(self.indices[torch.as_tensor(indices, dtype=torch.int64)].tolist())

    def where(self, index: int) -> str:
        """Location of an image for a message."""
        return self.samples.where(int(self.indices[index]))
