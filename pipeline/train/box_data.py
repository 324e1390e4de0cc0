"""Training data with bounding boxes, and the localisation error of the centre crop.

Simonyan and Zisserman 2014, arXiv:1409.1556, appendix A.

The error is that of the paper's first test protocol: the class is given, and the box is predicted from the central
crop of the image. It is right if its intersection over union with any box of the image is above 0.5.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_modules.box_regression import (
    LOCALISED_IOU,
    BoxBatch,
    corners_of,
    euclidean_loss,
    overlap,
)
from lightning_modules.vgg_localisation import boxes_of_classes
from pipeline.common.errors import UserError
from pipeline.data.boxes import Corners, boxed_samples, corners_in_crop, target_box
from pipeline.data.colour import FLIP_COLUMN
from pipeline.data.crops import CropBox, crop_box
from pipeline.data.jpeg import centre_offset, size_for_short_side
from pipeline.data.normalise import normalise_crops
from pipeline.data.prefetch import never_stop, prefetch
from pipeline.data.samples import Samples
from pipeline.data.sharded_feed import CropChunk, ShardedFeed
from pipeline.declare.protocol import Protocol, parse_protocol
from pipeline.train.evaluate import (
    EnsembleMember,
    ErrorCounts,
    evaluation_mode,
    forward_scores,
    require_count,
    samples_per_pass,
    view_stacks,
)
from pipeline.train.inputs import AnyImageSet, Metrics, ReadOptions, TrainingData, combine_over_ranks
from pipeline.train.sharded import ShardedData

NO_CLASSES = "a network that predicts bounding boxes has no class errors; use a derived run of kind localisation"


class TrueBoxes:
    """The boxes and the sizes of samples that have boxes, by number."""

    def __init__(self, samples: Samples) -> None:
        self.split, self.numbers = boxed_samples(samples)

    def corners(self, index: int) -> Corners:
        """Return the boxes of an image as fractions of its width and height, (n, 4)."""
        return self.split.boxes[int(self.numbers[index])]

    def size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of an image in pixels."""
        row = self.split.index[int(self.numbers[index])]
        return int(row["height"]), int(row["width"])


class BoxFeed(ShardedFeed):
    """Training batches with a target box for each image, in the coordinates of its crop."""

    def _batch(self, step: int, chunks: Sequence[CropChunk]) -> BoxBatch:  # type: ignore[override]
        batch, true = super()._batch(step, chunks), TrueBoxes(self.samples)
        targets = [
            self.target(true, index, draws)
            for chunk in chunks
            for index, draws in zip(chunk.indices.tolist(), chunk.draws.tolist(), strict=True)
        ]
        boxes = torch.from_numpy(np.stack(targets)).float().to(self.builder.device)
        return BoxBatch(batch.step, batch.images, batch.labels, boxes)

    def target(self, true: TrueBoxes, index: int, draws: Sequence[float]) -> Corners:
        """Return the target box of one image, given its row of `CropBatchBuilder.draw`."""
        size = true.size(index)
        crop = crop_box(self.crop, *size, draws[0])
        flip = self.builder.flip and draws[FLIP_COLUMN] < 0.5
        return target_box(corners_in_crop(true.corners(index), crop, size, self.crop.side, flip=flip))


class BoxData(ShardedData):
    """Images in shards with bounding boxes; implements `TrainingData`."""

    feed_class = BoxFeed

    def _errors(self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool) -> Metrics:
        if not len(samples):
            return {}
        member, group = EnsembleMember(network, self.normaliser), self.options.group
        counts = group.on_all_ranks(
            lambda stop: evaluate_boxes(
                member, samples, parse_protocol(protocol), self.options, bf16=bf16, device=self.device, stop=stop
            ),
            self.options.stop,
        )
        found = combine_over_ranks(group, counts, len(samples))
        return {
            f"{part}/localisation_error_pct": 100 * found.wrong1 / found.images,
            f"{part}/loss": found.loss,
            f"{part}/images": found.images,
        }

    def ensemble_errors(
        self, networks: Sequence[nn.Module], members: Sequence[TrainingData], protocol: str | None, *, bf16: bool
    ) -> ErrorCounts:
        """Raise UserError: these networks predict boxes, not classes."""
        raise UserError(NO_CLASSES)

    def features(
        self, network: nn.Module, other: AnyImageSet, part: str, protocol: str | None
    ) -> tuple[Tensor, Tensor]:
        """Raise UserError: these networks predict boxes, not classes."""
        raise UserError(NO_CLASSES)


