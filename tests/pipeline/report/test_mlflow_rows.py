"""Rows of the leaderboard as runs of networks: order, numbers, texts, and the runs of the seeds."""

import random
from dataclasses import replace

import pytest

from pipeline.judge.verdict import Outcome
from pipeline.report.leaderboard import build_leaderboard, ranked
from pipeline.report.mlflow_rows import network_runs, rank_key, row_key, row_metrics, row_tags, with_trends
from tests.support.fake_records import fake_record
from tests.support.ledgers import judge_by_id


@pytest.fixture
def rows(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", [9.0, 10.0, 11.0]),
        *seed_records(experiment, "resnet-20", [8.0, 9.0]),
    ]
    return build_leaderboard([experiment], records)


def test_rows_sort_by_rank_as_the_leaderboard_ranks_them(rows):
    [row, _] = rows
    made = [
        replace(row, scale=scale, data=data, top1=error, runs=(str(error),))
        for scale in ("laptop", "paper", "gpu")
        for data in ("cifar10", "digits")
        for error in (0.05, 9.5, 10.25, 100.0, None)
    ]
    expected = [row for group in ranked(made) for row in group]
    random.Random(0).shuffle(made)
    assert sorted(made, key=rank_key) == expected


def test_numbers_of_a_row_are_means_over_seeds_with_two_decimals(rows):
    [found] = [row_metrics(row) for row in rows if row.variant == "plain-20"]
    assert (found["test/top1_error_pct"], found["spread"], found["seeds"]) == (10.0, 1.0, 3.0)
    third = replace(rows[0], top1=10 / 3, difference=-0.001)
    assert row_metrics(third)["test/top1_error_pct"] == 3.33
    assert str(row_metrics(third)["difference"]) == "0.0"


def test_a_row_has_no_number_that_was_not_measured(rows):
    diverged = replace(rows[0], top1=None, top1_std=None, top5=None, images=0, seeds=0, diverged=2)
    found = row_metrics(diverged)
    assert not found.keys() & {"test/top1_error_pct", "test/top5_error_pct", "spread", "images"}
    assert (found["seeds"], found["diverged"]) == (0.0, 2.0)


def test_texts_of_a_row_are_left_out_if_empty(rows):
    tags = row_tags(replace(rows[0], verdict="", protocol="", departs=""))
    assert not tags.keys() & {"repro.verdict", "repro.protocol", "repro.changes"}
    assert row_tags(replace(rows[0], verdict="reproduced"))["repro.verdict"] == "reproduced"


def test_a_network_has_the_runs_of_its_seeds(experiment, seed_records, rows):
    records = [
        *seed_records(experiment, "plain-20", [9.0, 10.0, 11.0]),
        *seed_records(experiment, "resnet-20", [8.0, 9.0]),
    ]
    found = {network.name: network for network in network_runs(rows, records)}
    assert found["plain-20"].run_ids == tuple(f"mlflow-plain-20-{seed}" for seed in range(3))
    assert found["resnet-20"].run_ids == tuple(f"mlflow-resnet-20-{seed}" for seed in range(2))
    untracked = [replace(record, run_id="") for record in records]
    assert [network.run_ids for network in network_runs(rows, untracked)] == [(), ()]


def test_runs_are_below_the_row_of_the_first_protocol_only(experiment, seed_records, rows):
    records = seed_records(experiment, "plain-20", [9.0, 10.0, 11.0])
    [row] = [row for row in rows if row.variant == "plain-20"]
    first, second = network_runs([row, replace(row, protocol="10-crop")], records)
    assert first.run_ids == second.run_ids
    assert (first.is_parent, second.is_parent) == (True, False)
    assert first.key != second.key


def test_runs_changed_by_set_are_a_network_of_their_own(experiment, record, rows):
    [row] = [row for row in rows if row.variant == "plain-20"]
    records = [
        record(experiment, "plain-20", 0, 9.0, identity=name, run_id=f"mlflow-{name}")
        for name in ("declared", "changed")
    ]
    rows = [replace(row, runs=("declared",)), replace(row, runs=("changed",), departs="train.lr=0.05")]
    one, other = network_runs(rows, records)
    assert (one.name, one.run_ids) == ("plain-20", ("mlflow-declared",))
    assert (other.name, other.run_ids) == ("plain-20 [train.lr=0.05]", ("mlflow-changed",))


def test_a_key_has_no_quotes(rows):
    assert row_key(replace(rows[0], departs="""a='b"c'""")).endswith("|a=bc")


def test_below_paper_scale_a_row_has_the_trends_of_the_claims_about_its_network(declare):
    """The claims `stuck`, `deeper` and `ratio` are about plain-32, the last two about plain-20 too."""
    experiment = declare()
    records = [
        fake_record(experiment, variant, seed, error + seed / 10, scale="laptop")
        for variant, error in {"plain-20": 9.5, "plain-32": 10.5, "resnet-20": 8.0}.items()
        for seed in range(5)
    ]
    rows = build_leaderboard([experiment], records)
    entries = list(judge_by_id(experiment, records, scales=["laptop"]).values())
    outcomes = {entry.claim.id: entry.verdict.outcome for entry in entries}
    assert (outcomes["deeper"], outcomes["error"]) == ("trend supported", "cannot judge")
    found = {row.variant: row.verdict for row in with_trends(rows, entries)}
    assert found["resnet-20"] == ""
    assert found["plain-20"] == "trend supported (1)"
    changed = [replace(row, departs="train.steps=1") for row in rows]
    assert {row.verdict for row in with_trends(changed, entries)} == {""}


def test_trends_of_both_kinds_are_counted_and_a_verdict_of_the_network_is_kept(declare):
    experiment = declare()
    records = [
        fake_record(experiment, variant, seed, error + seed / 10, scale="laptop")
        for variant, error in {"plain-20": 10.5, "plain-32": 9.5}.items()
        for seed in range(5)
    ]
    [row] = [row for row in build_leaderboard([experiment], records) if row.variant == "plain-20"]
    entries = list(judge_by_id(experiment, records, scales=["laptop"]).values())
    [deeper] = [entry for entry in entries if entry.claim.id == "deeper"]
    supported = replace(deeper, verdict=replace(deeper.verdict, outcome=Outcome.TREND))
    [both] = with_trends([row], [deeper, supported, deeper])
    assert both.verdict == "trend supported (1), trend not supported (2)"
    assert with_trends([replace(row, verdict="reached")], entries)[0].verdict == "reached"
