"""Every random draw is a function of (seed, purpose, step).

Nothing here keeps a state that a resumed or a parallel run would have to restore: batch 1000 of a run
is the same whether 999 batches came before it in this process or none did.
"""

import functools
import hashlib
import json

import torch
from torch import Tensor


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A number below 2**63 from the sha256 of all arguments: the same in every process, on every platform.

    Of which torch's generator on a CPU takes the lower 32 bits.
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seeded_generator(seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator for one purpose, for example `generator(seed, "augment", step)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *purpose))


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """int64 (n,): the order of the n training images in one epoch."""
    return torch.randperm(n, generator=seeded_generator(seed, "epoch", epoch))


# Two, since a batch may straddle two epochs. Shared: what it returns must never be changed in place.
_cached_permutation = functools.lru_cache(maxsize=2)(permutation)


def epoch_stream(seed: int, first: int, last: int, n: int) -> Tensor:
    """int64 (last - first,): that stretch of the endless row of epoch permutations."""
    parts = []
    while first < last:
        epoch, offset = divmod(first, n)
        stop = min(n, offset + last - first)
        parts.append(_cached_permutation(seed, epoch, n)[offset:stop])
        first += stop - offset
    return torch.cat(parts)  # a copy, also of a single part


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> Tensor:
    """int64 (batch_size,): the images of one global batch.

    Each image comes once per epoch. The last batch of an epoch is filled with the first images of the
    next one, so that every update sees a whole batch.
    """
    return epoch_stream(seed, step * batch_size, (step + 1) * batch_size, n)
