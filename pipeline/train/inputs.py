"""Training data: one protocol for data sets held in memory and for data sets read from shards."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_modules.recipe import Batch
from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder
from pipeline.data.boxes import BoxedShards
from pipeline.data.images import DataError, ImageSet, LabelledImages
from pipeline.data.manifest import Manifest, split_indices
from pipeline.data.normalise import Normaliser, fit_normaliser
from pipeline.data.prefetch import never_stop
from pipeline.data.samples import SampleSubset
from pipeline.data.shards import ShardSet
from pipeline.data.statistics import require_sharded_normalisation
from pipeline.declare.data_settings import Data
from pipeline.declare.training import Train
from pipeline.train.evaluate import ErrorCounts, combine_counts
from pipeline.train.ranks import SINGLE_RANK, RankGroup

MANY_SIZES = (
    "{} holds images of many sizes; declare in data.crop how they are cropped for training, and in data.test by"
    " which protocols they are evaluated"
)
SMALL_IMAGES = (
    "data.crop is for images in shards, and {} is a set of small images; leave data.crop out, or prepare shards"
    " with repro data prepare"
)

AnyImageSet = ImageSet | ShardSet
Loss = Callable[[Tensor, Tensor], Tensor]
Metrics = dict[str, float]


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading the images of a run. `readers` and `cache` do not change a result."""

    readers: int = 1  # threads that read sharded images
    cache: Path | None = None  # folder for statistics of the training images
    report: Callable[[str], None] = lambda _: None  # called with a message before long work
    stop: Callable[[], bool] = never_stop  # long work raises StopRequested once it returns True
    group: RankGroup = SINGLE_RANK  # ranks that share the images
    accumulation_steps: int = 1  # micro-batches per rank and optimizer step


class ProtocolCache(Protocol):
    """Errors by test protocol, kept on disk until all protocols are evaluated."""

    def read(self) -> dict[str, Metrics]: ...

    def add(self, name: str, errors: Metrics) -> None: ...


class TrainingData(Protocol):
    """Training, validation and test images of a run: `InMemoryData` or `ShardedData`."""

    evaluates_slowly: bool  # if True, a checkpoint is written before each evaluation
    normaliser: Normaliser  # fitted to the training images

    @property
    def train_count(self) -> int:
        """Number of training images."""

    @property
    def test_count(self) -> int:
        """Number of test images."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """Test protocols that the recipe declares; empty if test images are evaluated whole."""

    def during_training(self) -> AbstractContextManager[None]:
        """Return a context for the training loop, within which shards may be copied to this machine."""

    def feed(self, train: Train, seed: int, start: int, block: int) -> Iterable[Batch]:
        """Return the training batches from step `start` to the last, each of `block` steps (see `block_size`)."""

    def held_out_errors(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Return the errors on the test set and, if the recipe has one, on the validation set."""

    def final_metrics(self, network: nn.Module, loss: Loss, *, bf16: bool, cache: ProtocolCache) -> Metrics:
        """Return the metrics of the final network; `cache` holds errors that an interrupted attempt measured."""

    def curvature_patterns(self, seed: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` training images and labels drawn for pass `number`, for LeNet-5's curvature estimate."""

    def ensemble_errors(
        self,
        networks: Sequence[nn.Module],
        members: Sequence["TrainingData"],
        protocol: str | None,
        *,
        bf16: bool,
    ) -> ErrorCounts:
        """Return the errors of the averaged predictions of `networks` on the test set.

        `members` holds the training data of each network; its input is normalised by their `normaliser`. With
        `protocol` None the images are evaluated whole.
        """

    def features(
        self, network: nn.Module, other: AnyImageSet, part: str, protocol: str | None
    ) -> tuple[Tensor, Tensor]:
        """Return float32 (N, D) features and int64 (N,) labels of `other`'s images; `part` is "train" or "test".

        Raises UserError if the images of `other` are of another kind or size than those the network learned from.
        """


def combine_over_ranks(group: RankGroup, counts: ErrorCounts, expected: int) -> ErrorCounts:
    """Combine the errors of all ranks, each on its share of the images; return the same on every rank."""
    return counts if group.world == 1 else combine_counts(group.all_gather(counts), expected)


def input_shape(images: AnyImageSet, data: Data) -> tuple[int, ...]:
    """Return the shape (C, H, W) of a network's input. Raises UserError if `images` and `data` do not fit."""
    if isinstance(images, ShardSet):
        if data.crop is None:
            raise UserError(MANY_SIZES.format(images.name))
        split_indices(
            images.train.labels, train_count=data.train, val_count=data.val, val_per_class=data.val_per_class
        )
        SampleSubset(images.test, torch.tensor([0]))  # raises DataError if there is no test image
        require_sharded_normalisation(data.normalise)
        return (3, data.crop.side, data.crop.side)
    if data.crop is not None:
        raise UserError(SMALL_IMAGES.format(images.name))
    split_indices(
        images.train.labels,
        train_count=data.train,
        val_count=data.val,
        val_per_class=data.val_per_class,
        parts=images.train_parts,
    )
    first = LabelledImages(images.train.pixels[:1], images.train.labels[:1])
    builder = BatchBuilder(
        first, normalise=fit_normaliser("scale", first), augment=data.augment, pad_to=data.pad_to
    )
    return tuple(builder(torch.tensor([0])).shape[1:])


def images_for(images: AnyImageSet, data: Data) -> AnyImageSet:
    """Return the images that `data` declares, of a set that may have boxes: all of them, or those with boxes.

    Raises UserError if `data` declares boxes, but the set was loaded without.
    """
    if data.boxes and not isinstance(images, BoxedShards):
        raise UserError(
            f"{images.name} has no bounding boxes, which data.boxes needs; use a set in shards with boxes"
        )
    return images.plain if isinstance(images, BoxedShards) and not data.boxes else images


def require_counts(images: AnyImageSet, manifest: Manifest) -> None:
    """Raise DataError unless the set has as many images as its manifest: every result counts all images."""
    for part in ("train", "test"):
        found, expected = len(getattr(images, part)), getattr(manifest, part)
        if found != expected:
            raise DataError(
                f"{images.name} has {found:,} {part} images, but its manifest counts {expected:,}; run the same"
                " command again to read both"
            )
