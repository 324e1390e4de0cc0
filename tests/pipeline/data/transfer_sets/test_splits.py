"""Test the choice of training and test images for a transfer's classifier."""

import pytest
import torch

from pipeline.data.images import DataError
from pipeline.data.transfer_sets.splits import held_out_share, own_split, random_split

LABELS = torch.tensor([0] * 9 + [1] * 6 + [2] * 20)
CLASSES = ("ant", "bee", "cat")


def counts(indices):
    """Return the number of images of each class."""
    return torch.bincount(LABELS[indices], minlength=3).tolist()


def test_each_class_gives_so_many_training_images_and_the_others_are_tested():
    train, test = random_split("set", LABELS, CLASSES, number=0, train=5, test=None)
    assert counts(train) == [5, 5, 5]
    assert counts(test) == [4, 1, 15]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(35))


def test_test_images_are_limited_per_class():
    train, test = random_split("set", LABELS, CLASSES, number=0, train=5, test=3)
    assert counts(test) == [3, 1, 3]
    assert not set(train.tolist()) & set(test.tolist())


def test_splits_differ_and_can_be_drawn_again():
    splits = [random_split("set", LABELS, CLASSES, number=n, train=5, test=None)[0].tolist() for n in (0, 1, 0)]
    assert splits[0] == splits[2] != splits[1]


def test_fewer_training_images_are_among_more():
    few, many = (random_split("set", LABELS, CLASSES, number=1, train=n, test=None)[0].tolist() for n in (2, 5))
    assert set(few) < set(many)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(DataError, match="set: class 'bee' has 6 images; 6 for training leave none for testing"):
        random_split("set", LABELS, CLASSES, number=0, train=6, test=None)


def test_parts_are_joined_and_unknown_ones_named():
    parts = {"train": torch.tensor([0, 1]), "val": torch.tensor([2]), "test": torch.tensor([3, 4])}
    train, test = own_split("set", parts, ["train", "val"], "test")
    assert (train.tolist(), test.tolist()) == ([0, 1, 2], [3, 4])
    with pytest.raises(DataError, match="set has no part 'dev'; its parts are train, val, test"):
        own_split("set", parts, ["train"], "dev")
    with pytest.raises(DataError, match="it has no parts; use 'splits'"):
        own_split("set", {}, ["train"], "test")


def test_a_share_of_each_class_is_held_out():
    held = held_out_share(LABELS, 0.2)
    assert counts(held.nonzero().flatten()) == [2, 1, 4]  # of 9, 6 and 20
    assert torch.equal(held, held_out_share(LABELS, 0.2))


def test_at_least_one_image_of_a_class_is_held_out_and_one_is_not():
    assert counts(held_out_share(LABELS, 0.01).nonzero().flatten()) == [1, 1, 1]
    assert counts(held_out_share(LABELS, 0.99).nonzero().flatten()) == [8, 5, 19]
    with pytest.raises(DataError, match="a class with a single training image"):
        held_out_share(torch.tensor([0, 0, 1]), 0.5)


def test_a_share_of_images_with_marks_is_one_of_all_images():
    assert int(held_out_share(torch.zeros(50, 4, dtype=torch.int8), 0.2).sum()) == 10
