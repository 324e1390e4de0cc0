"""Localisation: boxes of mirrored windows, errors by hand, whole derived runs, and resuming."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data.jpeg import decode
from pipeline.data.manifest import manifest_of
from pipeline.declare.load import load_experiment
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.metrics import metric_names
from pipeline.derive import localisation
from pipeline.derive.localisation import Candidates, Localiser, is_right, localise_block, map_corners
from pipeline.derive.merge_boxes import best_merged_box
from pipeline.derive.run import make_derived
from pipeline.plan.expand import Run, plan_runs
from pipeline.schedule.tasks import check_derived_run
from pipeline.track.run_folder import RunFolder
from pipeline.train.evaluate import EnsembleMember
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from pipeline.train.train import train
from tests.support.box_sets import (
    BOX_EXPERIMENT,
    STRIDE,
    WINDOW,
    open_boxed_set,
    prepare_boxed_set,
    slow_overlap,
    small_networks,
)
from tests.support.smoke_runs import stop_after, task_at

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _networks():
    with small_networks():
        yield


class Windows(nn.Module):
    """Network whose windows are those of the small networks."""

    window, stride = WINDOW, STRIDE


# --- boxes of windows ----------------------------------------------------------------------------------------


def test_the_box_of_a_window_lies_at_its_place_in_the_image():
    """Two windows of 32 pixels in 32 x 40, and two of the mirror image; each predicts its own left half."""
    boxes = torch.tensor([0.25, 0.5, 0.5, 1.0]).reshape(1, 4, 1, 1).expand(2, 4, 1, 2).double()
    found = map_corners(boxes, (32, 40), Windows()) * [40, 32, 40, 32]
    expected = [
        [0, 0, 16, 32],  # the window at column 0
        [8, 0, 24, 32],  # at column 8
        [24, 0, 40, 32],  # at column 0 of the mirror image
        [16, 0, 32, 32],  # at column 8 of the mirror image
    ]
    np.testing.assert_allclose(found, expected)


def test_rows_come_before_columns_as_in_the_class_scores():
    boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).reshape(1, 4, 1, 1).expand(2, 4, 2, 3).double()
    found = map_corners(boxes, (40, 48), Windows())[:6] * [48, 40, 48, 40]
    corners = [(row, column) for row in (0, 8) for column in (0, 8, 16)]
    np.testing.assert_allclose(found[:, [1, 0]], corners)


def test_the_best_of_the_merged_boxes_decides():
    true = np.array([[0.0, 0.0, 0.5, 0.5]])
    right, wrong = np.array([[0.0, 0.0, 0.5, 0.5]]), np.array([[0.5, 0.5, 1.0, 1.0]])
    assert is_right(Candidates([right, wrong], [np.array([0.6]), np.array([0.5])]), true, 0.5)
    assert not is_right(Candidates([right, wrong], [np.array([0.5]), np.array([0.6])]), true, 0.5)


# --- a whole block, against a slow version -------------------------------------------------------------------


@pytest.fixture(scope="module")
def box_root(tmp_path_factory):
    return prepare_boxed_set(tmp_path_factory.mktemp("boxes"), classes=7, train=3, test=2)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The runs and the derived run of BOX_EXPERIMENT, by variant."""
    file = tmp_path_factory.mktemp("experiment") / "boxes.yaml"
    file.write_text(BOX_EXPERIMENT, encoding="utf-8")
    return {run.variant: run for run in plan_runs(load_experiment(str(file)), scale="paper")}


def random_members(planned, images, seed=0):
    """Networks with random weights, and the data of their runs."""
    found = {}
    for name in ("boxes", "classes"):
        torch.manual_seed(seed)
        network = build(planned[name].recipe.model.name, {}, num_classes=7, in_channels=3)
        if name == "boxes":  # boxes around the middle of each window
            with torch.no_grad():
                network.fc7.weight.mul_(0.02)
                network.fc7.bias.copy_(torch.tensor([0.5, 0.5, 0.8, 0.8] * 7))
        own = images if name == "boxes" else images.plain
        data = load_training_data(own, planned[name].recipe.data, CPU, sha256="x", options=ReadOptions())
        found[name] = EnsembleMember(network.eval(), data.normaliser)
    return found


