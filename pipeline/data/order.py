"""Random draws as functions of (seed, purpose, step).

No generator state is kept, so a resumed or parallel run has nothing to restore: batch 1000 of a run is the same
whether or not this process made the 999 batches before it.
"""

import functools
import hashlib
import json

import torch
from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed below 2**63 from the sha256 of all arguments; it is the same on every platform.

    torch's CPU generator uses the lower 32 bits of it.
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a new generator for one purpose, such as `seeded_generator(seed, "augment", step)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *purpose))


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of the n training images in one epoch, int64 (n,)."""
    return torch.randperm(n, generator=seeded_generator(seed, "epoch", epoch))


# Two entries, since a batch may span two epochs. Callers share the tensors and must not change them in place.
_cached_permutation = functools.lru_cache(maxsize=2)(permutation)


def epoch_stream(seed: int, first: int, last: int, n: int) -> Tensor:
    """Return positions `first` to `last` - 1 of the concatenated epoch permutations, int64 (last - first,)."""
    parts = []
    while first < last:
        epoch, offset = divmod(first, n)
        stop = min(n, offset + last - first)
        parts.append(_cached_permutation(seed, epoch, n)[offset:stop])
        first += stop - offset
    return torch.cat(parts)  # always a copy, also of a single part


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> Tensor:
    """Return the indices of the images of one global batch, int64 (batch_size,).

    Each image comes once per epoch. The last batch of an epoch is filled up with the first images of the next
    one, so that every optimizer step sees a full batch.
    """
    return epoch_stream(seed, step * batch_size, (step + 1) * batch_size, n)
