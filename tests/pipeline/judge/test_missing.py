"""Test verdicts of claims whose runs are unfinished or missing, from made-up records."""

from dataclasses import replace

import pytest

from tests.support.ledgers import DEEP, OF_PAIR, PLAIN, derived_records, judge_by_id, outcomes


def unfinished_run(why, text, variant="plain-20", seed=0, scale="paper", experiment="toy/depth"):
    return {(experiment, scale, variant, seed): {"why": why, "text": text}}


def judged_reason(experiment, unfinished, records=(), claim="error"):
    verdict = judge_by_id(experiment, records, unfinished=unfinished)[claim].verdict
    return verdict.reason, verdict.sentence


def test_verdict_names_runs_over_budget(experiment):
    reason, sentence = judged_reason(
        experiment, unfinished_run("over-budget", "the launch's 5 GPU hours are spent")
    )
    assert reason == "over-budget"
    assert "plain-20 seed 0: the launch's 5 GPU hours are spent" in sentence
    assert sentence.endswith(". To resume them: repro run toy/depth --scale paper")


@pytest.mark.parametrize(
    ("why", "text", "shown"),
    [
        ("failed", "no GPU is left", "plain-20 seed 3: no GPU is left (failed)"),
        ("failed", "failed: no GPU is left", "plain-20 seed 3: failed: no GPU is left"),
        ("cancelled", "by root@host", "plain-20 seed 3: by root@host (cancelled)"),
    ],
)
def test_verdict_names_failed_and_cancelled_runs(experiment, why, text, shown):
    reason, sentence = judged_reason(experiment, unfinished_run(why, text, seed=3))
    assert reason == "not-run"
    assert shown in sentence


def test_over_budget_comes_before_failed(experiment):
    both = (
        unfinished_run("failed", "x", seed=0)
        | unfinished_run("over-budget", "y", seed=1)
        | unfinished_run("over-budget", "z", seed=2)
    )
    reason, sentence = judged_reason(experiment, both)
    assert reason == "over-budget"
    assert "plain-20 seed 1: y; plain-20 seed 2: z; plain-20 seed 0: x (failed). To resume them" in sentence


@pytest.mark.parametrize(
    ("why", "reason", "text"), [("over-budget", "over-budget", "spent"), ("failed", "not-run", "spent (failed)")]
)
def test_unfinished_declared_seeds_make_a_claim_unjudgeable(experiment, both, why, reason, text):
    records = [
        row for row in both(experiment) if (row.variant, row.seed) not in {("plain-20", 1), ("plain-20", 4)}
    ]
    unfinished = unfinished_run(why, "spent", seed=1) | unfinished_run(why, "spent", seed=4)
    found = judge_by_id(experiment, records, unfinished=unfinished)
    for claim in ("error", "deeper", "ratio"):
        assert found[claim].verdict.reason == reason
        assert f"Every seed counts, and some runs are unfinished: plain-20 seeds 1 and 4: {text}." in (
            found[claim].verdict.sentence
        )
    assert found["error"].evidence.seeds == (0, 2, 3)
    assert found["stuck"].verdict.outcome == "reproduced"  # rests on the other network


def test_a_verdict_at_paper_scale_needs_every_declared_seed(experiment, both):
    """The three finished seeds would be a reproduction: whoever stops at a good moment proves nothing."""
    records = [
        row for row in both(experiment) if (row.variant, row.seed) not in {("plain-20", 1), ("plain-20", 4)}
    ]
    found = judge_by_id(experiment, records)
    for claim in ("error", "deeper", "ratio"):
        assert found[claim].verdict.reason == "not-run"
        assert found[claim].verdict.sentence == (
            "Every declared seed counts, and some have no finished run: plain-20 seeds 1 and 4."
            " To run them: repro run toy/depth --scale paper"
        )
    assert found["error"].evidence.seeds == (0, 2, 3)
    assert found["stuck"].verdict.outcome == "reproduced"  # rests on the other network


