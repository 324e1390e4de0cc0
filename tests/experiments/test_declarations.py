"""Every declaration under experiments/: it loads, its arithmetic holds, and its claims can be judged."""

import itertools

import pytest

from lightning_modules.networks import NETWORKS
from pipeline.analyse import measure
from pipeline.evaluate import Errors
from pipeline.experiment import (
    EXPERIMENTS,
    BoundClaim,
    ExactClaim,
    MetricClaim,
    OrderingClaim,
    RatioClaim,
    load,
    names,
)
from pipeline.plan import plan
from pipeline.verdict import Outcome, judge_exact

NAMES = names()
EXACT = [
    pytest.param(name, claim, id=f"{name}:{claim.id}")
    for name in NAMES
    for claim in load(name).claims
    if isinstance(claim, ExactClaim)
]
TRAINED = [
    pytest.param(name, claim, id=f"{name}:{claim.id}")
    for name in NAMES
    for claim in load(name).claims
    if isinstance(claim, MetricClaim | BoundClaim | OrderingClaim | RatioClaim)
]


def measured_by_a_run(recipe):
    """The metrics of a finished run: errors on each split there is, and the responses of batch-norm layers."""
    splits = ["test", "train", "trainset", *(["val"] if recipe.data.val else [])]
    found = {metric for split in splits for metric in Errors(1, 0, 0, 0.0).metrics(split)}
    return found | {"test/response_std"}


def test_every_declaration_is_found():
    found = sorted(EXPERIMENTS.rglob("*.y*ml"))
    assert [f"{path.parent.name}/{path.stem}" for path in found] == NAMES
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_under_its_name(name):
    declared = load(name)
    assert declared.name == name
    assert declared.question.endswith("?")
    assert declared.paper.title
    assert declared.claims


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_one_that_can_be_built(name):
    assert {variant.model.name for variant in load(name).variants.values()} <= set(NETWORKS)


@pytest.mark.parametrize("name", NAMES)
def test_every_scale_can_be_planned_and_says_what_it_is_for(name):
    declared = load(name)
    for scale, words in declared.scales.items():
        assert plan(declared, scale=scale)
        assert words.why.endswith("."), scale


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_smoke_scale_of_seconds_on_data_that_need_no_download(name):
    declared = load(name)
    runs = plan(declared, scale="smoke")
    assert {run.recipe.data.name for run in runs} <= {"noise", "digits"}
    assert all(run.recipe.train.steps * run.recipe.train.batch_size <= 2000 for run in runs)


@pytest.mark.parametrize("name", NAMES)
def test_at_least_three_seeds_are_declared_wherever_claims_are_judged(name):
    declared = load(name)
    assert all(len(declared.seeds_at(scale)) >= 3 for scale in declared.scales if scale != "smoke")


def test_claims_are_unique():
    ids = [(name, claim.id) for name in NAMES for claim in load(name).claims]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_no_statement_is_claimed_twice_in_the_same_words(name):
    said = [(claim.says, claim.by) for claim in load(name).claims]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize(("name", "claim"), EXACT)
def test_an_exact_claim_holds_or_is_a_declared_erratum(name, claim):
    value = measure(claim.metric, load(name), claim.of)
    verdict = judge_exact(value, claimed=claim.claimed, margin=claim.margin, corrected=claim.corrected)
    expected = Outcome.REPRODUCED if claim.corrected is None else Outcome.ERRATUM
    assert verdict.outcome is expected, verdict.sentence


@pytest.mark.parametrize(("name", "claim"), TRAINED)
def test_a_trained_claim_names_a_metric_that_a_finished_run_has(name, claim):
    declared = load(name)
    named = [getattr(claim, key) for key in ("of", "lhs", "rhs") if hasattr(claim, key)]
    for variant in named:
        recipe = declared.recipe(variant, "paper")
        assert claim.metric in measured_by_a_run(recipe)
        if claim.metric == "test/response_std":
            assert measure("model/count/BatchNorm2d", declared, variant) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_is_of_two_variants_on_the_same_data(name):
    declared = load(name)
    for claim, scale in itertools.product(declared.claims, declared.scales):
        if isinstance(claim, OrderingClaim | RatioClaim):
            assert claim.lhs != claim.rhs, claim.id
            left, right = (declared.recipe(side, scale).data.name for side in (claim.lhs, claim.rhs))
            assert left == right, claim.id
