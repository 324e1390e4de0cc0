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

CROP_CHUNK = 16  # images that a thread reads, decodes and crops at a time

BATCHES_AHEAD = 2


class ShardedFeed:
    """Training batches of steps `start_step` to `stop_step` - 1 for one rank of `world`, from sharded images.

    `batch_size` is global. Each global batch is split into `world` * `accumulation_steps` micro-batches, and the
    feed yields those of `rank`, one after the other (see `batches.rank_slices`). `threads` threads read, decode
    and crop ahead.
    """

    def __init__(
        self,
        samples: Samples,
        builder: CropBatchBuilder,
        crop: CropSpec,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        stop_step: int,
        threads: int,
        rank: int = 0,
        world: int = 1,
        accumulation_steps: int = 1,
    ) -> None:
        if not len(samples):
            raise DataError("the training part has no images")
        self.slices = rank_slices(batch_size, rank, world, accumulation_steps)
        self.samples, self.builder, self.crop = samples, builder, crop
        self.seed, self.batch_size, self.threads = seed, batch_size, threads
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * len(self.slices)

    def __iter__(self) -> Generator[Batch, None, None]:
        chunks = -(-len(range(self.batch_size)[self.slices[0]]) // CROP_CHUNK)  # per micro-batch
        depth = BATCHES_AHEAD * chunks * len(self.slices)
        with closing(prefetch(self._chunks(), self._crop, threads=self.threads, depth=depth)) as ready:
            for step in range(self.start_step, self.stop_step):
                for _ in self.slices:
                    yield self._batch(step, list(islice(ready, chunks)))

    def _batch(self, step: int, chunks: Sequence["CropChunk"]) -> Batch:
        """Return one micro-batch on the device; the copies do not wait for the work queued on the device."""
        device = self.builder.device
        indices = torch.cat([chunk.indices for chunk in chunks])
        corners = torch.tensor([corner for chunk in chunks for corner in chunk.corners])
        pixels, labels, corners = (
            tensor.to(device, non_blocking=True)
            for tensor in (chunks[0].batch, self.samples.labels[indices], corners)
        )
        draws = torch.cat([chunk.draws for chunk in chunks])
        return Batch(step, self.builder(pixels, corners, self.crop.frame, draws), labels)

    def _chunks(self) -> Iterable["CropChunk"]:
        """Yield the chunks of each micro-batch in turn, not cropped yet."""
        for step in range(self.start_step, self.stop_step):
            order = batch_indices(self.seed, step, self.batch_size, len(self.samples))
            draws = self.builder.draw(self.seed, step, self.batch_size)
            for part in self.slices:
                shape = (len(order[part]), self.crop.side, self.crop.side, 3)
                batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.builder.device.type == "cuda")
                columns = (torch.split(tensor, CROP_CHUNK) for tensor in (order[part], draws[part], batch))
                for indices, rows, pixels in zip(*columns, strict=True):
                    yield CropChunk(indices, rows, pixels, batch)

    def _crop(self, chunk: "CropChunk") -> "CropChunk":
        """Fill in the pixels of a chunk; return it with the corners of its crops."""
        numbers, corners = chunk.indices.tolist(), []
        contents = self.samples.read(numbers)
        draws = chunk.draws[:, 0].tolist()
        for pixels, number, content, draw in zip(chunk.pixels, numbers, contents, draws, strict=True):
            crop, corner = crop_image(self.crop, decode(content, self.samples.where(number)), draw)
            pixels.copy_(crop)  # at once, while the crop is in the processor's cache
            corners.append(corner)
        return chunk._replace(corners=corners)


class CropChunk(NamedTuple):
    """Some images of a micro-batch."""

    indices: Tensor  # int64 (n,)
    draws: Tensor  # float64 (n, 16); the first column is for the crop
    pixels: Tensor  # uint8 (n, side, side, 3), a view of `batch`
    batch: Tensor  # uint8 (N, side, side, 3), the whole micro-batch
    corners: Sequence[tuple[int, int]] = ()
