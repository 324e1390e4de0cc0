"""Test which claims are arithmetic, recipe and trained."""

import pytest

from pipeline.declare.claims import ExactClaim, GainClaim, MetricClaim, OpenClaim
from pipeline.judge.category import category

NAMED = {"id": "x", "says": "x", "source": "x"}


def exact_category(metric, **other):
    return category(ExactClaim(kind="exact", of="a", claimed=1, metric=metric, **NAMED, **other))


@pytest.mark.parametrize(
    "metric",
    [
        "model/parameters",
        "model/layer/conv1/kernel_size",  # shapes depend on it
        "model/count/Dropout",
        "model/own/expected_blocks",
        "model/layer/lrn1/output",
        "printed/top5",
        "printed/k",
    ],
)
def test_shapes_counts_and_printed_values_are_arithmetic(metric):
    assert exact_category(metric) == "arithmetic"


@pytest.mark.parametrize(
    "metric",
    [
        "recipe/train.batch_size",
        "recipe/test_views/dense-of-256",
        "model/layer/dropout6/p",
        "model/layer/map32.0/survival",
        "model/layer/lrn1/k",
        "model/layer/lrn1/alpha",
        "model/layer/lrn1/beta",
        "model/layer/lrn1/size",
        "model/layer/conv2/init_bias",
        "model/init_gain",
        "model/own/drop_path",
        "model/own/aux_weight",
        "model/layer/block/scale",
    ],
)
def test_settings_are_recipe(metric):
    assert exact_category(metric) == "recipe"


@pytest.mark.parametrize(
    ("metric", "over", "expected"),
    [
        ("model/layer/lrn1/alpha", "model/layer/lrn1/size", "recipe"),
        ("recipe/test_views/a", "recipe/test_scales/a", "recipe"),
        ("model/parameters", "printed/parameters", "arithmetic"),
        ("printed/parameters", "model/parameters", "arithmetic"),
        ("recipe/train.lr", "printed/lr", "arithmetic"),
        ("model/layer/lrn1/alpha", "model/parameters", "arithmetic"),
    ],
)
def test_ratio_is_recipe_only_if_both_sides_are(metric, over, expected):
    assert exact_category(metric, over_metric=over) == expected


def test_claims_about_training_are_trained():
    metric = MetricClaim(kind="metric", of="a", metric="test/top1_error_pct", claimed=1, margin=1, **NAMED)
    gain = GainClaim(kind="gain", lhs="a", rhs="b", metric="test/top1_error_pct", claimed=1, margin=1, **NAMED)
    open_claim = OpenClaim(kind="open", reason="no-labels", why="secret", **NAMED)
    assert {category(claim) for claim in (metric, gain, open_claim)} == {"trained"}
