"""Test Figures 3, 7 and 8 of the paper on stochastic depth."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.lecture import lecture_figures
from pipeline.report.paper_figures.stochastic_depth import LABELS, stochastic_depth_figures
from tests.support.figure_boxes import drawn_figure
from tests.support.figure_runs import by_name, figure_data, made_up_records


@pytest.fixture(scope="module")
def declared():
    """Both experiments."""
    return [load_experiment(f"stochastic_depth/{name}") for name in ("cifar", "survival")]


def test_figures_3_and_7_compare_constant_and_stochastic_depth(declared):
    records = made_up_records(declared[0], "paper", list(LABELS), seeds=1)
    found = by_name(stochastic_depth_figures(figure_data(declared, records)))
    error, loss = drawn_figure(found["stochastic-depth-figure-3"]).axes
    marks = [line.get_ydata()[0] for line in error.get_lines() if line.get_marker() == "D"]
    assert marks == [6.41, 5.25]  # arXiv:1603.09382, Table 1
    assert not [line for line in loss.get_lines() if line.get_marker() == "D"]
    [gradients] = drawn_figure(found["stochastic-depth-figure-7"]).axes
    names = [text.get_text() for text in gradients.get_legend().get_texts()]
    assert names == ["constant depth", "stochastic depth"]
    caption = found["stochastic-depth-figure-3"].caption
    assert caption.startswith("Top-1 test error (left) and training loss (right) against optimizer steps")
    assert caption.endswith("Diamonds: the paper's errors after training.")
    assert gradients.get_ylabel() == "mean gradient magnitude, cifar10"


def test_figure_8_joins_both_experiments_only_if_their_recipes_are_the_same(declared):
    cifar, survival = declared
    for scale, expected in (("paper", [0.2, 0.5]), ("laptop", [0.2])):  # at laptop scale the steps differ
        records = [
            *made_up_records(survival, scale, ["stochastic-depth-110-0.2", "stochastic-depth-110-uniform-0.2"]),
            *made_up_records(cifar, scale, ["stochastic-depth-110", "stochastic-depth-110-uniform"]),
        ]
        figure = by_name(stochastic_depth_figures(figure_data(declared, records)))["stochastic-depth-figure-8"]
        ours = drawn_figure(figure).axes[0]
        lines = [line.get_xdata().tolist() for line in ours.get_lines() if line.get_marker() == "o"]
        assert lines == [expected, expected], scale
        apart = "on cifar10, on axes of their own; they cannot be compared."
        assert figure.caption.endswith(apart) == (scale == "laptop")
        assert ours.get_xlim() == pytest.approx((0.15, 1.05))  # all p_L of the paper, also with one point


def test_gradients_of_the_lecture_are_drawn_like_figure_7():
    gradients = load_experiment("lecture/gradients")
    [figure] = lecture_figures(figure_data([gradients], made_up_records(gradients, "laptop")))
    [ax] = drawn_figure(figure).axes
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["with dense connections", "without, same filters", "without, as many parameters"]
