"""Training on bounding boxes: targets, localisation errors by hand, whole runs, resume and two ranks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.common.errors import UserError
from pipeline.data.crops import crop_box
from pipeline.data.jpeg import decode, resize
from pipeline.data.manifest import manifest_of
from pipeline.data.order import batch_indices
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from pipeline.declare.protocol import parse_protocol
from pipeline.plan.expand import plan_runs
from pipeline.track.run_folder import RunFolder
from pipeline.train.box_data import BoxData, TrueBoxes, corners_in_image, evaluate_boxes, is_localised
from pipeline.train.context import build_module
from pipeline.train.evaluate import EnsembleMember
from pipeline.train.execution import Execution
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from pipeline.train.ranks import RankGroup
from pipeline.train.sharded import ShardedData
from pipeline.train.train import train
from tests.support.box_sets import (
    BOX_EXPERIMENT,
    open_boxed_set,
    prepare_boxed_set,
    slow_overlap,
    small_networks,
)
from tests.support.smoke_runs import stop_after, task_at, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def box_root(tmp_path_factory):
    return prepare_boxed_set(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def box_runs(tmp_path_factory):
    """The runs of BOX_EXPERIMENT, by variant."""
    file = tmp_path_factory.mktemp("experiment") / "boxes.yaml"
    file.write_text(BOX_EXPERIMENT, encoding="utf-8")
    return {run.variant: run for run in plan_runs(load_experiment(str(file)), scale="paper")}


@pytest.fixture(scope="module")
def box_experiment(tmp_path_factory):
    file = tmp_path_factory.mktemp("declared") / "boxes.yaml"
    file.write_text(BOX_EXPERIMENT, encoding="utf-8")
    return load_experiment(str(file))


def data_of(run, images, **options):
    return load_training_data(images, run.recipe.data, CPU, sha256="x", options=ReadOptions(**options))


def train_box_run(path, run, root, **options):
    """Train a run of BOX_EXPERIMENT; it starts from random weights if its start is not given as `needs`."""
    boxed = open_boxed_set(root)
    images = boxed if run.recipe.data.boxes else boxed.plain
    needs = options.pop("needs", ())
    return train(task_at(path, run, images, needs=needs, data_root=root), images, **options)


def without_start(run):
    """The run with random initial weights."""
    settings = run.recipe.train.model_copy(update={"start": None})
    return replace(run, recipe=run.recipe.model_copy(update={"train": settings}), start=None)


# --- targets -------------------------------------------------------------------------------------------------


def test_targets_follow_the_crops_and_flips_of_the_images(box_root, box_runs):
    """The class's texture is inside the target box: compare with a crop of a picture of the box itself."""
    images, run = open_boxed_set(box_root), without_start(box_runs["boxes"])
    data = data_of(run, images)
    feed = data.feed(run.recipe.train, 0, 0, 1)
    true = TrueBoxes(data.training)
    batches = list(feed)
    assert [batch.step for batch in batches] == list(range(6))
    seen_flips = set()
    for step, batch in enumerate(batches):
        draws = feed.builder.draw(0, step, 4)
        order = batch_indices(0, step, 4, len(data.training))
        for position, index in enumerate(order.tolist()):
            height, width = true.size(index)
            crop = crop_box(feed.crop, height, width, float(draws[position, 0]))
            [[left, top, right, bottom]] = true.corners(index)
            painted = np.zeros((height, width, 3), np.uint8)  # the box in white, cropped as the image is
            rows = slice(round(top * height), round(bottom * height))
            painted[rows, round(left * width) : round(right * width)] = 255
            resized = resize(painted, crop.box, crop.size, "bilinear").numpy()
            window = resized[crop.crop[0] : crop.crop[0] + 32, crop.crop[1] : crop.crop[1] + 32, 0] > 127
            flip = bool(draws[position, 6] < 0.5)
            seen_flips.add(flip)
            window = window[:, ::-1] if flip else window
            x, y, w, h = batch.boxes[position].tolist()
            expected = np.zeros((32, 32), bool)
            centres = (np.arange(32) + 0.5) / 32
            inside = [(centres > c - size / 2) & (centres < c + size / 2) for c, size in ((y, h), (x, w))]
            expected = inside[0][:, None] & inside[1][None]
            assert (window != expected).sum() <= 4 * 32  # borders are blurred by up to a pixel
            assert window.any()
        assert batch.labels.tolist() == data.training.labels[order].tolist()
    assert seen_flips == {False, True}


