"""Test that images are loaded as the training data of their kind."""

import dataclasses

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.data.images import ImageSet, LabelledImages
from pipeline.declare.data_settings import Data
from pipeline.train.in_memory import InMemoryData
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from pipeline.train.sharded import ShardedData
from tests.support.sharded_runs import load_shards
from tests.support.smoke_runs import images_of


def test_images_in_shards_are_sharded_data(data_root, sharded_run):
    images, data = load_shards(data_root), sharded_run.recipe.data
    loaded = load_training_data(images, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    assert isinstance(loaded, ShardedData)
    assert (loaded.train_count, loaded.test_count, loaded.protocols) == (16, 12, data.test)


def test_images_of_one_size_are_in_memory_data():
    images, data = images_of("noise"), Data(name="noise", val=50)
    loaded = load_training_data(images, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    assert isinstance(loaded, InMemoryData)
    assert (loaded.train_count, loaded.test_count, loaded.protocols) == (150, 100, ())


def test_validation_images_by_class_and_part_of_svhn_extra():
    labels = torch.arange(60) % 10
    images = LabelledImages(torch.zeros(60, 8, 8, 3, dtype=torch.uint8), labels)
    parts = {"train": torch.arange(40), "extra": torch.arange(40, 60)}
    both = ImageSet("svhn-extra", "test", tuple("0123456789"), images, images, parts)
    data = Data(name="svhn-extra", val_per_class={"train": 2, "extra": 1}, normalise="scale")
    loaded = load_training_data(both, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    assert isinstance(loaded, InMemoryData)
    assert (loaded.train_count, len(loaded.validation)) == (30, 30)
    without = dataclasses.replace(both, train_parts={})
    with pytest.raises(UserError, match="use svhn-extra as downloaded, not its shards, or give one number"):
        load_training_data(without, data, torch.device("cpu"), sha256="x", options=ReadOptions())


def test_validation_by_class_has_its_own_statistics(tmp_path):
    """Statistics are cached by the images that they are computed from."""
    images, found = images_of("noise"), []
    for data in (
        Data(name="noise", normalise="gcn-zca"),
        Data(name="noise", normalise="gcn-zca", val_per_class=5),
    ):
        options = ReadOptions(cache=tmp_path)
        found.append(load_training_data(images, data, torch.device("cpu"), sha256="x", options=options))
    assert not torch.equal(found[0].normaliser.shift, found[1].normaliser.shift)


def test_images_that_do_not_fit_the_recipe_are_a_user_error(data_root):
    with pytest.raises(UserError, match=r"holds images of many sizes"):
        load_training_data(
            load_shards(data_root), Data(name="x"), torch.device("cpu"), sha256="x", options=ReadOptions()
        )
