"""Test verdicts of claims from made-up records: outcomes, scales, exact values, derived runs."""

import json
from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.claims import ExactClaim, Printed
from pipeline.judge.ledger import judge_claim, judge_exact_claim, ledger
from tests.support.ledgers import (
    AS_GAIN,
    DEEP,
    DERIVED,
    OF_PAIR,
    OF_SMALL,
    PLAIN,
    SIX_SEEDS,
    derived_records,
    fixed_measure,
    judge_by_id,
    outcomes,
    with_device_batches,
)

TRAINED = ("error", "stuck", "deeper", "ratio")

# --- outcomes by kind of claim -----------------------------------------------------------------------------


def test_claims_are_reproduced_at_paper_scale(experiment, both):
    assert {key: outcomes(experiment, both(experiment))[key] for key in TRAINED} == dict.fromkeys(
        TRAINED, "reproduced"
    )


def test_claims_are_not_reproduced_by_other_numbers(experiment, seed_records):
    worse = [
        *seed_records(experiment, "plain-20", [12.0, 12.1, 11.9, 12.0, 12.0]),
        *seed_records(experiment, "plain-32", [8.0, 8.1, 7.9, 8.0, 8.0]),
    ]
    assert {key: outcomes(experiment, worse)[key] for key in TRAINED} == dict.fromkeys(TRAINED, "not reproduced")


def test_error_below_the_margin_is_better_than_claimed(experiment, seed_records):
    better = seed_records(experiment, "plain-20", [5.0, 5.1, 4.9, 5.0, 5.0])
    assert outcomes(experiment, better)["error"] == "better than claimed"


def test_smaller_scale_judges_orderings_as_trends_and_no_numbers(experiment, both):
    found = outcomes(experiment, both(experiment, scale="laptop"))
    assert found["deeper"] == "trend supported"
    assert {found[key] for key in ("error", "stuck", "ratio")} == {"cannot judge: not-run"}
    sentence = judge_by_id(experiment, both(experiment, scale="laptop"))["error"].verdict.sentence
    assert sentence == (
        "Not run at paper scale; runs at laptop scale on digits cannot be compared with the paper's number."
    )


def test_opposite_ordering_at_a_smaller_scale_is_no_trend(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", DEEP, scale="laptop"),
        *seed_records(experiment, "plain-32", PLAIN, scale="laptop"),
    ]
    assert outcomes(experiment, records)["deeper"] == "trend not supported"


def test_other_data_at_paper_scale_gives_a_trend_at_most(declare, both):
    declared = declare("{why: As published.}", "{why: As JPEG., data: {name: cifar10-jpeg}}")
    found = outcomes(declared, both(declared))
    assert found["deeper"] == "trend supported"
    assert found["error"] == "cannot judge: not-run"


def test_data_set_of_a_variant_counts_as_the_papers(declare, seed_records):
    declared = declare("depth: 20}}", "depth: 20}, data: {name: cifar100}}")
    assert outcomes(declared, seed_records(declared, "plain-20", PLAIN))["error"] == "reproduced"


def test_variants_on_different_data_are_not_compared(declare, both):
    declared = declare("depth: 20}}", "depth: 20}, data: {name: cifar100}}")
    assert outcomes(declared, both(declared))["deeper"] == "cannot judge: not-run"


def with_material(key, of=""):
    """Replacement that declares a material choice or departure, concerning all variants or those of `of`."""
    return "departures:\n  - {what: Pixels are scaled., why: No scale is named.}", (
        f"{key}:\n  - {{what: Pixels are scaled., why: Cheaper., material: true{f', of: [{of}]' if of else ''}}}"
    )


def other_errors(experiment, seed_records):
    """Records with which no trained claim holds."""
    return [
        *seed_records(experiment, "plain-20", [12.0, 12.1, 11.9, 12.0, 12.0]),
        *seed_records(experiment, "plain-32", [8.0, 8.1, 7.9, 8.0, 8.0]),
    ]