def test_images_and_labels_are_those_of_a_run_that_learns_classes(box_root, box_runs):
    images, run = open_boxed_set(box_root), without_start(box_runs["boxes"])
    boxed = data_of(run, images)
    plain_data = run.recipe.data.model_copy(update={"boxes": False})
    plain = load_training_data(images.plain, plain_data, CPU, sha256="x", options=ReadOptions())
    assert type(plain) is ShardedData
    assert isinstance(boxed, BoxData)
    pairs = zip(boxed.feed(run.recipe.train, 3, 1, 1), plain.feed(run.recipe.train, 3, 1, 1), strict=True)
    for one, other in pairs:
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_ranks_get_the_targets_of_their_images(box_root, box_runs):
    images, run = open_boxed_set(box_root), without_start(box_runs["boxes"])
    [whole, *_] = data_of(run, images).feed(run.recipe.train, 0, 0, 1)
    for rank in (0, 1):
        data = data_of(run, images)
        data.options = ReadOptions(group=RankGroup(rank, 2))
        [own, *_] = data.feed(run.recipe.train, 0, 0, 1)
        assert torch.equal(own.boxes, whole.boxes[rank::2])


# --- the localisation error ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([0.0, 0.0, 0.5, 1.0], False),  # exactly 0.5 of the first box, which is not above 0.5
        ([0.0, 0.0, 0.51, 1.0], True),
        ([0.8, 0.8, 0.9, 0.9], True),  # the second box
        ([0.8, 0.8, 0.85, 0.85], False),
    ],
)
def test_a_box_is_right_if_it_overlaps_with_any_true_one(found, expected):
    true = np.array([[0.0, 0.0, 1.0, 1.0], [0.8, 0.8, 0.9, 0.9]])
    assert is_localised(np.array([found]), true).tolist() == [expected]


def test_corners_in_the_image_by_hand():
    """A window of 32 pixels at row 4, column 8 of an image of 40 x 64, and a box over its right half."""
    found = corners_in_image(np.array([[0.5, 0.0, 1.0, 1.0]]), (40, 64), (4, 8), 32)
    np.testing.assert_allclose(found, [[24 / 64, 4 / 40, 40 / 64, 36 / 40]])
    clipped = corners_in_image(np.array([[-1.0, -1.0, 3.0, 3.0]]), (40, 64), (4, 8), 32)
    assert clipped.tolist() == [[0, 0, 1, 1]]


class ConstantBoxes(nn.Module):
    """Predicts the same boxes, one per class, whatever the image."""

    def __init__(self, boxes):
        super().__init__()
        self.boxes = torch.tensor(boxes)

    def forward(self, x):
        return self.boxes.expand(len(x), -1, -1)


def test_errors_of_the_centre_crop_by_hand(box_root, box_runs):
    """Each class has its own constant box; the expected errors are counted image by image."""
    images, run = open_boxed_set(box_root), box_runs["boxes"]
    data = data_of(run, images)
    boxes = [[0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.5, 0.5], [0.4, 0.5, 1.4, 0.8]]
    protocol = parse_protocol("1-crop-32-of-40")
    found = evaluate_boxes(
        EnsembleMember(ConstantBoxes(boxes), data.normaliser),
        images.test,
        protocol,
        ReadOptions(),
        bf16=False,
        device=CPU,
    )
    wrong = 0
    for index in range(len(images.test)):
        height, width, _ = decode(images.test.read([index])[0], "x").shape
        scale = 40 / min(height, width)
        rows, columns = (40 if side == min(height, width) else int(side * scale) for side in (height, width))
        top, left = round((rows - 32) / 2), round((columns - 32) / 2)
        x, y, w, h = boxes[int(images.test.labels[index])]
        edges = [left + 32 * (x - w / 2), top + 32 * (y - h / 2), left + 32 * (x + w / 2), top + 32 * (y + h / 2)]
        box = np.array(edges) / [columns, rows, columns, rows]
        wrong += not any(slow_overlap(box.clip(0, 1), true) > 0.5 for true in images.test.boxes[index])
    assert 0 < wrong < len(images.test)
    assert (found.wrong1, found.images) == (wrong, len(images.test))
    assert math.isfinite(found.loss)


def test_a_perfect_network_makes_no_errors(box_root, box_runs, monkeypatch):
    """With one box that is true for all images, the loss is that of the target alone."""
    images, run = open_boxed_set(box_root), box_runs["boxes"]
    data = data_of(run, images)
    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    monkeypatch.setattr(images.test, "boxes", [whole] * len(images.test))
    member = EnsembleMember(ConstantBoxes([[0.5, 0.5, 9.0, 9.0]]), data.normaliser)
    found = evaluate_boxes(
        member, images.test, parse_protocol("1-crop-32-of-40"), ReadOptions(), bf16=False, device=CPU
    )
    assert found.wrong1 == 0


