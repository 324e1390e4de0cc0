"""Test the chart of the winners of ILSVRC: published numbers, and ours only where a network was trained."""

from dataclasses import replace

import pytest

from pipeline.declare.load import EXPERIMENTS, load_experiment
from pipeline.declare.printed import load_printed
from pipeline.judge.collect import judge_experiments
from pipeline.report.winners import CHART, charted_claims, winner_cells, winners
from tests.support.leaderboard_rows import ROW

OURS = replace(
    ROW,
    experiment="alexnet/imagenet",
    variant="alexnet",
    data="imagenet",
    protocol="10-crop-227-of-256",
    top1=40.9,
    top5=18.4,
    paper=40.7,
    paper_top5=18.2,
    paper_data="imagenet",
    images=50_000,
    departs="",
)


@pytest.fixture(scope="module")
def chart():
    """Return the chart's experiment, what is printed, and the verdicts on its errors."""
    experiment, printed = load_experiment(CHART), load_printed(EXPERIMENTS / "ilsvrc")
    return experiment, printed, judge_experiments([charted_claims(experiment, printed)], [])


def by_network(chart, *rows):
    return {row.network: row for row in winners(*chart, rows)}


def test_only_claims_about_errors_are_judged_without_a_network(chart):
    assert {entry.claim.id for entry in chart[2]} == {
        *("chart-2010", "chart-2011", "chart-2012", "chart-2013_zfnet", "chart-2014_vgg", "chart-2014"),
        *("chart-2015", "chart-human"),
    }


def test_bars_are_in_the_order_of_the_years(chart):
    years = [row.year for row in winners(*chart, [])]
    assert years == [2010, 2011, 2012, 2013, 2014, 2014, 2015, None]


def test_ours_is_the_lowest_error_of_the_network_at_paper_scale(chart):
    others = [
        replace(OURS, protocol="1-crop-227-of-256", top5=20.1),
        replace(OURS, scale="stand-in", top5=1.0),
        replace(OURS, data="imagenet-standin", top5=1.1),
        replace(OURS, departs="train.lr=0.5", top5=1.2),
        replace(OURS, variant="alexnet-5", top5=1.3),
        replace(OURS, protocol="diverged", top5=None),
    ]
    row = by_network(chart, *others, OURS)["alexnet"]
    assert (row.ours_top5, row.ours_protocol, row.ours_experiment) == (18.4, OURS.protocol, "alexnet/imagenet")
    assert winner_cells(row)["ours"] == "18.40 (alexnet/imagenet alexnet)"


def test_without_runs_nothing_is_shown_as_ours(chart):
    for row in winners(*chart, []):
        assert row.ours_top5 is None
        assert winner_cells(row)["ours"] == ""


def test_a_wrong_number_of_the_lecture_is_an_erratum_beside_the_papers_number(chart):
    row = by_network(chart)["alexnet"]
    assert (row.lecture_top5, row.paper_top5, row.verdict, row.layers) == (16.4, 15.3, "erratum", 8)
    assert winner_cells(row)["source"].startswith("Krizhevsky et al. 2012, Table 2")


def test_a_number_from_memory_says_so(chart):
    [row] = [row for row in winners(*chart, []) if row.year == 2011]
    assert row.confidence == "memory"
    assert winner_cells(row)["source"].endswith("(from memory)")