@pytest.mark.parametrize(
    ("key", "inside", "outside"),
    [
        ("choices", "reproduced", "cannot judge: recipe-unspecified"),
        ("departures", "reached", "cannot judge: recipe-departs"),
    ],
)
def test_material_choice_or_departure_changes_every_verdict(declare, both, seed_records, key, inside, outside):
    declared = declare(*with_material(key))
    good = judge_by_id(declared, both(declared))
    assert {good[claim].verdict.outcome for claim in TRAINED} == {inside}
    assert all("Pixels are scaled." in good[claim].verdict.sentence for claim in TRAINED)
    records = other_errors(declared, seed_records)
    assert {outcomes(declared, records)[claim] for claim in TRAINED} == {outside}
    verdict = judge_by_id(declared, records)["error"].verdict
    assert (verdict.measured, verdict.n, verdict.level) == (pytest.approx(12.0), 5, 0.9)
    assert verdict.interval[0] < 12 < verdict.interval[1]


def test_better_number_with_a_material_deviation_cannot_be_judged(declare, seed_records):
    for key, reason in (("choices", "recipe-unspecified"), ("departures", "recipe-departs")):
        declared = declare(*with_material(key))
        better = seed_records(declared, "plain-20", [5.0, 5.1, 4.9, 5.0, 5.0])
        assert outcomes(declared, better)["error"] == f"cannot judge: {reason}"


def test_only_deviations_of_the_claims_variants_count(declare, both):
    declared = declare(*with_material("departures", of="plain-20"))
    found = outcomes(declared, both(declared))
    assert {key: found[key] for key in TRAINED} == {
        "error": "reached", "stuck": "reproduced", "deeper": "reached", "ratio": "reached",
    }  # fmt: skip
    other = declare(*with_material("departures", of="resnet-20"))
    assert {outcomes(other, both(other))[key] for key in TRAINED} == {"reproduced"}


def test_deviation_of_a_member_concerns_its_derived_run(declare):
    for of, outcome in (("plain-20", "reached"), ("plain-32", "reproduced")):
        declared = declare(*OF_PAIR, *SIX_SEEDS, *with_material("departures", of=of))
        assert outcomes(declared, derived_records(declared, "pair", [9.4, 9.5, 9.6]))["error"] == outcome


def test_immaterial_deviations_have_no_effect(experiment, both):
    assert experiment.departures
    found = judge_by_id(experiment, both(experiment))
    assert found["error"].verdict.outcome == "reproduced"
    assert "Pixels" not in found["error"].verdict.sentence


def test_trend_of_a_smaller_scale_does_not_depend_on_departures(declare, both):
    declared = declare(*with_material("departures"))
    found = outcomes(declared, both(declared, scale="laptop"))
    assert found["deeper"] == "trend supported"
    assert {found[key] for key in ("error", "stuck", "ratio")} == {"cannot judge: not-run"}


@pytest.mark.parametrize(("key", "reason"), [("choices", "unspecified"), ("departures", "departs")])
def test_result_of_a_deviating_recipe_is_not_hidden_by_a_smaller_scale(declare, both, seed_records, key, reason):
    declared = declare(*with_material(key))
    records = [*other_errors(declared, seed_records), *both(declared, scale="laptop")]
    assert outcomes(declared, records)["deeper"] == f"cannot judge: recipe-{reason}"


def test_gain_is_judged_as_a_number(declare, both, seed_records):
    declared = declare(*AS_GAIN)
    found = judge_by_id(declared, both(declared))["deeper"]
    assert (found.verdict.outcome, found.verdict.measured) == ("reproduced", pytest.approx(1.0))  # 10.5 - 9.5
    assert found.verdict.sentence.startswith("The mean of plain-32 minus plain-20 over 5 paired seeds is 1 ")
    assert outcomes(declared, other_errors(declared, seed_records))["deeper"] == "not reproduced"
    assert outcomes(declared, both(declared, scale="laptop"))["deeper"] == "cannot judge: not-run"


