"""Rows of the leaderboard as runs of networks: order, numbers, texts, and the runs of the seeds."""

import random
from dataclasses import replace

import pytest

from pipeline.report.leaderboard import build_leaderboard, ranked
from pipeline.report.mlflow_rows import network_runs, rank_key, row_key, row_metrics, row_tags


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
