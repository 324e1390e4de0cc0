"""Test cells of tables, counts of outcomes, headlines, next steps, and Markdown."""

from dataclasses import replace

import pytest

from pipeline.judge.ledger import ledger
from pipeline.judge.verdict import Outcome, Reason, cannot_judge
from pipeline.report.leaderboard import build_leaderboard
from pipeline.report.text import (
    MARKS,
    claim_counts,
    duration_text,
    headlines,
    leaderboard_cells,
    markdown,
    next_step_text,
    outcome_counts,
    runs_text,
    short_commit,
    short_number,
    verdict_cells,
    without_empty_columns,
)


@pytest.fixture
def experiment(declare):
    """The small experiment with three seeds: at paper scale all of them must have run."""
    return declare("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2]")


@pytest.fixture
def entries(experiment, seed_records):
    """Return the ledger's entries by claim id, with three seeds of two networks."""
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


def test_row_of_the_leaderboard(experiment, seed_records):
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.4, 9.5, 9.9], scale="laptop"))
    assert cells == {
        "network": "plain-20",
        "top-1 error %": "9.60 ± 0.26",  # sqrt(0.07)
        "top-5 error %": "0.96",
        "training error %": "4.80",
        "paper top-1 %": "9.5 (cifar10)",
        "difference": "",
        "verdict": "",
        "seeds": "3",
        "images": "10,000",
        "test-set noise": "± 0.29",  # 100 sqrt(0.096 * 0.904 / 10000)
        "parameters": "",
        "multiply-adds": "",
        "time per run": "60 s",
        "scale": "laptop",
        "data": "digits",
    }


def test_empty_columns_are_left_out():
    assert without_empty_columns([{"a": "", "b": "1", "c": ""}, {"a": "", "b": "", "c": "2"}]) == [
        {"b": "1", "c": ""},
        {"b": "", "c": "2"},
    ]
    assert without_empty_columns([]) == []


@pytest.mark.parametrize(
    ("number", "text"),
    [(640, "640"), (269_722, "270 k"), (999_700, "1,000 k"), (25_557_032, "25.6 M"), (4_089_184_256, "4.09 G")],
)
def test_short_numbers_have_three_digits(number, text):
    assert short_number(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (210, "3.5 min"), (25_920, "7.2 h")])
def test_durations_have_the_largest_unit_that_fits(seconds, text):
    assert duration_text(seconds) == text


def test_difference_has_its_interval(experiment, seed_records):
    """t(0.95) with 2 degrees of freedom is 2.920; 2.920 x 0.1 / sqrt(3) = 0.169."""
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.6, 9.7, 9.8]))
    assert cells["difference"] == "+0.20 (+0.03 to +0.37)"
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.4]))
    assert cells["difference"] == "-0.10"


def test_data_cell_has_the_protocol(experiment, seed_records):
    (row,) = build_leaderboard([experiment], seed_records(experiment, "plain-20", [9.5]))
    cells = leaderboard_cells(replace(row, data="imagenet", protocol="10-crop-224-of-256"))
    assert cells["data"] == "imagenet, 10-crop-224-of-256"


def test_papers_number_on_the_same_data_has_no_data_set(experiment, seed_records):
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.5]))
    assert cells["paper top-1 %"] == "9.5"
    assert cells["top-1 error %"] == "9.50"  # one seed: no spread


def test_change_by_set_is_in_the_networks_name(experiment, seed_records):
    (cells,) = cells_of(experiment, seed_records(experiment, "plain-20", [9.5], changes={"train.lr": 0.05}))
    assert cells["network"] == "plain-20 [train.lr=0.05]"


def test_diverged_seeds_are_shown(experiment, seed_records, record):
    gone = record(experiment, "plain-20", 1, 0.0, status="not converged", metrics={})
    (cells,) = cells_of(experiment, [*seed_records(experiment, "plain-20", [9.5]), gone])
    assert cells["seeds"] == "1 (+1 diverged)"
    (cells,) = cells_of(experiment, [gone])
    assert (cells["top-1 error %"], cells["seeds"]) == ("did not converge", "0 (+1 diverged)")
    assert (cells["top-5 error %"], cells["images"], cells["test-set noise"]) == ("", "", "")


def test_verdict_shows_source_and_mark(entries):
    assert verdict_cells(entries["size"])["source"] == "Table 6"
    assert verdict_cells(entries["decay"])["source"] == "lecture; notes"
    assert verdict_cells(entries["error"])["source"] == "Figure 6 (read from a figure)"
    assert verdict_cells(entries["size"])["verdict"] == "✔ confirmed"
    assert verdict_cells(entries["decay"])["verdict"] == "! erratum"
    assert verdict_cells(entries["prize"])["verdict"] == "– cannot judge: no-labels"