def slow_localisation(members, image, true, own, spec):
    """Wrong with the class given, and with the best one and five, from the definitions, one window at a time."""
    boxes, classes = members["boxes"], members["classes"]

    def normalised(member, pixels):
        mean = member.normalise.with_mean_colour()
        return (pixels.float() * mean.scale - mean.shift).permute(2, 0, 1)[None]

    def resized(short):
        height, width = image.shape[:2]
        size = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        x = torch.from_numpy(image).permute(2, 0, 1)[None]
        return F.interpolate(x, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)

    whole = resized(40)
    top, left = (round((side - WINDOW) / 2) for side in whole.shape[:2])
    crop = whole[top : top + WINDOW, left : left + WINDOW]
    probabilities = classes.network(normalised(classes, crop)).softmax(1)[0]
    ranking = probabilities.argsort(descending=True)[:5].tolist()
    windows = []  # boxes of the image and scores, for all classes
    for short in (36, 48):
        pixels = resized(short)
        height, width = pixels.shape[:2]
        for mirrored in (False, True):
            picture = pixels.flip(1) if mirrored else pixels
            for row in range(0, height - WINDOW + 1, STRIDE):
                for column in range(0, width - WINDOW + 1, STRIDE):
                    window = picture[row : row + WINDOW, column : column + WINDOW]
                    scores = classes.network(normalised(classes, window)).softmax(1)[0].tolist()
                    predicted = []
                    for x, y, w, h in boxes.network(normalised(boxes, window))[0].tolist():
                        edges = [column + WINDOW * (x - w / 2), column + WINDOW * (x + w / 2)]
                        edges = [width - edge for edge in edges[::-1]] if mirrored else edges
                        vertical = [row + WINDOW * (y - h / 2), row + WINDOW * (y + h / 2)]
                        box = np.array([edges[0], vertical[0], edges[1], vertical[1]])
                        predicted.append((box / [width, height, width, height]).clip(0, 1))
                    windows.append((predicted, scores))
    found = {}
    for label in {*ranking, own}:
        candidates = np.array([predicted[label] for predicted, _ in windows])
        ratings = np.array([scores[label] for _, scores in windows])
        best = best_merged_box(candidates, ratings, spec.merge_overlap)
        found[label] = any(slow_overlap(best, one) > 0.5 for one in true)
    right = found[own]
    return not right, not (right and ranking[0] == own), not (right and own in ranking)


class Context:
    """What `localise_block` needs of a DerivedContext."""

    def __init__(self, images):
        self.images, self.options = images, ReadOptions()


@pytest.mark.parametrize(("seed", "count"), [(0, 3), pytest.param(1, 14, marks=pytest.mark.slow)])
def test_errors_are_those_of_a_slow_version(box_root, planned, seed, count):
    images, spec = open_boxed_set(box_root), planned["localised"].spec
    members = random_members(planned, images, seed)
    localiser = Localiser(spec, [(members["boxes"], (36, 48))], [members["classes"]], CPU, bf16=False)
    found = localise_block(localiser, Context(images), range(count))
    with torch.inference_mode():
        slow = [
            slow_localisation(
                members,
                decode(images.test.read([index])[0], "x"),
                images.test.boxes[index],
                int(images.test.labels[index]),
                spec,
            )
            for index in range(count)
        ]
    given, top1, top5 = (sum(column) for column in zip(*slow, strict=True))
    assert found == {"images": count, "given": given, "top1": top1, "top5": top5}
    assert given < count  # some boxes are right
    assert given <= top5 <= top1


@pytest.mark.parametrize(("variant", "what"), [("boxes", "boxes"), ("classes", "class scores")])
def test_outputs_that_are_not_finite_are_refused(box_root, planned, variant, what):
    images, spec = open_boxed_set(box_root), planned["localised"].spec
    members = random_members(planned, images)
    localiser = Localiser(spec, [(members["boxes"], (36, 48))], [members["classes"]], CPU, bf16=False)
    with torch.no_grad():
        next(members[variant].network.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match=f"gives {what} that are not finite; train it again"):
        localise_block(localiser, Context(images), range(1))


