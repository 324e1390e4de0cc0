"""The manifest of an image set, and the validation split."""

import dataclasses
import json
import re

import pytest
import torch

from pipeline.data.images import DataError, LabelledImages
from pipeline.data.manifest import (
    manifest_from_dict,
    manifest_of,
    manifest_to_dict,
    sample_split,
    split_indices,
    train_val_split,
)
from pipeline.data.order import seeded_generator
from pipeline.data.sources import load_images
from pipeline.declare.data_settings import PartCounts


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """The set "noise"."""
    return load_images("noise", tmp_path_factory.mktemp("data"))


def test_manifest_counts_everything(noise):
    manifest = manifest_of(noise)
    assert manifest.image == (3, 16, 16)
    assert (manifest.train, manifest.test) == (200, 100)
    assert manifest.per_class == {"train": [20] * 10, "test": [10] * 10}
    assert re.fullmatch("[0-9a-f]{64}", manifest.sha256)


def test_classes_without_images_have_the_count_0(noise):
    few = LabelledImages(noise.test.pixels[noise.test.labels < 8], noise.test.labels[noise.test.labels < 8])
    assert manifest_of(dataclasses.replace(noise, test=few)).per_class["test"] == [10] * 8 + [0, 0]


def test_manifest_survives_json(noise):
    manifest = manifest_of(noise)
    assert manifest_from_dict(json.loads(json.dumps(manifest_to_dict(manifest)))) == manifest


def test_hash_does_not_depend_on_the_source(noise):
    assert manifest_of(dataclasses.replace(noise, source="a copy")).sha256 == manifest_of(noise).sha256


@pytest.mark.parametrize("part", ["train", "test"])
def test_flipped_bit_changes_the_hash(noise, part):
    images = getattr(noise, part)
    pixels = images.pixels.clone()
    pixels[3, 2, 1, 0] ^= 1
    changed = dataclasses.replace(noise, **{part: LabelledImages(pixels, images.labels)})
    assert manifest_of(changed).sha256 != manifest_of(noise).sha256


def test_incomplete_manifest_is_rejected(noise):
    values = manifest_to_dict(manifest_of(noise))
    del values["sha256"]
    with pytest.raises(DataError, match=r"missing: sha256; unknown: size"):
        manifest_from_dict(values | {"size": 3})


def rows(images):
    """Return the set of (label, pixel bytes)."""
    return {
        (int(label), bytes(row.flatten().tolist()))
        for row, label in zip(images.pixels, images.labels, strict=True)
    }


def test_split_is_disjoint_and_complete(noise):
    training, validation = train_val_split(noise.train, train_count=None, val_count=50)
    assert (len(training), len(validation)) == (150, 50)
    assert rows(training) | rows(validation) == rows(noise.train)
    assert not rows(training) & rows(validation)


def test_split_is_fixed_and_depends_on_its_seed(noise):
    first, again, other = (
        train_val_split(noise.train, train_count=100, val_count=50, seed=s)[1] for s in (0, 0, 1)
    )
    assert torch.equal(first.pixels, again.pixels)
    assert rows(first) != rows(other)


def test_parts_do_not_change_with_the_size_of_the_other(noise):
    training, validation = train_val_split(noise.train, train_count=100, val_count=50)
    assert rows(train_val_split(noise.train, train_count=20, val_count=50)[1]) == rows(validation)
    assert rows(train_val_split(noise.train, train_count=100, val_count=10)[0]) == rows(training)
    assert rows(train_val_split(noise.train, train_count=20, val_count=50)[0]) < rows(training)


def test_training_part_can_be_everything(noise):
    training, validation = train_val_split(noise.train, train_count=None, val_count=0)
    assert training is noise.train  # not copied
    assert len(validation) == 0


@pytest.mark.parametrize(
    ("train_count", "val_count", "text"),
    [
        (151, 50, "50 validation and 151 training images cannot be taken from 200; with 50 for validation,"
                  " training may have 1 to 150"),
        (0, 50, "training may have 1 to 150"),
        (None, 200, "200 validation and all remaining training images cannot be taken from 200;"
                    " validation may have 0 to 199"),
        (10, -1, "validation may have 0 to 199"),
    ],
)  # fmt: skip
def test_impossible_counts_name_the_possible_ones(noise, train_count, val_count, text):
    with pytest.raises(DataError, match=re.escape(text)):
        train_val_split(noise.train, train_count=train_count, val_count=val_count)