def test_gain_between_two_metrics_of_one_network(declare, seed_records):
    metrics = f"metric: {TOP5}, rhs_metric: test/top1_error_pct"
    sides = f"claimed: 9.45, margin: 0.3, lhs: plain-32, rhs: plain-32, {metrics}"
    before = "claimed: 1.0, margin: 0.3, lhs: plain-20, rhs: plain-32, metric: test/top1_error_pct"
    declared = declare(*AS_GAIN, before, sides)
    verdict = judge_by_id(declared, seed_records(declared, "plain-32", DEEP))["deeper"].verdict
    assert (verdict.outcome, verdict.measured) == ("reproduced", pytest.approx(10.5 - 1.05))
    assert f"test/top1_error_pct of plain-32 minus {TOP5} of plain-32" in verdict.sentence


def test_one_diverged_seed_makes_a_claim_unjudgeable(experiment, both, record):
    records = both(experiment)
    records[2] = record(
        experiment, "plain-20", 2, 0.0, status="not converged", ended="the loss became nan at step 17", metrics={}
    )
    found = judge_by_id(experiment, records)
    assert found["error"].verdict.reason == found["deeper"].verdict.reason == "did-not-converge"
    assert "plain-20 seed 2 (the loss became nan at step 17)" in found["error"].verdict.sentence
    assert found["stuck"].verdict.outcome == "reproduced"  # rests on the other network
    assert found["error"].evidence.images == 10_000


def test_divergence_at_paper_scale_is_not_hidden_by_a_smaller_scale(experiment, both, record):
    paper = both(experiment)
    paper[0] = record(experiment, "plain-20", 0, 0.0, status="not converged", ended="lost", metrics={})
    assert (
        outcomes(experiment, paper + both(experiment, scale="laptop"))["deeper"]
        == "cannot judge: did-not-converge"
    )


def test_two_seeds_are_underpowered(experiment, seed_records):
    assert (
        outcomes(experiment, seed_records(experiment, "plain-20", PLAIN[:2]))["error"]
        == "cannot judge: underpowered"
    )


def test_run_without_the_metric_is_named(declare, both):
    declared = declare(
        'op: ">", rhs: plain-20, metric: test/top1_error_pct', 'op: ">", rhs: plain-20, metric: test/response_std'
    )
    verdict = judge_by_id(declared, both(declared))["deeper"].verdict
    assert verdict.reason == "not-run"
    assert (
        "plain-32 seed 0 has no metric test/response_std; it has test/images, test/top1_error_pct"
        in verdict.sentence
    )


def test_verdict_without_runs_has_the_command_for_the_missing_variants(experiment, seed_records):
    found = judge_by_id(experiment, seed_records(experiment, "plain-20", PLAIN))
    assert found["deeper"].verdict.reason == "not-run"
    command = "repro run toy/depth --scale paper --variant plain-32"
    assert found["deeper"].verdict.sentence.endswith(command)
    neither = judge_by_id(experiment, [])["deeper"].verdict.sentence
    assert neither.endswith("--variant plain-32 --variant plain-20")


def test_exact_claims_measure_their_metric_and_need_no_run(experiment):
    calls = []

    def measure(metric, experiment, variant):
        calls.append((metric, experiment.name, variant))
        return fixed_measure(metric, experiment, variant)

    found = {entry.claim.id: entry for entry in ledger(experiment, [], measure)}
    assert calls == [
        ("model/parameters", "toy/depth", "plain-20"),
        ("recipe/train.optimizer.weight_decay", "toy/depth", "plain-20"),
    ]
    assert (found["size"].verdict.outcome, found["size"].verdict.measured) == ("confirmed", 269_722)
    assert found["decay"].verdict.outcome == "erratum"
    assert found["size"].evidence is None


def test_open_claim_has_its_declared_reason(experiment, both):
    verdict = judge_by_id(experiment, both(experiment))["prize"].verdict
    assert (verdict.outcome, verdict.reason, verdict.sentence) == (
        "cannot judge", "no-labels", "the test labels are secret",
    )  # fmt: skip


# --- scales ------------------------------------------------------------------------------------------------


def test_paper_scale_comes_first(experiment, both):
    records = [*both(experiment, scale="laptop"), *both(experiment)]
    found = judge_by_id(experiment, records)["deeper"]
    assert (found.verdict.outcome, found.evidence.scale) == ("reproduced", "paper")