def test_counting_rule_is_shown(declare):
    declared = declare("margin: 5000", 'margin: 5000, rule: "biases too."')
    entry = ledger(declared, [], lambda metric, experiment, variant: 269_722 if "model" in metric else 1e-4)[0]
    assert verdict_cells(entry)["evidence"].endswith("the claimed 270,000 ± 5,000. Counting rule: biases too.")


def test_verdict_names_its_runs(entries):
    assert runs_text(entries["size"]) == ""
    assert runs_text(entries["error"]) == "paper scale on cifar10, 3 runs, commit 01234567"
    assert runs_text(entries["deeper"]) == "paper scale on cifar10, 6 runs, commit ffffffff-dirty, 01234567"


def test_consumed_runs_are_counted_apart(entries):
    evidence = replace(entries["error"].evidence, runs=("a", "b", "c", "d"), members=("c", "d"))
    text = runs_text(replace(entries["error"], evidence=evidence))
    assert text == "paper scale on cifar10, 2 runs (made from 2 others), commit 01234567"


def test_every_outcome_has_a_mark():
    assert set(MARKS) == set(Outcome)


@pytest.mark.parametrize(
    ("commit", "short"),
    [("0123456789abcdef", "01234567"), ("0123456789abcdef-dirty", "01234567-dirty"), ("unknown", "unknown")],
)
def test_short_commit_keeps_dirty(commit, short):
    assert short_commit(commit) == short


def test_counts_are_in_a_fixed_order(entries):
    trained = [entries[key] for key in ("error", "stuck", "deeper", "ratio", "prize")]
    for order in (trained, trained[::-1]):
        assert outcome_counts(order) == "4 reproduced, 1 cannot judge (1 no-labels)"
    assert outcome_counts([entries["decay"]] * 2 + [entries["size"]]) == "1 confirmed, 2 errata"
    assert outcome_counts([]) == "no claims"


def test_reasons_are_counted(entries):
    open_claim = entries["prize"]
    underpowered = replace(open_claim, verdict=cannot_judge(Reason.UNDERPOWERED, ""))
    assert outcome_counts([open_claim, underpowered, open_claim]) == "3 cannot judge (2 no-labels, 1 underpowered)"


def test_headlines_count_each_category_apart(entries):
    assert headlines(list(entries.values())) == [
        "Arithmetic: 1 confirmed - shapes, counts and printed values, compared exactly",
        "Recipe: 1 erratum - our settings compared with the printed ones, not results",
        "Trained: 4 reproduced, 1 cannot judge (1 no-labels) - results of training, judged by statistics over"
        " seeds",
    ]
    assert [line.partition(":")[0] for line in headlines([entries["decay"]])] == ["Recipe"]
    assert claim_counts([entry.claim for entry in entries.values()]) == "1 arithmetic, 1 recipe, 5 trained"


@pytest.mark.parametrize(
    ("reason", "command", "text"),
    [
        (Reason.NOT_RUN, "repro run x", "To judge it: repro run x"),
        (
            Reason.UNDERPOWERED,
            "",
            "No command would judge it: the declared seeds do not suffice, and at paper scale only they count.",
        ),
        (Reason.RECIPE_DEPARTS, "", "No command would judge it: the declared recipe departs from the paper's."),
        (
            Reason.RECIPE_UNSPECIFIED,
            "",
            "No command would judge it: the source leaves a setting open that could change the result.",
        ),
    ],
)
def test_next_step_of_a_claim_without_a_verdict(entries, reason, command, text):
    entry = replace(entries["error"], verdict=cannot_judge(reason, ""), command=command)
    assert next_step_text(entry) == text


def test_judged_open_and_exact_claims_have_no_next_step(entries):
    assert {next_step_text(entries[key]) for key in ("error", "deeper", "prize", "size", "decay")} == {""}
    recalled = replace(entries["size"], verdict=cannot_judge(Reason.PROTOCOL_UNSPECIFIED, ""))
    assert next_step_text(recalled) == ""


def test_markdown_table():
    rows = [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert markdown(rows) == "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"
    assert markdown(rows, ["b"]) == "| b |\n|---|\n| 2 |\n| 4 |"
    assert markdown([]) == ""


def test_markdown_escapes_bars_and_joins_lines():
    table = markdown([{"a": "p | q\nr", "b": "x"}])
    assert table.splitlines() == ["| a | b |", "|---|---|", "| p \\| q r | x |"]
