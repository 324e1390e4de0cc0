"""Training data in shards: images of varying size, read by threads."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.data.colour import CropBatchBuilder
from pipeline.data.crops import CropSpec
from pipeline.data.manifest import sample_split
from pipeline.data.samples import Samples
from pipeline.data.sharded_feed import ShardedFeed
from pipeline.data.shards import ShardSet, copy_in_background
from pipeline.data.statistics import fit_sharded_normaliser, pixel_statistics, principal_colours
from pipeline.declare.data_settings import Crop, Data
from pipeline.declare.protocol import parse_protocol
from pipeline.declare.training import Train
from pipeline.train.evaluate import EnsembleMember, ErrorCounts, evaluate_samples
from pipeline.train.features import sample_features
from pipeline.train.inputs import (
    AnyImageSet,
    Loss,
    Metrics,
    ProtocolCache,
    ReadOptions,
    TrainingData,
    combine_over_ranks,
)


class ShardedData:
    """A data set in shards; implements `TrainingData`."""

    evaluates_slowly = True
    feed_class: type[ShardedFeed] = ShardedFeed

    def __init__(self, shards: ShardSet, data: Data, device: torch.device, key: str, options: ReadOptions) -> None:
        crop = data.crop
        assert crop is not None  # `input_shape` has checked it
        self.shards, self.data, self.device, self.options = shards, data, device, options
        self.crop = crop_spec(crop)
        self.training, self.validation = sample_split(
            shards.train, train_count=data.train, val_count=data.val, val_per_class=data.val_per_class
        )
        self.test = shards.test
        statistics, pca = None, "pca-colour" in data.augment
        if pca or data.normalise != "scale":
            statistics = options.group.on_rank_zero(
                lambda stop: pixel_statistics(
                    self.training,
                    crop,
                    threads=options.readers,
                    cache=options.cache,
                    key=key,
                    report=options.report,
                    stop=stop,
                ),
                options.stop,
            )
        self.normaliser = fit_sharded_normaliser(data.normalise, statistics).to(device)
        self.pca = principal_colours(statistics) if pca and statistics else None

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.training)

    @property
    def test_count(self) -> int:
        """Number of test images."""
        return len(self.test)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Test protocols that the recipe declares."""
        return self.data.test

    def during_training(self) -> AbstractContextManager[None]:
        """Return a context within which remote shards are copied to this machine, as far as there is room."""
        return copy_in_background(self.shards.train, self.options.report)

    def feed(self, train: Train, seed: int, start: int, block: int) -> ShardedFeed:
        """Return the training batches from step `start` to the last."""
        builder = CropBatchBuilder(
            normalise=self.normaliser,
            augment=self.data.augment,
            jitter=self.data.jitter,
            pca=self.pca,
            device=self.device,
        )
        return self.feed_class(
            self.training,
            builder,
            self.crop,
            seed=seed,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            threads=self.options.readers,
            rank=self.options.group.rank,
            world=self.options.group.world,
            accumulation_steps=self.options.accumulation_steps,
        )

    def held_out_errors(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Return the errors by the first protocol on the test set and, if declared, the validation set."""
        return self._errors("test", self.test, network, self.protocols[0], bf16) | self._errors(
            "val", self.validation, network, self.protocols[0], bf16
        )

    def final_metrics(self, network: nn.Module, loss: Loss, *, bf16: bool, cache: ProtocolCache) -> Metrics:
        """Return the errors by every protocol as test/<protocol>/..., and those by the first also as test/...

        Errors in rank 0's `cache` are not evaluated again.
        """
        found: Metrics = {}
        for name in self.protocols:
            for part, samples in (("test", self.test), ("val", self.validation)):
                if not len(samples):
                    continue
                errors = self._cached_errors(part, samples, network, name, bf16, cache)
                found |= errors if name == self.protocols[0] else {}
                found |= {f"{part}/{name}/{key.partition('/')[2]}": value for key, value in errors.items()}
        return found

    def _cached_errors(
        self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool, cache: ProtocolCache
    ) -> Metrics:
        group, name = self.options.group, f"{part}/{protocol}"
        if (errors := group.on_rank_zero(lambda _: cache.read().get(name))) is None:
            self.options.report(f"evaluating {len(samples):,} {part} images by {protocol}")
            errors = self._errors(part, samples, network, protocol, bf16)
            group.on_rank_zero(lambda _: cache.add(name, errors))
        return errors

    def _errors(self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool) -> Metrics:
        if not len(samples):
            return {}
        group = self.options.group
        errors = group.on_all_ranks(
            lambda stop: evaluate_samples(
                [EnsembleMember(network, self.normaliser)],
                samples,
                parse_protocol(protocol),
                expected=len(samples),
                threads=self.options.readers,
                bf16=bf16,
                device=self.device,
                rank=group.rank,
                world=group.world,
                stop=stop,
            ),
            self.options.stop,
        )
        return combine_over_ranks(group, errors, len(samples)).metrics(part)

    def curvature_patterns(self, seed: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Raise UserError: LeNet-5's optimizer needs images in memory."""
        raise UserError("optimizer 'sdlm' needs small images in memory and cannot learn from images in shards")

    def ensemble_errors(
        self,
        networks: Sequence[nn.Module],
        members: Sequence[TrainingData],
        protocol: str | None,
        *,
        bf16: bool,
    ) -> ErrorCounts:
        """Return the errors of the averaged predictions on the test set by `protocol`."""
        return evaluate_samples(
            [EnsembleMember(network, data.normaliser) for network, data in zip(networks, members, strict=True)],
            self.test,
            parse_protocol(protocol or ""),
            expected=len(self.test),
            threads=self.options.readers,
            bf16=bf16,
            device=self.device,
            stop=self.options.stop,
        )

    def features(
        self, network: nn.Module, other: AnyImageSet, part: str, protocol: str | None
    ) -> tuple[Tensor, Tensor]:
        """Return features and labels of `other`'s part, from the single crop of `protocol`."""
        if not isinstance(other, ShardSet):
            raise UserError(
                f"the network learned from images in shards, but {other.name} is a set of small images"
            )
        samples = getattr(other, part)
        features = sample_features(
            EnsembleMember(network, self.normaliser),
            samples,
            parse_protocol(protocol or ""),
            threads=self.options.readers,
            device=self.device,
            stop=self.options.stop,
        )
        return features, samples.labels


def crop_spec(crop: Crop) -> CropSpec:
    """Return a declared crop as the `CropSpec` that readers use."""
    short = (crop.short, crop.short) if isinstance(crop.short, int) else crop.short
    return CropSpec(crop.side, short, crop.centre, crop.at == "five", crop.area, crop.aspect, crop.interpolation)