def test_smaller_scale_is_judged_if_paper_scale_cannot_be(experiment, seed_records, both):
    few = [*seed_records(experiment, "plain-20", PLAIN[:1]), *seed_records(experiment, "plain-32", DEEP[:1])]
    found = judge_by_id(experiment, [*few, *both(experiment, scale="laptop")])["deeper"]
    assert (found.verdict.outcome, found.evidence.scale) == ("trend supported", "laptop")


def test_a_trend_that_a_scale_farther_from_the_paper_contradicts_says_so(declare, both, seed_records):
    declared = declare("scales:\n", "scales:\n  short: {why: On photographs., data: {name: cifar10-jpeg}}\n")
    opposite = [
        *seed_records(declared, "plain-20", DEEP, scale="short"),
        *seed_records(declared, "plain-32", PLAIN, scale="short"),
    ]
    laptop = both(declared, scale="laptop")
    found = judge_by_id(declared, [*laptop, *opposite])["deeper"]
    assert list(declared.scales).index("short") < list(declared.scales).index("laptop")
    assert (found.verdict.outcome, found.evidence.scale) == ("trend not supported", "short")
    assert found.verdict.sentence.endswith(" At laptop scale on digits: trend supported.")
    same = judge_by_id(declared, [*laptop, *both(declared, scale="short")])["deeper"]
    assert (same.verdict.outcome, same.evidence.scale) == ("trend supported", "short")
    assert "At laptop scale" not in same.verdict.sentence


GENERATED = (
    "Not run on real images: runs at smoke scale on noise, which is generated, show only that everything runs."
)


def test_no_trained_claim_is_judged_on_generated_images(declare, both):
    declared = declare("    variants: [plain-20, resnet-20]\n    seeds: [0, 1, 2]\n", "")
    smoke = both(declared, scale="smoke")
    found = judge_by_id(declared, smoke)
    assert {key: str(found[key].verdict.reason) for key in TRAINED} == dict.fromkeys(TRAINED, "not-run")
    assert found["deeper"].verdict.sentence == GENERATED
    assert found["deeper"].command == "repro run toy/depth --scale paper --variant plain-32 --variant plain-20"
    real = declare(
        "    variants: [plain-20, resnet-20]\n    seeds: [0, 1, 2]\n", "", "{name: noise}", "{name: digits}"
    )
    assert judge_by_id(real, both(real, scale="smoke"))["deeper"].verdict.outcome == "trend supported"


def test_a_diverged_run_on_generated_images_decides_nothing(declare, both):
    declared = declare("    variants: [plain-20, resnet-20]\n    seeds: [0, 1, 2]\n", "")
    first, *others = both(declared, scale="smoke")
    lost = replace(first, status="not converged", ended="the loss became nan at step 3")
    assert judge_by_id(declared, [lost, *others])["deeper"].verdict.sentence == GENERATED


def test_a_missing_ensemble_of_diverged_runs_on_generated_images_decides_nothing(declare, seed_records):
    declared = declare(
        *(
            "seeds: [0, 1, 2, 3, 4]\n",
            "derived: {pair: {kind: ensemble, members: {plain-20: 2}}}\nseeds: [0, 1, 2, 3]\n",
        ),
        *('lhs: plain-32, op: ">", rhs: plain-20', 'lhs: pair, op: "<", rhs: resnet-20'),
        *("    seeds: [0, 1, 2]\n", ""),
    )
    first, *others = seed_records(declared, "plain-20", PLAIN[:4], scale="smoke")
    lost = replace(first, status="not converged", ended="the loss became nan at step 3")
    found = judge_by_id(declared, [lost, *others])["deeper"].verdict
    assert str(found.reason) == "not-run"


def test_only_the_given_scales_are_judged(experiment, both):
    assert outcomes(experiment, both(experiment), scales=["laptop"])["deeper"] == "cannot judge: not-run"


# --- batch size per device ---------------------------------------------------------------------------------


