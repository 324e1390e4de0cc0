"""Test declarations of transfers: what fits together, and which metrics they measure."""

import pytest
from pydantic import ValidationError

from pipeline.declare.load import load_experiment
from pipeline.declare.protocol import parse_protocol
from pipeline.declare.transfer import TransferSpec, is_score, is_transfer_set, single_scales
from pipeline.plan.declaration import without_later_derived_defaults
from pipeline.plan.expand import DerivedRun, Run, plan_runs

CALTECH = {
    "kind": "transfer",
    "of": "a",
    "data": "caltech101",
    "c": 1.0,
    "view": "dense-of-256-384",
    "classifier": "svm",
    "splits": 3,
    "train_per_class": 30,
}
VOC = {
    "kind": "transfer",
    "of": "a",
    "data": "voc2007",
    "c": [0.1, 1.0],
    "view": "dense-of-256-384",
    "train_parts": ["train", "val"],
    "validation": "val",
}


def spec(base, **changes):
    """Return the declaration `base` with changes; a key with the value None is removed."""
    return TransferSpec.model_validate(
        {key: value for key, value in (base | changes).items() if value is not None}
    )


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (CALTECH, {"c": [0.1, 1.0]}, "several values of 'c' need 'validation'"),
        (CALTECH, {"validation": 0.2}, "'validation' chooses among several values of 'c'"),
        (CALTECH, {"c": [0.1, 1.0], "validation": 1.0}, "validation"),
        (CALTECH, {"c": [0.1, 1.0], "validation": "train"}, "'validation' should be a share"),
        (CALTECH, {"splits": None}, "'splits' and 'train_per_class' must be used together"),
        (CALTECH, {"splits": None, "train_per_class": None}, "caltech101 has no parts"),
        (CALTECH, {"test_part": "val"}, "'splits' draws training and test images"),
        (CALTECH, {"view": None}, "caltech101 has images of many sizes, so it needs a 'view'"),
        (CALTECH, {"view": "dense-of-256", "scales": "stack"}, "'scales: stack' needs a 'view' at several"),
        (CALTECH, {"of": ["a", "b"]}, "stacked features of several variants need 'normalise: l2'"),
        (CALTECH, {"of": ["a", "a"], "normalise": "l2"}, "'a' is listed twice"),
        (CALTECH, {"of": []}, "at least 1 item"),
        (VOC, {"splits": 3, "train_per_class": 5, "train_parts": None, "validation": 0.2}, "parts of its own"),
        (VOC, {"validation": "trainval"}, "'validation' 'trainval' should be one of 'train_parts'"),
        (VOC, {"test_part": "val"}, "'test_part' 'val' is one of 'train_parts'"),
        (VOC, {"test_per_class": 50}, "'test_per_class' needs 'splits'"),
        (VOC, {"data": "voc2012"}, "the labels of its test part are not published; use 'test_part: val'"),
        (VOC, {"data": "digits", "view": None, "layer": "fc"}, "'layer' needs a 'view'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(base, changes, message):
    assert spec(base)
    with pytest.raises(ValidationError, match=message):
        spec(base, **changes)


def test_metrics_of_several_sizes_name_the_size():
    found = spec(CALTECH, train_per_class=[15, 30]).metrics()
    assert {"test/15-per-class/mean_class_recall_pct", "test/30-per-class/mean_class_recall_pct_std"} <= set(found)
    assert "test/15-per-class/images" in found
    assert not [name for name in found if name.startswith("test/mean")]


def test_an_svm_has_neither_loss_nor_iterations():
    svm, softmax = spec(CALTECH).metrics(), spec(CALTECH, classifier="softmax").metrics()
    assert set(softmax) - set(svm) == {"test/loss", "test/loss_std", "iterations"}


def test_a_single_split_has_no_spread():
    assert not [name for name in spec(CALTECH, splits=1).metrics() if name.endswith("_std")]


@pytest.mark.parametrize("data", ["voc2007", "voc2007-standin"])
def test_voc_is_measured_by_average_precision(data):
    assert spec(VOC, data=data).metrics() == ["test/mean_ap_pct", "test/images", "features", "iterations"]


def test_defaults_leave_the_hash_of_earlier_declarations_unchanged():
    earlier = {"kind": "transfer", "data": "digits", "c": 1.0, "view": None}
    declared = TransferSpec(kind="transfer", of="a", data="digits", c=1.0)
    assert without_later_derived_defaults(declared.model_dump(mode="json", exclude={"of", "members"})) == earlier


def test_each_new_setting_changes_the_hash():
    declared = spec(CALTECH, scales="stack", layer="fc7", normalise="l2", test_per_class=50)
    dumped = declared.model_dump(mode="json", exclude={"of", "members"})
    kept = without_later_derived_defaults(dumped)
    changed = {"scales", "layer", "normalise", "classifier", "splits", "train_per_class", "test_per_class"}
    assert changed <= set(kept)


def test_scores_and_sets_are_told_apart():
    assert is_score("test/15-per-class/mean_class_recall_pct")
    assert is_score("test/mean_ap_pct")
    assert not is_score("test/mean_class_error_pct")
    assert is_transfer_set("voc2012-standin")
    assert not is_transfer_set("imagenet-standin")


def test_a_view_is_split_into_its_scales():
    found = single_scales(parse_protocol("dense-of-256-384-and-10-crop-224-of-256"))
    assert [(scale.parts[0].kind, scale.parts[0].shorts) for scale in found] == [
        ("dense", (256,)),
        ("dense", (384,)),
        ("ten", (256,)),
    ]


def test_score_is_judged_as_a_mean(declare):
    text = """derived:
  else: {kind: transfer, of: plain-20, data: cifar100, c: 1.0}
scales:
"""
    claim = (
        "claims:\n  - {id: recall, of: else, metric: test/mean_class_recall_pct, claimed: 70, margin: 1, STATISTIC"
    )
    assert declare("scales:\n", text, "claims:\n", claim.replace("STATISTIC", "source: x}\n"))
    with pytest.raises(Exception, match="test/mean_class_recall_pct is not an error; only 'mean' is possible"):
        declare("scales:\n", text, "claims:\n", claim.replace("STATISTIC", "statistic: best of 5, source: x}\n"))


@pytest.mark.parametrize("paper", ["vgg", "zfnet"])
@pytest.mark.parametrize("scale", ["paper", "stand-in"])
def test_the_runs_that_are_consumed_are_those_of_the_other_file(paper, scale):
    declared, imagenet = (load_experiment(f"{paper}/{name}") for name in ("transfer", "imagenet"))
    planned = plan_runs(declared, scale=scale)
    trained = {run.declaration for run in plan_runs(imagenet, scale=scale)}
    assert {run.declaration for run in planned if isinstance(run, Run)} <= trained
    expected = set(declared.derived) if scale == "paper" else set(declared.scales[scale].derived)
    assert {run.variant for run in planned if isinstance(run, DerivedRun)} == expected
