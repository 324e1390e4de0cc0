"""Test verdicts of claims about variants of other experiments, and the conditions that a verdict names."""

from dataclasses import replace

import pytest

from pipeline.data.sources import IMAGENET_STAND_IN, NAMES
from pipeline.declare.data_settings import NOISE
from pipeline.declare.load import load_experiment
from pipeline.judge.collect import judge_experiments
from pipeline.judge.setups import is_generated
from pipeline.report.results import results_text
from tests.support.ledgers import DEEP, PLAIN, judge_by_id, outcomes

pytestmark = pytest.mark.usefixtures("other_experiments")

OTHER = "resnet/cifar10_depth"
BOTH_OTHER = (  # makes "deeper" a claim about two variants of the other experiment
    'lhs: plain-32, op: ">", rhs: plain-20',
    f'lhs: {OTHER}/plain-56, op: ">", rhs: {OTHER}/plain-20',
)
ONE_OTHER = (
    "rhs: plain-20, metric: test/top1_error_pct, source",
    f"rhs: {OTHER}/plain-44, metric: test/top1_error_pct, source",
)


@pytest.fixture(scope="module")
def resnet():
    return load_experiment(OTHER)


def test_claim_is_judged_from_another_experiments_runs(declare, seed_records, resnet):
    records = [*seed_records(resnet, "plain-56", DEEP), *seed_records(resnet, "plain-20", PLAIN)]
    declared = declare(*BOTH_OTHER)
    found = judge_by_id(declared, records)["deeper"]
    assert found.verdict.outcome == "reproduced"
    assert found.verdict.measured == pytest.approx(1.0)  # the means are 10.5 and 9.5
    assert f"{OTHER}/plain-56 minus {OTHER}/plain-20" in found.verdict.sentence
    assert set(found.evidence.runs) == {record.identity for record in records}
    swapped = [*seed_records(resnet, "plain-56", PLAIN), *seed_records(resnet, "plain-20", DEEP)]
    assert outcomes(declared, swapped)["deeper"] == "not reproduced"


def test_own_and_other_variants_are_paired_by_seed(declare, seed_records, resnet):
    declared = declare(*ONE_OTHER)
    records = [*seed_records(declared, "plain-32", DEEP), *seed_records(resnet, "plain-44", PLAIN)]
    assert outcomes(declared, records)["deeper"] == "reproduced"
    assert outcomes(declared, records[:5])["deeper"] == "cannot judge: not-run"


def test_runs_of_the_other_experiment_changed_by_set_do_not_count(declare, seed_records, resnet):
    changes = {"train.lr": 0.05}
    records = [record for name, errors in (("plain-56", DEEP), ("plain-20", PLAIN))
               for record in seed_records(resnet, name, errors, changes=changes)]  # fmt: skip
    assert outcomes(declare(*BOTH_OTHER), records)["deeper"] == "cannot judge: not-run"


def test_missing_runs_name_the_commands_of_each_experiment(declare, seed_records, resnet):
    declared = declare(*ONE_OTHER)
    expected = "repro run toy/depth --scale paper --variant plain-32"
    other = f"repro run {OTHER} --scale paper --variant plain-44"
    assert judge_by_id(declared, [])["deeper"].command == f"{expected} && {other}"
    found = judge_by_id(declared, seed_records(declared, "plain-32", DEEP))["deeper"]
    assert found.command == other
    assert found.verdict.sentence == f"No finished runs. To run them: {other}"


def test_unfinished_runs_of_the_other_experiment_are_named(declare, resnet):
    unfinished = {(OTHER, "paper", "plain-56", 1): {"why": "failed", "text": "no GPU is left"}}
    found = judge_by_id(declare(*BOTH_OTHER), [], unfinished=unfinished)["deeper"]
    assert f"{OTHER}/plain-56 seed 1: no GPU is left (failed)" in found.verdict.sentence
    assert found.verdict.sentence.endswith(f"To resume them: repro run {OTHER} --scale paper")


