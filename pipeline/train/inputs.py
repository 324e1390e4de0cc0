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
from pipeline.data.batches import BatchMaker, Feed, in_order
from pipeline.data.colour import PhotoMaker
from pipeline.data.crops import Cut
from pipeline.data.images import DataError, Images, ImageSet
from pipeline.data.manifest import Manifest, chosen, parts, split
from pipeline.data.normalise import fit_normaliser
from pipeline.data.order import key
from pipeline.data.prefetch import never
from pipeline.data.samples import Chosen, Samples
from pipeline.data.sharded_feed import PhotoFeed
from pipeline.data.shards import ShardSet, copied_meanwhile
from pipeline.data.statistics import (
    fit_photographs,
    fit_small,
    principal_colours,
    require_photographs,
    statistics_of,
)
from pipeline.declare.protocol import read_protocol
from pipeline.declare.recipe import Crop, Data, Train
from pipeline.train.evaluate import BATCH, Errors, Member, evaluate, evaluate_pictures, response_std, together
from pipeline.train.ranks import ALONE, Group

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
class Ways:
    """How a run's images are read, by whom, and who hears of it."""

    readers: int = 1  # threads that read photographs
    cache: Path | None = None  # a folder for statistics of the training part
    tell: Callable[[str], None] = lambda _: None  # hears why something takes long
    stop: Callable[[], bool] = never  # once true, what takes long ends with Stopped
    group: Group = ALONE  # those who share the images; what is measured is told to all of them
    parts: int = 1  # a rank's share of a training batch comes in so many batches


class Kept(Protocol):
    """Errors by some protocols, kept while the others are measured."""

    def read(self) -> dict[str, Metrics]: ...

    def add(self, name: str, errors: Metrics) -> None: ...


