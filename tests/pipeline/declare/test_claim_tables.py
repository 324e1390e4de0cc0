"""Compact forms of claims: what each expands to, and the error of each mistake."""

import re

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.claim_tables import expand_claims, expand_printed, parse_chain, scale


def only(claim, *keys):
    return {key: claim[key] for key in keys}


def test_result_table_has_one_claim_per_cell_and_none_for_an_empty_one():
    table = {
        "source": "Table 3",
        "columns": {"top1": {"margin": 0.6}, "top5": {"margin": 0.4}},
        "variants": {
            "vgg-11": [29.6, 10.4],
            "vgg-13": [28.7, None],
            "vgg-16": {"test": "dense-of-384", "top5": {"claimed": 8.7, "margin": 0.1}},
        },
    }
    keys = ("id", "kind", "of", "metric", "claimed", "margin", "source")
    assert [tuple(only(claim, *keys).values()) for claim in expand_claims([table])] == [
        ("vgg-11-top1", "metric", "vgg-11", "test/top1_error_pct", 29.6, 0.6, "Table 3"),
        ("vgg-11-top5", "metric", "vgg-11", "test/top5_error_pct", 10.4, 0.4, "Table 3"),
        ("vgg-13-top1", "metric", "vgg-13", "test/top1_error_pct", 28.7, 0.6, "Table 3"),
        ("vgg-16-top5", "metric", "vgg-16", "test/dense-of-384/top5_error_pct", 8.7, 0.1, "Table 3"),
    ]


def test_rows_fill_the_templates_of_the_table():
    table = {
        "source": "Table 6",
        "of": "resnet-<row>",
        "columns": {"parameters": {"unit": 1e6, "margin": 0.005}, "top1": {"margin": 0.5}},
        "variants": {20: [0.27, 8.75], "110-best": {"of": "resnet-110", "top1": {"claimed": 6.43, "id": "best"}}},
    }
    parameters, error, best = expand_claims([table])
    assert only(parameters, "id", "of", "metric", "claimed", "margin") == {
        "id": "parameters-20",
        "of": "resnet-20",
        "metric": "model/parameters",
        "claimed": 270_000,
        "margin": 5000,
    }
    assert (error["id"], error["of"]) == ("resnet-20-top1", "resnet-20")
    assert (best["id"], best["of"]) == ("best", "resnet-110")
    assert "unit" not in parameters


def test_layer_table():
    table = {
        "source": "Table 1",
        "of": "googlenet",
        "columns": ["output", "kernel", "stride", "multiply_adds"],
        "layers": {"conv1": ["64x112x112", "7x7", 2, {"claimed": 34, "corrected": 118013952, "unit": 1e6}]},
    }
    output, kernel, stride, operations = expand_claims([table])
    assert only(output, "id", "metric", "claimed") == {
        "id": "conv1",
        "metric": "model/layer/conv1/output",
        "claimed": [64, 112, 112],
    }
    assert (kernel["id"], kernel["metric"], kernel["claimed"]) == (
        "conv1-kernel",
        "model/layer/conv1/kernel_size",
        [7, 7],
    )
    assert stride["claimed"] == [2, 2]
    assert (operations["claimed"], operations["corrected"]) == (34_000_000, 118_013_952)
    assert {claim["of"] for claim in (output, kernel, stride, operations)} == {"googlenet"}


def test_layer_table_without_columns_lists_outputs():
    [pool, fc] = expand_claims([{"of": "vgg-16", "layers": {"pool1": "64x112x112", "fc8": 1000}}])
    assert (pool["claimed"], fc["claimed"]) == ([64, 112, 112], [1000])


