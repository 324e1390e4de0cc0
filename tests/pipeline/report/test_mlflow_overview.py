"""Tables of all papers: the paper's errors beside ours, and no difference between unlike things."""

from dataclasses import replace

import pytest

from pipeline.report.error_chart import top5_figure
from pipeline.report.mlflow_overview import error_pairs, pair_cells
from tests.support.leaderboard_rows import ROW


def test_a_pair_has_the_paper_s_error_ours_and_their_difference():
    [pair] = error_pairs([ROW], "top5")
    cells = pair_cells(pair)
    assert (cells["paper %"], cells["ours %"], cells["ours - paper"]) == ("0.40", "0.50", "")  # changed by --set
    as_declared = replace(ROW, departs="")
    assert pair_cells(error_pairs([as_declared], "top5")[0])["ours - paper"] == "+0.10"
    assert pair_cells(error_pairs([as_declared], "top1")[0])["ours - paper"] == "+0.03"


@pytest.mark.parametrize("other", [{"scale": "laptop"}, {"data": "digits"}])
def test_there_is_no_difference_at_another_scale_or_on_other_data(other):
    [pair] = error_pairs([replace(ROW, departs="", **other)], "top5")
    assert pair_cells(pair)["ours - paper"] == ""


def test_rows_without_one_of_the_errors_are_left_out():
    assert error_pairs([replace(ROW, paper_top5=None), replace(ROW, top5=None, runs=("c",))], "top5") == []


def test_the_figure_has_both_errors_of_each_network_in_order():
    figure = top5_figure([("resnet-34", 7.7, 8.0), ("vgg-16", 8.5, 8.4)])
    [ax] = figure.axes
    paper, ours = ([tuple(point) for point in one.get_offsets()] for one in ax.collections)
    assert (paper, ours) == ([(7.7, 0), (8.5, 1)], [(8.0, 0), (8.4, 1)])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["resnet-34", "vgg-16"]
    assert ax.get_xlim()[0] == 0


def test_a_long_figure_says_how_many_networks_are_left_out():
    figure = top5_figure([(f"n{number}", 5.0, 6.0) for number in range(45)])
    assert "5 more networks are in the table" in figure.axes[0].get_title()
