"""Test names of variants of other experiments in claims: how they are split, checked and worded."""

import pytest

from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import load_experiment
from pipeline.declare.references import beside, short_name, split_reference
from pipeline.judge.collect import judge_experiments
from tests.support.elsewhere import OTHER

pytestmark = pytest.mark.usefixtures("other_experiments")

OF_ERROR = "of: plain-20, metric: test"  # in the claim "error"
OF_DEEPER = "lhs: plain-32"  # in the claim "deeper"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet-20", (None, "resnet-20")),
        ("resnet/cifar10_depth/resnet-20", ("resnet/cifar10_depth", "resnet-20")),
        ("resnet/cifar10_depth", (None, "resnet/cifar10_depth")),
        ("a//b", (None, "a//b")),
        ("a/b/c/d", (None, "a/b/c/d")),
    ],
)
def test_three_parts_are_a_name_of_another_experiment(name, parts):
    assert split_reference(name) == parts
    assert short_name(name) == parts[1]


def test_variants_beside_a_name_are_of_its_experiment():
    assert beside("a/b/pair", "plain-20") == "a/b/plain-20"
    assert beside("pair", "plain-20") == "plain-20"
    assert beside("a/b/pair", "c/d/plain-20") == "c/d/plain-20"


def test_a_name_is_resolved_to_the_experiment_that_declares_it(declare):
    declared = declare(OF_ERROR, "of: resnet/cifar10_depth/resnet-56, metric: test")
    assert declared.owner("plain-20") == (declared, "plain-20")
    other, variant = declared.owner("resnet/cifar10_depth/resnet-56")
    assert (other, variant) == (load_experiment("resnet/cifar10_depth"), "resnet-56")


def test_derived_run_of_another_experiment_consumes_its_variants(declare):
    declared = declare(OF_ERROR, "of: resnet/cifar10_depth/resnet-56-ensembles, metric: test")
    assert declared.consumed("resnet/cifar10_depth/resnet-56-ensembles") == ("resnet/cifar10_depth/resnet-56",)
    assert declared.consumed("plain-20") == ("plain-20",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            OF_ERROR,
            "of: resnet/cifar10_deph/resnet-20, metric: test",
            "claims.error.of: no experiment 'resnet/cifar10_deph'; did you mean 'resnet/cifar10_depth'?",
        ),
        (
            OF_ERROR,
            "of: resnet/cifar10_depth/resnet-5, metric: test",
            "claims.error.of: unknown variant 'resnet-5' of resnet/cifar10_depth; did you mean 'resnet-",
        ),
        (
            OF_DEEPER,
            "lhs: toy/depth/plain-32",
            "claims.deeper.lhs: 'toy/depth/plain-32' is in this file; write 'plain-32'",
        ),
        (
            OF_ERROR,
            "of: resnet/architecture/resnet-50, metric: test",
            "claims.error: a claim of kind 'metric' needs runs, but resnet/architecture declares no scales",
        ),
        (
            "of: plain-20, metric: model/parameters",
            "of: resnet/cifar10_depth/resnet-56-ensembles, metric: model/parameters",
            "claims.size.of: unknown variant 'resnet-56-ensembles' of resnet/cifar10_depth",
        ),
        (
            OF_ERROR,
            "of: resnet/imagenet/resnet-50, metric: test",
            "claims.error.metric: unknown metric 'test/top1_error_pct' of resnet/imagenet/resnet-50; known: test/",
        ),
    ],
)
def test_a_name_that_cannot_be_judged_is_refused_in_one_sentence(declare, old, new, message):
    with pytest.raises(DeclarationError) as caught:
        declare(old, new)
    assert str(caught.value).startswith(f"toy/depth.yaml: {message}")
    assert "\n" not in str(caught.value)


CHAIN = """claims:
  - {source: Fig. 1, metric: test/top1_error_pct, orderings: {
      depth: resnet/cifar10_depth/resnet-56 < resnet/cifar10_depth/resnet-20 < resnet-20}}
  - {source: Table 6, margin: 0.5, columns: {top1: {}}, variants: {resnet/cifar10_depth/resnet-32: 7.51}}
  - {source: Table 6, of: resnet/cifar10_depth/resnet-<row>, columns: {parameters: {unit: 1e6, margin: 0.005}},
    variants: {44: 0.66}}
"""