class Small:
    """A set held in memory, all images of one size."""

    is_slow = False  # to be judged, so that it is worth a checkpoint first

    def __init__(self, images: ImageSet, data: Data, device: torch.device, key: str, ways: Ways) -> None:
        self.data, self.device, self.ways = data, device, ways
        self.training, self.validation = split(images.train, train_count=data.train, val_count=data.val)
        self.test = images.test
        self.normaliser = ways.group.led(
            lambda _: fit_small(data.normalise, self.training, cache=ways.cache, key=key)
        )

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.training)

    def training_goes_on(self) -> AbstractContextManager[None]:
        """Nothing is left to be brought here."""
        return nullcontext()

    def maker(self, images: Images, augment: tuple[str, ...] = ()) -> BatchMaker:
        """Batches of `images`, normalised by the statistics of the images trained on."""
        return BatchMaker(
            images, normalise=self.normaliser, augment=augment, pad_to=self.data.pad_to, device=self.device
        )

    def feed(self, train: Train, seed: int, start: int, block: int) -> Feed:
        """The training batches from update `start` to the last."""
        return Feed(
            self.maker(self.training, self.data.augment),
            self.training.labels,
            seed=seed,
            batch_size=train.batch_size,
            start_step=start,
            stop_step=train.steps,
            block=block,
            rank=self.ways.group.rank,
            world=self.ways.group.world,
            parts=self.ways.parts,
        )

    def held_out(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Errors on the test set and, where the recipe keeps one, on the validation set."""
        return self._errors("test", self.test, network, loss, bf16) | self._errors(
            "val", self.validation, network, loss, bf16
        )

    def final(self, network: nn.Module, loss: Loss, *, bf16: bool, kept: Kept) -> Metrics:
        """What is measured once, on the last model: all errors, and the layers' responses; nothing is kept."""
        some = Images(self.test.pixels[:RESPONSES], self.test.labels[:RESPONSES])
        responses = response_std(network, in_order(self.maker(some), some.labels, batch_size=BATCH))
        return (
            self.held_out(network, loss, bf16=bf16)
            | self._errors("trainset", self.training, network, loss, bf16)
            | ({} if responses is None else {"test/response_std": responses})
        )

    def _errors(self, name: str, images: Images, network: nn.Module, loss: Loss, bf16: bool) -> Metrics:
        if not len(images):
            return {}
        us = self.ways.group
        batches = in_order(self.maker(images), images.labels, batch_size=BATCH, rank=us.rank, world=us.world)
        errors = evaluate(network, batches, loss, expected=len(images), bf16=bf16, rank=us.rank, world=us.world)
        return joined(us, errors, len(images)).metrics(name)

    def patterns(self, seed: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        """`count` training images and labels drawn for pass `number`, for estimates made before it."""
        draw = torch.Generator().manual_seed(key(seed, "pass", number))
        indices = torch.randperm(self.count, generator=draw)[:count]
        return self.maker(self.training)(indices), self.training.labels[indices].to(self.device)


class Photographs:
    """A set in shards, its pictures of any size, read by threads."""

    is_slow = True

    def __init__(self, shards: ShardSet, data: Data, device: torch.device, key: str, ways: Ways) -> None:
        crop = data.crop
        assert crop is not None  # `image_shape` has seen to it
        self.shards, self.data, self.device, self.ways = shards, data, device, ways
        self.cut = cut_of(crop)
        self.training, self.validation = chosen(shards.train, train_count=data.train, val_count=data.val)
        self.test = shards.test
        found, pca = None, "pca-colour" in data.augment
        if pca or data.normalise != "scale":
            found = ways.group.led(
                lambda stop: statistics_of(
                    self.training,
                    crop,
                    threads=ways.readers,
                    cache=ways.cache,
                    key=key,
                    tell=ways.tell,
                    stop=stop,
                ),
                ways.stop,
            )
        self.normaliser = fit_photographs(data.normalise, found).on(device)
        self.pca = principal_colours(found) if pca and found else None

    @property
    def count(self) -> int:
        """Training images."""
        return len(self.training)

    def training_goes_on(self) -> AbstractContextManager[None]:
        """Within: shards that lie far away are copied to this machine, as far as there is room."""
        return copied_meanwhile(self.shards.train, self.ways.tell)

    def feed(self, train: Train, seed: int, start: int, block: int) -> PhotoFeed:
        """The training batches from update `start` to the last."""
        maker = PhotoMaker(normalise=self.normaliser, augment=self.data.augment, pca=self.pca, device=self.device)
        return PhotoFeed(
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
            parts=self.ways.parts,
        )

    def held_out(self, network: nn.Module, loss: Loss, *, bf16: bool) -> Metrics:
        """Errors by the first protocol on the test set and, where the recipe keeps one, on the validation set."""
        return self._errors("test", self.test, network, self.data.test[0], bf16) | self._errors(
            "val", self.validation, network, self.data.test[0], bf16
        )

    def final(self, network: nn.Module, loss: Loss, *, bf16: bool, kept: Kept) -> Metrics:
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
        self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool, kept: Kept
    ) -> Metrics:
        us, name = self.ways.group, f"{part}/{protocol}"
        if (errors := us.led(lambda _: kept.read().get(name))) is None:
            self.ways.tell(f"judging {len(samples):,} {part} pictures by {protocol}")
            errors = self._errors(part, samples, network, protocol, bf16)
            us.led(lambda _: kept.add(name, errors))
        return errors

    def _errors(self, part: str, samples: Samples, network: nn.Module, protocol: str, bf16: bool) -> Metrics:
        if not len(samples):
            return {}
        us = self.ways.group
        errors = us.each(
            lambda stop: evaluate_pictures(
                [Member(network, self.normaliser)],
                samples,
                read_protocol(protocol),
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
        return joined(us, errors, len(samples)).metrics(part)


def joined(group: Group, mine: Errors, expected: int) -> Errors:
    """The errors on all images, for every rank, from each rank's own."""
    return mine if group.world == 1 else together(group.gathered(mine), expected)


def image_shape(images: ImageSet | ShardSet, data: Data) -> tuple[int, ...]:
    """(C, H, W) that a network is to read; UserError where `data` cannot be had of `images`."""
    if isinstance(images, ShardSet):
        if data.crop is None:
            raise UserError(MANY_SIZES.format(images.name))
        parts(len(images.train), train_count=data.train, val_count=data.val)
        Chosen(images.test, torch.tensor([0]))  # there is something to be judged on
        require_photographs(data.normalise)
        return (3, data.crop.side, data.crop.side)
    if data.crop is not None:
        raise UserError(SMALL_IMAGES.format(images.name))
    parts(len(images.train), train_count=data.train, val_count=data.val)
    one = Images(images.train.pixels[:1], images.train.labels[:1])
    maker = BatchMaker(one, normalise=fit_normaliser("scale", one), augment=data.augment, pad_to=data.pad_to)
    return tuple(maker(torch.tensor([0])).shape[1:])


def require_counted(images: ImageSet | ShardSet, manifest: Manifest) -> None:
    """DataError unless there are as many images as the manifest counts: every result is of all of them."""
    for part in ("train", "test"):
        here, counted = len(getattr(images, part)), getattr(manifest, part)
        if here != counted:
            raise DataError(
                f"{images.name} holds {here:,} {part} images where its manifest counts {counted:,}; start the same"
                " command again, so that both are of the same set"
            )


def cut_of(crop: Crop) -> Cut:
    """A declared crop as plain values."""
    short = (crop.short, crop.short) if isinstance(crop.short, int) else crop.short
    return Cut(crop.side, short, crop.centre, crop.at == "five", crop.area, crop.aspect, crop.interpolation)


def supply(
    images: ImageSet | ShardSet, data: Data, device: torch.device, *, sha256: str, ways: Ways
) -> Small | Photographs:
    """What `data` says of `images`, whose manifest has this sha256; UserError where it cannot be had of them."""
    image_shape(images, data)
    part = f"{sha256} {data.train} {data.val}"
    if isinstance(images, ShardSet):
        return Photographs(images, data, device, part, ways)
    return Small(images, data, device, part, ways)
