"""Verdicts from made-up runs: what counts, what it may say, and what it rests on."""

import json
import random
from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.claims import ExactClaim, Printed
from pipeline.judge.counting import counted_records
from pipeline.judge.ledger import judge_claim, judge_exact_claim, ledger
from pipeline.plan.expand import plan_runs
from tests.support.fake_records import fake_record

PLAIN, DEEP = [9.4, 9.5, 9.6, 9.5, 9.5], [10.4, 10.5, 10.6, 10.4, 10.6]  # means 9.5 and 10.5: a ratio of 1.105


def no_measure(metric, experiment, variant):
    return 269_722 if metric == "model/parameters" else 1e-4


def judged(experiment, records, **other):
    """The ledger's entries by the id of their claims."""
    return {entry.claim.id: entry for entry in ledger(experiment, records, no_measure, **other)}


def outcomes(experiment, records, **other):
    """'reproduced', or 'cannot judge: not-run'."""
    return {
        name: entry.verdict.outcome + (f": {entry.verdict.reason}" if entry.verdict.reason else "")
        for name, entry in judged(experiment, records, **other).items()
    }


@pytest.fixture
def both(seed_records):
    """Five runs each of the two plain nets, at paper scale if nothing else is said."""

    def runs(experiment, **other):
        return [
            *seed_records(experiment, "plain-20", PLAIN, **other),
            *seed_records(experiment, "plain-32", DEEP, **other),
        ]

    return runs


TRAINED = ("error", "stuck", "deeper", "ratio")

# --- what each kind of claim may say -----------------------------------------------------------------------


def test_at_paper_scale_a_claim_is_reproduced(experiment, both):
    assert {key: outcomes(experiment, both(experiment))[key] for key in TRAINED} == dict.fromkeys(
        TRAINED, "reproduced"
    )


def test_or_is_not(experiment, seed_records):
    worse = [
        *seed_records(experiment, "plain-20", [12.0, 12.1, 11.9, 12.0, 12.0]),
        *seed_records(experiment, "plain-32", [8.0, 8.1, 7.9, 8.0, 8.0]),
    ]
    assert {key: outcomes(experiment, worse)[key] for key in TRAINED} == dict.fromkeys(TRAINED, "not reproduced")


def test_much_better_than_the_paper_is_not_reproduced_either_way(experiment, seed_records):
    better = seed_records(experiment, "plain-20", [5.0, 5.1, 4.9, 5.0, 5.0])
    assert outcomes(experiment, better)["error"] == "better than claimed"


def test_below_paper_scale_a_comparison_is_a_trend_and_a_number_is_not_judged(experiment, both):
    found = outcomes(experiment, both(experiment, scale="laptop"))
    assert found["deeper"] == "trend supported"
    assert {found[key] for key in ("error", "stuck", "ratio")} == {"cannot judge: not-run"}
    said = judged(experiment, both(experiment, scale="laptop"))["error"].verdict.sentence
    assert said.startswith("not run at paper scale; runs at laptop scale on digits say nothing about")


def test_a_trend_may_go_the_other_way(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", DEEP, scale="laptop"),
        *seed_records(experiment, "plain-32", PLAIN, scale="laptop"),
    ]
    assert outcomes(experiment, records)["deeper"] == "trend not supported"


def test_other_data_than_the_papers_caps_at_a_trend_also_at_paper_scale(declare, both):
    declared = declare("{why: As published.}", "{why: As JPEG., data: {name: cifar10-jpeg}}")
    found = outcomes(declared, both(declared))
    assert found["deeper"] == "trend supported"
    assert found["error"] == "cannot judge: not-run"


def test_a_variants_own_data_are_the_papers(declare, seed_records):
    declared = declare("depth: 20}}", "depth: 20}, data: {name: cifar100}}")
    assert outcomes(declared, seed_records(declared, "plain-20", PLAIN))["error"] == "reproduced"


def test_variants_of_different_data_are_not_compared(declare, both):
    declared = declare("depth: 20}}", "depth: 20}, data: {name: cifar100}}")
    assert outcomes(declared, both(declared))["deeper"] == "cannot judge: not-run"