def test_ids_and_sentences_have_short_names(declare):
    claims = {claim.id: claim for claim in declare("claims:\n", CHAIN).claims}
    assert claims["depth-resnet-56"].says == "resnet-56 has a lower top-1 test error than resnet-20"
    # Both sides are called resnet-20, so the sentence has the full name of the other experiment's.
    assert claims["depth-resnet-20"].says == (
        "resnet/cifar10_depth/resnet-20 has a lower top-1 test error than resnet-20"
    )
    assert claims["resnet-32-top1"].of == "resnet/cifar10_depth/resnet-32"
    assert claims["resnet-32-top1"].says == "resnet-32 has a top-1 test error of 7.51 %"
    assert claims["parameters-44"].of == "resnet/cifar10_depth/resnet-44"


def test_variants_of_two_experiments_that_start_from_each_other_are_an_error(tmp_path):
    text = OTHER.partition("derived:")[0] + "scales: {paper: {}}\n"
    for name, other in (("aa", "bb"), ("bb", "aa")):
        path = tmp_path / "experiments" / "toy" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = f"train: {{start: {{experiment: toy/{other}, variant: wide}}}}"
        path.write_text(text.replace("train: {lr: 0.05}", start))
    with pytest.raises(DeclarationError) as caught:
        load_experiment("toy/aa", tmp_path / "experiments")
    assert str(caught.value) == (
        "toy/aa.yaml: variants.wide.train.start.variant: wide starts from toy/bb/wide starts from wide"
    )


OF_YY, OF_XX = "{id: yy, of: toy/yy/pair, metric: test", "{id: xx, of: toy/xx/pair, metric: test"
END = "/top1_error_pct, claimed: 9.5, margin: 0.5, source: Table 1}"


@pytest.mark.parametrize("order", [(OF_YY, OF_XX), (OF_XX, OF_YY)])
def test_an_experiment_may_be_claimed_about_and_consumed_by_another(declare, tmp_path, order):
    """Claims name toy/xx, which consumes toy/yy, and toy/yy itself, which consumes toy/depth."""
    text = OTHER.partition("claims:")[0]
    members = "members: {wide: 1, toy/depth/plain-20: 2}"
    for name, consumed in (("yy", "toy/depth/plain-20"), ("xx", "toy/yy/wide")):
        path = tmp_path / "experiments" / "toy" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(members, f"members: {{wide: 1, {consumed}: 1}}").replace("mixed", "pair"))
    declare()
    claims = "claims:\n" + "".join(f"  - {claim}{END}\n" for claim in order)
    own = text.replace(members, "members: {wide: 2}") + claims
    (tmp_path / "experiments" / "toy" / "zz.yaml").write_text(own)
    declared = load_experiment("toy/zz", tmp_path / "experiments")
    assert declared.consumed("toy/yy/pair") == ("toy/yy/wide", "toy/depth/plain-20")
    assert declared.consumed("toy/xx/pair") == ("toy/xx/wide", "toy/yy/wide")
    sentences = {
        entry.claim.id: entry.verdict.sentence for entry in judge_experiments([declared], [], unfinished={})
    }
    run = "No finished runs. To run them: repro run"
    assert sentences == {
        "yy": f"{run} toy/yy --scale paper --variant wide --variant toy/depth/plain-20",
        "xx": f"{run} toy/xx --scale paper --variant wide --variant toy/yy/wide",
    }


def test_material_departures_of_a_derived_run_are_those_of_its_experiment_too(declare, declare_other, tmp_path):
    """toy/wide's derived run consumes only toy/depth, but how it is derived is declared in toy/wide."""
    departure = "departures:\n  - {what: Averaged differently., why: Simpler., material: true}\nclaims:"
    declare_other(
        "members: {wide: 1, toy/depth/plain-20: 2}", "members: {toy/depth/plain-20: 2}", "claims:", departure
    )
    declared = declare(OF_ERROR, "of: toy/wide/mixed, metric: test")
    assert [item.what for item in declared.material("departures", ["toy/wide/mixed"])] == ["Averaged differently."]
    assert declared.material("departures", ["plain-20"]) == []
