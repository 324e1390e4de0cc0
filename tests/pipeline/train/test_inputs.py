"""Test the checks of images against recipe and manifest."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.common.errors import UserError
from pipeline.data import manifest, sources
from pipeline.data.images import DataError
from pipeline.declare.data_settings import Data
from pipeline.train.inputs import input_shape, require_counts
from tests.support.sharded_runs import load_shards


@pytest.mark.parametrize("part", ["train", "test"])
def test_number_of_images_must_be_that_of_the_manifest(data_root, part):
    images = load_shards(data_root)
    counts = manifest.manifest_of(images)
    require_counts(images, counts)
    found = getattr(counts, part)
    with pytest.raises(DataError, match=rf"^photographs has {found} {part} images, but its manifest counts 9; "):
        require_counts(images, replace(counts, **{part: 9}))


CROP = {"crop": {"side": 32, "short": 36}, "test": ["1-crop-32-of-36"]}


def test_images_in_shards_need_a_crop(data_root):
    images = load_shards(data_root)
    with pytest.raises(UserError, match=r"holds images of many sizes; declare in data.crop how they are cropped"):
        input_shape(images, Data(name="x"))
    with pytest.raises(DataError, match=r"holds images of different sizes; declare how .* in data.crop"):
        sources.load_images("photographs", data_root)  # into memory, as for a recipe without a crop


def test_small_images_must_have_no_crop():
    with pytest.raises(UserError, match=r"data.crop is for images in shards, and noise is a set of small"):
        input_shape(sources.load_images("noise", Path("nowhere")), Data(name="noise", **CROP))


def test_images_in_shards_cannot_have_a_normalisation_of_small_images(data_root):
    images = load_shards(data_root)
    with pytest.raises(
        DataError, match=r"normalisation 'gcn-zca' needs images of one size in memory; for sharded images"
    ):
        input_shape(images, Data(name="x", normalise="gcn-zca", **CROP))