def test_a_material_departure_takes_numbers_away_and_leaves_trends(declare, both):
    declared = declare("why: No scale is named.}", "why: Cheaper., material: true}")
    found = outcomes(declared, both(declared))
    assert {found[key] for key in ("error", "stuck", "ratio")} == {"cannot judge: recipe-departs"}
    assert found["deeper"] == "trend supported"
    assert "Pixels are scaled." in judged(declared, both(declared))["error"].verdict.sentence
    assert judged(declared, both(declared))["error"].verdict.measured == pytest.approx(sum(PLAIN) / len(PLAIN))


def test_one_diverged_seed_is_enough(experiment, both, record):
    records = both(experiment)
    records[2] = record(
        experiment, "plain-20", 2, 0.0, status="not converged", ended="the loss became nan at step 17", metrics={}
    )
    found = judged(experiment, records)
    assert found["error"].verdict.reason == found["deeper"].verdict.reason == "did-not-converge"
    assert "plain-20 seed 2 (the loss became nan at step 17)" in found["error"].verdict.sentence
    assert found["stuck"].verdict.outcome == "reproduced"  # rests on the other network
    assert found["error"].evidence.images == 10_000


def test_what_diverged_at_paper_scale_is_not_made_good_by_a_smaller_one(experiment, both, record):
    paper = both(experiment)
    paper[0] = record(experiment, "plain-20", 0, 0.0, status="not converged", ended="lost", metrics={})
    assert (
        outcomes(experiment, paper + both(experiment, scale="laptop"))["deeper"]
        == "cannot judge: did-not-converge"
    )


def test_two_seeds_are_too_few(experiment, seed_records):
    assert (
        outcomes(experiment, seed_records(experiment, "plain-20", PLAIN[:2]))["error"]
        == "cannot judge: underpowered"
    )


def test_a_run_that_did_not_measure_the_metric_is_named(declare, both):
    declared = declare(
        'op: ">", rhs: plain-20, metric: test/top1_error_pct', 'op: ">", rhs: plain-20, metric: test/response_std'
    )
    verdict = judged(declared, both(declared))["deeper"].verdict
    assert verdict.reason == "not-run"
    assert (
        "plain-32 seed 0 measured no test/response_std, only test/images, test/top1_error_pct" in verdict.sentence
    )


def test_without_runs_the_command_for_the_missing_variant_is_told(experiment, seed_records):
    found = judged(experiment, seed_records(experiment, "plain-20", PLAIN))
    assert found["deeper"].verdict.reason == "not-run"
    command = "repro run toy/depth --scale paper --variant plain-32"
    assert found["deeper"].verdict.sentence.endswith(command)
    neither = judged(experiment, [])["deeper"].verdict.sentence
    assert neither.endswith("--variant plain-32 --variant plain-20")


def test_exact_claims_ask_for_their_metric_and_need_no_run(experiment):
    asked = []

    def measure(metric, of, variant):
        asked.append((metric, of.name, variant))
        return no_measure(metric, of, variant)

    found = {entry.claim.id: entry for entry in ledger(experiment, [], measure)}
    assert asked == [
        ("model/parameters", "toy/depth", "plain-20"),
        ("recipe/train.optimizer.weight_decay", "toy/depth", "plain-20"),
    ]
    assert (found["size"].verdict.outcome, found["size"].verdict.measured) == ("reproduced", 269_722)
    assert found["decay"].verdict.outcome == "erratum"
    assert found["size"].evidence is None


def test_an_open_claim_keeps_its_reason(experiment, both):
    verdict = judged(experiment, both(experiment))["prize"].verdict
    assert (verdict.outcome, verdict.reason, verdict.sentence) == (
        "cannot judge", "no-labels", "the test labels are secret",
    )  # fmt: skip


# --- which scale -------------------------------------------------------------------------------------------


def test_paper_scale_comes_first(experiment, both):
    records = [*both(experiment, scale="laptop"), *both(experiment)]
    found = judged(experiment, records)["deeper"]
    assert (found.verdict.outcome, found.evidence.scale) == ("reproduced", "paper")


def test_where_paper_scale_cannot_be_judged_a_smaller_one_may(experiment, seed_records, both):
    few = [*seed_records(experiment, "plain-20", PLAIN[:1]), *seed_records(experiment, "plain-32", DEEP[:1])]
    found = judged(experiment, [*few, *both(experiment, scale="laptop")])["deeper"]
    assert (found.verdict.outcome, found.evidence.scale) == ("trend supported", "laptop")


