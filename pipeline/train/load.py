"""Load the images of a run as training data."""

import torch

from pipeline.data.boxes import BoxedShards
from pipeline.data.shards import ShardSet
from pipeline.declare.data_settings import Data
from pipeline.train.box_data import BoxData
from pipeline.train.in_memory import InMemoryData
from pipeline.train.inputs import AnyImageSet, ReadOptions, TrainingData, images_for, input_shape
from pipeline.train.sharded import ShardedData


def load_training_data(
    images: AnyImageSet, data: Data, device: torch.device, *, sha256: str, options: ReadOptions
) -> TrainingData:
    """Return `images` as the training data that the recipe's `data` declares; `sha256` is that of their manifest.

    Raises UserError if images and recipe do not fit.
    """
    images = images_for(images, data)
    input_shape(images, data)
    per_class = "" if data.val_per_class is None else f" per class {data.val_per_class}"
    key = f"{sha256} {data.train} {data.val}{per_class}"
    if isinstance(images, BoxedShards):
        return BoxData(images, data, device, key, options)
    if isinstance(images, ShardSet):
        return ShardedData(images, data, device, key, options)
    return InMemoryData(images, data, device, key, options)
