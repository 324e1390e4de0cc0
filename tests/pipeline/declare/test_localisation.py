"""Networks that predict bounding boxes in a declaration: settings, metrics, and derived runs of kind localisation."""

import pytest

from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from pipeline.plan.declaration import declaration_hashes
from tests.support.box_sets import BOX_EXPERIMENT

# ruff: noqa: E501 - one error per line reads as a table


@pytest.fixture
def declare_boxes(tmp_path):
    """Load BOX_EXPERIMENT with one text replaced."""

    def load(old="", new=""):
        assert old in BOX_EXPERIMENT
        file = tmp_path / "toy" / "boxes.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(BOX_EXPERIMENT.replace(old, new, 1) if old else BOX_EXPERIMENT, encoding="utf-8")
        return load_experiment(str(file))

    return load


ERRORS = {
    "boxes of classes": ("data: {boxes: true, test", "data: {test", "boxes at paper scale: data.boxes: true and train.loss 'euclidean' must be used together (VGG, appendix A)"),
    "classes of boxes": ("{loss: {name: euclidean}, start:", "{start:", "boxes at paper scale: data.boxes: true and train.loss 'euclidean' must be used together (VGG, appendix A)"),
    "ten crops": ("test: [1-crop-32-of-40]", "test: [10-crop-32-of-40]", "variants.boxes.data: test protocol '10-crop-32-of-40' gives several boxes, or crops of another size than in training; networks that predict boxes are tested on the centre crop, such as 1-crop-32-of-256, or by a derived run of kind localisation"),
    "two scales": ("test: [1-crop-32-of-40]", "test: [dense-of-36]", "variants.boxes.data: test protocol 'dense-of-36' gives several boxes, or crops of another size than in training; networks that predict boxes are tested on the centre crop, such as 1-crop-32-of-256, or by a derived run of kind localisation"),
    "another crop": ("test: [1-crop-32-of-40]", "test: [1-crop-24-of-40]", "variants.boxes.data: test protocol '1-crop-24-of-40' gives several boxes, or crops of another size than in training; networks that predict boxes are tested on the centre crop, such as 1-crop-32-of-256, or by a derived run of kind localisation"),
    "a trained layer twice": ("trainable: [fc6, fc7]", "trainable: [fc6, fc6]", "variants.frozen.train.trainable: 'fc6' is listed twice"),
    "filters of frozen layers": ("trainable: [fc6, fc7]", "filter_rms_limit: 0.1, trainable: [fc6, fc7]", "variants.frozen.train: filter_rms_limit would change layers that are not in 'trainable'; remove one of them"),
    "a class error": ("trainable: [fc6, fc7]", "warmup: {lr: 0.1, train_error_below_pct: 80.0}", "frozen at paper scale: train.warmup waits for a class error, which data.boxes: true does not have"),
    "boxes of a classifier": ("boxes: {boxes: [36, 48]}, classes: [classes]", "boxes: {classes: [36]}, classes: [boxes]", "derived.localised (at paper scale): classes predicts no bounding boxes; declare data.boxes, or list it in 'classes'"),
    "classes of boxes, derived": ("classes: [classes]", "classes: [frozen]", "derived.localised (at paper scale): frozen predicts no classes of images in shards; 'classes' needs networks that do"),
    "both roles": ("classes: [classes]", "classes: [boxes]", "derived.localised: boxes is in 'boxes' and in 'classes'"),
    "falling sides": ("[36, 48]", "[48, 36]", "derived.localised: the short sides of boxes must be increasing"),
    "small sides": ("[36, 48]", "[24, 48]", "derived.localised (at paper scale): boxes reads 32 pixels, but a short side is 24"),
    "no sides": ("boxes: {boxes: [36, 48]}", "boxes: {boxes: []}", "derived.localised.boxes.boxes: should not be empty"),
    "unknown variant": ("classes: [classes]", "classes: [clases]", "derived.localised: unknown variant 'clases'; did you mean 'classes'?"),
    "overlap": ("labels: 1-crop", "merge_overlap: 1.0, labels: 1-crop", "derived.localised.merge_overlap: should be less than 1, not 1.0"),
    "labels": ("labels: 1-crop-32-of-40", "labels: crop", "derived.localised.labels: unknown test protocol 'crop'; examples: 1-crop-224-of-256, 10-crop-224-of-256, 144-crop-224-of-256-288-320-352, dense-of-256-384-512"),
    "ensemble of boxes": ("kind: localisation, boxes: {boxes: [36, 48]}, classes: [classes], labels: 1-crop-32-of-40", "kind: protocol, of: boxes, test: [dense-of-36]", "derived.localised (at paper scale): networks that predict bounding boxes can be consumed by a derived run of kind localisation only"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_what_makes_no_sense_is_refused_in_one_sentence(declare_boxes, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare_boxes(old, new)
    assert str(caught.value).removeprefix("toy/boxes.yaml: ") == message


def test_boxes_have_localisation_errors_only(declare_boxes):
    declared = declare_boxes()
    assert metric_names(declared, "boxes", named=True) == [
        *(f"test/1-crop-32-of-40/{name}" for name in ("localisation_error_pct", "loss", "images")),
        "train/localisation_error_pct",
        "train/loss",
    ]
    assert "val/localisation_error_pct" in metric_names(declared, "frozen", named=False)
    assert metric_names(declared, "localised", named=True) == [
        *(f"test/{top}localisation_error_pct" for top in ("", "top1_", "top5_")),
        "test/images",
    ]
    found = {name: declared.predicts_boxes(name) for name in (*declared.variants, *declared.derived)}
    assert found == {"classes": False, "boxes": True, "frozen": True, "localised": True}


@pytest.mark.parametrize("claim", ["top1_error_pct", "top5_localisation_error_pct"])
def test_a_claim_about_boxes_names_one_of_their_errors(declare_boxes, claim):
    text = (
        f"claims: [{{id: a, of: boxes, metric: test/1-crop-32-of-40/{claim}, claimed: 1, margin: 1, source: x}}]\n"
    )
    with pytest.raises(DeclarationError, match=rf"unknown metric 'test/1-crop-32-of-40/{claim}' of boxes"):
        declare_boxes("seeds: [0]\n", f"{text}seeds: [0]\n")


def test_defaults_do_not_change_a_declaration(declare_boxes):
    """The settings were added later: at their defaults, recorded runs keep their hashes."""
    declared = declare_boxes()
    written = declare_boxes(
        "name: tiny_scores}}", "name: tiny_scores}, train: {trainable: []}, data: {boxes: false}}"
    )
    hashes = [
        declaration_hashes(experiment.recipe("classes", "paper"), [0])[0] for experiment in (declared, written)
    ]
    assert hashes[0] == hashes[1]
    assert declaration_hashes(declared.recipe("boxes", "paper"), [0])[0] != hashes[0]
