"""Test the differences between two runs, and how runs are named."""

from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.report.run_diff import Difference, compare_runs, find_record, flattened


def test_settings_are_flattened_by_dotted_key():
    nested = {"train": {"lr": 0.1, "lr_drops": {"at": [3, 4]}}, "data": {}}
    assert flattened(nested) == {"train.lr": 0.1, "train.lr_drops.at": [3, 4], "data": {}}


def test_equal_runs_have_no_differences(experiment, record):
    one = record(experiment, "plain-20", 0, 9.5)
    assert compare_runs(one, one, ({"train": {"lr": 0.1}}, {"train": {"lr": 0.1}})) == []


def test_differences_are_listed_by_part(experiment, record):
    one = record(experiment, "plain-20", 0, 9.5)
    other = replace(record(experiment, "plain-20", 1, 9.6), code="code-2", precision="bf16", manifest="other")
    recipes = {"train": {"lr": 0.1}}, {"train": {"lr": 0.2, "clip_norm": 2.0}}
    found = {(one.part, one.name): (one.first, one.second) for one in compare_runs(one, other, recipes)}
    assert found.pop(("result", "test/top1_error_pct")) == (9.5, 9.6)
    assert {key for key in found if key[0] == "result"} == {
        ("result", "test/top5_error_pct"),
        ("result", "train/top1_error_pct"),
    }
    assert {key: pair for key, pair in found.items() if key[0] != "result"} == {
        ("declaration", "seed"): (0, 1),
        ("declaration", "train.lr"): (0.1, 0.2),
        ("declaration", "train.clip_norm"): ("", 2.0),
        ("data", "manifest"): (one.manifest, "other"),
        ("code", "hash"): ("code-1", "code-2"),
        ("environment", "precision"): ("fp32", "bf16"),
    }


def test_without_a_recipe_the_hashes_of_the_declarations_are_compared(experiment, record):
    one = record(experiment, "plain-20", 0, 9.5)
    (found,) = compare_runs(one, replace(one, declaration="x"), (None, {"train": {}}))
    assert found == Difference("declaration", "hash", one.declaration, "x")


def test_a_declaration_that_differs_elsewhere_is_named_by_its_hash(experiment, record):
    """A run that starts from another: its own recipe is the same, that of the other run is not."""
    one, recipes = record(experiment, "plain-20", 0, 9.5), ({"train": {"lr": 0.1}}, {"train": {"lr": 0.1}})
    (found,) = compare_runs(one, replace(one, declaration="x"), recipes)
    assert found == Difference("declaration", "hash", one.declaration, "x")
    renamed = compare_runs(one, replace(one, declaration="x", variant="plain-32"), recipes)
    assert [difference.name for difference in renamed] == ["variant", "hash"]
    assert compare_runs(one, replace(one, variant="plain-32"), recipes)[0].name == "variant"


def test_a_run_is_found_by_name_and_by_identity(experiment, record):
    records = [record(experiment, "plain-20", 0, 9.5), record(experiment, "plain-20", 1, 9.5)]
    assert find_record("plain-20/1", records) is records[1]
    assert find_record("toy/depth/plain-20/1", records) is records[1]
    assert find_record(records[0].identity, records) is records[0]


def test_unknown_and_ambiguous_runs_are_refused(experiment, record):
    small = record(experiment, "plain-20", 0, 9.5)
    large = replace(small, identity="ffff", scale="laptop")
    assert find_record("toy/depth/plain-20/0 at laptop", [small, large]) is large
    with pytest.raises(UserError) as caught:
        find_record("plain-20/0", [small, large])
    assert str(caught.value) == (
        f"'plain-20/0' is ambiguous: {small.identity[:8]} (toy/depth/plain-20/0 at paper) or ffff"
        " (toy/depth/plain-20/0 at laptop); use the digits instead"
    )
    with pytest.raises(UserError, match=r"^no finished run 'x'; no runs have finished$"):
        find_record("x", [])