def test_smaller_scale_is_one_of_both_experiments_and_names_different_budgets(declare, seed_records, resnet):
    declared = declare("scales:\n", "scales:\n  tiny: {why: Seconds., data: {name: digits}}\n", *ONE_OTHER)
    # resnet/cifar10_depth has no scale "tiny"; at laptop scale it trains 440 x 64 images, and toy/depth 400 x 128.
    tiny = seed_records(declared, "plain-32", DEEP, scale="tiny")
    assert outcomes(declared, tiny)["deeper"] == "cannot judge: not-run"
    laptop = [*seed_records(declared, "plain-32", DEEP, scale="laptop"),
              *seed_records(resnet, "plain-20", PLAIN, scale="laptop")]  # fmt: skip
    of_plain_20 = declare(ONE_OTHER[0], ONE_OTHER[1].replace("plain-44", "plain-20"))
    found = judge_by_id(of_plain_20, laptop)["deeper"].verdict
    assert found.outcome == "trend supported"
    assert found.sentence.endswith(
        f"The runs saw different numbers of training images: plain-32 51,200 and {OTHER}/plain-20 28,160."
    )


def test_variants_of_one_experiment_have_no_remark_on_budgets(experiment, both):
    assert (
        "numbers of training images"
        not in judge_by_id(experiment, both(experiment, scale="laptop"))["deeper"].verdict.sentence
    )


def test_material_departures_of_the_experiment_that_ran_count(declare, seed_records):
    lenet = load_experiment("nin/cifar")  # its choice of the learning rate is material
    pair = 'lhs: nin/cifar/nin-fc, op: ">", rhs: nin/cifar/nin'
    records = [*seed_records(lenet, "nin-fc", DEEP), *seed_records(lenet, "nin", PLAIN)]
    records = [replace(record, manifest="same") for record in records]
    verdict = judge_by_id(declare(BOTH_OTHER[0], pair), records)["deeper"].verdict
    assert verdict.outcome == "reproduced"
    assert "Chosen where the source is silent: The rate falls after five epochs" in verdict.sentence
    assert "translated" not in verdict.sentence  # a choice that concerns nin-augmented only


def test_departure_of_the_claiming_experiment_concerns_claims_about_others(declare, seed_records, resnet):
    departure = ("{what: Pixels are scaled., why: No scale is named.}",
                 "{what: Pixels are scaled., why: No scale is named., material: true}")  # fmt: skip
    records = [*seed_records(resnet, "plain-56", DEEP), *seed_records(resnet, "plain-20", PLAIN)]
    assert outcomes(declare(*BOTH_OTHER, *departure), records)["deeper"] == "reached"


def test_exact_claim_measures_the_other_experiments_network(declare):
    declared = declare(
        "of: plain-20, metric: model/parameters", f"of: {OTHER}/resnet-44, metric: model/parameters"
    )
    entry = next(e for e in judge_experiments([declared], [], unfinished={}) if e.claim.id == "size")
    assert entry.verdict.outcome == "not confirmed"
    assert round(entry.verdict.measured / 1e6, 2) == 0.66  # Table 6 of the ResNet paper


def test_experiment_without_scales_is_reported_from_other_runs(declare, seed_records, resnet):
    declared = declare(*BOTH_OTHER)
    alone = declared.model_copy(update={"scales": {}, "claims": tuple(
        claim for claim in declared.claims if claim.id == "deeper"
    )})  # fmt: skip
    records = [*seed_records(resnet, "plain-56", DEEP), *seed_records(resnet, "plain-20", PLAIN)]
    assert outcomes(alone, records) == {"deeper": "reproduced"}
    text = results_text([alone], records, {})
    assert "## Claims judged from the runs of other experiments\n\n1 reproduced.\n" in text
    assert "| toy/depth | ✔ reproduced | deeper |" in text


@pytest.mark.parametrize(
    ("data", "generated"),
    [
        (NOISE, True),
        (IMAGENET_STAND_IN, True),
        ("caltech101-standin", True),
        ("digits", False),
        ("cifar10", False),
    ],
)
def test_generated_data_sets_are_known_by_their_names(data, generated):
    assert is_generated(data) is generated
    assert NOISE in NAMES  # of the sets that can be loaded