def test_a_complete_claim_at_paper_scale_is_not_hidden_by_a_trend(experiment, seed_records, both):
    """Its interval contains no difference: the laptop's trend does not replace that."""
    records = seed_records(experiment, "plain-20", PLAIN) + seed_records(
        experiment, "plain-32", [9.2, 9.6, 9.3, 9.6, 9.3]
    )
    small = both(experiment, scale="laptop")
    assert outcomes(experiment, small)["deeper"] == "trend supported"
    assert outcomes(experiment, records + small)["deeper"] == "cannot judge: underpowered"
    incomplete = [row for row in records if row.seed != 4]
    assert outcomes(experiment, incomplete + small)["deeper"] == "trend supported"


def later(records, **other):
    """Return records as if the runs were repeated a year later."""
    other["finished"] = "2099-01-01T00:00:00+00:00"
    return [replace(one, identity=f"{one.identity}+", **other) for one in records]


def test_a_comparison_never_mixes_versions_of_the_code(experiment, both, seed_records):
    """Repeated with changed code, one side alone would be judged against the other side of the old code."""
    plain = both(experiment)[:5]
    old = [replace(one, code="old") for one in plain + seed_records(experiment, "plain-32", PLAIN)]
    before = judge_by_id(experiment, old)["deeper"]
    assert before.verdict.outcome != "reproduced"
    rerun = later(seed_records(experiment, "plain-32", DEEP), code="new")
    after = judge_by_id(experiment, old + rerun)["deeper"]
    assert (after.verdict, after.evidence.code) == (before.verdict, ("old",))
    whole = judge_by_id(experiment, old + rerun + later(plain, code="new"))["deeper"]
    assert (whole.verdict.outcome, whole.evidence.code) == ("reproduced", ("new",))
    lost = [one for one in old if one.variant == "plain-20"] + rerun
    assert judge_by_id(experiment, lost)["deeper"].verdict.sentence == (
        "The finished runs of plain-32 and plain-20 at paper scale are of different data or code, and cannot be"
        " compared. To run them: repro run toy/depth --scale paper --variant plain-32 --variant plain-20"
    )


def test_one_variant_run_again_on_other_data_does_not_erase_a_verdict(experiment, both):
    records = both(experiment)
    again = later([one for one in records if one.variant == "plain-20"], manifest="prepared again")
    found = judge_by_id(experiment, records + again)["deeper"]
    assert (found.verdict.outcome, found.evidence.manifests) == ("reproduced", ("manifest of cifar10",))


STARTED = (
    "plain-32: {model: {name: plain_cifar, depth: 32}}",
    "plain-32: {model: {name: plain_cifar, depth: 32}, train: {start: {variant: plain-20, layers: [conv]}}}",
)


def test_runs_that_start_from_one_that_did_not_converge_prove_nothing(declare, both):
    declared = declare(*STARTED)
    records = [
        replace(row, status="not converged", metrics={}, ended="lost") if row.variant == "plain-20" else row
        for row in both(declared)
        if row.variant == "plain-32" or row.seed == 3
    ]
    found = judge_by_id(declared, records)["stuck"].verdict
    assert found.reason == "did-not-converge"
    assert "runs that others need did not converge: plain-20 seed 3 (lost)." in found.sentence


def test_a_departure_of_the_run_that_others_start_from_is_theirs(declare, both):
    departs = (
        "  - {what: Pixels are scaled., why: No scale is named.}",
        "  - {what: Other weights., why: Unknown., material: true, of: [plain-20]}",
    )
    assert outcomes(declare(*departs), both(declare(*departs)))["stuck"] == "reproduced"
    started = declare(*departs, *STARTED)
    found = judge_by_id(started, both(started))["stuck"].verdict
    assert found.outcome != "reproduced"
    assert "Other weights." in found.sentence


def test_trend_needs_every_declared_seed(experiment, both):
    records = [row for row in both(experiment, scale="laptop") if row.seed != 2]
    assert outcomes(experiment, records)["deeper"] == "trend supported"
    assert judged_reason(
        experiment, unfinished_run("cancelled", "by root", seed=2, scale="laptop"), records, "deeper"
    ) == (
        "not-run",
        "Every seed counts, and some runs are unfinished: plain-20 seed 2: by root (cancelled)."
        " To resume them: repro run toy/depth --scale laptop",
    )


