"""Open the images of a run as training data."""

import torch

from pipeline.data.shards import ShardSet
from pipeline.declare.recipe import Data
from pipeline.train.in_memory import InMemoryData
from pipeline.train.inputs import AnyImageSet, ReadOptions, TrainingData, input_shape
from pipeline.train.sharded import ShardedData


def load_training_data(
    images: AnyImageSet, data: Data, device: torch.device, *, sha256: str, options: ReadOptions
) -> TrainingData:
    """Open `images`, whose manifest has this sha256, as the recipe's `data` declares; UserError where it cannot be."""
    input_shape(images, data)
    key = f"{sha256} {data.train} {data.val}"
    if isinstance(images, ShardSet):
        return ShardedData(images, data, device, key, options)
    return InMemoryData(images, data, device, key, options)
