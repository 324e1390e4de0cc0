"""Test the linear classifier on features of a trained network."""

import numpy as np
import pytest
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data import manifest, sources
from pipeline.declare.transfer import TransferSpec
from pipeline.track.run_folder import RunFolder
from tests.support.derived_runs import derived_of, make_in
from tests.support.image_sets import prepare_random_set

TRANSFER = TransferSpec(kind="transfer", of="resnet-20", data="shades", c=1.0)


def make_shades(root, size=16, each=12):
    """Write class folders of noisy images of three greys, and return the set."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, grey in enumerate((40, 110, 200)):
            folder = root / "shades" / split / f"grey{label}"
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = np.clip(grey + generator.integers(-25, 26, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return sources.load_images("shades", root)


def test_linear_classifier_learns_another_set_from_the_features(runs, folders, tmp_path):
    other = make_shades(tmp_path)
    record = make_in(tmp_path / "derived", derived_of(TRANSFER, runs[:1]), folders[:1], other=other)
    assert record.data == "shades"
    assert record.manifest == manifest.manifest_of(other).sha256[:16]
    assert record.metrics["test/images"] == 36
    assert record.metrics["test/top1_error_pct"] < 34  # chance: 67
    assert record.metrics["features"] == 64  # input of ResNet-20's fully connected layer
    assert set(record.metrics) == set(TRANSFER.metrics())
    assert record.ended.endswith("iterations on 64 features")
    assert record.status == "finished"


def test_classifier_that_did_not_converge_has_no_metrics(runs, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.derive.linear_classifier.SOFTMAX_ITERATIONS", 2)
    other = make_shades(tmp_path)
    record = make_in(tmp_path / "derived", derived_of(TRANSFER, runs[:1]), folders[:1], other=other)
    assert (record.status, record.metrics) == ("not converged", {})
    assert record.ended.startswith("the classifier on 64 features did not converge: lbfgs failed to converge")
    assert RunFolder(tmp_path / "derived").result().status == "not converged"


def test_images_of_another_size_are_a_user_error(runs, folders, tmp_path):
    other = make_shades(tmp_path, size=20)
    with pytest.raises(UserError, match="learned from images of 16 x 16 x 3, but those of shades are 20 x 20 x 3"):
        make_in(tmp_path / "derived", derived_of(TRANSFER, runs[:1]), folders[:1], other=other)


def test_features_of_images_in_shards_are_those_of_one_crop(sharded_members, tmp_path):
    shards, runs, folders = sharded_members
    spec = TransferSpec(kind="transfer", of="resnet-18-a", data="mine", c=1.0, view="1-crop-64-of-72")
    other = prepare_random_set(tmp_path / "other", classes=2, train=6, test=3, seed=5)
    record = make_in(tmp_path / "derived", derived_of(spec, runs[:1]), folders[:1], images=shards, other=other)
    assert record.metrics["features"] == 512
    assert record.metrics["test/images"] == 6