# --- derived runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members(box_root, planned, tmp_path_factory):
    """The folders of the two finished members."""
    root = tmp_path_factory.mktemp("members")
    images = open_boxed_set(box_root)
    for name, own, needs in (("classes", images.plain, ()), ("boxes", images, ("classes",))):
        assert train(task_at(root / name, planned[name], own, needs=needs, data_root=root), own)
    return root


def derive(path, derived, root, images, **options):
    """Make the derived run beside the folders of its members, which are copied by name."""
    needs = tuple(str(root / member.variant) for member in derived.members)
    return make_derived(task_at(path, derived, images, identity="id", needs=needs), images, **options)


@pytest.fixture(scope="module")
def finished(box_root, planned, members, tmp_path_factory):
    path = tmp_path_factory.mktemp("derived")
    return derive(path, planned["localised"], members, open_boxed_set(box_root))


def test_a_derived_run_records_the_declared_errors(finished, planned, tmp_path):
    file = tmp_path / "boxes.yaml"
    file.write_text(BOX_EXPERIMENT, encoding="utf-8")
    assert set(finished.metrics) == set(metric_names(load_experiment(str(file)), "localised", named=True))
    assert finished.metrics["test/images"] == 14
    assert finished.ended == "boxes of 2 short sides, 1 classifier"
    assert len(finished.members) == 2
    errors = [finished.metrics[f"test/{top}localisation_error_pct"] for top in ("", "top5_", "top1_")]
    assert errors == sorted(errors)


def test_it_resumes_with_the_next_images(finished, box_root, planned, members, tmp_path, monkeypatch):
    monkeypatch.setattr(localisation, "BLOCK", 4)
    images, messages = open_boxed_set(box_root), []
    stop, report = stop_after(4), messages.append
    assert derive(tmp_path, planned["localised"], members, images, stop=stop, report=report) is None
    done = len([text for text in messages if text.startswith("localising")]) - 1  # the last was interrupted
    assert 0 < done < 4
    measured = []
    plain = localisation.localise_block

    def count(localiser, context, block):
        measured.append(block)
        return plain(localiser, context, block)

    monkeypatch.setattr(localisation, "localise_block", count)
    record = derive(tmp_path, planned["localised"], members, images)
    assert len(measured) == 4 - done
    assert record.metrics == finished.metrics


def test_members_are_checked_against_their_own_images(box_root, planned, members, tmp_path):
    """A run that predicts boxes was trained on other data than one that predicts classes."""
    images = open_boxed_set(box_root)
    records = {name: RunFolder(members / name).result() for name in ("boxes", "classes")}
    assert records["boxes"].manifest == manifest_of(images).sha256[:16]
    assert records["classes"].manifest == manifest_of(images.plain).sha256[:16]


# --- declarations --------------------------------------------------------------------------------------------


def test_names_of_variants_are_not_part_of_the_declaration(planned):
    derived = planned["localised"]
    spec = LocalisationSpec(kind="localisation", boxes={"m": (36, 48)}, classes=("n",), labels="1-crop-32-of-40")
    members = tuple(replace(run, variant=name) for run, name in zip(derived.members, ("m", "n"), strict=True))
    assert replace(derived, spec=spec, members=members).declaration == derived.declaration
    other = spec.model_copy(update={"boxes": {"m": (36,)}})
    assert replace(derived, spec=other, members=members).declaration != derived.declaration


def test_a_network_without_positions_cannot_rate_boxes(planned):
    derived = planned["localised"]
    boxes, classes = derived.members
    assert isinstance(classes, Run)
    model = classes.recipe.model.model_copy(update={"name": "resnet_cifar"})
    changed = replace(classes, recipe=classes.recipe.model_copy(update={"model": model}))
    check_derived_run(derived)
    with pytest.raises(UserError, match="resnet_cifar cannot rate boxes at every position of an image"):
        check_derived_run(replace(derived, members=(boxes, changed)))