def test_equal_or_unknown_batches_per_device_are_not_mentioned(experiment, seed_records):
    plain = seed_records(experiment, "plain-20", PLAIN)
    older = [replace(row, device_batch=0) for row in with_device_batches(plain[:2], [64, 64])]
    deep = with_device_batches(seed_records(experiment, "plain-32", DEEP), [32] * 5)  # of another network
    found = judge_by_id(experiment, [*older, *with_device_batches(plain[2:], [64] * 3), *deep])
    assert "Batch normalisation" not in found["error"].verdict.sentence + found["deeper"].verdict.sentence


def test_numbers_and_orderings_mention_batches_per_device(declare, seed_records):
    declared = declare(*with_material("departures"))
    rows = [seed_records(declared, "plain-20", PLAIN), seed_records(declared, "plain-32", DEEP)]
    found = judge_by_id(declared, [row for row in rows for row in with_device_batches(row, [64, 64, 64, 64, 32])])
    assert "plain-20 (32, 64 images)." in found["error"].verdict.sentence
    assert "plain-32 (32, 64 images); plain-20 (32, 64 images)." in found["deeper"].verdict.sentence


def test_entry_converts_to_json(experiment, both):
    entries = [entry.to_dict() for entry in ledger(experiment, both(experiment), fixed_measure)]
    back = json.loads(json.dumps(entries))
    assert [row["claim"]["id"] for row in back] == ["size", "decay", "error", "stuck", "deeper", "ratio", "prize"]
    assert back[2]["verdict"]["outcome"] == "reproduced"
    assert back[2]["evidence"]["seeds"] == [0, 1, 2, 3, 4]
    assert back[0]["evidence"] is None
    assert [row["category"] for row in back] == ["arithmetic", "recipe", *["trained"] * 5]


# --- exact claims: ratios and printed values ---------------------------------------------------------------


def exact(**keys):
    base = {"id": "x", "kind": "exact", "says": "x", "source": "x", "of": "plain-20", "metric": "model/parameters"}
    return ExactClaim(**(base | keys))


def measured(metric, experiment, variant):
    return {
        ("model/parameters", "plain-20"): 700,
        ("model/parameters", "plain-32"): 6100,
        ("model/layer/fc/parameters", "plain-20"): 70,
        ("printed/error", None): 14.8,
        ("model/input", "plain-20"): [3, 32, 32],
        ("model/additions", "plain-20"): 0,
        ("recipe/train.lr", "plain-20"): 0.1,
    }[metric, variant]


@pytest.mark.parametrize(
    ("claim", "outcome", "sentence"),
    [
        (
            exact(of="plain-32", over="plain-20", claimed=12, margin=0.5, corrected=8.7),
            "erratum",
            "We measure 6,100 / 700 = 8.71429, which agrees with the correction 8.7 and not with the claimed 12",
        ),
        (
            exact(metric="model/layer/fc/parameters", over_metric="model/parameters", claimed=0.1),
            "confirmed",
            "We measure 70 / 700 = 0.1, which agrees with the claimed 0.1.",
        ),
        (exact(over="plain-32", op="<", claimed=1), "confirmed", "which agrees with the claimed less than 1."),
        (
            exact(over="plain-32", op=">", claimed=1),
            "not confirmed",
            "does not agree with the claimed more than 1.",
        ),
        (
            exact(of=None, metric="printed/error", claimed=11.7, corrected=14.8),
            "erratum",
            "Table 3 prints 14.8, which agrees with the correction 14.8 and not with the claimed 11.7.",
        ),
        (exact(metric="model/additions", op=">", claimed=0, corrected=0), "erratum", "We measure 0, which agrees"),
        (
            exact(metric="recipe/train.lr", claimed=0.1),
            "followed",
            "We use 0.1, which agrees with the claimed 0.1.",
        ),
        (exact(metric="recipe/train.lr", claimed=0.2), "departs", "We use 0.1, which does not agree"),
        (
            exact(metric="recipe/train.lr", claimed=0.2, corrected=0.1),
            "erratum",
            "with the correction 0.1 and not",
        ),
    ],
)
def test_exact_claim_outcomes(experiment, claim, outcome, sentence):
    declared = experiment.model_copy(update={"printed": {"error": Printed(value=14.8, where="table 3")}})
    verdict = judge_exact_claim(claim, declared, measured)
    assert verdict.outcome == outcome
    assert sentence in verdict.sentence


