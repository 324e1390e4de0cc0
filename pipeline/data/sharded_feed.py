"""Training batches of images read from shards."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_modules.recipe import Batch
from pipeline.data.batches import rank_slices
from pipeline.data.colour import CropBatchBuilder
from pipeline.data.crops import CropSpec, crop_image
from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.order import batch_indices
from pipeline.data.prefetch import prefetch
from pipeline.data.samples import Samples

CROP_CHUNK = 16  # pictures that a thread reads and decodes at a time

BATCHES_AHEAD = 2


class ShardedFeed:
    """The training batches of updates `start_step` to `stop_step - 1`, for one rank of `world`.

    With `parts` > 1 a rank's share of a global batch comes in so many batches, as of batches.Feed.
    """

    def __init__(
        self,
        samples: Samples,
        maker: CropBatchBuilder,
        cut: CropSpec,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        stop_step: int,
        threads: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if not len(samples):
            raise DataError("there is no picture to learn from")
        self.mine = rank_slices(batch_size, rank, world, parts)
        self.samples, self.maker, self.cut = samples, maker, cut
        self.seed, self.batch_size, self.threads = seed, batch_size, threads
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * len(self.mine)

    def __iter__(self) -> Generator[Batch, None, None]:
        chunks = -(-len(range(self.batch_size)[self.mine[0]]) // CROP_CHUNK)  # in a batch of this rank
        depth = BATCHES_AHEAD * chunks * len(self.mine)
        with closing(prefetch(self._jobs(), self._cut_out, threads=self.threads, depth=depth)) as ready:
            for step in range(self.start_step, self.stop_step):
                for _ in self.mine:
                    yield self._batch(step, list(islice(ready, chunks)))

    def _batch(self, step: int, parts: Sequence["CropChunk"]) -> Batch:
        """One batch on the device; what is copied there does not wait for what the device is doing."""
        device = self.maker.device
        indices = torch.cat([part.indices for part in parts])
        corners = torch.tensor([corner for part in parts for corner in part.corners])
        pixels, labels, at = (
            tensor.to(device, non_blocking=True)
            for tensor in (parts[0].batch, self.samples.labels[indices], corners)
        )
        draws = torch.cat([part.draws for part in parts])
        return Batch(step, self.maker(pixels, at, self.cut.frame, draws), labels)

    def _jobs(self) -> Iterable["CropChunk"]:
        """Of each batch in turn: some of its pictures."""
        for step in range(self.start_step, self.stop_step):
            order = batch_indices(self.seed, step, self.batch_size, len(self.samples))
            draws = self.maker.draw(self.seed, step, self.batch_size)
            for mine in self.mine:
                shape = (len(order[mine]), self.cut.side, self.cut.side, 3)
                batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.maker.device.type == "cuda")
                parts = (of.split(CROP_CHUNK) for of in (order[mine], draws[mine], batch))
                for some, theirs, pixels in zip(*parts, strict=True):
                    yield CropChunk(some, theirs, pixels, batch)

    def _cut_out(self, chunk: "CropChunk") -> "CropChunk":
        """The same, with the pixels and corners of its crops."""
        numbers, corners = chunk.indices.tolist(), []
        contents = self.samples.read(numbers)
        for into, number, content, draw in zip(
            chunk.pixels, numbers, contents, chunk.draws[:, 0].tolist(), strict=True
        ):
            crop, corner = crop_image(self.cut, decode(content, self.samples.where(number)), draw)
            into.copy_(crop)  # at once, while it is in the processor's cache
            corners.append(corner)
        return chunk._replace(corners=corners)


class CropChunk(NamedTuple):
    """Some of a batch's pictures."""

    indices: Tensor  # int64 (n,)
    draws: Tensor  # float64 (n, 16); the first column is the crops'
    pixels: Tensor  # uint8 (n, side, side, 3), a part of ...
    batch: Tensor  # ... the whole batch
    corners: Sequence[tuple[int, int]] = ()
