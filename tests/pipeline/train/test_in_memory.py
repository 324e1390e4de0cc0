"""Test training data in memory."""

from pathlib import Path

import torch

from pipeline.data import manifest, sources
from pipeline.data.batches import BatchBuilder
from pipeline.data.normalise import fit_normaliser
from pipeline.data.order import batch_indices
from pipeline.declare.data_settings import Data
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from tests.support.smoke_runs import images_of


def test_batches_are_those_of_the_declared_augmentation_normalised_by_training_images(sharded_run):
    images, augment = sources.load_images("noise", Path("nowhere")), ("pad2-crop", "flip")
    data = Data(name="noise", val=120, pad_to=20, normalise="per-channel", augment=augment)
    training_data = load_training_data(images, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    batch = next(iter(training_data.feed(sharded_run.recipe.train, 3, 2, 1)))
    training, held_out = manifest.train_val_split(images.train, train_count=None, val_count=120)
    assert len(held_out) == 120
    builder = BatchBuilder(training, normalise=fit_normaliser("per-channel", training), augment=augment, pad_to=20)
    indices = batch_indices(3, 2, 4, len(training))
    assert batch.images.equal(builder(indices, builder.draw(3, 2, 4)))
    assert batch.labels.equal(training.labels[indices])


def test_curvature_patterns_are_drawn_anew_for_each_pass():
    images = images_of("noise")
    data = load_training_data(images, Data(name="noise"), torch.device("cpu"), sha256="x", options=ReadOptions())
    pixels, labels = data.curvature_patterns(3, 0, 5)
    assert (pixels.shape[0], labels.shape) == (5, (5,))
    same, _ = data.curvature_patterns(3, 0, 5)
    other, _ = data.curvature_patterns(3, 1, 5)
    assert pixels.equal(same)
    assert not pixels.equal(other)
