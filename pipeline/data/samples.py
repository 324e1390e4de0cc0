"""Pictures as files, one by one: what is read from shards and from folders alike."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.data.images import DataError


class Samples(Protocol):
    """Numbered pictures of any size, each with its class; safe to read from several threads at once."""

    labels: Tensor  # int64 (N,)

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The files' bytes, checked against whatever says what they should be; DataError names a damaged one."""
        ...

    def where(self, index: int) -> str:
        """Where a picture lies, for a message: 'train-00003.tar, sample 17 (n01440764_10026)'."""
        ...


class SampleSubset:
    """Some of other samples, numbered anew: the training or the validation part."""

    def __init__(self, samples: Samples, indices: Tensor) -> None:
        self.samples, self.indices = samples, indices
        self.labels = samples.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """As the samples chosen from."""
        return self.samples.read(self.indices[torch.as_tensor(indices, dtype=torch.int64)].tolist())

    def where(self, index: int) -> str:
        """As the samples chosen from."""
        return self.samples.where(int(self.indices[index]))


def rank_share(batch_size: int, rank: int, world: int) -> slice:
    """The places of a global batch that rank `rank` of `world` takes; DataError if it cannot be shared equally."""
    if batch_size % world:
        shares = [str(count) for count in range(1, batch_size + 1) if batch_size % count == 0]
        raise DataError(
            f"a global batch of {batch_size} cannot be shared equally by {world} ranks; use"
            f" {' or '.join(shares)} ranks, or a batch size that {world} divides"
        )
    return slice(rank, None, world)
