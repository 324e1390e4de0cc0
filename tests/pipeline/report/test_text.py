"""Tables in words: nothing typed, nothing that breaks a table."""

from dataclasses import replace

import pytest

from pipeline.judge.ledger import ledger
from pipeline.judge.verdict import Outcome
from pipeline.report.leaderboard import build_leaderboard
from pipeline.report.text import (
    MARKS,
    leaderboard_cells,
    markdown,
    outcome_counts,
    runs_text,
    short_commit,
    verdict_cells,
)


@pytest.fixture
def entries(experiment, seed_records):
    records = [
        *seed_records(experiment, "plain-20", [9.4, 9.5, 9.6]),
        *seed_records(experiment, "plain-32", [10.4, 10.5, 10.6], commit="f" * 40 + "-dirty"),
    ]
    return {
        e.claim.id: e
        for e in ledger(experiment, records, lambda metric, *_: 269_722 if "model" in metric else 1e-4)
    }


def cells_of(experiment, records):
    return [leaderboard_cells(row) for row in build_leaderboard([experiment], records)]


def test_a_row_of_the_leaderboard(experiment, seed_records):
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.4, 9.5, 9.9], scale="laptop"))
    assert cells == {
        "network": "plain-20",
        "top-1 error %": "9.60 ± 0.26",  # sqrt(0.07)
        "top-5 error %": "0.96",
        "training error %": "4.80",
        "paper top-1 %": "9.5 (cifar10)",
        "seeds": "3",
        "images": "10,000",
        "test-set noise": "± 0.29",  # 100 sqrt(0.096 * 0.904 / 10000)
        "scale": "laptop",
        "data": "digits",
    }


def test_photographs_are_shown_with_their_protocol(experiment, seed_records):
    (row,) = build_leaderboard([experiment], seed_records(experiment, "plain-20", [9.5]))
    shown = leaderboard_cells(replace(row, data="imagenet", protocol="10-crop-224-of-256"))
    assert shown["data"] == "imagenet, 10-crop-224-of-256"


def test_the_papers_number_stands_alone_where_the_data_are_its_own(experiment, seed_records):
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.5]))
    assert cells["paper top-1 %"] == "9.5"
    assert cells["top-1 error %"] == "9.50"  # one seed: no spread


def test_a_change_by_set_is_seen_in_the_networks_name(experiment, seed_records):
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.5], changes={"train.lr": 0.05}))
    assert cells["network"] == "plain-20 [train.lr=0.05]"


def test_diverged_seeds_are_seen(experiment, seed_records, record):
    gone = record(experiment, "plain-20", 1, 0.0, status="not converged", metrics={})
    (cells,) = cells_of(experiment, [*seed_records(experiment, "plain-20", [9.5]), gone])
    assert cells["seeds"] == "1 (+1 diverged)"
    (cells,) = cells_of(experiment, [gone])
    assert (cells["top-1 error %"], cells["seeds"]) == ("did not converge", "0 (+1 diverged)")
    assert (cells["top-5 error %"], cells["images"], cells["test-set noise"]) == ("", "", "")


def test_a_verdict_says_who_said_it_and_how_it_was_read(entries):
    assert verdict_cells(entries["size"])["source"] == "Table 6"
    assert verdict_cells(entries["decay"])["source"] == "lecture; notes"
    assert verdict_cells(entries["error"])["source"] == "Figure 6 (read off a figure)"
    assert verdict_cells(entries["size"])["verdict"] == "✔ reproduced"
    assert verdict_cells(entries["decay"])["verdict"] == "! erratum"
    assert verdict_cells(entries["prize"])["verdict"] == "– cannot judge: no-labels"


def test_the_counting_rule_is_shown_with_the_arithmetic(declare):
    declared = declare("margin: 5000", 'margin: 5000, rule: "biases too."')
    entry = ledger(declared, [], lambda metric, experiment, variant: 269_722 if "model" in metric else 1e-4)[0]
    assert verdict_cells(entry)["evidence"].endswith("the claimed 270,000 ± 5,000. Counting rule: biases too.")


def test_a_verdict_names_its_runs(entries):
    assert runs_text(entries["size"]) == ""
    assert runs_text(entries["error"]) == "paper on cifar10, 3 runs, commit 01234567"
    assert runs_text(entries["deeper"]) == "paper on cifar10, 6 runs, commit ffffffff-dirty, 01234567"


def test_networks_that_steps_are_made_of_are_counted_apart(entries):
    evidence = replace(entries["error"].evidence, runs=("a", "b", "c", "d"), members=("c", "d"))
    said = runs_text(replace(entries["error"], evidence=evidence))
    assert said == "paper on cifar10, 2 runs (made of 2 more), commit 01234567"


def test_every_outcome_has_a_mark():
    assert set(MARKS) == set(Outcome)


@pytest.mark.parametrize(
    ("commit", "said"),
    [("0123456789abcdef", "01234567"), ("0123456789abcdef-dirty", "01234567-dirty"), ("unknown", "unknown")],
)
def test_a_short_commit_keeps_its_dirt(commit, said):
    assert short_commit(commit) == said


def test_counts_are_in_a_fixed_order(entries):
    both_ways = [list(entries.values()), list(reversed(entries.values()))]
    assert {outcome_counts(some) for some in both_ways} == {"5 reproduced, 1 erratum, 1 cannot judge"}
    assert outcome_counts([]) == "no claims"


def test_a_markdown_table():
    rows = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert markdown(rows) == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"
    assert markdown(rows, ["b"]) == "| b |\n|---|\n| 2 |\n| 4 |"
    assert markdown([]) == ""


def test_neither_a_bar_nor_a_new_line_breaks_a_markdown_table():
    table = markdown([{"a": "p | q\nr", "b": "x"}])
    assert table.splitlines() == ["| a | b |", "|---|---|", "| p \\| q r | x |"]
