"""The plan of a prepared set: which images go into which shard, and the settings that two plans must share."""

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.data.images import DataError
from pipeline.data.order import seeded_generator
from pipeline.data.prepare.source_images import SourceImage, SourceSet
from pipeline.data.shard_manifest import SPLITS, ResizeInfo, ShardManifest
from pipeline.data.store import Store

RESIZE_JPEG_QUALITY = 95

RECORD_SUFFIX = ".note"

FORMAT_VERSION = 1  # increase it when the way shards are written changes: an unfinished set is then started again

SETTING_NAMES = {"set": "name", "pictures": "images", "pictures a shard": "images per shard"}  # in messages


@dataclass(frozen=True)
class ShardJob:
    """One shard to write."""

    split: str
    number: int  # of the shard within its split
    first: int  # index of its first sample within the split
    images: Sequence[SourceImage]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.split}-{self.number:05d}.tar"

    @property
    def record(self) -> str:
        """File name of the shard's record."""
        return f"{self.name}{RECORD_SUFFIX}"

    def fingerprint(self, short_side: int | None) -> str:
        """Return a sha256 of everything the shard depends on; it changes when a source image does."""
        digest = hashlib.sha256(f"{FORMAT_VERSION} {self.first} {resize_settings(short_side)}".encode())
        for image in self.images:
            try:
                signature = str(image.signature())
            except DataError:
                signature = "gone"  # reported when the image is read
            digest.update(f"\0{image.label} {clean_stem(image.stem)} {image.offset} {signature}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardPlan:
    """The shards that one call of `prepare_shards` writes."""

    source: SourceSet
    short_side: int | None  # pixels that images are resized to; None: not resized
    samples: int  # per shard

    @property
    def resize_info(self) -> ResizeInfo | None:
        """Resizing as the manifest records it."""
        return ResizeInfo(short_side=self.short_side, quality=RESIZE_JPEG_QUALITY) if self.short_side else None

    @property
    def total(self) -> int:
        """Number of images in all splits."""
        return sum(map(len, self.source.splits.values()))

    def images_in_order(self, split: str) -> Iterator[SourceImage]:
        """Yield the images of a split in the order of the shards: a fixed permutation."""
        images = self.source.splits[split]
        for index in torch.randperm(len(images), generator=seeded_generator(0, "shards")).numpy():
            yield images[int(index)]

    def jobs(self) -> Iterator[ShardJob]:
        """Yield a job for every shard, split by split."""
        for split in self.split_names():
            images = self.images_in_order(split)
            for number in range(self.shard_count(split)):
                of_shard = list(itertools.islice(images, self.samples))
                yield ShardJob(split, number, number * self.samples, of_shard)

    def split_names(self) -> list[str]:
        """Return the splits of the source, train first."""
        return [split for split in SPLITS if split in self.source.splits]

    def shard_count(self, split: str) -> int:
        """Return the number of shards of a split."""
        return -(-len(self.source.splits[split]) // self.samples)

    def settings(self) -> dict[str, Any]:
        """Return what distinguishes this plan from others, as JSON values (plan.json)."""
        counts = {split: len(self.source.splits[split]) for split in self.split_names()}
        return {
            "short side": self.short_side,
            "set": self.source.name,
            "pictures": counts,
            "classes": list(self.source.classes),
            "pictures a shard": {split: min(self.samples, count) for split, count in counts.items()},
        }

    def differs_only_in_counts(self, settings: dict[str, Any]) -> bool:
        """Return True if `settings` are those of this plan, except for the number of images."""
        counts = settings["pictures"]
        per_shard = {split: min(self.samples, count) for split, count in counts.items()}
        same = self.settings() | {"pictures": counts, "pictures a shard": per_shard}
        return list(counts) == self.split_names() and settings == same


def manifest_settings(manifest: ShardManifest) -> dict[str, Any]:
    """Return ShardPlan.settings of the plan that a finished set was written by."""
    splits = {name: manifest.splits[name] for name in SPLITS if name in manifest.splits}
    return {
        "short side": manifest.resized.short_side if manifest.resized else None,
        "set": manifest.name,
        "pictures": {name: split.samples for name, split in splits.items()},
        "classes": list(manifest.classes),
        "pictures a shard": {name: split.shards[0].samples for name, split in splits.items()},
    }


def require_same_settings(
    existing: dict[str, Any], wanted: dict[str, Any], out: Store, content: str, removable: str
) -> None:
    """Raise DataError that names the first difference between two settings.

    `content`: what `out` contains, for example "a finished set"; `removable`: what to remove instead.
    """
    for key, new in wanted.items():
        old = existing.get(key)
        if old != new:
            setting = SETTING_NAMES.get(key, key)
            differs = (
                "different classes"
                if key == "classes"
                else f"{setting} {format_value(old)}, not {format_value(new)}"
            )
            raise DataError(
                f"{out} contains {content} with other settings ({differs}); use another folder"
                f" or remove {removable}"
            )


def format_value(value: Any) -> str:
    """Return a setting's value for a message: '21 train + 12 test'."""
    if isinstance(value, dict):
        return " + ".join(f"{count} {name}" for name, count in value.items())
    return "none" if value is None else str(value)


def resize_settings(short_side: int | None) -> str:
    """Return everything that a resized JPEG depends on besides its source image."""
    import PIL

    return f"{short_side} {RESIZE_JPEG_QUALITY} {PIL.__version__}" if short_side else ""


def clean_stem(stem: str) -> str:
    """Return a file name's stem for a tar member: 60 letters at most, no dot, where WebDataset ends the key."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:60]
