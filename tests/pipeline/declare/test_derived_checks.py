"""Derived runs that consume variants of other experiments: names, data, scales and seeds."""

import pytest

from pipeline.declare.experiment import DeclarationError
from pipeline.declare.metrics import metric_names
from tests.support.elsewhere import ONLY_DERIVED, OTHER

# ruff: noqa: E501 - one error per line reads as a table

ERRORS = {
    "experiment": ("toy/depth/plain-20", "toy/dept/plain-20", "derived.mixed: toy/dept/plain-20: no experiment 'toy/dept'; did you mean 'toy/depth'?"),
    "no file": ("toy/depth/plain-20", "depth/plain-20", "derived.mixed: depth/plain-20: no experiment 'depth'; did you mean 'toy/depth'?"),
    "variant": ("toy/depth/plain-20", "toy/depth/plan-20", "derived.mixed: toy/depth has no variant 'plan-20'; did you mean 'plain-20'?"),
    "itself": ("toy/depth/plain-20", "toy/wide/wide", "derived.mixed: toy/wide/wide is a variant of this experiment; write wide"),
    "scale": ("  smoke: {data: {name: noise}, train: {steps: 12}}", "  tiny: {data: {name: noise}, train: {steps: 12}}", "derived.mixed (at tiny scale): toy/depth has no scale 'tiny'; declare it there, or remove it here"),
    "data": ("data: {name: cifar10}", "data: {name: cifar100}", "derived.mixed (at paper scale): its runs train on different data"),
    "normalisation": ("data: {name: cifar10}", "data: {name: cifar10, normalise: per-channel}", "derived.mixed (at paper scale): its runs differ in how they use cifar10: normalise, pad_to, train, val or val_per_class"),
    "seeds": ("toy/depth/plain-20: 2", "toy/depth/plain-20: 6", "derived.mixed: 6 networks of toy/depth/plain-20 need 6 seeds, but there are 5 at paper scale; add seeds in toy/depth.yaml: variants.plain-20.seeds, or use fewer networks in scales.paper.derived.mixed"),
    "averages": ("toy/depth/plain-20: 2}", "toy/depth/plain-20: 2}, weights: average", "derived.mixed.weights (at paper scale): wide keeps no average of its weights; declare train.average"),
    "override": ("smoke: {data", "smoke: {derived: {mixed: {members: {toy/depth/plan-20: 1}}}, data", "scales.smoke.derived.mixed: toy/depth has no variant 'plan-20'; did you mean 'plain-20'?"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_member_is_an_error_with_file_key_and_reason(declare_other, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare_other(old, new)
    assert str(caught.value) == f"toy/wide.yaml: {message}"


def test_a_scale_without_own_members_needs_no_scale_elsewhere(declare_other):
    tiny = "  tiny: {variants: [other], data: {name: noise}, train: {steps: 12}}\n"
    declared = declare_other("  smoke:", f"{tiny}  smoke:")
    assert declared.derived_at("tiny") == []
    assert declared.derived_at("paper") == ["mixed"]


def test_a_variant_elsewhere_has_the_settings_of_its_experiment(declare_other):
    declared = declare_other()
    name = "toy/depth/plain-20"
    depth, own = declared.owner(name)
    assert (depth.name, own) == ("toy/depth", "plain-20")
    assert declared.recipe(name, "smoke") == depth.recipe("plain-20", "smoke") != depth.recipe("plain-20", "paper")
    assert declared.published(name) == depth.published("plain-20")
    assert declared.seeds_of(name, "paper") == (0, 1, 2, 3, 4)  # of its experiment, not those of toy/wide
    assert declared.seeds_of("wide", "paper") == (0, 1, 2)
    assert declared.consumed_elsewhere("smoke") == (name,)


def test_a_derived_run_is_left_out_where_the_other_experiment_does_not_run_the_variant(declare_other):
    declared = declare_other("toy/depth/plain-20", "toy/depth/plain-32")  # which smoke leaves out
    assert declared.derived_at("paper") == ["mixed"]
    assert declared.derived_at("smoke") == []


def test_deviations_of_the_other_experiment_count_where_they_concern_the_member(declare, declare_other):
    both = "material: true, of: [plain-20]", "material: true, of: [resnet-20]"
    for end, expected in zip(both, (["Pixels are scaled.", "Half."], ["Half."]), strict=True):
        declare("why: No scale is named.}", f"why: No scale is named., {end}}}")
        half = "departures: [{what: Half., why: Cost., material: true}]\n"
        declared = declare_other("seeds: [0, 1, 2]\n", f"seeds: [0, 1, 2]\n{half}")
        found = [item.what for item in declared.material("departures", ["mixed"])]
        assert sorted(found) == sorted(expected)
        assert [item.what for item in declared.material("departures", ["wide"])] == ["Half."]
        assert declared.material("choices", ["mixed"]) == []


def test_deviations_of_a_derived_run_do_not_concern_its_members(declare_other):
    merged = "departures: [{what: Merged., why: Cost., material: true, of: [mixed]}]\n"
    declared = declare_other("seeds: [0, 1, 2]\n", f"seeds: [0, 1, 2]\n{merged}")
    assert [item.what for item in declared.material("departures", ["mixed"])] == ["Merged."]
    assert declared.material("departures", ["wide"]) == []
    with pytest.raises(DeclarationError, match=r"departures.0.of: unknown variant 'mixd'; did you mean 'mixed'\?"):
        declare_other("seeds: [0, 1, 2]\n", "seeds: [0, 1, 2]\n" + merged.replace("[mixed]", "[mixd]"))


def test_an_experiment_may_consist_of_derived_runs_of_others(declare_other):
    declared = declare_other(OTHER, ONLY_DERIVED)
    assert (declared.variants, declared.train, declared.paper_data("pair")) == ({}, None, "cifar10")
    assert "test/top1_error_pct" in metric_names(declared, "pair", named=True)


def test_an_experiment_without_variants_and_derived_runs_is_an_error(declare_other):
    text = ONLY_DERIVED.replace("derived: {pair: {kind: ensemble, members: {toy/depth/plain-20: 2}}}\n", "")
    with pytest.raises(DeclarationError, match="variants: this key is required without derived runs"):
        declare_other(OTHER, text)
    with pytest.raises(DeclarationError, match=r"variants\.a/b: a name must not contain '/'"):
        declare_other("  other: {", "  a/b: {")
