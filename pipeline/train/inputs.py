"""What a run learns from and is judged on, asked the same questions whether it is a small set in memory or
photographs read from shards as they are needed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder, InMemoryFeed, evaluation_batches
from pipeline.data.colour import CropBatchBuilder
from pipeline.data.crops import CropSpec
from pipeline.data.images import DataError, ImageSet, LabelledImages
from pipeline.data.manifest import Manifest, sample_split, split_indices, train_val_split
from pipeline.data.normalise import fit_normaliser
from pipeline.data.order import derive_seed
from pipeline.data.prefetch import never_stop
from pipeline.data.samples import Samples, SampleSubset
from pipeline.data.sharded_feed import ShardedFeed
from pipeline.data.shards import ShardSet, copy_in_background
from pipeline.data.statistics import (
    fit_in_memory_normaliser,
    fit_sharded_normaliser,
    pixel_statistics,
    principal_colours,
    require_sharded_normalisation,
)
from pipeline.declare.protocol import parse_protocol
from pipeline.declare.recipe import Crop, Data, Train
from pipeline.train.evaluate import (
    EVAL_BATCH,
    EnsembleMember,
    ErrorCounts,
    combine_counts,
    evaluate_batches,
    evaluate_samples,
    response_std,
)
from pipeline.train.ranks import SINGLE_RANK, RankGroup

MANY_SIZES = (
    "{} holds photographs of many sizes; say in data.crop how they become squares, and in data.test how they are"
    " judged"
)

SMALL_IMAGES = (
    "data.crop is for photographs in shards, and {} is a set of small images; leave it out, or make a set of"
    " photographs with repro data prepare"
)

RESPONSES = 2000  # test images from which the layers' responses are measured

Loss = Callable[[Tensor, Tensor], Tensor]

Metrics = dict[str, float]


@dataclass(frozen=True)
class ReadOptions:
    """How a run's images are read, by whom, and who hears of it."""

    readers: int = 1  # threads that read photographs
    cache: Path | None = None  # a folder for statistics of the training part
    report: Callable[[str], None] = lambda _: None  # hears why something takes long
    stop: Callable[[], bool] = never_stop  # once true, what takes long ends with Stopped
    group: RankGroup = SINGLE_RANK  # those who share the images; what is measured is told to all of them
    accumulation_steps: int = 1  # a rank's share of a training batch comes in so many batches


class ProtocolCache(Protocol):
    """Errors by some protocols, kept while the others are measured."""

    def read(self) -> dict[str, Metrics]: ...

    def add(self, name: str, errors: Metrics) -> None: ...


