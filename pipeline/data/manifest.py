"""What a run was trained and tested on: a manifest that identifies it, and the validation split."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pipeline.data.images import DataError, ImageSet, LabelledImages, fingerprint
from pipeline.data.order import seeded_generator
from pipeline.data.samples import Samples, SampleSubset
from pipeline.data.shards import ShardSet


@dataclass(frozen=True)
class Manifest:
    """The identity of an image set; every count a result is checked against."""

    name: str
    source: str  # where it came from; two sources with one sha256 are the same data
    classes: tuple[str, ...]
    image: tuple[int, int, int]  # (C, H, W); photographs of many sizes: (3, 0, 0)
    train: int  # images
    test: int
    per_class: dict[str, list[int]]  # {"train": [...], "test": [...]}: images of each class
    sha256: str  # images.fingerprint, or of shards their content_hash


def manifest_of(images: ImageSet | ShardSet) -> Manifest:
    """Counts everything and hashes the content (0.1 s for MNIST); shards know theirs already."""
    if isinstance(images, ShardSet):
        counts = {name: part.split.per_class for name, part in images.splits.items()}
        none = (0,) * len(images.classes)
        return Manifest(
            name=images.name,
            source=images.source,
            classes=images.classes,
            image=(3, 0, 0),
            train=sum(counts.get("train", none)),
            test=sum(counts.get("test", none)),
            per_class={name: list(counts.get(name, none)) for name in ("train", "test")},
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
    """Plain JSON values."""
    return asdict(manifest) | {"classes": list(manifest.classes), "image": list(manifest.image)}


def manifest_from_dict(values: dict[str, Any]) -> Manifest:
    """The inverse of to_dict, also after a round trip through JSON."""
    expected = {field.name for field in fields(Manifest)}
    if values.keys() != expected:
        missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
        raise DataError(
            f"this is not a data manifest (missing: {', '.join(missing) or 'nothing'};"
            f" unknown: {', '.join(unknown) or 'nothing'}); make it anew from the data set"
        )
    channels, height, width = values["image"]
    return Manifest(**values | {"classes": tuple(values["classes"]), "image": (channels, height, width)})


def train_val_split(
    train: LabelledImages, *, train_count: int | None, val_count: int, seed: int = 0
) -> tuple[LabelledImages, LabelledImages]:
    """Disjoint training and validation parts of the training images, in canonical order: see `parts`."""
    training, validation = (
        LabelledImages(train.pixels[part], train.labels[part])
        for part in split_indices(len(train), train_count=train_count, val_count=val_count, seed=seed)
    )
    return training, validation


def sample_split(
    train: Samples, *, train_count: int | None, val_count: int, seed: int = 0
) -> tuple[Samples, Samples]:
    """The same of photographs."""
    training, validation = (
        train if len(part) == len(train) else SampleSubset(train, part)
        for part in split_indices(len(train), train_count=train_count, val_count=val_count, seed=seed)
    )
    return training, validation


def split_indices(n: int, *, train_count: int | None, val_count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Which of `n` training images are trained on, and which are held out for validation; both rise.

    The training part is the start of a fixed permutation and the validation part its end, so that neither
    moves when the other's size changes. `seed` is the split's own, not the run's. None: all that remain.
    """
    wanted = n - val_count if train_count is None else train_count
    if not 0 <= val_count < n:
        possible = f"validation may have 0 to {n - 1}"
    elif not 1 <= wanted <= n - val_count:
        possible = f"with {val_count} for validation, training may have 1 to {n - val_count}"
    else:
        possible = ""
    if possible:
        asked = "all remaining" if train_count is None else train_count
        raise DataError(f"{val_count} validation and {asked} training images cannot be taken from {n}; {possible}")
    order = torch.randperm(n, generator=seeded_generator(seed, "split"))
    return order[:wanted].sort().values, order[n - val_count :].sort().values
