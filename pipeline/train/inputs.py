"""Training data: one protocol for sets held in memory and for sets read from shards, and how to open either."""

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
from pipeline.data.images import DataError, ImageSet, LabelledImages
from pipeline.data.manifest import Manifest, split_indices
from pipeline.data.normalise import fit_normaliser
from pipeline.data.prefetch import never_stop
from pipeline.data.samples import SampleSubset
from pipeline.data.shards import ShardSet
from pipeline.data.statistics import require_sharded_normalisation
from pipeline.declare.recipe import Data, Train
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
    """How the images of a run are read. None of it changes a number."""

    readers: int = 1  # threads that read sharded images
    cache: Path | None = None  # folder for statistics of the training images
    report: Callable[[str], None] = lambda _: None  # called with a sentence when something takes long
    stop: Callable[[], bool] = never_stop  # once true, long work raises StopRequested
    group: RankGroup = SINGLE_RANK  # the ranks that share the images
    accumulation_steps: int = 1  # micro-batches of each rank in one optimizer step


class ProtocolCache(Protocol):
    """Errors by protocol, kept on disk while the remaining protocols are evaluated."""

    def read(self) -> dict[str, Metrics]: ...

    def add(self, name: str, errors: Metrics) -> None: ...


class TrainingData(Protocol):
    """The images that a run learns from and is evaluated on: `InMemoryData` or `ShardedData`."""

    is_slow: bool  # evaluation takes long enough to be worth a checkpoint first

    @property
    def count(self) -> int:
        """Number of training images."""

    @property
    def test_count(self) -> int:
        """Number of test images."""

    @property
    def protocols(self) -> tuple[str, ...]:
        """Test protocols that the recipe declares; empty where test images are evaluated whole."""

    def during_training(self) -> AbstractContextManager[None]:
        """Return a context for the training loop, in which shards may be copied to this machine."""

    def feed(self, train: Train, seed: int, start: int, block: int) -> Iterable[Batch]:
        """Return the training batches from step `start` to the last; `block` images of one step come at a time."""

    def held_out_errors(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Return the errors on the test set and, if the recipe has one, on the validation set."""

    def final_metrics(self, network: nn.Module, loss: Loss, *, bf16: bool, cache: ProtocolCache) -> Metrics:
        """Return all that is measured once, on the last model; `cache` holds what an interrupted attempt measured."""

    def estimation_patterns(self, seed: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` training images and labels drawn for pass `number` (LeNet-5's curvature estimates)."""

    def ensemble_errors(
        self,
        networks: Sequence[nn.Module],
        members: Sequence["TrainingData"],
        protocol: str | None,
        *,
        bf16: bool,
    ) -> ErrorCounts:
        """Return the errors of the averaged predictions of `networks` on the test set.

        `members` are the training data of each network, whose normalisation it needs. `protocol` None: whole images.
        """

    def features(
        self, network: nn.Module, other: AnyImageSet, part: str, protocol: str | None
    ) -> tuple[Tensor, Tensor]:
        """Return float32 (N, D) features and int64 (N,) labels of the images of `other`'s part.

        Raises UserError where `other` does not have the kind or size of images that the network learned from.
        """


def combine_over_ranks(group: RankGroup, counts: ErrorCounts, expected: int) -> ErrorCounts:
    """Return the errors on all images, on every rank, from each rank's own."""
    return counts if group.world == 1 else combine_counts(group.all_gather(counts), expected)


def input_shape(images: AnyImageSet, data: Data) -> tuple[int, ...]:
    """Return the (C, H, W) that a network reads; UserError where `images` cannot be used as `data` declares."""
    if isinstance(images, ShardSet):
        if data.crop is None:
            raise UserError(MANY_SIZES.format(images.name))
        split_indices(len(images.train), train_count=data.train, val_count=data.val)
        SampleSubset(images.test, torch.tensor([0]))  # raises where there is no test image
        require_sharded_normalisation(data.normalise)
        return (3, data.crop.side, data.crop.side)
    if data.crop is not None:
        raise UserError(SMALL_IMAGES.format(images.name))
    split_indices(len(images.train), train_count=data.train, val_count=data.val)
    first = LabelledImages(images.train.pixels[:1], images.train.labels[:1])
    builder = BatchBuilder(
        first, normalise=fit_normaliser("scale", first), augment=data.augment, pad_to=data.pad_to
    )
    return tuple(builder(torch.tensor([0])).shape[1:])


def require_counts(images: AnyImageSet, manifest: Manifest) -> None:
    """Raise DataError unless the set has as many images as its manifest: every result is of all of them."""
    for part in ("train", "test"):
        found, expected = len(getattr(images, part)), getattr(manifest, part)
        if found != expected:
            raise DataError(
                f"{images.name} has {found:,} {part} images, but its manifest counts {expected:,}; run the same"
                " command again to read both anew"
            )