def test_claim_from_memory_is_confirmed_or_not_judged(experiment):
    wrong = exact(claimed=900, corrected=700, confidence="memory")
    verdict = judge_exact_claim(wrong, experiment, measured)
    assert (verdict.outcome, verdict.reason) == ("cannot judge", "protocol-unspecified")
    assert verdict.sentence.endswith("The claimed value was quoted from memory, so the error may be ours.")
    assert (
        judge_exact_claim(exact(claimed=900, confidence="memory"), experiment, measured).outcome == "cannot judge"
    )
    assert judge_exact_claim(exact(claimed=700, confidence="memory"), experiment, measured).outcome == "confirmed"
    read = judge_exact_claim(exact(claimed=900, confidence="figure"), experiment, measured)
    assert read.outcome == "not confirmed"
    setting = {"metric": "recipe/train.lr", "confidence": "memory"}
    assert judge_exact_claim(exact(claimed=0.1, **setting), experiment, measured).outcome == "followed"
    assert judge_exact_claim(exact(claimed=0.2, **setting), experiment, measured).outcome == "cannot judge"


def test_ratio_names_the_source_of_each_side(experiment):
    declared = experiment.model_copy(update={"printed": {"error": Printed(value=14.8, where="Table 3")}})
    claim = exact(metric="printed/error", over_metric="model/parameters", claimed=0.02114, margin=1e-5)
    verdict = judge_exact_claim(claim, declared, lambda metric, *_: 14.8 if "printed" in metric else 700)
    assert verdict.sentence.startswith("Table 3 prints 14.8 / 700 (measured) = 0.0211429, which agrees")


def test_printed_value_from_memory_cannot_show_an_erratum(experiment):
    printed = {"error": Printed(value=14.8, where="Table 3", confidence="memory")}
    declared = experiment.model_copy(update={"printed": printed})
    claim = exact(of=None, metric="printed/error", claimed=11.7, corrected=14.8)
    assert judge_exact_claim(claim, declared, measured).outcome == "cannot judge"


@pytest.mark.parametrize(
    "claim",
    [exact(over_metric="model/input", claimed=1), exact(over_metric="model/additions", claimed=1)],
)
def test_undefined_ratio_names_file_and_claim(experiment, claim):
    with pytest.raises(UserError, match=r"^toy/depth.yaml: claims.x: cannot divide 700 by .*$"):
        judge_claim(claim, experiment, {}, measured)


# --- one network by two protocols ---------------------------------------------------------------------------

TOP5 = "test/top5_error_pct"  # a tenth of the top-1 errors; stands for another protocol
DEEPER = 'lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct'


def test_variant_is_compared_with_itself_by_another_metric(declare, seed_records):
    text = f"lhs: plain-32, op: {{}}, rhs: plain-32, metric: {TOP5}, rhs_metric: test/top1_error_pct"
    below = declare(DEEPER, text.format('"<"'))
    verdict = judge_by_id(below, seed_records(below, "plain-32", DEEP))["deeper"].verdict
    assert (verdict.outcome, verdict.measured) == ("reproduced", pytest.approx(10.5 / 10 - 10.5))
    assert f"{TOP5} of plain-32 minus test/top1_error_pct of plain-32 over 5 paired seeds" in verdict.sentence
    above = declare(DEEPER, text.format('">"'))
    assert judge_by_id(above, seed_records(above, "plain-32", DEEP))["deeper"].verdict.outcome == "not reproduced"


def test_second_metric_must_be_recorded_too(declare, seed_records):
    declared = declare(DEEPER, f"{DEEPER}, rhs_metric: test/loss")
    records = seed_records(declared, "plain-20", PLAIN) + seed_records(declared, "plain-32", DEEP)
    for record in records:
        record.metrics.pop("test/loss", None)  # recorded by an older version
    verdict = judge_by_id(declared, records)["deeper"].verdict
    assert verdict.reason == "not-run"
    assert verdict.sentence.startswith("plain-20 seed 0 has no metric test/loss; it has")


