"""Test the figure of all judged numbers against the papers'."""

import pytest

from pipeline.judge.verdict import Outcome
from pipeline.report.paper_figures.project import (
    MARKERS,
    MOST_ROWS,
    JudgedNumber,
    judged_figure,
    judged_numbers,
    project_figures,
)
from pipeline.report.paper_figures.style import THEMES, figure_style
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import figure_data
from tests.support.ledgers import AS_GAIN, DEEP, PLAIN, judge_by_id


@pytest.fixture
def entries(experiment, seed_records):
    """The ledger of five runs of plain-20 with a mean error of 9.5 %."""
    return list(judge_by_id(experiment, seed_records(experiment, "plain-20", PLAIN)).values())


def test_numbers_are_the_measured_claims_about_a_printed_number(entries):
    [number] = judged_numbers(entries)
    assert (number.name, number.experiment, number.printed, number.margin) == ("error", "toy/depth", 9.5, 0.5)
    assert number.measured == pytest.approx(9.5)
    assert number.interval[0] < 9.5 < number.interval[1]
    assert number.outcome is Outcome.REPRODUCED


def test_lectures_numbers_and_unjudged_ones_are_left_out(declare, seed_records, experiment):
    by_lecture = declare("kind: metric, says", "kind: metric, by: lecture, says")
    judged = judge_by_id(by_lecture, seed_records(by_lecture, "plain-20", PLAIN))
    assert judged["error"].verdict.measured is not None
    assert judged_numbers(list(judged.values())) == []
    assert judged_numbers(list(judge_by_id(experiment, []).values())) == []


def test_without_numbers_the_figure_says_what_to_run(experiment):
    [figure] = project_figures(figure_data([experiment], []))
    assert figure.paper == ""
    assert figure.missing.endswith("repro run lenet5/mnist --scale paper.")


def test_equal_numbers_lie_on_the_line_and_differences_are_in_margins(entries, experiment):
    [figure] = project_figures(figure_data([experiment], [], entries=entries))
    assert "1 in all (reproduced: 1)" in figure.caption
    scatter, differences = drawn_figure(figure).axes
    line, margin, point = scatter.get_lines()[:3]
    assert list(line.get_xdata()) == list(line.get_ydata())
    assert margin.get_xydata().tolist() == [[9.5, 9.0], [9.5, 10.0]]
    assert point.get_xydata().tolist() == [[9.5, pytest.approx(9.5)]]
    assert [label.get_text() for label in differences.get_yticklabels()] == ["toy: error"]


@pytest.mark.parametrize("count", [MOST_ROWS, 3 * MOST_ROWS])
def test_many_numbers_cover_nothing(count):
    numbers = []
    for i in range(count):
        printed, measured = 2.0 + i, 2.0 + 1.01 * i
        numbers.append(
            JudgedNumber(
                name=f"network-{i}-top1",
                experiment=f"paper_{i % 20}/imagenet",
                metric="test/top1_error_pct",
                printed=printed,
                measured=measured,
                interval=(measured - 0.2, measured + 0.3),
                margin=0.5,
                outcome=list(MARKERS)[i % len(MARKERS)],
                is_error=True,
            )
        )
    with figure_style(THEMES["dark"]):
        figure = judged_figure(numbers, THEMES["dark"])
        figure.canvas.draw()
    assert covered(figure) == []
    rows = count if count <= MOST_ROWS else 20  # one for each number, or for each experiment
    assert len(figure.axes[1].get_yticks()) == rows


def test_a_gain_is_a_difference_and_no_error_rate(declare, seed_records):
    declared = declare(*AS_GAIN)
    runs = [*seed_records(declared, "plain-20", PLAIN), *seed_records(declared, "plain-32", DEEP)]
    numbers = {one.name: one for one in judged_numbers(list(judge_by_id(declared, runs).values()))}
    assert {name: number.is_error for name, number in numbers.items()} == {
        "error": True,
        "deeper": False,
        "ratio": False,
    }