def test_only_the_scales_asked_for_are_judged(experiment, both):
    assert outcomes(experiment, both(experiment), scales=["laptop"])["deeper"] == "cannot judge: not-run"


# --- which runs count --------------------------------------------------------------------------------------


def test_a_run_changed_by_set_never_counts(experiment, both):
    changed = both(experiment, changes={"train.lr": 0.05})
    assert outcomes(experiment, changed)["deeper"] == "cannot judge: not-run"
    found = judged(experiment, [*both(experiment), *changed])["deeper"]
    assert len(found.evidence.runs) == 10
    assert found.verdict == judged(experiment, both(experiment))["deeper"].verdict


def test_not_even_where_it_has_become_another_variants_recipe(declare, seed_records):
    declared = declare("depth: 32}}", "depth: 20}, train: {lr: 0.05}}")  # plain-32 is plain-20 with another rate
    changed = seed_records(declared, "plain-20", DEEP, changes={"train.lr": 0.05})
    assert changed[0].declaration == seed_records(declared, "plain-32", DEEP)[0].declaration
    assert outcomes(declared, changed)["stuck"] == "cannot judge: not-run"


def test_a_run_of_an_old_declaration_does_not_count(declare, both):
    old = both(declare())
    changed = declare("momentum: 0.9", "momentum: 0.8")
    assert outcomes(changed, old)["error"] == "cannot judge: not-run"
    assert outcomes(changed, [*old, *both(changed)])["error"] == "reproduced"


@pytest.mark.parametrize("field", ["code", "manifest"])
def test_runs_of_different_code_or_data_are_not_mixed(experiment, seed_records, field):
    old = seed_records(experiment, "plain-20", [20.0, 20.1, 19.9], **{field: "old"})
    new = seed_records(experiment, "plain-20", PLAIN, **{field: "new"})
    (found,) = counted_records(experiment, "paper", [*old, *new]).values()
    assert [getattr(one, field) for one in found] == ["new"] * 5  # the most seeds
    assert judged(experiment, [*old, *new])["error"].verdict.measured == pytest.approx(9.5)


def test_of_as_many_seeds_the_latest_kind_counts(experiment, seed_records):
    old = seed_records(experiment, "plain-20", PLAIN, code="old", finished="2026-01-01T00:00:00+00:00")
    new = seed_records(experiment, "plain-20", DEEP, code="new", finished="2026-01-02T00:00:00+00:00")
    for records in ([*old, *new], [*new, *old]):
        (found,) = counted_records(experiment, "paper", records).values()
        assert {one.code for one in found} == {"new"}


def test_a_seed_that_ran_twice_counts_once_the_first_time(experiment, record):
    first = record(experiment, "plain-20", 0, 9.0, finished="2026-01-01T00:00:00+00:00", hardware="here")
    again = record(experiment, "plain-20", 0, 5.0, finished="2026-01-02T00:00:00+00:00", hardware="there")
    (found,) = counted_records(experiment, "paper", [again, first]).values()
    assert [one.hardware for one in found] == ["here"]


def test_seeds_that_were_not_declared_beforehand_do_not_count_at_paper_scale(experiment, record):
    asked_for = [record(experiment, "plain-20", seed, 9.5) for seed in range(7)]
    (found,) = counted_records(experiment, "paper", asked_for).values()
    assert [one.seed for one in found] == [0, 1, 2, 3, 4]


def test_the_order_of_the_records_does_not_matter(experiment, both):
    records = both(experiment)
    expected = [entry.to_dict() for entry in ledger(experiment, records, no_measure)]
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert [entry.to_dict() for entry in ledger(experiment, records, no_measure)] == expected


def test_what_was_trained_counts_whatever_it_was_trained_for(declare, both):
    """A finished run is never trained again, so it must count wherever its recipe is declared."""
    declared = declare("  smoke:", "  again: {why: The same recipe.}\n  smoke:")
    records = both(declared, scale="again")
    found = judged(declared, records)["deeper"]
    assert (found.verdict.outcome, found.evidence.scale) == ("reproduced", "paper")
    other = [type(r)(**(r.to_dict() | {"experiment": "other/one", "variant": "elsewhere"})) for r in records]
    assert judged(declared, other)["deeper"].verdict == found.verdict


