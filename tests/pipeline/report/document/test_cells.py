"""Test cells of the tables: what is claimed and measured as text, sort keys, runs behind a number, cost."""

import pytest

from pipeline.report.document.cells import (
    board_table,
    claimed_text,
    judged_row,
    measured_text,
    printed_table,
    protocol_text,
)
from pipeline.report.document.content import printed_errors
from pipeline.report.leaderboard import build_leaderboard
from tests.support.ledgers import AS_GAIN, DEEP, PLAIN, judge_by_id


@pytest.fixture
def records(experiment, seed_records):
    return [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]


@pytest.mark.parametrize(
    ("claim", "text"),
    [
        ("size", "270,000 ± 5,000"),
        ("error", "9.5 ± 0.5"),
        ("stuck", "> 9"),
        ("deeper", "plain-32 > plain-20"),
        ("ratio", "plain-32 / plain-20: 1.1 ± 0.1"),
        ("prize", ""),
    ],
)
def test_what_a_claim_says_about_the_number(experiment, claim, text):
    assert claimed_text(next(one for one in experiment.claims if one.id == claim)) == text


def test_a_gain_names_both_sides(declare):
    claim = next(one for one in declare(*AS_GAIN).claims if one.id == "deeper")
    assert claimed_text(claim) == "plain-20 lower than plain-32 by 1 ± 0.3"
    assert protocol_text(claim) == "test/top1_error_pct, paired by seed"


def test_a_shape_is_a_product(experiment):
    exact = next(one for one in experiment.claims if one.id == "size")
    assert claimed_text(exact.model_copy(update={"claimed": (64, 112, 112), "margin": 0.0})) == "64 × 112 × 112"


def test_measured_numbers_have_their_interval(experiment, records):
    entries = judge_by_id(experiment, records)
    assert measured_text(entries["error"].verdict).startswith("9.5 (9.4")
    assert measured_text(entries["size"].verdict) == "269,722"
    assert measured_text(entries["prize"].verdict) == ""


def test_a_claim_s_row_leads_to_its_runs(experiment, records):
    row = judged_row(judge_by_id(experiment, records)["error"])
    assert row.runs == tuple(f"plain-20-{seed}-paper" for seed in range(5))
    assert (row.verdict, row.tone, row.outcome, row.category) == ("✔ reproduced", "good", "reproduced", "trained")
    assert row.source == "Figure 6 (read from a figure)"
    assert row.protocol == "test/top1_error_pct, mean over seeds; single view, last model"
    assert (row.claimed_sort, row.ours_sort) == (9.5, pytest.approx(9.5))


def test_the_leaderboard_is_sorted_by_exact_numbers(experiment, records):
    table = board_table(build_leaderboard([experiment], records))
    assert table.caption == "toy/depth: cifar10 at paper scale, 10,000 test images"
    cell = table.rows[0][table.columns.index("top-1 error %")]
    assert cell.text == "9.50 ± 0.07"
    assert cell.sort == pytest.approx(sum(PLAIN) / 5)
    assert cell.runs == tuple(f"plain-20-{seed}-paper" for seed in range(5))
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_another_data_set_of_the_paper_is_named_in_the_caption(experiment, seed_records):
    rows = build_leaderboard([experiment], seed_records(experiment, "plain-20", PLAIN, scale="laptop"))
    caption = "toy/depth: digits at laptop scale, 10,000 test images. The paper's errors are on cifar10"
    assert board_table(rows).caption == caption


def test_printed_errors_stand_beside_ours(experiment, records):
    table = printed_table(printed_errors(judge_by_id(experiment, records).values()))
    assert table.columns == ("network", "test protocol", "paper top-1 %", "our top-1 %", "top-1 verdict")
    assert [cell.text for cell in table.rows[0]] == ["plain-20", "", "9.5", "9.50", "✔ reproduced"]
    nothing = printed_table(printed_errors(judge_by_id(experiment, []).values()))
    assert [cell.text for cell in nothing.rows[0]] == ["plain-20", "", "9.5", "", "– cannot judge: not-run"]