# --- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_boxes(box_root, box_runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted")
    return train_box_run(path, without_start(box_runs["boxes"]), box_root), path


def test_a_run_records_its_localisation_error(finished_boxes, box_experiment):
    record, path = finished_boxes
    assert record.status == "finished"
    assert set(record.metrics) == set(metric_names(box_experiment, "boxes", named=False))
    assert record.metrics["test/images"] == 12
    assert 0 <= record.metrics["test/localisation_error_pct"] <= 100
    journal = {entry["step"]: entry["metrics"] for entry, _ in RunFolder(path).journal()}
    assert "train/localisation_error_pct" in journal[2]
    assert "test/localisation_error_pct" in journal[3]
    assert record.metrics["train/localisation_error_pct"] == journal[6]["train/localisation_error_pct"]


@pytest.mark.parametrize("after", [2, 5])
def test_a_stopped_run_ends_with_the_same_bits(finished_boxes, box_root, box_runs, tmp_path, after):
    run = without_start(box_runs["boxes"])
    assert train_box_run(tmp_path, run, box_root, stop=stop_after(after)) is None
    record = train_box_run(tmp_path, run, box_root)
    assert weights(tmp_path) == weights(finished_boxes[1])
    assert record.metrics == finished_boxes[0].metrics


def test_training_starts_from_a_classification_network_but_for_the_last_layer(box_root, box_runs, tmp_path):
    run = box_runs["boxes"]
    settings = run.recipe.train.model_copy(update={"trainable": ("fc7",)})  # so that the others stay
    run = replace(run, recipe=run.recipe.model_copy(update={"train": settings}))
    assert run.start is not None
    plain = tmp_path / "classes"
    assert train_box_run(plain, run.start, box_root).status == "finished"
    record = train_box_run(tmp_path / "boxes", run, box_root, needs=("classes",))
    assert record.status == "finished"
    origin, ended = (load_file(RunFolder(path).network_file) for path in (plain, tmp_path / "boxes"))
    for name in ("conv.weight", "conv.bias", "fc6.weight", "fc6.bias"):
        assert torch.equal(origin[name], ended[name])
    assert origin["fc7.weight"].shape == (3, 16)
    assert ended["fc7.weight"].shape == (12, 16)


def test_frozen_layers_keep_their_weights_and_the_selection_watches_the_localisation_error(
    box_root, box_runs, tmp_path, box_experiment
):
    record = train_box_run(tmp_path, box_runs["frozen"], box_root)
    assert set(metric_names(box_experiment, "frozen", named=False)) <= set(record.metrics)
    assert record.metrics["val/images"] == 3
    assert "validation error" in record.ended
    assert "train/lr_drops" in record.metrics
    as_declared = Execution("fp32", channels_last=False, compiled=False, threads=1)
    start = build_module(box_runs["frozen"], manifest_of(open_boxed_set(box_root)), as_declared).network
    ended = load_file(RunFolder(tmp_path).network_file)
    same = {name for name, value in start.state_dict().items() if torch.equal(value, ended[name])}
    assert same == {"conv.weight", "conv.bias"}


def test_boxes_of_a_set_without_them_are_refused(box_root, box_runs):
    images = open_boxed_set(box_root).plain
    with pytest.raises(UserError, match=r"imagenet-standin has no bounding boxes, which data\.boxes needs"):
        data_of(box_runs["boxes"], images)


def test_class_errors_of_boxes_are_refused(box_root, box_runs):
    data = data_of(box_runs["boxes"], open_boxed_set(box_root))
    with pytest.raises(UserError, match="use a derived run of kind localisation"):
        data.ensemble_errors([], [], "1-crop-32-of-40", bf16=False)
    with pytest.raises(UserError, match="use a derived run of kind localisation"):
        data.features(nn.Identity(), data.shards, "test", None)


# --- two ranks -----------------------------------------------------------------------------------------------


def train_on_rank(path, run, root):
    """Train on this rank, in a process that does not know the small networks yet."""
    with small_networks():
        return train_box_run(path, run, root)


@pytest.mark.slow
def test_ranks_share_the_images_and_count_each_once(two_ranks, finished_boxes, box_root, box_runs, tmp_path):
    run = without_start(box_runs["boxes"])
    records = two_ranks.run(train_on_rank, tmp_path, run, box_root)
    assert records[0] == records[1]
    assert records[0].world == 2
    assert records[0].metrics["test/images"] == 12
    expected = finished_boxes[0].metrics["train/loss"]
    assert records[0].metrics["train/loss"] == pytest.approx(expected, rel=1e-3)
