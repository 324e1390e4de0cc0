"""Test the lecture's chart of winners: errors of the papers, crosses where the lecture's chart differs."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.ilsvrc import ilsvrc_figures, winner_entries
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import figure_data

DEPTHS = {"alexnet": 8, "zfnet": 8, "vgg-19": 19, "googlenet": 22, "resnet-152": 152}  # the slide


@pytest.fixture(scope="module")
def data():
    """The input of the chart."""
    experiment = load_experiment("ilsvrc/architecture")
    return figure_data([experiment], [], measure=lambda metric, declared, variant: DEPTHS[variant])


def test_errors_are_the_papers_and_depths_those_of_the_networks(data):
    found = {entry.label: (entry.error, entry.depth) for entry in winner_entries(data, data.experiments[0])}
    assert found["2012\nAlexNet"] == (15.3, 8)
    assert found["2014\nGoogLeNet"] == (6.67, 22)
    assert found["2015\nResNet"] == (3.57, 152)
    assert found["human"] == (5.1, None)


def test_lectures_numbers_are_crosses_where_they_differ(data):
    [figure] = ilsvrc_figures(data)
    drawn = drawn_figure(figure, laid_out=True)
    [ax] = drawn.axes
    crosses = {line.get_xdata()[0]: line.get_ydata()[0] for line in ax.get_lines() if line.get_marker() == "X"}
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert {labels[place]: value for place, value in crosses.items()} == {
        "2012\nAlexNet": 16.4,
        "2013\nZFNet": 11.7,
    }
    assert "paper" in [text.get_text() for text in drawn.legends[0].get_texts()]
    assert "No error of this chart is measured here" in figure.caption
    assert covered(drawn) == []
