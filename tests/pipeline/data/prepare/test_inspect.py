"""Summaries of prepared sets: counts, sizes and sample images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.prepare.inspect import sample_images, sample_indices, summarise, summary_lines
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.verify import verify_shards
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.shards import open_shards
from pipeline.data.store import open_store
from pipeline.report.figures import contact_figure
from tests.support.image_sets import prepare_random_set, write_image


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory):
    """A prepared set of 3 classes with 5 training and 2 test images each."""
    return prepare_random_set(tmp_path_factory.mktemp("prepared"), classes=3, train=5, test=2, samples=4)


def test_the_summary_has_counts_and_sizes(shards, prepared_set):
    found = summarise(shards)
    sizes = {"train": [], "test": []}
    for name, of_split in sizes.items():
        for file in (prepared_set.store.local.parent / "photographs" / name).rglob("*.jpg"):
            with Image.open(file) as image:
                of_split.append(image.size)
    assert (found.classes, found.resized, found.sha256) == (3, "no", shards.manifest.sha256)
    for name, split in found.splits.items():
        widths, heights = (sorted(side) for side in zip(*sizes[name], strict=True))
        each = {"train": 5, "test": 2}[name]
        assert split.per_class == dict.fromkeys(shards.classes, each)
        assert split.balance == (each, each, each)
        assert (split.height[0], split.height[2]) == (heights[0], heights[-1])
        assert (split.width[0], split.width[2]) == (widths[0], widths[-1])
        assert split.samples == len(widths)
    assert found.splits["train"].width[1] == sorted(size[0] for size in sizes["train"])[7]  # the median of 15
    assert found.splits["train"].bytes == sum(f.stat().st_size for f in shards.store.local.glob("train-*.tar"))
    assert json.loads(json.dumps(found.to_dict()))["splits"]["test"]["shards"] == 2
    assert summary_lines(found)[0].startswith("train: 5 to 5 images per class (median 5), ")


def test_the_summary_has_the_resizing(tmp_path):
    small = prepare_random_set(tmp_path, classes=2, train=2, test=1, short_side=16)
    found = summarise(small)
    assert found.resized == "short side 16, bilinear, JPEG quality 95"
    sides = [min(row["height"], row["width"]) for row in small.train.index]
    assert sides == [16] * 4
    assert verify_shards(small.store, threads=1) == []


def test_sample_images_are_a_function_of_the_seed(shards):
    images, titles = sample_images(shards, 6)
    assert titles == ["ant", "ant", "bee", "bee", "cat", "cat"]
    again, _ = sample_images(shards, 6)
    assert all((a == b).all() for a, b in zip(images, again, strict=True))
    other, _ = sample_images(shards, 6, seed=1)
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(images, other, strict=True))
    every, _ = sample_images(shards)
    assert len(every) == 15


def test_sample_images_are_subsampled_for_the_contact_sheet(tmp_path):
    write_image(tmp_path / "large" / "train" / "ant" / "a.png", 0, height=500, width=1300)
    prepare_shards(source_from_folders(tmp_path / "large"), open_store(tmp_path / "s"))
    (image,), titles = sample_images(open_shards(tmp_path / "s"))
    with Image.open(tmp_path / "large" / "train" / "ant" / "a.png") as whole:
        assert (image == np.asarray(whole)[::4, ::4]).all()  # every fourth: 325 of 1300
    assert image.base is None  # the whole image is freed
    (drawn,) = contact_figure([image], titles).axes[0].images
    assert (drawn.get_array() == image).all()


def test_every_class_is_sampled_before_a_class_is_sampled_again():
    labels = torch.tensor([0] * 90 + [1] * 9 + [3] * 1)  # class 2 is empty
    assert labels[sample_indices(labels, 3, 0)].tolist() == [0, 1, 3]
    assert labels[sample_indices(labels, 5, 0)].tolist() == [0, 0, 1, 1, 3]
    chosen = sample_indices(labels, 30, 0)
    assert len(set(chosen)) == 30
    assert torch.bincount(labels[chosen]).tolist() == [20, 9, 0, 1]
    assert sorted(sample_indices(labels, 1000, 0)) == list(range(100))
    many = torch.arange(1000).repeat(3)
    assert len(set(many[sample_indices(many, 48, 0)].tolist())) == 48
    assert sample_indices(many, 48, 0) != sample_indices(many, 48, 1)
