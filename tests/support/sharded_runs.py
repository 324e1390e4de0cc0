"""A run of a few seconds that learns from images in shards."""

from pathlib import Path
from typing import Any

from pipeline.data import sources
from pipeline.plan.expand import Run
from pipeline.track.record import Record
from pipeline.train.train import train
from tests.support.image_sets import prepare_random_set
from tests.support.smoke_runs import task_at

SHARDED_EXPERIMENT = """
paper: {title: Toy, authors: Nobody, year: 2026, section: "1"}
question: Does it learn from images in shards?
data:
  name: photographs
  val: 5
  normalise: raw-mean-image
  augment: [flip, pca-colour, photometric]
  crop: {side: 32, short: [36, 44]}
  test: [1-crop-32-of-36, 10-crop-32-of-square-36, dense-of-32-40]
train:
  steps: 9
  batch_size: 4
  lr: 0.01
  log_every: 3
  eval_every: 4
  optimizer: {name: sgd, momentum: 0.9}
variants:
  resnet-18: {model: {name: resnet_imagenet, depth: 18}}

seeds: [0]
scales: {paper: {}}
"""


def prepare_data_folder(folder: Path) -> Path:
    """Write the set 'photographs' below `folder`, in shards: 3 classes, 21 training images, 12 test images."""
    shards = prepare_random_set(folder / "work")
    assert (shards.name, len(shards.train), len(shards.test)) == ("photographs", 21, 12)
    (folder / "work" / "shards").rename(folder / "photographs")
    return folder


def load_shards(root: Path) -> Any:
    """Return the set in the data folder `root`, read from shards."""
    return sources.load_images("photographs", root, sharded=True)


def train_sharded(
    path: Path, run: Run, root: Path, *, data_root: Path | None = None, **options: Any
) -> Record | None:
    """Train in this process, in the run folder `path`, on the set in `root`; cache statistics in `data_root`."""
    images = load_shards(root)
    return train(task_at(path, run, images, data_root=data_root or root), images, **options)