def test_settings_of_the_paper_and_of_the_lecture_have_different_ids():
    settings = {"train.batch_size": 128, "train.optimizer.weight_decay": {"claimed": 1e-5, "corrected": 1e-4}}
    paper = expand_claims([{"of": "resnet-20", "settings": settings}])
    lecture = expand_claims([{"of": "resnet-20", "by": "lecture", "settings": settings}])
    assert [claim["id"] for claim in paper] == ["recipe-batch", "recipe-weight-decay"]
    assert [claim["id"] for claim in lecture] == ["lecture-batch", "lecture-weight-decay"]
    assert paper[1] | {"says": ""} == {
        "id": "recipe-weight-decay",
        "kind": "exact",
        "of": "resnet-20",
        "metric": "recipe/train.optimizer.weight_decay",
        "claimed": 1e-5,
        "corrected": 1e-4,
        "says": "",
    }


def test_measures_of_a_network():
    depth, none = expand_claims([{"of": "vgg-16", "model": {"depth": 16, "count/Dropout": 0}}])
    assert (depth["metric"], none["metric"], none["id"]) == ("model/depth", "model/count/Dropout", "count-Dropout")


def test_chain_is_one_claim_per_pair_of_neighbours():
    table = {"metric": "test/top1_error_pct", "orderings": {"depth": "a < b < c", "same": {"ordering": "a ~ b"}}}
    keys = ("id", "lhs", "op", "rhs", "kind")
    assert [tuple(only(claim, *keys).values()) for claim in expand_claims([table])] == [
        ("depth-a", "a", "<", "b", "ordering"),
        ("depth-b", "b", "<", "c", "ordering"),
        ("same", "a", "~", "b", "ordering"),
    ]


def test_gain():
    [claim] = expand_claims([{"id": "lrn", "gain": "lrn < none", "claimed": 1.4, "metric": "test/top1_error_pct"}])
    assert only(claim, "kind", "lhs", "rhs", "claimed") == {
        "kind": "gain",
        "lhs": "lrn",
        "rhs": "none",
        "claimed": 1.4,
    }
    assert claim["says"] == "The top-1 test error of lrn is 1.4 points lower than that of none"


@pytest.mark.parametrize(
    ("claim", "kind"),
    [
        ({"metric": "model/depth", "of": "x", "claimed": 8}, "exact"),
        ({"metric": "printed/x", "op": "<", "claimed": 8}, "exact"),
        ({"metric": "test/top1_error_pct", "of": "x", "claimed": 8.0}, "metric"),
        ({"metric": "test/top1_error_pct", "of": "x", "op": "<", "claimed": 8.0}, "bound"),
        ({"metric": "train/seconds", "lhs": "x", "rhs": "y", "claimed": 8.0}, "ratio"),
        ({"metric": "train/loss", "lhs": "x", "op": "<", "rhs": "y"}, "ordering"),
        ({"reason": "no-labels", "why": "none are published", "says": "x"}, "open"),
    ],
)
def test_kind_follows_from_the_other_keys(claim, kind):
    assert [found["kind"] for found in expand_claims([claim])] == [kind]


def test_a_kind_that_is_given_stays():
    [claim] = expand_claims([{"kind": "bound", "metric": "model/depth", "of": "x", "claimed": 8}])
    assert claim["kind"] == "bound"


def test_own_sentence_may_contain_the_printed_value():
    table = {"of": "a", "unit": 1e6, "says": "<row> has <value> M", "metric": "model/parameters"}
    [claim] = expand_claims([table | {"variants": {"a": 1.25}}])
    assert (claim["says"], claim["claimed"]) == ("a has 1.25 M", 1_250_000)


@pytest.mark.parametrize(
    ("value", "unit", "product"),
    [(0.27, 1e6, 270_000), (19.4, 1e6, 19_400_000), (2.7, 1024, 2764.8), (7, 1e9, 7e9)],
)
def test_units_multiply_as_decimal_numbers(value, unit, product):
    assert scale(value, unit) == product


