"""Training data held in memory: a set of images of one size."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder, InMemoryFeed, evaluation_batches
from pipeline.data.images import ImageSet, LabelledImages
from pipeline.data.manifest import train_val_split
from pipeline.data.order import derive_seed
from pipeline.data.statistics import fit_in_memory_normaliser
from pipeline.declare.data_settings import Data
from pipeline.declare.training import Train
from pipeline.train.evaluate import EVAL_BATCH, AveragedNetworks, ErrorCounts, evaluate_batches, response_std
from pipeline.train.features import batch_features
from pipeline.train.inputs import (
    AnyImageSet,
    Loss,
    Metrics,
    ProtocolCache,
    ReadOptions,
    TrainingData,
    combine_over_ranks,
)

RESPONSE_IMAGES = 2000  # test images on which the standard deviation of layer responses is measured


class InMemoryData:
    """A data set held in memory; implements `TrainingData`."""

    evaluates_slowly = False
    protocols: tuple[str, ...] = ()

    def __init__(self, images: ImageSet, data: Data, device: torch.device, key: str, options: ReadOptions) -> None:
        self.name, self.data, self.device, self.options = images.name, data, device, options
        self.training, self.validation = train_val_split(
            images.train,
            train_count=data.train,
            val_count=data.val,
            val_per_class=data.val_per_class,
            parts=images.train_parts,
        )
        self.test = images.test
        self.normaliser = options.group.on_rank_zero(
            lambda _: fit_in_memory_normaliser(data.normalise, self.training, cache=options.cache, key=key)
        )

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.training)

    @property
    def test_count(self) -> int:
        """Number of test images."""
        return len(self.test)

    def during_training(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: all images are in memory."""
        return nullcontext()

    def batch_builder(self, images: LabelledImages, augment: tuple[str, ...] = ()) -> BatchBuilder:
        """Return a builder of batches of `images`, normalised by statistics of the training images."""
        return BatchBuilder(
            images, normalise=self.normaliser, augment=augment, pad_to=self.data.pad_to, device=self.device
        )

    def feed(self, train: Train, seed: int, start: int, block: int) -> InMemoryFeed:
        """Return the training batches from step `start` to the last."""
        return InMemoryFeed(
            self.batch_builder(self.training, self.data.augment),
            self.training.labels,
            seed=seed,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            block=block,
            rank=self.options.group.rank,
            world=self.options.group.world,
            accumulation_steps=self.options.accumulation_steps,
        )

    def held_out_errors(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Return the errors on the test set and, if the recipe has one, on the validation set."""
        return self._errors("test", self.test, network, loss, bf16) | self._errors(
            "val", self.validation, network, loss, bf16
        )

    def final_metrics(self, network: nn.Module, loss: Loss, *, bf16: bool, cache: ProtocolCache) -> Metrics:
        """Return the errors on all parts and the standard deviation of layer responses; does not use `cache`."""
        first = LabelledImages(self.test.pixels[:RESPONSE_IMAGES], self.test.labels[:RESPONSE_IMAGES])
        batches = evaluation_batches(self.batch_builder(first), first.labels, batch_size=EVAL_BATCH)
        responses = response_std(network, batches)
        return (
            self.held_out_errors(network, loss, bf16=bf16)
            | self._errors("trainset", self.training, network, loss, bf16)
            | ({} if responses is None else {"test/response_std": responses})
        )

    def _errors(self, name: str, images: LabelledImages, network: nn.Module, loss: Loss, bf16: bool) -> Metrics:
        if not len(images):
            return {}
        group = self.options.group
        batches = evaluation_batches(
            self.batch_builder(images), images.labels, batch_size=EVAL_BATCH, rank=group.rank, world=group.world
        )
        errors = evaluate_batches(
            network, batches, loss, expected=len(images), bf16=bf16, rank=group.rank, world=group.world
        )
        return combine_over_ranks(group, errors, len(images)).metrics(name)

    def curvature_patterns(self, seed: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Return `count` training images and labels, drawn from (seed, number) without replacement."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "pass", number))
        indices = torch.randperm(self.train_count, generator=generator)[:count]
        return self.batch_builder(self.training)(indices), self.training.labels[indices].to(self.device)

    def ensemble_errors(
        self,
        networks: Sequence[nn.Module],
        members: Sequence[TrainingData],
        protocol: str | None,
        *,
        bf16: bool,
    ) -> ErrorCounts:
        """Return the errors of the averaged predictions on the test images, normalised alike for all members."""
        batches = evaluation_batches(self.batch_builder(self.test), self.test.labels, batch_size=EVAL_BATCH)
        if len(networks) == 1:
            return evaluate_batches(networks[0], batches, F.cross_entropy, expected=len(self.test), bf16=bf16)
        return evaluate_batches(
            AveragedNetworks(networks), batches, F.nll_loss, expected=len(self.test), bf16=bf16
        )

    def features(
        self, network: nn.Module, other: AnyImageSet, part: str, protocol: str | None
    ) -> tuple[Tensor, Tensor]:
        """Return features and labels of the whole images of `other`'s part."""
        if not isinstance(other, ImageSet):
            raise UserError(f"the network learned from small images, but {other.name} is a set in shards")
        images: LabelledImages = getattr(other, part)
        expected, found = self.test.pixels.shape[1:], images.pixels.shape[1:]
        if expected != found:
            sizes = [" x ".join(map(str, shape)) for shape in (expected, found)]
            raise UserError(
                f"the network learned from images of {sizes[0]}, but those of {other.name} are {sizes[1]}"
            )
        return batch_features(network, self.batch_builder(images), stop=self.options.stop), images.labels
