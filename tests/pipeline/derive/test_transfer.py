"""Test the linear classifier on features of a trained network."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.common.errors import UserError
from pipeline.data import manifest, sources
from pipeline.data.images import DataError
from pipeline.data.prepare.transfer_stand_in import make_transfer_stand_in
from pipeline.data.transfer_sets.load import load_transfer_set
from pipeline.declare.transfer import TransferSpec, is_score, single_scales
from pipeline.derive import transfer
from pipeline.derive.transfer import over_splits
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


# --- published sets, here their stand-ins: ten classes --------------------------------------------------------

CALTECH = {
    "kind": "transfer",
    "of": "resnet-18-a",
    "data": "caltech101-standin",
    "view": "2-crop-40-of-48-56",
    "scales": "stack",
    "normalise": "l2",
    "classifier": "svm",
    "c": [0.1, 10.0],
    "validation": 0.4,
    "splits": 2,
    "train_per_class": [2, 3],
    "test_per_class": 1,
}
VOC = {
    "kind": "transfer",
    "of": "resnet-18-a",
    "data": "voc2007-standin",
    "view": "1-crop-64-of-72",
    "normalise": "l2",
    "classifier": "svm",
    "c": [0.1, 10.0],
    "train_parts": ["train", "val"],
    "validation": "val",
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Return the stand-ins of Caltech-101, four images of each class, and of VOC-2007, two in each part."""
    root = tmp_path_factory.mktemp("stand-ins")
    found = {}
    for name, images in (("caltech101", 4), ("voc2007", 2)):
        make_transfer_stand_in(name, root / f"{name}-standin", images=images, side=40)
        found[name] = load_transfer_set(f"{name}-standin", root)
    return found


def made(folder, sharded_members, other, spec, members=1, **options):
    """Return the record of a transfer to `other` by the declaration `spec`."""
    shards, runs, folders = sharded_members
    declared = TransferSpec.model_validate(spec)
    derived = derived_of(declared, runs[:members])
    return make_in(folder, derived, folders[:members], images=shards, other=other, **options)


@pytest.fixture(scope="module")
def caltech(sharded_members, stand_ins, tmp_path_factory):
    """Return the record of CALTECH."""
    return made(tmp_path_factory.mktemp("caltech") / "run", sharded_members, stand_ins["caltech101"], CALTECH)


def test_random_splits_give_mean_and_deviation_at_each_size(caltech):
    assert set(caltech.metrics) == set(TransferSpec.model_validate(CALTECH).metrics())
    assert caltech.metrics["features"] == 2 * 512  # two scales side by side
    for size in (2, 3):
        place = f"test/{size}-per-class"
        assert caltech.metrics[f"{place}/images"] == 10  # one of each class
        recall, error = (caltech.metrics[f"{place}/mean_class_{name}_pct"] for name in ("recall", "error"))
        assert recall == pytest.approx(100 - error)
    assert caltech.ended.endswith("on 1024 features")
    assert caltech.ended.startswith("C ")


def test_a_stopped_transfer_resumes_with_the_same_result(
    caltech, sharded_members, stand_ins, tmp_path, monkeypatch
):
    fits = []

    def stop_at_third(*arguments, **options):
        fits.append(arguments)
        return original(*arguments, **options)

    original = transfer.split_metrics
    monkeypatch.setattr(transfer, "split_metrics", stop_at_third)
    arguments = (tmp_path / "run", sharded_members, stand_ins["caltech101"], CALTECH)
    assert made(*arguments, stop=lambda: len(fits) == 2) is None
    features = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("checkpoints/features*")}
    assert features
    again = []
    monkeypatch.setattr(transfer, "image_descriptors", counted(again, transfer.image_descriptors))
    record = made(*arguments)
    assert (record.metrics, record.ended) == (caltech.metrics, caltech.ended)
    assert len(fits) == 4 + 1  # the second was stopped before its first fit
    assert not list((tmp_path / "run").glob("checkpoints/features*"))


def counted(calls, function):
    """Return `function`, which adds its arguments to `calls`."""

    def call(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    return call


@pytest.fixture
def _labels_as_features(monkeypatch):
    """Replace the features of an image by its labels, so that a classifier makes no error."""

    def labels(member, samples, view, **_):
        found = samples.labels
        one_hot = torch.nn.functional.one_hot(found, 10) if found.ndim == 1 else (found == 1)
        return [one_hot.float() for _ in single_scales(view)]

    monkeypatch.setattr(transfer, "image_descriptors", labels)


@pytest.mark.usefixtures("_labels_as_features")
@pytest.mark.parametrize("classifier", ["svm", "softmax"])
@pytest.mark.parametrize(("name", "spec"), [("caltech101", CALTECH), ("voc2007", VOC)])
def test_features_that_are_the_labels_make_no_error(sharded_members, stand_ins, tmp_path, name, spec, classifier):
    record = made(tmp_path / "run", sharded_members, stand_ins[name], spec | {"classifier": classifier})
    scores = {key: value for key, value in record.metrics.items() if is_score(key)}
    assert scores
    assert set(scores.values()) == {100.0}


@pytest.mark.usefixtures("_labels_as_features")
def test_features_of_two_networks_are_stacked(sharded_members, stand_ins, tmp_path):
    spec = CALTECH | {"of": ["resnet-18-a", "other"], "splits": 1, "train_per_class": 3, "scales": "average"}
    record = made(tmp_path / "run", sharded_members, stand_ins["caltech101"], spec, members=2)
    assert record.metrics["features"] == 2 * 10
    assert len(record.members) == 2


def test_voc_is_judged_by_average_precision_on_its_test_part(sharded_members, stand_ins, tmp_path):
    record = made(tmp_path / "run", sharded_members, stand_ins["voc2007"], VOC)
    expected = set(TransferSpec.model_validate(VOC).metrics())
    by_class = {name for name in record.metrics if name.startswith("test/ap_pct/")}
    assert set(record.metrics) == expected | by_class
    assert len(by_class) == 10  # classes with positive images
    assert record.metrics["test/mean_ap_pct"] == pytest.approx(
        np.mean([record.metrics[name] for name in by_class])
    )
    assert record.metrics["test/images"] == 20


@pytest.mark.usefixtures("_labels_as_features")
def test_settings_that_do_not_fit_the_set_are_user_errors(sharded_members, stand_ins, tmp_path):
    with pytest.raises(UserError, match="4 for training leave none for testing"):
        made(tmp_path / "a", sharded_members, stand_ins["caltech101"], CALTECH | {"train_per_class": 4})
    spec = VOC | {"train_parts": ["train", "trainval"], "validation": "train"}
    with pytest.raises(DataError, match="voc2007-standin has no part 'trainval'; its parts are train, val, test"):
        made(tmp_path / "b", sharded_members, stand_ins["voc2007"], spec)


def test_another_set_than_the_tasks_is_refused(sharded_members, stand_ins, tmp_path):
    with pytest.raises(DataError, match="caltech101-standin: its images changed since the command began"):
        made(
            tmp_path / "run",
            sharded_members,
            stand_ins["caltech101"],
            CALTECH,
            changed_manifest=stand_ins["voc2007"].manifest,
        )


def test_deviation_over_splits_is_the_samples():
    found = over_splits([{"x": 1.0, "images": 5.0}, {"x": 2.0, "images": 5.0}, {"x": 6.0, "images": 5.0}], "test")
    assert found == {"test/x": 3.0, "test/x_std": pytest.approx(7**0.5), "test/images": 5.0}