def test_printed_values_are_grouped_by_source():
    groups = {
        "Table 2": {"alexnet_mb": 240, "pruned_mb": {"value": 27, "confidence": "memory"}},
        "Figure 1": {"confidence": "figure", "top1": 54.5},
    }
    assert expand_printed(groups) == {
        "alexnet_mb": {"where": "Table 2", "value": 240},
        "pruned_mb": {"where": "Table 2", "value": 27, "confidence": "memory"},
        "top1": {"where": "Figure 1", "confidence": "figure", "value": 54.5},
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"Table 2": 5}, "printed.Table 2: should be a map of names to values, not 5"),
        (
            {"error": {"value": 1, "where": "Table 2"}},
            "printed.error: printed values are given by source, as in Table 2: {error: 1.5}",
        ),
        ({"Table 2": {"a": 1}, "Table 3": {"a": 2}}, "printed.Table 3.a: the name is used twice"),
    ],
)
def test_errors_of_printed_values(groups, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        expand_printed(groups)


def test_chain_is_read_in_pairs():
    assert parse_chain("a < b <= c") == [("a", "<", "b"), ("b", "<=", "c")]


ERRORS = {  # claims -> message
    "no list": ({"a": 1}, "claims: should be a list of claims and tables"),
    "item": (["x"], "claims.0: should be a map of keys, not 'x'"),
    "two blocks": (
        [{"model": {"depth": 1}, "layers": {"conv1": 1}}],
        "claims.0: a table has one block of rows, not layers and model",
    ),
    "no rows": ([{"source": "Table 1", "layers": []}], "claims.Table 1.layers: should be a map of rows, not []"),
    "columns": (
        [{"source": "Table 1", "columns": "output", "layers": {"conv1": 1}}],
        "claims.Table 1.layers: 'columns' should be a list of names, or a map of names to keys, not 'output'",
    ),
    "columns of settings": (
        [{"source": "s", "columns": ["a"], "settings": {"train.lr": 1}}],
        "claims.s.settings: only 'variants' and 'layers' have columns, not 'settings'",
    ),
    "too few cells": (
        [{"source": "Table 1", "columns": ["output", "kernel", "stride"], "layers": {"conv1": ["64x1x1", "7x7"]}}],
        "claims.Table 1.layers.conv1: 2 cells for 3 columns (output, kernel, stride); an empty cell is ~",
    ),
    "no cell": (
        [{"source": "Table 1", "columns": ["output"], "layers": {"conv1": {"claimed": 3}}}],
        "claims.Table 1.layers.conv1: a map of keys should have a cell for one of: output",
    ),
    "placeholder": (
        [{"source": "s", "of": "resnet-<rwo>", "variants": {20: 1}}],
        "claims.s.variants.20: unknown placeholder <rwo>; did you mean 'row'?",
    ),
    "chain": (
        [{"source": "s", "orderings": {"x": {"ordering": "a << b"}}}],
        "claims.s.orderings.x: should compare names with <, >, <= or ~, as in: a < b < c; not 'a << b'",
    ),
    "gain of three": (
        [{"id": "x", "gain": "a < b < c"}],
        "claims.x: 'gain' should be one comparison, a < b, not 'a < b < c'",
    ),
    "unit": (
        [{"id": "x", "unit": 0, "claimed": 2}],
        "claims.x: 'unit' should be a number above 0, not 0",
    ),
}


@pytest.mark.parametrize(("claims", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_place(claims, message):
    with pytest.raises(ValueError) as caught:
        expand_claims(claims)
    assert str(caught.value) == message


def test_an_error_in_a_table_names_the_file(declare):
    with pytest.raises(UserError) as caught:
        declare("claims:\n", "claims:\n  - {source: Table 1, layers: 5}\n")
    assert str(caught.value) == "toy/depth.yaml: claims.Table 1.layers: should be a map of rows, not 5"


def test_an_unknown_key_in_a_table_is_named_by_the_claim(declare):
    table = "claims:\n  - {source: Table 1, of: plain-20, magrin: 1, model: {depth: 20}}\n"
    with pytest.raises(UserError, match=r"claims.depth.magrin: unknown key; did you mean 'margin'\?"):
        declare("claims:\n", table)