def slow_split(labels, wanted, train_count=None):
    """Return (training, validation) indices by a walk through the permutation from its end.

    `wanted`: list of (indices of a part, images of each class).
    """
    order = torch.randperm(len(labels), generator=seeded_generator(0, "split")).tolist()
    held = []
    for part, count in wanted:
        taken = dict.fromkeys(labels.tolist(), 0)
        for index in reversed(order):
            label = int(labels[index])
            if index in part and taken[label] < count:
                taken[label] += 1
                held.append(index)
    rest = [index for index in order if index not in held]
    return sorted(rest[:train_count]), sorted(held)


@pytest.mark.parametrize("train_count", [None, 30])
def test_split_by_class_takes_the_last_images_of_each_class(train_count):
    labels = torch.arange(100) * 7 % 3
    training, held = split_indices(labels, train_count=train_count, val_count=0, val_per_class=4)
    expected = slow_split(labels, [(range(100), 4)], train_count)
    assert (training.tolist(), held.tolist()) == expected
    assert torch.bincount(labels[held]).tolist() == [4, 4, 4]


def test_split_by_class_and_part_takes_so_many_images_of_each_part():
    labels = torch.arange(100) * 7 % 3
    parts = {"train": torch.arange(0, 100, 4), "extra": torch.tensor([i for i in range(100) if i % 4])}
    counts = PartCounts(train=3, extra=2)
    training, held = split_indices(labels, train_count=None, val_count=0, val_per_class=counts, parts=parts)
    wanted = [(parts["train"].tolist(), 3), (parts["extra"].tolist(), 2)]
    assert (training.tolist(), held.tolist()) == slow_split(labels, wanted)
    assert sorted({*training.tolist(), *held.tolist()}) == list(range(100))
    in_train = held[held % 4 == 0]
    assert torch.bincount(labels[in_train]).tolist() == [3, 3, 3]
    assert len(held) == 15


def test_split_by_class_may_take_images_of_one_part_only():
    labels, parts = torch.arange(40) % 2, {"train": torch.arange(20), "extra": torch.arange(20, 40)}
    counts = PartCounts(train=0, extra=5)
    _, held = split_indices(labels, train_count=None, val_count=0, val_per_class=counts, parts=parts)
    assert len(held) == 10
    assert held.min() >= 20


def test_split_by_class_is_that_of_images_in_memory_and_in_shards(noise, prepared_set):
    training, validation = train_val_split(noise.train, train_count=None, val_count=0, val_per_class=3)
    assert torch.bincount(validation.labels).tolist() == [3] * 10
    assert rows(training) | rows(validation) == rows(noise.train)
    assert not rows(training) & rows(validation)
    of_shards = sample_split(prepared_set.train, train_count=None, val_count=0, val_per_class=1)
    assert [torch.bincount(samples.labels).tolist() for samples in of_shards] == [[3, 3, 3], [1, 1, 1]]


@pytest.mark.parametrize(
    ("val_per_class", "parts", "text"),
    [
        (4, {}, "val_per_class takes 4 images of each class, but class 1 (counted from 0) has only 3"),
        (3, {}, "6 validation and all remaining training images cannot be taken from 6"),
        (
            PartCounts(train=2, extra=1),
            {"train": torch.tensor([0, 1, 2]), "extra": torch.tensor([3, 4, 5])},
            "takes 2 images of the part 'train' of each class, but class 0 (counted from 0) has only 1",
        ),
        (
            PartCounts(train=2, extra=1),
            {},
            "val_per_class counts images of the parts train and extra, but these images do not record which part",
        ),
    ],
)
def test_impossible_counts_by_class_are_an_error(val_per_class, parts, text):
    labels = torch.tensor([0, 1, 1, 0, 1, 0]) if val_per_class != 4 else torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with pytest.raises(DataError, match=re.escape(text)):
        split_indices(labels, train_count=None, val_count=0, val_per_class=val_per_class, parts=parts)


def test_manifest_of_shards_has_the_hash_of_the_shards(prepared_set):
    found = manifest_of(prepared_set)
    assert (found.train, found.test, found.image) == (12, 6, (3, 0, 0))
    assert found.per_class == {"train": [4, 4, 4], "test": [2, 2, 2]}
    assert found.sha256 == prepared_set.manifest.sha256
    assert manifest_from_dict(manifest_to_dict(found)) == found


def test_validation_part_of_shards_is_not_in_the_training_part(prepared_set):
    training, validation = sample_split(prepared_set.train, train_count=7, val_count=5)
    assert not {training.where(i) for i in range(7)} & {validation.where(i) for i in range(5)}
    assert (len(training), len(validation)) == (7, 5)
    everything, nothing = sample_split(prepared_set.train, train_count=None, val_count=0)
    assert everything is prepared_set.train
    assert len(nothing) == 0