def test_comparison_of_a_metric_with_itself_is_refused(declare):
    with pytest.raises(
        UserError, match="'plain-32' is compared with itself; give another variant or 'rhs_metric'"
    ):
        declare(DEEPER, 'lhs: plain-32, op: ">", rhs: plain-32, metric: test/top1_error_pct')


# --- derived runs ------------------------------------------------------------------------------------------


def test_derived_run_is_judged_like_a_network(declare):
    declared = declare(*OF_PAIR, *SIX_SEEDS)
    records = derived_records(declared, "pair", [9.4, 9.5, 9.6])
    found = judge_by_id(declared, records)["error"]
    assert found.verdict.outcome == "reproduced"
    assert (found.evidence.seeds, found.evidence.images) == ((0, 2, 4), 10_000)


def test_derived_run_is_paired_by_the_seed_of_its_first_member(declare, seed_records):
    text = 'lhs: pair, op: "<", rhs: plain-20, metric: test/top1_error_pct'
    declared = declare(
        *SIX_SEEDS,
        "scales:\n",
        DERIVED,
        'lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct',
        text,
    )
    records = derived_records(declared, "pair", [8.0, 8.1, 8.2]) + seed_records(
        declared, "plain-20", [*PLAIN, 9.5]
    )
    verdict = judge_by_id(declared, records)["deeper"].verdict
    assert verdict.outcome == "reproduced"
    assert verdict.measured == pytest.approx((8.0 + 8.1 + 8.2 - 9.4 - 9.6 - 9.5) / 3)  # of seeds 0, 2 and 4


def test_derived_run_cannot_be_judged_if_a_member_diverged(declare, record):
    declared = declare(*OF_SMALL)
    done = derived_records(declared, "small", [9.5] * 5)
    lost = record(
        declared, "plain-20", 2, 0.0, status="not converged", ended="the loss became nan at step 3", metrics={}
    )
    for records in ([*done[:2], *done[3:], lost], [lost]):  # the others alone would be too good
        verdict = judge_by_id(declared, records)["error"].verdict
        assert verdict.reason == "did-not-converge"
        assert "plain-20 seed 2 (the loss became nan at step 3)" in verdict.sentence


def test_command_for_a_derived_run_names_its_members(declare):
    verdict = judge_by_id(declare(*OF_PAIR), [])["error"].verdict
    assert verdict.sentence.endswith("repro run toy/depth --scale paper --variant plain-20")


# --- times, steps and gradient magnitudes --------------------------------------------------------------------

AS_TIME = ("rhs: plain-20, metric: test/top1_error_pct, claimed: 1.1", "rhs: plain-20, metric: {}, claimed: 1.1")


def with_costs(declare, seed_records, metric="train/seconds", right=None, **costs):
    """Return a declaration whose claim "ratio" is about a cost, and records in which plain-32 costs 10 % more."""
    declared = declare(AS_TIME[0], AS_TIME[1].format(metric))
    rows = [
        replace(
            row, costs={metric: value * (1 + row.seed / 1000)} | costs, **(right or {}) if value == 100 else {}
        )
        for variant, value in (("plain-20", 100.0), ("plain-32", 110.0))
        for row in seed_records(declared, variant, PLAIN)
    ]
    return declared, rows