def test_unfinished_undeclared_seed_is_ignored(experiment, both):
    unfinished = unfinished_run("failed", "x", seed=5)
    assert (
        judge_by_id(experiment, both(experiment), unfinished=unfinished)["error"].verdict.outcome == "reproduced"
    )
    assert judged_reason(experiment, unfinished)[1].startswith("No finished runs.")


def test_did_not_converge_comes_before_unfinished(experiment, both, record):
    records = both(experiment)[1:]
    records[0] = record(experiment, "plain-20", 1, 0.0, status="not converged", ended="lost", metrics={})
    assert judged_reason(experiment, unfinished_run("failed", "x"), records)[0] == "did-not-converge"


def test_derived_run_with_an_unfinished_member_is_unfinished(declare):
    declared = declare(*OF_PAIR, "seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8]")
    whole = derived_records(declared, "pair", [9.4, 9.5, 9.6, 9.5])
    assert outcomes(declared, whole)["error"] == "reproduced"
    records = whole[:3]  # of seeds 0 to 5
    reason, sentence = judged_reason(declared, unfinished_run("over-budget", "spent", seed=7), records)
    assert (reason, "plain-20 seed 7: spent." in sentence) == ("over-budget", True)
    for seed in (1, 8):  # seed 1: its pair is finished; seed 8: in no pair
        unfinished = unfinished_run("over-budget", "spent", seed=seed)
        assert judge_by_id(declared, whole, unfinished=unfinished)["error"].verdict.outcome == "reproduced"


@pytest.mark.parametrize(
    "other",
    [
        unfinished_run("over-budget", "x", variant="resnet-20"),
        unfinished_run("over-budget", "x", scale="laptop"),
        unfinished_run("over-budget", "x", experiment="toy/width"),
    ],
)
def test_unfinished_runs_of_other_variants_are_ignored(experiment, other):
    reason, sentence = judged_reason(experiment, other)
    assert (reason, sentence.startswith("No finished runs.")) == ("not-run", True)


def test_complete_claim_is_judged_despite_unfinished_runs(experiment, both):
    records = both(experiment)
    assert (
        judge_by_id(experiment, records, unfinished=unfinished_run("over-budget", "x"))["error"].verdict.outcome
        == "reproduced"
    )


def test_comparison_names_only_the_missing_runs(experiment, seed_records):
    records = seed_records(experiment, "plain-20", PLAIN)
    unfinished = unfinished_run("over-budget", "x") | unfinished_run(
        "over-budget", "spent", variant="plain-32", seed=1
    )
    reason, sentence = judged_reason(experiment, unfinished, records, "deeper")
    assert (reason, "plain-32 seed 1: spent." in sentence) == ("over-budget", True)


def test_derived_run_of_unfinished_members_has_their_reason(declare):
    declared = declare(*OF_PAIR)
    assert judged_reason(declared, unfinished_run("over-budget", "spent"))[0] == "over-budget"
    reason, sentence = judged_reason(
        declared, unfinished_run("failed", "needs plain-20 seed 1, which failed: x", variant="pair")
    )
    assert (reason, "pair seed 0: needs plain-20 seed 1, which failed: x" in sentence) == ("not-run", True)


# --- derived runs that consume variants of other experiments ---------------------------------------------------


def test_unfinished_members_of_another_experiment_are_named(declare_other):
    declared = declare_other()
    reason, sentence = judged_reason(declared, unfinished_run("over-budget", "spent", seed=1))
    assert (reason, "toy/depth/plain-20 seed 1: spent." in sentence) == ("over-budget", True)
    unused = unfinished_run("over-budget", "spent", seed=4)  # its fifth seed is in no ensemble
    assert judged_reason(declared, unused)[0] == "not-run"


def test_the_command_names_the_members_of_another_experiment(declare_other):
    _, sentence = judged_reason(declare_other(), {})
    command = "repro run toy/wide --scale paper --variant wide --variant toy/depth/plain-20"
    assert sentence == f"No finished runs. To run them: {command}"


def test_a_member_of_another_experiment_that_did_not_converge_is_named(declare_other, declare, record):
    lost = record(declare(), "plain-20", 3, 0.0, status="not converged", ended="lost", metrics={})
    reason, sentence = judged_reason(declare_other(), {}, [lost])
    assert reason == "did-not-converge"
    assert "did not converge: toy/depth/plain-20 seed 3 (lost)." in sentence
