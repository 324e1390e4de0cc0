"""Test lines, bands, marks and limits of panels of curves."""

import pytest

from pipeline.report.paper_figures.error_curves import (
    NO_CURVES,
    POINTS,
    CurveLine,
    CurvePanel,
    across_seeds,
    binned,
    curves_figure,
    drawn_curves,
    spread_text,
)
from pipeline.report.paper_figures.paper_figure import FigureTitle
from pipeline.report.paper_figures.style import THEMES
from tests.support.figure_boxes import drawn_figure

TITLE = FigureTitle("f", "", "", "")
STEPS = range(100, 1100, 100)


def drawn(*lines, **layout):
    panel = CurvePanel("a title", "top-1 error (%)", lines, layout.pop("level", None))
    return drawn_figure(drawn_curves(TITLE, "", [panel], layout.pop("keys", {}), **layout)).axes[0]


def test_line_is_the_mean_and_band_the_range():
    ax = drawn(CurveLine("a", [[(10, 4.0)], [(10, 6.0)], [(10, 5.6)]], 400))
    [line], [band] = ax.get_lines(), ax.collections
    assert line.get_xydata().tolist() == [[10, pytest.approx(5.2)]]
    heights = band.get_paths()[0].vertices[:, 1]
    assert (min(heights), max(heights)) == (4.0, 6.0)


def test_the_seeds_of_a_caption_are_those_that_are_drawn():
    one, two = CurveLine("a", [[(10, 4.0)]], 400), CurveLine("b", [[(10, 4.0)], [(10, 6.0)]], 400)
    assert spread_text([CurvePanel("", "", [one])]) == "one seed"
    assert spread_text([CurvePanel("", "", [two])]) == "mean and range over 2 seeds"
    assert (
        spread_text([CurvePanel("", "", [two]), CurvePanel("", "", [one])]) == "mean and range over 1 to 2 seeds"
    )


def test_diverged_seed_is_drawn_to_its_last_step():
    ax = drawn(CurveLine("a", [[(step, 10.0) for step in STEPS], [(100, 30.0), (200, 90.0)]], 400))
    line = dict(ax.get_lines()[0].get_xydata().tolist())
    assert (line[100], line[200], line[300]) == (20.0, 50.0, 10.0)
    assert list(line) == list(STEPS)


def test_lines_of_one_name_have_one_colour_and_two_styles():
    curve = [[(1, 2.0), (2, 1.0)]]
    ax = drawn(
        CurveLine("a", curve, 40, dashed=True), CurveLine("b", curve, 40, dashed=True), CurveLine("a", curve, 40)
    )
    thin, other, bold = ax.get_lines()
    assert thin.get_color() == bold.get_color() != other.get_color()
    assert (thin.get_linestyle(), bold.get_linestyle()) == ("--", "-")
    assert bold.get_linewidth() > thin.get_linewidth()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_papers_value_is_a_diamond_at_the_last_step():
    ax = drawn(CurveLine("a", [[(1, 9.0), (64000, 7.0)]], 400, paper=6.97))
    mark = ax.get_lines()[1]
    assert (mark.get_marker(), mark.get_linestyle(), mark.get_xydata().tolist()) == ("D", "None", [[64000, 6.97]])
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["paper, after training"]


def test_axis_ends_above_the_values_after_a_fifth_of_the_steps():
    ax = drawn(CurveLine("a", [[(step, 90.0 if step < 200 else 10.0) for step in STEPS]], 400))
    assert ax.get_ylim() == pytest.approx((0, 10.8))
    assert drawn(CurveLine("a", [[(10, 99.0)]], 400)).get_ylim() == (0, 100)


def test_level_is_inside_the_axes():
    ax = drawn(CurveLine("a", [[(10, 5.0)]], 400), level=25.0)
    assert ax.get_ylim()[1] > 25
    assert ax.get_lines()[1].get_ydata() == [25.0, 25.0]


def test_panels_without_lines_are_missing():
    assert drawn_curves(TITLE, "", [CurvePanel("", "", [])], {}).missing == NO_CURVES


def test_panels_stand_in_rows():
    panels = [CurvePanel(f"{i}", "loss", [CurveLine("a", [[(10, float(i + 1))]], 40)]) for i in range(3)]
    figure = curves_figure(panels, THEMES["light"], share_y=False)
    assert [ax.get_title() for ax in figure.axes if ax.get_visible()] == ["0", "1", "2"]
    assert [ax.get_ylim()[1] for ax in figure.axes[:3]] == pytest.approx([1.08, 2.16, 3.24])


def test_binned():
    assert binned([[(1, 1.0), (2, 3.0), (3, 8.0)]], 2) == [[(1, 1.0), (3, 5.5)]]  # parts of 1.5 steps
    assert binned([[(1, 1.0), (2, 3.0)]], 2) == [[(1, 1.0), (2, 3.0)]]
    [long] = binned([[(step, float(step)) for step in range(1, 20 * POINTS["train"] + 1)]], POINTS["train"])
    assert (len(long), long[0]) == (POINTS["train"], (20, 10.5))  # mean of steps 1 to 20, at step 20


def test_a_seed_that_ended_early_is_averaged_at_the_steps_of_the_others():
    full = [(step, 100.0 - step) for step in range(1, 101)]
    steps, (mean, *_) = across_seeds(binned([full, full, full[:50]], 40))  # all three have the same values
    assert len(steps) == 40
    assert mean == sorted(mean, reverse=True)
