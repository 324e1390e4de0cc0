"""Test that labels and legends cover nothing, and that the check of it finds a fault."""

import pytest
from matplotlib.lines import Line2D

from pipeline.report.paper_figures.labels import outside_legend, place_labels
from pipeline.report.paper_figures.style import THEMES, figure_style, new_figure
from tests.support.figure_boxes import covered

CROWD = [(1 + 0.03 * i, 1 + 0.03 * (i % 3)) for i in range(8)]  # discs of which several share a place


@pytest.fixture
def axes():
    """Axes with limits, in the light theme."""
    with figure_style(THEMES["light"]):
        figure = new_figure(5.2, 4.0)
        ax = figure.subplots()
        ax.set(xlim=(0, 2), ylim=(0, 2), xlabel="x", ylabel="y")
        yield ax


def laid_out(ax):
    ax.figure.canvas.draw()
    return covered(ax.figure)


def test_labels_of_a_crowd_do_not_cover_each_other(axes):
    axes.scatter(*zip(*CROWD, strict=True))
    names = [f"inception-v{i}" for i in range(len(CROWD))]
    labels = place_labels(axes, CROWD, names, THEMES["light"])
    assert laid_out(axes) == []
    points = axes.transData.transform(CROWD)
    for label in labels:
        assert not any(label.get_window_extent().contains(*point) for point in points), label.get_text()


def test_labels_beside_their_points_would_cover_each_other(axes):
    for i, point in enumerate(CROWD):
        axes.annotate(f"inception-v{i}", point, xytext=(4, 5), textcoords="offset points")
    found = laid_out(axes)
    assert "'inception-v0' covers 'inception-v3'" in found
    assert len(found) > 5


def test_lonely_label_stands_beside_its_point_without_a_leader(axes):
    [label] = place_labels(axes, [(1.0, 1.0)], ["alone"], THEMES["light"])
    assert max(map(abs, label.get_position())) < 30  # points
    assert len(axes.texts) == 1


def test_label_at_the_edge_stays_inside(axes):
    place_labels(axes, [(1.98, 1.98)], ["a rather long name"], THEMES["light"])
    assert laid_out(axes) == []
    [label] = axes.texts
    assert axes.get_window_extent().x1 >= label.get_window_extent().x1


def test_label_avoids_a_line(axes):
    axes.plot([0, 2], [0, 2])
    [label] = place_labels(axes, [(1.0, 1.0)], ["beside the line"], THEMES["light"])
    axes.figure.canvas.draw()
    box = label.get_window_extent()
    line = axes.transData.transform([(x / 100, x / 100) for x in range(201)])
    assert not any(box.contains(*point) for point in line)


def test_legend_has_as_many_columns_as_fit(axes):
    handles = [Line2D([], [], label=f"a network with a long name {i}") for i in range(5)]
    outside_legend(axes.figure, handles)
    assert laid_out(axes) == []
    [legend] = axes.figure.legends
    assert legend._ncols == 2


def test_legend_over_a_line_is_found(axes):
    axes.plot([0, 2], [1, 1], label="hidden")
    axes.legend(loc="center")
    assert laid_out(axes) == ["a legend hides lines of ''"]


def test_text_that_leaves_the_figure_is_found(axes):
    axes.text(1.9, 1.0, "cut off at the right edge of the figure").set_in_layout(False)
    assert laid_out(axes) == ["'cut off at the right edge of the figure' leaves the figure"]