def test_ratio_of_times_on_the_same_hardware_is_judged(declare, seed_records):
    declared, rows = with_costs(declare, seed_records)
    verdict = judge_by_id(declared, rows)["ratio"].verdict
    assert verdict.outcome == "reproduced"
    assert verdict.measured == pytest.approx(1.1)
    # The same times, claimed to differ by less and by more than a number.
    claims = [claim for claim in declared.claims if claim.id == "ratio"]
    for op, outcome in (("<", "reproduced"), (">", "not reproduced")):
        bounded = [claim.model_copy(update={"op": op, "claimed": 1.2, "margin": 0.0}) for claim in claims]
        changed = declared.model_copy(update={"claims": tuple(bounded)})
        assert judge_by_id(changed, rows)["ratio"].verdict.outcome == outcome


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hardware": "H200"}, "1 device (H200) in fp32, 1 thread"),
        ({"threads": 4}, "1 device (one core) in fp32, 4 threads"),
        ({"precision": "bf16"}, "1 device (one core) in bf16, 1 thread"),
        ({"world": 2}, "2 devices (one core) in fp32, 1 thread"),
        ({"compiled": True}, "1 device (one core) in fp32, compiled, 1 thread"),
        ({"channels_last": True}, "1 device (one core) in fp32, channels-last, 1 thread"),
    ],
)
def test_times_of_different_hardware_or_execution_settings_are_not_compared(declare, seed_records, change, words):
    declared, rows = with_costs(declare, seed_records, right=change)
    entry = judge_by_id(declared, rows)["ratio"]
    assert (entry.verdict.outcome, entry.verdict.reason) == ("cannot judge", "protocol-unspecified")
    assert entry.verdict.sentence == (
        f"train/seconds depends on the hardware: plain-32 ran on 1 device (one core) in fp32, 1 thread;"
        f" plain-20 ran on {words}."
    )
    assert judge_by_id(declared, rows)["deeper"].verdict.reason != "protocol-unspecified"  # an error does not


def test_run_without_times_cannot_be_judged_by_them(declare, seed_records):
    declared, rows = with_costs(declare, seed_records)
    rows[2] = replace(rows[2], costs={})
    verdict = judge_by_id(declared, rows)["ratio"].verdict
    assert verdict.reason == "not-run"
    assert verdict.sentence.startswith("plain-20 seed 2 has no train/seconds: it was trained on changing hardware")


STEPS = "train/steps_to_25_pct_error"
WITH_STEPS = ("  batch_size: 128\n", "  batch_size: 128\n  steps_to_error_pct: [25.0]\n")


def test_steps_until_a_training_error_are_compared(declare, seed_records):
    declared = declare(*WITH_STEPS, AS_TIME[0], AS_TIME[1].format(STEPS))
    rows = [
        replace(row, metrics=row.metrics | {STEPS: steps + row.seed}, hardware=f"machine {row.seed}")
        for variant, steps in (("plain-20", 1000.0), ("plain-32", 1100.0))
        for row in seed_records(declared, variant, PLAIN)
    ]
    assert judge_by_id(declared, rows)["ratio"].verdict.outcome == "reproduced"
    never = [replace(row, metrics={k: v for k, v in row.metrics.items() if k != STEPS}) for row in rows[:1]]
    verdict = judge_by_id(declared, [*never, *rows[1:]])["ratio"].verdict
    assert verdict.sentence == (
        f"plain-20 seed 0 has no {STEPS}: its training error did not fall below this value in 64000 steps."
    )


# --- precision -----------------------------------------------------------------------------------------------


def test_precision_of_the_scale_is_a_departure_and_that_of_the_recipe_is_not(declare, seed_records):
    scale = declare("{why: As published.}", "{why: As published., train: {precision: bf16}}")
    recipe = declare("  batch_size: 128\n", "  batch_size: 128\n  precision: bf16\n")
    for declared, used, outcome in (
        (scale, "bf16", "reached"),
        (scale, "fp32", "reproduced"),  # of a processor without bf16
        (recipe, "bf16", "reproduced"),
    ):
        records = seed_records(declared, "plain-20", PLAIN, precision=used)
        verdict = judge_by_id(declared, records)["error"].verdict
        assert verdict.outcome == outcome
        assert ("plain-20 was computed in bf16, not in fp32." in verdict.sentence) == (outcome == "reached")


def test_precision_of_members_is_a_departure_of_their_derived_run(declare):
    declared = declare(*OF_PAIR, *SIX_SEEDS)
    records = derived_records(declared, "pair", [9.4, 9.5, 9.6], precision="bf16")
    assert outcomes(declared, records)["error"] == "reached"
