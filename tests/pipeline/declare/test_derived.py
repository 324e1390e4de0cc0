"""Derived runs in a declaration: what they consume, what a scale overrides, and what cannot be combined."""

import pytest

from pipeline.declare.experiment import DeclarationError
from tests.support.declarations import DERIVED, WITH_CROP, with_derived

# ruff: noqa: E501 - one error per line reads as a table


def test_a_derived_run_knows_the_runs_it_consumes(declare):
    declared = with_derived(declare)
    assert {name: spec.consumes for name, spec in declared.derived.items()} == {
        "three": {"plain-20": 2, "plain-32": 1},
        "small": {"resnet-20": 1},
        "else": {"plain-32": 1},
    }
    assert declared.derived_at("paper") == ["three", "small", "else"]
    assert declared.derived_at("smoke") == ["small"]  # the others consume plain-32, which does not run there
    assert declared.derived_at("smoke", ["plain-32"]) == ["else"]
    assert [declared.paper_data(name) for name in ("three", "else")] == ["cifar10", "cifar100"]


ERRORS = {
    "kind": ("{kind: compression", "{kind: compresion", "derived.small: unknown kind 'compresion'; did you mean 'compression'?"),
    "no kind": ("{kind: compression, ", "{", "derived.small: the key 'kind' is required"),
    "unknown key": ("density: 0.5", "densty: 0.5", "derived.small.densty: unknown key; did you mean 'density'?"),
    "density": ("density: 0.5", "density: 1.5", "derived.small.density: should be less than or equal to 1, not 1.5"),
    "bits": ("conv_bits: 8", "conv_bits: 9", "derived.small.conv_bits: should be less than or equal to 8, not 9"),
    "one network": ("members: {plain-20: 2, plain-32: 1}", "members: {plain-20: 1}", "derived.three: an ensemble needs at least 2 networks"),
    "unknown variant": ("of: resnet-20", "of: resnet-2", "derived.small: unknown variant 'resnet-2'; did you mean 'resnet-20'?"),
    "a variant's name": ("  three:", "  plain-32:", "derived.plain-32: a variant has the same name; give the derived run another"),
    "protocols": ("plain-32: 1}", "plain-32: 1}, test: [dense-of-256]", "derived.three (at paper scale): test protocols need runs whose data has a 'crop'"),
    "protocol": ("kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5", "kind: protocol, of: resnet-20, test: [dense-of-256]", "derived.small (at paper scale): test protocols need runs whose data has a 'crop'"),
    "no such protocol": ("kind: compression, of: resnet-20, density: 0.5, conv_bits: 8, fc_bits: 5", "kind: protocol, of: resnet-20, test: [dense]", "derived.small.test.0: unknown test protocol 'dense'; examples: 1-crop-224-of-256, 10-crop-224-of-256, 144-crop-224-of-256-288-320-352, dense-of-256-384-512"),
    "many views": ("c: 1.0", "c: 1.0, view: 10-crop-224-of-256", "derived.else: 'view' should be a single crop, such as 1-crop-224-of-256, not 10-crop-224-of-256"),
    "too few seeds": ("plain-20: 2", "plain-20: 6", "derived.three: 6 networks of plain-20 need 6 seeds, but there are 5 at paper scale; add seeds in variants.plain-20.seeds, or use fewer networks in scales.paper.derived.three"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_derived_run_is_an_error_with_file_key_and_reason(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        with_derived(declare, old, new)
    assert str(caught.value) == f"toy/depth.yaml: {message}"


def test_a_scale_overrides_settings_of_a_derived_run(declare):
    smaller = "  smoke:\n    derived: {small: {density: 0.1}}\n"
    declared = declare("scales:\n", DERIVED, "  smoke:\n", smaller)
    assert (declared.derived_spec("small", "paper").density, declared.derived_spec("small", "smoke").density) == (
        0.5,
        0.1,
    )
    assert declared.derived_spec("small", "smoke").conv_bits == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{smal: {density: 0.1}}", "scales.smoke.derived: unknown derived run 'smal'; did you mean 'small'?"),
        (
            "{small: {density: 2.0}}",
            "scales.smoke.derived.small.density: should be less than or equal to 1, not 2.0",
        ),
        (
            "{small: {of: resnt-20}}",
            "scales.smoke.derived.small: unknown variant 'resnt-20'; did you mean 'resnet-20'?",
        ),
        (
            "{small: {kind: protocol}}",
            "scales.smoke.derived.small.kind: unknown value 'protocol'; known: compression",
        ),
    ],
)
def test_an_invalid_override_of_a_scale_is_an_error_with_file_key_and_reason(declare, change, message):
    with pytest.raises(DeclarationError) as caught:
        declare("scales:\n", DERIVED, "  smoke:\n", f"  smoke:\n    derived: {change}\n")
    assert str(caught.value) == f"toy/depth.yaml: {message}"


def test_a_variant_may_have_more_seeds_for_a_derived_run(declare):
    more = "plain-20: {seeds: [0, 1, 2, 3, 4, 5, 6, 7], model:"
    declared = declare(
        "plain-20: {model:",
        more,
        "scales:\n",
        DERIVED.replace("plain-20: 2", "plain-20: 8"),
        "  laptop:\n",
        "  laptop:\n    derived: {three: {members: {plain-20: 5}}}\n    seeds: [0, 1, 2, 3, 4]\n",
    )
    assert declared.seeds_of("plain-20", "paper") == tuple(range(8))
    assert declared.seeds_of("plain-32", "paper") == (0, 1, 2, 3, 4)
    assert declared.seeds_of("plain-20", "smoke") == (0, 1, 2)  # a scale's seeds are for all


def test_a_trained_claim_may_be_about_a_derived_run_but_an_exact_claim_may_not(declare):
    trained = "of: plain-20, metric: test"
    declared = declare("scales:\n", DERIVED, trained, "of: small, metric: test")
    assert next(claim for claim in declared.claims if claim.id == "error").of == "small"
    with pytest.raises(DeclarationError, match=r"claims.size.of: unknown variant 'small'"):
        declare("scales:\n", DERIVED, "of: plain-20, metric: model", "of: small, metric: model")
    with pytest.raises(DeclarationError, match=r"claims.error.of: unknown variant 'smal'; did you mean 'small'\?"):
        declare("scales:\n", DERIVED, trained, "of: smal, metric: test")


def test_test_protocols_are_those_of_the_members_unless_declared(declare):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}\n  other: {kind: protocol, of: plain-20, test: [dense-of-384]}\nscales:\n"
    declared = declare(*WITH_CROP, "scales:\n", two)
    assert [declared.protocols(name, "paper") for name in ("two", "other", "plain-20")] == [
        ("dense-of-256",), ("dense-of-384",), ("dense-of-256",)
    ]  # fmt: skip
    own = "plain-32: {data: {test: [dense-of-384]}, model:"
    with pytest.raises(
        DeclarationError,
        match=r"derived.two \(at paper scale\): its runs are evaluated by different test protocols; name one",
    ):
        declare(*WITH_CROP, "scales:\n", two, "plain-32: {model:", own)
    named = declare(
        *WITH_CROP,
        "scales:\n",
        two.replace("plain-32: 1}", "plain-32: 1}, test: [dense-of-256]"),
        "plain-32: {model:",
        own,
        'test/dense-of-256/top1_error_pct, op: ">"',
        'test/dense-of-384/top1_error_pct, op: ">"',
    )
    assert named.protocols("two", "paper") == ("dense-of-256",)
    other = "plain-32: {data: {name: places}, model:"
    with pytest.raises(DeclarationError, match="its runs train on different data"):
        declare(*WITH_CROP, "scales:\n", two, "plain-32: {model:", other)


def test_a_transfer_from_data_with_a_crop_needs_a_view(declare):
    step = "derived:\n  else: {kind: transfer, of: plain-32, data: places, c: 1.0}\nscales:\n"
    with pytest.raises(
        DeclarationError, match="whose data has a 'crop' needs a 'view', such as 1-crop-224-of-256"
    ):
        declare(*WITH_CROP, "scales:\n", step)
    declared = declare(*WITH_CROP, "scales:\n", step.replace("c: 1.0", "c: 1.0, view: 1-crop-224-of-256"))
    assert declared.protocols("else", "paper") == ("1-crop-224-of-256",)


def test_members_of_an_ensemble_have_the_same_preprocessing(declare):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 1, plain-32: 1}}\nscales:\n"
    with pytest.raises(
        DeclarationError, match="its runs differ in how they use cifar10: normalise, pad_to, train or val"
    ):
        declare("scales:\n", two, "plain-32: {model:", "plain-32: {data: {normalise: scale}, model:")
