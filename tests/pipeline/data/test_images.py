"""Canonical order and fingerprint of images in memory."""

import hashlib

import pytest
import torch

from pipeline.data import images as images_module
from pipeline.data.images import LabelledImages, canonical_order, fingerprint, in_canonical_order

CLASSES = ("a", "b", "c")


def random_images(n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 4, 4, 3), dtype=torch.uint8, generator=generator)
    return LabelledImages(pixels, torch.randint(0, 3, (n,), generator=generator))


def test_canonical_order_does_not_depend_on_the_given_order():
    images, shuffle = random_images(), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    first = in_canonical_order(images)
    second = in_canonical_order(LabelledImages(images.pixels[shuffle], images.labels[shuffle]))
    assert torch.equal(first.pixels, second.pixels)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.pixels, images.pixels)


def test_canonical_order_sorts_by_sha256_of_label_and_pixels():
    ordered = in_canonical_order(random_images())
    keys = [
        hashlib.sha256(int(label).to_bytes(8, "little") + bytes(pixels.flatten().tolist())).hexdigest()
        for pixels, label in zip(ordered.pixels, ordered.labels, strict=True)
    ]
    assert keys == sorted(keys)


def test_duplicates_are_kept():
    images = random_images(3)
    twice = LabelledImages(torch.cat([images.pixels, images.pixels]), torch.cat([images.labels, images.labels]))
    assert len(in_canonical_order(twice)) == 6


def change_pixel(images):
    pixels = images.pixels.clone()
    pixels[7, 1, 2, 0] ^= 1
    return LabelledImages(pixels, images.labels)


def change_label(images):
    labels = images.labels.clone()
    labels[7] = (labels[7] + 1) % 3
    return LabelledImages(images.pixels, labels)


def change_shape(images):  # the same bytes in the same order
    return LabelledImages(images.pixels.reshape(20, 2, 8, 3), images.labels)


def drop_image(images):
    return LabelledImages(images.pixels[:-1], images.labels[:-1])


@pytest.mark.parametrize("change", [change_pixel, change_label, change_shape, drop_image])
@pytest.mark.parametrize("split", [0, 1])
def test_fingerprint_changes_with_any_change_of_either_split(change, split):
    parts = [random_images(seed=0), random_images(seed=1)]
    before = fingerprint(CLASSES, *parts)
    parts[split] = change(parts[split])
    assert fingerprint(CLASSES, *parts) != before


def test_fingerprint_changes_with_class_names_and_swapped_splits():
    train, test = random_images(seed=0), random_images(seed=1)
    different = {fingerprint(CLASSES, train, test), fingerprint(("a", "bc", ""), train, test)}
    assert len(different | {fingerprint(CLASSES, test, train)}) == 3


def test_canonical_order_does_not_depend_on_the_images_hashed_at_a_time(monkeypatch):
    expected = canonical_order(random_images())
    monkeypatch.setattr(images_module, "KEY_CHUNK", 7)
    assert torch.equal(canonical_order(random_images()), expected)


def test_fingerprint_does_not_depend_on_memory_layout():
    train, test = random_images(seed=0), random_images(seed=1)
    strided = LabelledImages(train.pixels.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), train.labels)
    assert fingerprint(CLASSES, strided, test) == fingerprint(CLASSES, train, test)
