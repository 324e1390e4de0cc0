"""Test that images are loaded as the training data of their kind."""

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.declare.recipe import Data
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


def test_images_that_do_not_fit_the_recipe_are_a_user_error(data_root):
    with pytest.raises(UserError, match=r"holds images of many sizes"):
        load_training_data(
            load_shards(data_root), Data(name="x"), torch.device("cpu"), sha256="x", options=ReadOptions()
        )
