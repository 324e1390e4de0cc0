"""Every declaration under experiments/: it loads, its arithmetic holds, and its claims can be judged."""

import itertools

import pytest

from lightning_modules.networks import NETWORKS
from pipeline.analyse import classes_of, image_shape, measure
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
from pipeline.ledger import judged_exactly, measured_by
from pipeline.plan import plan
from pipeline.verdict import Outcome

NAMES = names()
LOADED = {name: load(name) for name in NAMES}
TRAINING = [name for name in NAMES if LOADED[name].scales]  # the others are judged by arithmetic alone
EXACT = [
    pytest.param(name, claim, id=f"{name}:{claim.id}")
    for name in NAMES
    for claim in LOADED[name].claims
    if isinstance(claim, ExactClaim)
]
TRAINED = [
    pytest.param(name, claim, id=f"{name}:{claim.id}")
    for name in NAMES
    for claim in LOADED[name].claims
    if isinstance(claim, MetricClaim | BoundClaim | OrderingClaim | RatioClaim)
]


def measured_by_a_run(recipe):
    """The metrics of a finished run: errors on each split there is, and the responses of batch-norm layers.

    Of photographs neither the training set's errors nor responses are measured, but errors by every protocol.
    """
    held_out = ["test", *(["val"] if recipe.data.val else [])]
    if recipe.data.crop:
        own = [f"{split}/{protocol}" for split in held_out for protocol in recipe.data.test]
        return {metric for split in [*held_out, *own, "train"] for metric in Errors(1, 0, 0, 0.0).metrics(split)}
    found = {
        metric for split in [*held_out, "train", "trainset"] for metric in Errors(1, 0, 0, 0.0).metrics(split)
    }
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
    assert {variant.model.name for variant in LOADED[name].variants.values()} <= set(NETWORKS)


@pytest.mark.parametrize("name", TRAINING)
def test_every_scale_can_be_planned_and_says_what_it_is_for(name):
    declared = LOADED[name]
    for scale, words in declared.scales.items():
        assert plan(declared, scale=scale)
        assert words.why.endswith("."), scale


@pytest.mark.parametrize("name", [name for name in TRAINING if not LOADED[name].data.crop])
def test_it_has_a_smoke_scale_of_seconds_on_data_that_need_no_download(name):
    declared = LOADED[name]
    runs = plan(declared, scale="smoke")
    assert {run.recipe.data.name for run in runs} <= {"noise", "digits"}
    assert all(run.recipe.train.steps * run.recipe.train.batch_size <= 2000 for run in runs)


@pytest.mark.parametrize("name", TRAINING)
def test_at_least_three_seeds_are_declared_wherever_claims_are_judged(name):
    declared = LOADED[name]
    assert all(len(declared.seeds_at(scale)) >= 3 for scale in declared.scales if scale != "smoke")


def test_what_trains_nothing_is_called_architecture():
    assert {name.partition("/")[2] for name in set(NAMES) - set(TRAINING)} == {"architecture"}


def test_every_paper_has_its_architecture_judged():
    papers = {path.name for path in EXPERIMENTS.iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert papers == {name.partition("/")[0] for name in NAMES if name.endswith("/architecture")}


def test_one_name_means_one_network_wherever_it_is_declared():
    """`repro analyse NAME` takes a variant's name, so two papers may share it only for the same network."""
    meant = {}
    for name in NAMES:
        declared = LOADED[name]
        for variant in declared.variants:
            published = declared.published(variant)
            network = (published.model.model_dump_json(), classes_of(published.data), image_shape(published))
            assert meant.setdefault(variant, (network, name))[0] == network, (variant, name, meant[variant][1])


def test_every_network_is_declared_somewhere():
    declared = {variant.model.name for name in NAMES for variant in LOADED[name].variants.values()}
    assert declared == set(NETWORKS)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_printed_is_used(name):
    declared = LOADED[name]
    exact = [claim for claim in declared.claims if isinstance(claim, ExactClaim)]
    used = {metric for claim in exact for metric in (claim.metric, claim.over_metric) if metric}
    chart = {printed for printed in declared.printed if printed.startswith("top1_")}  # drawn, not claimed
    assert {f"printed/{printed}" for printed in set(declared.printed) - chart} <= used


def test_claims_are_unique():
    ids = [(name, claim.id) for name in NAMES for claim in LOADED[name].claims]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", NAMES)
def test_no_statement_is_claimed_twice_in_the_same_words(name):
    said = [(claim.says, claim.by) for claim in LOADED[name].claims]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize(("name", "claim"), EXACT)
def test_an_exact_claim_holds_or_is_a_declared_erratum(name, claim):
    verdict = judged_exactly(claim, LOADED[name], measure)
    wrong = Outcome.CANNOT_JUDGE if claim.confidence == "memory" else Outcome.ERRATUM  # recalled, not read
    expected = Outcome.REPRODUCED if claim.corrected is None else wrong
    assert verdict.outcome is expected, verdict.sentence


@pytest.mark.parametrize(("name", "claim"), TRAINED)
def test_a_trained_claim_names_a_metric_that_a_finished_run_has(name, claim):
    declared = LOADED[name]
    for variant, metric in measured_by(claim):
        recipe = declared.recipe(variant, "paper")
        assert metric in measured_by_a_run(recipe)
        if metric == "test/response_std":
            assert measure("model/count/BatchNorm2d", declared, variant) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_is_of_two_variants_on_the_same_data(name):
    declared = LOADED[name]
    for claim, scale in itertools.product(declared.claims, declared.scales):
        if isinstance(claim, OrderingClaim | RatioClaim):
            left, right = (declared.recipe(side, scale).data.name for side in (claim.lhs, claim.rhs))
            assert left == right, claim.id