def evaluate_boxes(
    member: EnsembleMember,
    samples: Samples,
    protocol: Protocol,
    options: ReadOptions,
    *,
    bf16: bool,
    device: torch.device,
    stop: Callable[[], bool] = never_stop,
) -> ErrorCounts:
    """Return the number of images whose box is wrong, given their class, as both `wrong1` and `wrong5`.

    The box is predicted from the centre crop and clipped to the image. The loss is that of the box that
    `target_box` chooses. Each rank evaluates its share; see `combine_counts`.
    """
    true, part = TrueBoxes(samples), protocol.parts[0]
    [short], side = part.shorts, part.side
    assert side  # `Data` allows centre crops only
    group, size = options.group, samples_per_pass(protocol)
    own = range(group.rank, len(samples), group.world)
    jobs = [own[start : start + size] for start in range(0, len(own), size)]
    wrong, losses = 0, 0.0
    with ExitStack() as exit_stack:
        exit_stack.enter_context(evaluation_mode(member.network))
        work = prefetch(
            jobs,
            lambda job: view_stacks(samples, protocol, job),
            threads=options.readers,
            depth=2 * options.readers,
            stop=stop,
        )
        for job, [stack] in zip(jobs, exit_stack.enter_context(closing(work)), strict=True):
            pixels = torch.cat([group.pixels for group in stack.groups]).to(device)
            x = normalise_crops(member.normalise, pixels)
            outputs = forward_scores(member.network, x, False, protocol.name, bf16).float()
            boxes = boxes_of_classes(outputs, samples.labels[list(job)].to(device)).cpu()
            for index, box, corners in zip(job, boxes, corners_of(boxes.double()).numpy(), strict=True):
                crop = centre_crop(*true.size(index), short, side)
                found = corners_in_image(corners[None], crop.size, crop.crop, side)
                wrong += not is_localised(found, true.corners(index)).item()
                target = target_box(corners_in_crop(true.corners(index), crop, true.size(index), side, flip=False))
                losses += float(euclidean_loss(box[None].double(), torch.from_numpy(target)[None]))
    if group.world == 1:
        require_count(len(own), len(samples))
    return ErrorCounts(len(own), wrong, wrong, losses / len(own) if own else 0.0, group.rank, group.world)


def centre_crop(height: int, width: int, short: int, side: int) -> CropBox:
    """Return the central crop of an image of (height, width) pixels resized to a short side."""
    size = size_for_short_side(height, width, short)
    corner = centre_offset(*size, side)
    return CropBox((0, 0, height, width), size, corner, corner, "bilinear")


def corners_in_image(
    corners: Corners, size: tuple[int, int], offset: tuple[int, int] | NDArray[np.int64], side: int
) -> Corners:
    """Return corners as fractions of an image, clipped to it, from fractions of windows: (n, 4) -> (n, 4).

    `size`: (height, width) of the image in pixels. `offset`: row and column of the windows' top left corner, of
    all or of each, (n, 2). `side`: of the windows.
    """
    rows_and_columns = np.broadcast_to(np.asarray(offset), (len(corners), 2))
    start = rows_and_columns[:, [1, 0, 1, 0]]
    found: Corners = (start + side * corners) / np.array([size[1], size[0], size[1], size[0]])
    return found.clip(0, 1)


def is_localised(found: Corners, true: Corners) -> NDArray[np.bool_]:
    """Return which of the boxes (n, 4) have an overlap above 0.5 with any of the true ones (m, 4); (n,)."""
    overlaps = overlap(torch.from_numpy(found)[:, None], torch.from_numpy(true)[None])
    right: NDArray[np.bool_] = (overlaps > LOCALISED_IOU).any(1).numpy()
    return right