def test_another_experiments_runs_of_another_recipe_do_not_count(declare, both):
    other = both(declare("steps: 64000", "steps: 64001"))
    assert outcomes(declare(), other)["error"] == "cannot judge: not-run"


# --- evidence ----------------------------------------------------------------------------------------------


def test_evidence_finds_every_run_again(experiment, both):
    records = both(experiment)
    evidence = judged(experiment, records)["deeper"].evidence
    assert (evidence.scale, evidence.data, evidence.seeds, evidence.images) == (
        "paper",
        "cifar10",
        (0, 1, 2, 3, 4),
        10_000,
    )
    assert set(evidence.runs) == {one.identity for one in records}
    assert set(evidence.run_ids) == {one.run_id for one in records}
    assert set(evidence.declarations) == {one.declaration for one in records}
    assert len(evidence.declarations) == 10
    assert evidence.manifests == ("manifest of cifar10",)
    assert (evidence.code, evidence.locks, evidence.commits) == (("code-1",), ("lock-1",), ("0123456789abcdef",))
    assert (evidence.hardware, evidence.precision) == (("one core",), ("fp32",))
    assert (evidence.world, evidence.device_batch) == ((1,), (0,))


def split(records, batches):
    """The records as if so many images had gone through a device at a time, of 128."""
    return [replace(one, world=128 // of, device_batch=of) for one, of in zip(records, batches, strict=True)]


def test_evidence_says_how_runs_were_split_over_devices(experiment, seed_records):
    records = split(seed_records(experiment, "plain-20", PLAIN), [64, 64, 32, 64, 128])
    entry = judged(experiment, records)["error"]
    assert (entry.evidence.world, entry.evidence.device_batch) == ((2, 4, 1), (64, 32, 128))
    plain = json.loads(json.dumps(entry.to_dict()))["evidence"]
    assert (plain["world"], plain["device_batch"]) == ([2, 4, 1], [64, 32, 128])
    assert entry.verdict.outcome == "reproduced"
    assert entry.verdict.sentence.endswith(
        ". Counted together are runs whose batch normalisation saw different batches:"
        " plain-20 (32, 64, 128 images)."
    )


def test_runs_split_alike_or_nobody_knows_how_are_nothing_to_tell(experiment, seed_records):
    plain = seed_records(experiment, "plain-20", PLAIN)
    older = [replace(one, device_batch=0) for one in split(plain[:2], [64, 64])]
    deep = split(seed_records(experiment, "plain-32", DEEP), [32] * 5)  # another network's may be others
    found = judged(experiment, [*older, *split(plain[2:], [64] * 3), *deep])
    assert "Counted together" not in found["error"].verdict.sentence + found["deeper"].verdict.sentence


def test_a_trend_and_a_departing_number_say_so_too(declare, seed_records):
    declared = declare("why: No scale is named.}", "why: Cheaper., material: true}")
    rows = [seed_records(declared, "plain-20", PLAIN), seed_records(declared, "plain-32", DEEP)]
    found = judged(declared, [one for row in rows for one in split(row, [64, 64, 64, 64, 32])])
    assert "plain-20 (32, 64 images)." in found["error"].verdict.sentence
    assert "plain-32 (32, 64 images); plain-20 (32, 64 images)." in found["deeper"].verdict.sentence


def test_an_entry_is_plain_data(experiment, both):
    entries = [entry.to_dict() for entry in ledger(experiment, both(experiment), no_measure)]
    back = json.loads(json.dumps(entries))
    assert [one["claim"]["id"] for one in back] == ["size", "decay", "error", "stuck", "deeper", "ratio", "prize"]
    assert back[2]["verdict"]["outcome"] == "reproduced"
    assert back[2]["evidence"]["seeds"] == [0, 1, 2, 3, 4]
    assert back[0]["evidence"] is None


# --- ratios of arithmetic, and what is printed -------------------------------------------------------------


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
    }[metric, variant]


@pytest.mark.parametrize(
    ("claim", "outcome", "words"),
    [
        (
            exact(of="plain-32", over="plain-20", claimed=12, margin=0.5, corrected=8.7),
            "erratum",
            "We measure 6,100 / 700 = 8.71429, which agrees with the correction 8.7 and not with the claimed 12",
        ),
        (
            exact(metric="model/layer/fc/parameters", over_metric="model/parameters", claimed=0.1),
            "reproduced",
            "We measure 70 / 700 = 0.1, which agrees with the claimed 0.1.",
        ),
        (exact(over="plain-32", op="<", claimed=1), "reproduced", "which agrees with the claimed less than 1."),
        (
            exact(over="plain-32", op=">", claimed=1),
            "not reproduced",
            "does not agree with the claimed more than 1.",
        ),
        (
            exact(of=None, metric="printed/error", claimed=11.7, corrected=14.8),
            "erratum",
            "Table 3 prints 14.8, which agrees with the correction 14.8 and not with the claimed 11.7.",
        ),
        (exact(metric="model/additions", op=">", claimed=0, corrected=0), "erratum", "We measure 0, which agrees"),
    ],
)
def test_arithmetic_judges_ratios_sides_and_what_is_printed(experiment, claim, outcome, words):
    declared = experiment.model_copy(update={"printed": {"error": Printed(value=14.8, where="table 3")}})
    verdict = judge_exact_claim(claim, declared, measured)
    assert verdict.outcome == outcome
    assert words in verdict.sentence


def test_a_number_from_memory_can_be_confirmed_but_not_called_wrong(experiment):
    wrong = exact(claimed=900, corrected=700, confidence="memory")
    verdict = judge_exact_claim(wrong, experiment, measured)
    assert (verdict.outcome, verdict.reason) == ("cannot judge", "protocol-unspecified")
    assert verdict.sentence.endswith(
        "The claimed value was recalled and not read again, so the error may be ours."
    )
    assert (
        judge_exact_claim(exact(claimed=900, confidence="memory"), experiment, measured).outcome == "cannot judge"
    )
    assert judge_exact_claim(exact(claimed=700, confidence="memory"), experiment, measured).outcome == "reproduced"
    read = judge_exact_claim(exact(claimed=900, confidence="figure"), experiment, measured)
    assert read.outcome == "not reproduced"


def test_each_side_of_a_ratio_says_where_it_is_from(experiment):
    declared = experiment.model_copy(update={"printed": {"error": Printed(value=14.8, where="Table 3")}})
    claim = exact(metric="printed/error", over_metric="model/parameters", claimed=0.02114, margin=1e-5)
    said = judge_exact_claim(claim, declared, lambda metric, *_: 14.8 if "printed" in metric else 700).sentence
    assert said.startswith("Table 3 prints 14.8 / 700 (measured) = 0.0211429, which agrees")


def test_what_is_printed_but_was_recalled_calls_nobody_wrong(experiment):
    printed = {"error": Printed(value=14.8, where="Table 3", confidence="memory")}
    declared = experiment.model_copy(update={"printed": printed})
    said = exact(of=None, metric="printed/error", claimed=11.7, corrected=14.8)
    assert judge_exact_claim(said, declared, measured).outcome == "cannot judge"


@pytest.mark.parametrize(
    "claim",
    [exact(over_metric="model/input", claimed=1), exact(over_metric="model/additions", claimed=1)],
)
def test_what_cannot_be_divided_is_the_authors_mistake(experiment, claim):
    with pytest.raises(UserError, match=r"^toy/depth.yaml: claims.x: 700 / .* is no ratio$"):
        judge_claim(claim, experiment, {}, measured)


# --- one network by two protocols ---------------------------------------------------------------------------

TOP5 = "test/top5_error_pct"  # a tenth of the top-1 errors above: stands for another protocol
DEEPER = 'lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct'


def test_a_network_can_be_compared_with_itself_by_another_metric(declare, seed_records):
    text = f"lhs: plain-32, op: {{}}, rhs: plain-32, metric: {TOP5}, rhs_metric: test/top1_error_pct"
    below = declare(DEEPER, text.format('"<"'))
    verdict = judged(below, seed_records(below, "plain-32", DEEP))["deeper"].verdict
    assert (verdict.outcome, verdict.measured) == ("reproduced", pytest.approx(10.5 / 10 - 10.5))
    assert f"plain-32's {TOP5} minus plain-32's test/top1_error_pct over 5 paired seeds" in verdict.sentence
    above = declare(DEEPER, text.format('">"'))
    assert judged(above, seed_records(above, "plain-32", DEEP))["deeper"].verdict.outcome == "not reproduced"


def test_the_other_metric_must_have_been_measured_too(declare, seed_records):
    declared = declare(DEEPER, f"{DEEPER}, rhs_metric: test/loss")
    records = seed_records(declared, "plain-20", PLAIN) + seed_records(declared, "plain-32", DEEP)
    for record in records:
        record.metrics.pop("test/loss", None)  # by a version that did not measure it yet
    verdict = judged(declared, records)["deeper"].verdict
    assert verdict.reason == "not-run"
    assert verdict.sentence.startswith("plain-20 seed 0 measured no test/loss, only")


def test_nothing_is_compared_with_itself(declare):
    with pytest.raises(
        UserError, match="'plain-32' is compared with itself; give another variant or 'rhs_metric'"
    ):
        declare(DEEPER, 'lhs: plain-32, op: ">", rhs: plain-32, metric: test/top1_error_pct')


# --- steps -------------------------------------------------------------------------------------------------

STEPS = """derived:
  pair: {kind: ensemble, members: {plain-20: 2}}
  small: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""
OF_PAIR = ("scales:\n", STEPS, "of: plain-20, metric: test", "of: pair, metric: test")
OF_SMALL = ("scales:\n", STEPS, "of: plain-20, metric: test", "of: small, metric: test")
SIX = ("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3, 4, 5]")


def step_records(experiment, name, errors, *, scale="paper", **other):
    """Records of steps that never were, one for each error."""
    seeds = other.pop("seeds", None)
    steps = [one for one in plan_runs(experiment, scale=scale, seeds=seeds) if one.variant == name]
    one = fake_record(experiment, "plain-20", 0, 0.0, scale=scale)
    return [
        replace(one, variant=name, seed=step.seed, identity=f"{name}-{step.seed}", declaration=step.declaration,
                metrics=one.metrics | {"test/top1_error_pct": error}, **other)
        for step, error in zip(steps, errors, strict=False)
    ]  # fmt: skip


def test_a_step_is_judged_as_a_network_is(declare):
    declared = declare(*OF_PAIR, *SIX)
    records = step_records(declared, "pair", [9.4, 9.5, 9.6])
    found = judged(declared, records)["error"]
    assert found.verdict.outcome == "reproduced"
    assert (found.evidence.seeds, found.evidence.images) == ((0, 2, 4), 10_000)


def test_a_large_seed_of_another_s_costs_a_step_nothing(declare, seed_records):
    """A date, a hash: whoever chose it, all who judge in the same home or on the same server read it."""
    declared = declare(*OF_PAIR, *SIX)
    records = step_records(declared, "pair", [9.4, 9.5, 9.6])
    large = [replace(one, seed=seed, declaration="other") for one in records for seed in (20261123, 2**70)]
    assert judged(declared, [*large, *records])["error"].evidence.seeds == (0, 2, 4)


def test_evidence_names_the_networks_of_a_step_after_the_steps(declare, seed_records):
    declared = declare(*OF_PAIR, *SIX, 'lhs: plain-32, op: ">"', 'lhs: pair, op: "<"')
    runs = seed_records(declared, "plain-20", [*PLAIN, 9.5])
    names = [one.identity for one in runs]
    steps = step_records(declared, "pair", [8.4, 8.5, 8.6])
    steps = [replace(one, members=tuple(names[one.seed : one.seed + 2])) for one in steps]
    found = judged(declared, [*steps, *runs])
    own = tuple(one.identity for one in steps)
    assert (found["error"].evidence.runs, found["error"].evidence.members) == (own + tuple(names), tuple(names))
    both = found["deeper"].evidence  # which compares the pairs with the networks themselves
    assert (set(both.runs), len(both.runs), both.members) == ({*own, *names}, 9, ())


def test_a_step_of_another_recipe_does_not_count(declare):
    other = step_records(declare(*OF_SMALL, "density: 0.5", "density: 0.4"), "small", [9.5] * 5)
    declared = declare(*OF_SMALL)
    assert outcomes(declared, other)["error"] == "cannot judge: not-run"
    retrained = step_records(declare(*OF_SMALL, "steps: 64000", "steps: 64001"), "small", [9.5] * 5)
    assert outcomes(declared, retrained)["error"] == "cannot judge: not-run"
    assert outcomes(declared, step_records(declared, "small", [9.5] * 5))["error"] == "reproduced"


def test_at_paper_scale_only_steps_of_the_seeds_declared_beforehand_count(declare):
    declared = declare(*OF_SMALL)
    records = step_records(declared, "small", [9.5] * 5 + [100.0] * 3, seeds=8)
    assert len(records) == 8
    assert judged(declared, records)["error"].evidence.seeds == (0, 1, 2, 3, 4)
    laptop = step_records(declared, "small", [1.0] * 8, scale="laptop", seeds=8)
    assert len(counted_records(declared, "laptop", laptop)["small"]) == 8


def test_a_step_is_compared_with_a_network_by_the_seed_of_its_first(declare, seed_records):
    text = 'lhs: pair, op: "<", rhs: plain-20, metric: test/top1_error_pct'
    declared = declare(
        *SIX, "scales:\n", STEPS, 'lhs: plain-32, op: ">", rhs: plain-20, metric: test/top1_error_pct', text
    )
    records = step_records(declared, "pair", [8.0, 8.1, 8.2]) + seed_records(declared, "plain-20", [*PLAIN, 9.5])
    verdict = judged(declared, records)["deeper"].verdict
    assert verdict.outcome == "reproduced"
    assert verdict.measured == pytest.approx((8.0 + 8.1 + 8.2 - 9.4 - 9.6 - 9.5) / 3)  # of seeds 0, 2 and 4


def test_a_run_that_did_not_converge_makes_its_step_one_that_cannot_be_judged(declare, record):
    declared = declare(*OF_SMALL)
    done = step_records(declared, "small", [9.5] * 5)
    lost = record(
        declared, "plain-20", 2, 0.0, status="not converged", ended="the loss became nan at step 3", metrics={}
    )
    for records in ([*done[:2], *done[3:], lost], [lost]):  # the others alone would flatter it
        verdict = judged(declared, records)["error"].verdict
        assert verdict.reason == "did-not-converge"
        assert "plain-20 seed 2 (the loss became nan at step 3)" in verdict.sentence


def test_the_command_for_a_step_is_that_for_its_runs(declare):
    verdict = judged(declare(*OF_PAIR), [])["error"].verdict
    assert verdict.sentence.endswith("repro run toy/depth --scale paper --variant plain-20")


# --- what was left unfinished ------------------------------------------------------------------------------


def left(why, text, variant="plain-20", seed=0, scale="paper", experiment="toy/depth"):
    return {(experiment, scale, variant, seed): {"why": why, "text": text}}


def why_not(experiment, lefts, records=(), claim="error"):
    verdict = judged(experiment, records, lefts=lefts)[claim].verdict
    return verdict.reason, verdict.sentence


def test_runs_over_their_budget_are_said_to_be(experiment):
    reason, sentence = why_not(experiment, left("over-budget", "the launch's 5 GPU hours are spent"))
    assert reason == "over-budget"
    assert "plain-20 seed 0: the launch's 5 GPU hours are spent" in sentence
    assert sentence.endswith("to go on: repro run toy/depth --scale paper")


@pytest.mark.parametrize(
    ("why", "text", "said"),
    [
        ("failed", "no GPU is left", "plain-20 seed 3: no GPU is left (failed)"),
        ("failed", "failed: no GPU is left", "plain-20 seed 3: failed: no GPU is left"),
        ("cancelled", "by root@host", "plain-20 seed 3: by root@host (cancelled)"),
    ],
)
def test_runs_that_failed_or_were_cancelled_are_not_run_with_the_reason(experiment, why, text, said):
    reason, sentence = why_not(experiment, left(why, text, seed=3))
    assert reason == "not-run"
    assert said in sentence


def test_a_budgets_end_comes_before_a_failure(experiment):
    both = left("failed", "x", seed=0) | left("over-budget", "y", seed=1) | left("over-budget", "z", seed=2)
    reason, sentence = why_not(experiment, both)
    assert reason == "over-budget"
    assert "plain-20 seed 1: y; plain-20 seed 2: z; plain-20 seed 0: x (failed); to go on" in sentence


@pytest.mark.parametrize(
    ("why", "reason", "said"), [("over-budget", "over-budget", "spent"), ("failed", "not-run", "spent (failed)")]
)
def test_declared_seeds_that_were_left_are_not_made_good_by_the_others(experiment, both, why, reason, said):
    records = [
        one for one in both(experiment) if (one.variant, one.seed) not in {("plain-20", 1), ("plain-20", 4)}
    ]
    lefts = left(why, "spent", seed=1) | left(why, "spent", seed=4)
    assert outcomes(experiment, records)["error"] == "reproduced"  # of the three seeds that ended
    found = judged(experiment, records, lefts=lefts)
    for claim in ("error", "deeper", "ratio"):
        assert found[claim].verdict.reason == reason
        assert f"every seed counts, and runs were left unfinished: plain-20 seeds 1, 4: {said};" in (
            found[claim].verdict.sentence
        )
    assert found["error"].evidence.seeds == (0, 2, 3)
    assert found["stuck"].verdict.outcome == "reproduced"  # rests on the other network


def test_a_trend_needs_every_declared_seed_too(experiment, both):
    records = [one for one in both(experiment, scale="laptop") if one.seed != 2]
    assert outcomes(experiment, records)["deeper"] == "trend supported"
    assert why_not(experiment, left("cancelled", "by root", seed=2, scale="laptop"), records, "deeper") == (
        "not-run",
        "every seed counts, and runs were left unfinished: plain-20 seed 2: by root (cancelled);"
        " to go on: repro run toy/depth --scale laptop",
    )


def test_a_seed_that_was_not_declared_is_not_waited_for(experiment, both):
    lefts = left("failed", "x", seed=5)
    assert judged(experiment, both(experiment), lefts=lefts)["error"].verdict.outcome == "reproduced"
    assert why_not(experiment, lefts)[1].startswith("no finished runs")


def test_what_did_not_converge_comes_before_what_was_left(experiment, both, record):
    records = both(experiment)[1:]
    records[0] = record(experiment, "plain-20", 1, 0.0, status="not converged", ended="lost", metrics={})
    assert why_not(experiment, left("failed", "x"), records)[0] == "did-not-converge"


def test_a_step_whose_run_was_left_counts_too(declare):
    declared = declare(*OF_PAIR, "seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8]")
    records = step_records(declared, "pair", [9.4, 9.5, 9.6])  # of seeds 0 to 5
    assert outcomes(declared, records)["error"] == "reproduced"
    reason, sentence = why_not(declared, left("over-budget", "spent", seed=7), records)
    assert (reason, "plain-20 seed 7: spent;" in sentence) == ("over-budget", True)
    for seed in (1, 8):  # of a pair that is there; in no pair
        lefts = left("over-budget", "spent", seed=seed)
        assert judged(declared, records, lefts=lefts)["error"].verdict.outcome == "reproduced"


@pytest.mark.parametrize(
    "other",
    [
        left("over-budget", "x", variant="resnet-20"),
        left("over-budget", "x", scale="laptop"),
        left("over-budget", "x", experiment="toy/width"),
    ],
)
def test_what_became_of_other_runs_says_nothing(experiment, other):
    reason, sentence = why_not(experiment, other)
    assert (reason, sentence.startswith("no finished runs")) == ("not-run", True)


def test_what_is_there_is_judged_whatever_became_of_others(experiment, both):
    records = both(experiment)
    assert judged(experiment, records, lefts=left("over-budget", "x"))["error"].verdict.outcome == "reproduced"


def test_a_comparison_names_only_what_is_missing(experiment, seed_records):
    records = seed_records(experiment, "plain-20", PLAIN)
    lefts = left("over-budget", "x") | left("over-budget", "spent", variant="plain-32", seed=1)
    reason, sentence = why_not(experiment, lefts, records, "deeper")
    assert (reason, "plain-32 seed 1: spent;" in sentence) == ("over-budget", True)


def test_a_step_waits_for_runs_over_their_budget(declare):
    declared = declare(*OF_PAIR)
    assert why_not(declared, left("over-budget", "spent"))[0] == "over-budget"
    reason, sentence = why_not(declared, left("failed", "needs plain-20 seed 1, which failed: x", variant="pair"))
    assert (reason, "pair seed 0: needs plain-20 seed 1, which failed: x" in sentence) == ("not-run", True)
