"""Test that ours and the paper's values share axes only where they are of one data set."""

from pipeline.report.paper_figures.panels import Panel, Point, Series, beside_paper, panels_figure
from pipeline.report.paper_figures.style import THEMES, figure_style

LIGHT = THEMES["light"]
SERIES = Series("40 layers", [Point(2, (5.5, 0.1), 5.3), Point(1, (7.0, 0.2), 6.9), Point(4, None, 5.0)])
PANEL = Panel("width", "k", "error (%)", [SERIES], ticks={1.0: "1", 2.0: "2", 4.0: "4"})


def drawn(panels):
    with figure_style(LIGHT):
        figure = panels_figure(panels, LIGHT)
        figure.canvas.draw()
    return figure


def marked(ax, marker):
    return [line.get_xydata().tolist() for line in ax.get_lines() if line.get_marker() == marker]


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_values_of_one_data_set_share_axes():
    figure = drawn(beside_paper([PANEL], ours="cifar10, paper scale", paper="cifar10", same_data=True))
    [ax] = figure.axes
    assert marked(ax, "o") == [[[1, 7.0], [2, 5.5]]]  # in the order of x
    assert marked(ax, "D") == [[[1, 6.9], [2, 5.3], [4, 5.0]]]
    assert ax.get_title() == "width\ncifar10, paper scale"
    assert legend_texts(figure) == ["ours, mean ± standard deviation", "paper"]


def test_values_of_another_data_set_have_axes_of_their_own():
    figure = drawn(beside_paper([PANEL], ours="digits, laptop scale", paper="cifar10", same_data=False))
    ours, theirs = figure.axes
    assert (ours.get_title(), theirs.get_title()) == ("width\nours: digits, laptop scale", "width\npaper: cifar10")
    assert (marked(ours, "D"), marked(theirs, "o")) == ([], [])
    assert marked(theirs, "D") == [[[1, 6.9], [2, 5.3], [4, 5.0]]]
    assert ours.get_ylim() != theirs.get_ylim()


def test_panels_without_a_number_of_the_paper_are_left_out():
    panel = Panel("", "k", "error (%)", [Series("a", [Point(1, (7.0, 0.2))])])
    [only] = beside_paper([panel], ours="digits, laptop scale", paper="cifar10", same_data=False)
    figure = drawn([only])
    assert legend_texts(figure) == ["ours, mean ± standard deviation"]


def test_error_bars_are_the_standard_deviations():
    [ax] = drawn([PANEL]).axes
    [bars] = ax.collections
    heights = {segment[0][0]: (segment[1][1] - segment[0][1]) / 2 for segment in bars.get_segments()}
    assert {x: round(height, 9) for x, height in heights.items()} == {1: 0.2, 2: 0.1}


def test_series_of_one_name_have_one_colour_in_all_panels():
    other = Series("16 layers", [Point(8, (5.0, 0.1))])
    figure = drawn([Panel("", "k", "e", [SERIES, other]), Panel("", "k", "e", [other])])
    colours = [[line.get_color() for line in ax.get_lines() if line.get_marker() == "o"] for ax in figure.axes]
    assert colours[0][1] == colours[1][0] != colours[0][0]
    assert legend_texts(figure)[:2] == ["40 layers", "16 layers"]
