"""The manifest that identifies a run's data, and the validation split."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipeline.data.images import DataError, ImageSet, LabelledImages, fingerprint
from pipeline.data.order import seeded_generator
from pipeline.data.samples import Samples, SampleSubset
from pipeline.data.shards import ShardSet
from pipeline.declare.data_settings import PartCounts


@dataclass(frozen=True)
class Manifest:
    """The identity of a data set, with the counts that results are checked against."""

    name: str
    source: str  # origin; two sources with one sha256 are the same data
    classes: tuple[str, ...]
    image: tuple[int, int, int]  # (C, H, W); (3, 0, 0) for sharded images, which differ in size
    train: int  # images
    test: int
    per_class: dict[str, list[int]]  # {"train": [...], "test": [...]}: number of images of each class
    sha256: str  # images.fingerprint, or shard_manifest.content_hash for shards


def manifest_of(images: ImageSet | ShardSet) -> Manifest:
    """Return the manifest of a set. Images in memory are hashed (0.1 s for MNIST); shards store their hash."""
    if isinstance(images, ShardSet):
        counts = {name: part.split.per_class for name, part in images.splits.items()}
        zeros = (0,) * len(images.classes)
        return Manifest(
            name=images.name,
            source=images.source,
            classes=images.classes,
            image=(3, 0, 0),
            train=sum(counts.get("train", zeros)),
            test=sum(counts.get("test", zeros)),
            per_class={name: list(counts.get(name, zeros)) for name in ("train", "test")},
            sha256=images.manifest.sha256,
        )
    _, height, width, channels = images.train.pixels.shape
    count = len(images.classes)
    return Manifest(
        name=images.name,
        source=images.source,
        classes=images.classes,
        image=(channels, height, width),
        train=len(images.train),
        test=len(images.test),
        per_class={
            "train": torch.bincount(images.train.labels, minlength=count).tolist(),
            "test": torch.bincount(images.test.labels, minlength=count).tolist(),
        },
        sha256=fingerprint(images.classes, images.train, images.test),
    )


def manifest_to_dict(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as plain JSON values."""
    return asdict(manifest) | {"classes": list(manifest.classes), "image": list(manifest.image)}


def manifest_from_dict(values: dict[str, Any]) -> Manifest:
    """Return the manifest that `manifest_to_dict` made these values from; DataError for other keys."""
    expected = {field.name for field in fields(Manifest)}
    if values.keys() != expected:
        missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
        raise DataError(
            f"this is not a data manifest (missing: {', '.join(missing) or 'nothing'};"
            f" unknown: {', '.join(unknown) or 'nothing'}); recreate it from the data set"
        )
    channels, height, width = values["image"]
    return Manifest(**values | {"classes": tuple(values["classes"]), "image": (channels, height, width)})


def train_val_split(
    train: LabelledImages,
    *,
    train_count: int | None,
    val_count: int,
    val_per_class: int | PartCounts | None = None,
    parts: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[LabelledImages, LabelledImages]:
    """Split images in memory into training and validation part, both in canonical order; see `split_indices`."""
    indices = split_indices(
        train.labels,
        train_count=train_count,
        val_count=val_count,
        val_per_class=val_per_class,
        parts=parts,
        seed=seed,
    )
    training, validation = (
        train if len(part) == len(train) else LabelledImages(train.pixels[part], train.labels[part])
        for part in indices
    )
    return training, validation


def sample_split(
    train: Samples,
    *,
    train_count: int | None,
    val_count: int,
    val_per_class: int | PartCounts | None = None,
    seed: int = 0,
) -> tuple[Samples, Samples]:
    """Split samples into training and validation part; see `split_indices`."""
    indices = split_indices(
        train.labels, train_count=train_count, val_count=val_count, val_per_class=val_per_class, seed=seed
    )
    training, validation = (train if len(part) == len(train) else SampleSubset(train, part) for part in indices)
    return training, validation


def split_indices(
    labels: Tensor,
    *,
    train_count: int | None,
    val_count: int,
    val_per_class: int | PartCounts | None = None,
    parts: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and of the validation part of images, both int64 and ascending.

    The training part is the start of a fixed permutation and the validation part its end, so that neither changes
    with the size of the other. With `val_per_class`, the validation part is the last so many images of each class,
    or of each class of each part of the set (`ImageSet.train_parts`); the training part is the start of the rest.
    `seed` belongs to the split, not to the run. `train_count` None takes all remaining images.

    Raises DataError for impossible counts.
    """
    n = len(labels)
    order = torch.randperm(n, generator=seeded_generator(seed, "split"))
    if val_per_class is None:
        rest, held = order[: max(n - val_count, 0)], order[max(n - val_count, 0) :]
    else:
        held = _last_of_each_class(order, labels, val_per_class, parts or {})
        val_count = len(held)
        is_held = torch.zeros(n, dtype=torch.bool)
        is_held[held] = True
        rest = order[~is_held[order]]
    wanted = n - val_count if train_count is None else train_count
    if not 0 <= val_count < n:
        possible = f"validation may have 0 to {n - 1}"
    elif not 1 <= wanted <= n - val_count:
        possible = f"with {val_count} for validation, training may have 1 to {n - val_count}"
    else:
        possible = ""
    if possible:
        train = "all remaining" if train_count is None else train_count
        raise DataError(f"{val_count} validation and {train} training images cannot be taken from {n}; {possible}")
    return rest[:wanted].sort().values, held.sort().values


def _last_of_each_class(
    order: Tensor, labels: Tensor, counts: int | PartCounts, parts: Mapping[str, Tensor]
) -> Tensor:
    """Return the last images of each class in `order`, int64: so many of all images, or of those of each part."""
    if isinstance(counts, int):
        return _last_images(order, labels, counts, "")
    wanted = counts.model_dump()
    if wanted.keys() != parts.keys():
        raise DataError(
            f"val_per_class counts images of the parts {' and '.join(wanted)}, but these images do not record"
            " which part they come from; use svhn-extra as downloaded, not its shards, or give one number"
        )
    held = []
    for name, count in wanted.items():
        in_part = torch.zeros(len(labels), dtype=torch.bool)
        in_part[parts[name]] = True
        held.append(_last_images(order[in_part[order]], labels, count, f" of the part {name!r}"))
    return torch.cat(held)


def _last_images(order: Tensor, labels: Tensor, count: int, of_part: str) -> Tensor:
    """Return the last `count` images of each class in `order`; DataError if a class has fewer."""
    backwards = order.flip(0)
    grouped = backwards[labels[backwards].argsort(stable=True)]  # by class; within one, the last image first
    sizes = torch.bincount(labels[grouped], minlength=int(labels.max()) + 1)
    if sizes.min() < count:
        raise DataError(
            f"val_per_class takes {count} images{of_part} of each class, but class {int(sizes.argmin())} (counted"
            f" from 0) has only {int(sizes.min())}"
        )
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # position of the class in `grouped`
    return grouped[torch.arange(len(grouped)) - first < count]
