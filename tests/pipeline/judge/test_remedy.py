"""Test the command that would judge a claim without a verdict."""

import pytest

from tests.support.ledgers import DEEP, OF_PAIR, PLAIN, SIX_SEEDS, derived_records, judge_by_id

PAPER = "repro run toy/depth --scale paper"
NARROW_WIN = [9.4, 9.9, 9.3, 9.8, 9.6]  # mean 9.6, 0.1 above PLAIN: differences 0, 0.4, -0.3, 0.3, 0.1


def commands(experiment, records=(), **other):
    return {name: entry.command for name, entry in judge_by_id(experiment, records, **other).items()}


def test_claims_without_runs_need_their_variants_at_paper_scale(experiment):
    assert commands(experiment) == {
        "size": "",
        "decay": "",
        "error": f"{PAPER} --variant plain-20",
        "stuck": f"{PAPER} --variant plain-32",
        "deeper": f"{PAPER} --variant plain-32 --variant plain-20",
        "ratio": f"{PAPER} --variant plain-32 --variant plain-20",
        "prize": "",  # open
    }


def test_only_missing_runs_are_in_the_command(experiment, seed_records):
    found = commands(experiment, seed_records(experiment, "plain-20", PLAIN))
    assert (found["error"], found["deeper"]) == ("", f"{PAPER} --variant plain-32")


def test_numbers_at_a_smaller_scale_need_paper_scale(experiment, both):
    records = both(experiment, scale="laptop")
    for scales in ((), ("laptop",)):
        found = commands(experiment, records, scales=scales)
        assert (found["error"], found["deeper"]) == (f"{PAPER} --variant plain-20", "")  # a trend


def test_judged_claims_need_no_command(experiment, both):
    assert set(commands(experiment, both(experiment)).values()) == {""}


def test_missing_declared_seeds_are_run_at_paper_scale(experiment, seed_records):
    few = seed_records(experiment, "plain-20", PLAIN[:2])
    assert commands(experiment, few)["error"] == f"{PAPER} --variant plain-20"


def test_more_seeds_do_not_help_at_paper_scale(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", PLAIN),
        *seed_records(experiment, "plain-32", NARROW_WIN),
    ]
    found = judge_by_id(experiment, records)["deeper"]
    assert (found.verdict.reason, found.command) == ("underpowered", "")


def test_more_seeds_help_at_a_smaller_scale(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", PLAIN, scale="laptop"),
        *seed_records(experiment, "plain-32", NARROW_WIN, scale="laptop"),
    ]
    found = judge_by_id(experiment, records, scales=["laptop"])["deeper"]
    enough = found.verdict.enough
    assert f"about {enough} seeds would probably be enough" in found.verdict.sentence
    assert found.command == (
        f"repro run toy/depth --scale laptop --variant plain-32 --variant plain-20 --seeds {enough}"
    )


def test_two_seeds_at_a_smaller_scale_need_a_third(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", PLAIN[:2], scale="laptop"),
        *seed_records(experiment, "plain-32", DEEP[:2], scale="laptop"),
    ]
    assert commands(experiment, records, scales=["laptop"])["deeper"].endswith("--seeds 3")


@pytest.mark.parametrize("key", ["choices", "departures"])
def test_no_command_helps_a_deviating_recipe(declare, seed_records, key):
    declared = declare(
        "departures:\n  - {what: Pixels are scaled., why: No scale is named.}",
        f"{key}:\n  - {{what: Pixels are scaled., why: Cheaper., material: true}}",
    )
    assert commands(declared, seed_records(declared, "plain-20", DEEP))["error"] == ""
    assert commands(declared)["error"] == f"{PAPER} --variant plain-20"


def test_no_command_helps_after_a_divergence(experiment, seed_records):
    lost = seed_records(experiment, "plain-20", PLAIN, status="not converged", metrics={})
    assert commands(experiment, lost)["error"] == ""


def test_unfinished_runs_are_resumed(experiment, seed_records):
    unfinished = {("toy/depth", "paper", "plain-20", 4): {"why": "over-budget", "text": "spent"}}
    records = seed_records(experiment, "plain-20", PLAIN[:4])
    assert commands(experiment, records, unfinished=unfinished)["error"] == f"{PAPER} --variant plain-20"


def test_derived_run_needs_the_runs_it_consumes(declare):
    declared = declare(*OF_PAIR, *SIX_SEEDS)
    assert commands(declared)["error"] == f"{PAPER} --variant plain-20"
    assert commands(declared, derived_records(declared, "pair", [9.4, 9.5, 9.6]))["error"] == ""