class InMemoryData:
    """A set held in memory, all images of one size."""

    is_slow = False  # to be judged, so that it is worth a checkpoint first

    def __init__(self, images: ImageSet, data: Data, device: torch.device, key: str, ways: ReadOptions) -> None:
        self.data, self.device, self.ways = data, device, ways
        self.training, self.validation = train_val_split(images.train, train_count=data.train, val_count=data.val)
        self.test = images.test
        self.normaliser = ways.group.on_rank_zero(
            lambda _: fit_in_memory_normaliser(data.normalise, self.training, cache=ways.cache, key=key)
        )

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.training)

    def training_goes_on(self) -> AbstractContextManager[None]:
        """Nothing is left to be brought here."""
        return nullcontext()

    def maker(self, images: LabelledImages, augment: tuple[str, ...] = ()) -> BatchBuilder:
        """Batches of `images`, normalised by the statistics of the images trained on."""
        return BatchBuilder(
            images, normalise=self.normaliser, augment=augment, pad_to=self.data.pad_to, device=self.device
        )

    def feed(self, train: Train, seed: int, start: int, block: int) -> InMemoryFeed:
        """The training batches from update `start` to the last."""
        return InMemoryFeed(
            self.maker(self.training, self.data.augment),
            self.training.labels,
            seed=seed,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            block=block,
            rank=self.ways.group.rank,
            world=self.ways.group.world,
            parts=self.ways.accumulation_steps,
        )

    def held_out(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Errors on the test set and, where the recipe keeps one, on the validation set."""
        return self._errors("test", self.test, network, loss, bf16) | self._errors(
            "val", self.validation, network, loss, bf16
        )

    def final(self, network: nn.Module, loss: Loss, *, bf16: bool, kept: ProtocolCache) -> Metrics:
        """What is measured once, on the last model: all errors, and the layers' responses; nothing is kept."""
        some = LabelledImages(self.test.pixels[:RESPONSES], self.test.labels[:RESPONSES])
        responses = response_std(network, evaluation_batches(self.maker(some), some.labels, batch_size=EVAL_BATCH))
        return (
            self.held_out(network, loss, bf16=bf16)
            | self._errors("trainset", self.training, network, loss, bf16)
            | ({} if responses is None else {"test/response_std": responses})
        )

    def _errors(self, name: str, images: LabelledImages, network: nn.Module, loss: Loss, bf16: bool) -> Metrics:
        if not len(images):
            return {}
        us = self.ways.group
        batches = evaluation_batches(
            self.maker(images), images.labels, batch_size=EVAL_BATCH, rank=us.rank, world=us.world
        )
        errors = evaluate_batches(
            network, batches, loss, expected=len(images), bf16=bf16, rank=us.rank, world=us.world
        )
        return combine_over_ranks(us, errors, len(images)).metrics(name)

    def patterns(self, seed: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images and labels drawn for pass `number`, for estimates made before it."""
        draw = torch.Generator().manual_seed(derive_seed(seed, "pass", number))
        indices = torch.randperm(self.count, generator=draw)[:count]
        return self.maker(self.training)(indices), self.training.labels[indices].to(self.device)


class ShardedData:
    """A set in shards, its pictures of any size, read by threads."""

    is_slow = True

    def __init__(self, shards: ShardSet, data: Data, device: torch.device, key: str, ways: ReadOptions) -> None:
        crop = data.crop
        assert crop is not None  # `image_shape` has seen to it
        self.shards, self.data, self.device, self.ways = shards, data, device, ways
        self.cut = crop_spec(crop)
        self.training, self.validation = sample_split(shards.train, train_count=data.train, val_count=data.val)
        self.test = shards.test
        found, pca = None, "pca-colour" in data.augment
        if pca or data.normalise != "scale":
            found = ways.group.on_rank_zero(
                lambda stop: pixel_statistics(
                    self.training,
                    crop,
                    threads=ways.readers,
                    cache=ways.cache,
                    key=key,
                    tell=ways.report,
                    stop=stop,
                ),
                ways.stop,
            )
        self.normaliser = fit_sharded_normaliser(data.normalise, found).on(device)
        self.pca = principal_colours(found) if pca and found else None

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.training)

    def training_goes_on(self) -> AbstractContextManager[None]:
        """Within: shards that lie far away are copied to this machine, as far as there is room."""
        return copy_in_background(self.shards.train, self.ways.report)

    def feed(self, train: Train, seed: int, start: int, block: int) -> ShardedFeed:
        """The training batches from update `start` to the last."""
        maker = CropBatchBuilder(
            normalise=self.normaliser, augment=self.data.augment, pca=self.pca, device=self.device
        )
        return ShardedFeed(
            self.training,
            maker,
            self.cut,
            seed=seed,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            threads=self.ways.readers,
            rank=self.ways.group.rank,
            world=self.ways.group.world,
            parts=self.ways.accumulation_steps,
        )

    def held_out(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Errors by the first protocol on the test set and, where the recipe keeps one, on the validation set."""
        return self._errors("test", self.test, network, self.data.test[0], bf16) | self._errors(
            "val", self.validation, network, self.data.test[0], bf16
        )

    def final(self, network: nn.Module, loss: Loss, *, bf16: bool, kept: ProtocolCache) -> Metrics:
        """Errors of the last model by every protocol: test/<protocol>/…, and test/… by the first of them.

        What rank 0's `kept` holds from an earlier, interrupted attempt is not measured again.
        """
        found: Metrics = {}
        for name in self.data.test:
            for part, samples in (("test", self.test), ("val", self.validation)):
                if not len(samples):
                    continue
                errors = self._judged_once(part, samples, network, name, bf16, kept)
                found |= errors if name == self.data.test[0] else {}
                found |= {f"{part}/{name}/{key.partition('/')[2]}": value for key, value in errors.items()}
        return found

    def _judged_once(
        self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool, kept: ProtocolCache
    ) -> Metrics:
        us, name = self.ways.group, f"{part}/{protocol}"
        if (errors := us.on_rank_zero(lambda _: kept.read().get(name))) is None:
            self.ways.report(f"judging {len(samples):,} {part} pictures by {protocol}")
            errors = self._errors(part, samples, network, protocol, bf16)
            us.on_rank_zero(lambda _: kept.add(name, errors))
        return errors

    def _errors(self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool) -> Metrics:
        if not len(samples):
            return {}
        us = self.ways.group
        errors = us.on_all_ranks(
            lambda stop: evaluate_samples(
                [EnsembleMember(network, self.normaliser)],
                samples,
                parse_protocol(protocol),
                expected=len(samples),
                threads=self.ways.readers,
                bf16=bf16,
                device=self.device,
                rank=us.rank,
                world=us.world,
                stop=stop,
            ),
            self.ways.stop,
        )
        return combine_over_ranks(us, errors, len(samples)).metrics(part)


def combine_over_ranks(group: RankGroup, mine: ErrorCounts, expected: int) -> ErrorCounts:
    """The errors on all images, for every rank, from each rank's own."""
    return mine if group.world == 1 else combine_counts(group.all_gather(mine), expected)


def input_shape(images: ImageSet | ShardSet, data: Data) -> tuple[int, ...]:
    """(C, H, W) that a network is to read; UserError where `data` cannot be had of `images`."""
    if isinstance(images, ShardSet):
        if data.crop is None:
            raise UserError(MANY_SIZES.format(images.name))
        split_indices(len(images.train), train_count=data.train, val_count=data.val)
        SampleSubset(images.test, torch.tensor([0]))  # there is something to be judged on
        require_sharded_normalisation(data.normalise)
        return (3, data.crop.side, data.crop.side)
    if data.crop is not None:
        raise UserError(SMALL_IMAGES.format(images.name))
    split_indices(len(images.train), train_count=data.train, val_count=data.val)
    one = LabelledImages(images.train.pixels[:1], images.train.labels[:1])
    maker = BatchBuilder(one, normalise=fit_normaliser("scale", one), augment=data.augment, pad_to=data.pad_to)
    return tuple(maker(torch.tensor([0])).shape[1:])


def require_counts(images: ImageSet | ShardSet, manifest: Manifest) -> None:
    """DataError unless there are as many images as the manifest counts: every result is of all of them."""
    for part in ("train", "test"):
        here, counted = len(getattr(images, part)), getattr(manifest, part)
        if here != counted:
            raise DataError(
                f"{images.name} holds {here:,} {part} images where its manifest counts {counted:,}; start the same"
                " command again, so that both are of the same set"
            )


def crop_spec(crop: Crop) -> CropSpec:
    """A declared crop as plain values."""
    short = (crop.short, crop.short) if isinstance(crop.short, int) else crop.short
    return CropSpec(crop.side, short, crop.centre, crop.at == "five", crop.area, crop.aspect, crop.interpolation)


def load_training_data(
    images: ImageSet | ShardSet, data: Data, device: torch.device, *, sha256: str, ways: ReadOptions
) -> InMemoryData | ShardedData:
    """What `data` says of `images`, whose manifest has this sha256; UserError where it cannot be had of them."""
    input_shape(images, data)
    part = f"{sha256} {data.train} {data.val}"
    if isinstance(images, ShardSet):
        return ShardedData(images, data, device, part, ways)
    return InMemoryData(images, data, device, part, ways)
