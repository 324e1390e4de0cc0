"""Test Figure 3 of the FractalNet paper: training loss of plain networks beside a fractal network's columns."""

from dataclasses import replace

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.fractalnet import fractalnet_figures
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import by_name, figure_data, made_up_records

NAME = "fractalnet-figure-3"
COLUMN_LOSSES = {f"train/column-{column}/loss": column / 10 for column in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def experiments():
    """The experiment of the columns, and that of Tables 3 and 4."""
    return [load_experiment("fractalnet/columns"), load_experiment("fractalnet/cifar")]


def records_at(experiment, scale):
    """Return made-up runs; the fractal network's have losses of its columns."""
    rows = made_up_records(experiment, scale, experiment.variants_at(scale))
    return [
        replace(row, metrics=row.metrics | COLUMN_LOSSES) if row.variant == "fractal-40-drop-path" else row
        for row in rows
    ]


def legend_colours(ax):
    return {line.get_label(): line.get_color() for line in ax.get_legend().get_lines()}


def test_plain_networks_are_left_and_columns_right_in_the_colour_of_their_depth(experiments):
    data = figure_data(experiments, records_at(experiments[0], "laptop"))
    figure = by_name(fractalnet_figures(data))[NAME]
    drawn = drawn_figure(figure, laid_out=True)
    plain, columns = (legend_colours(ax) for ax in drawn.axes)
    assert list(plain) == ["20 layers", "40 layers"]
    assert list(columns) == [*(f"column {i}, {5 * 2 ** (i - 1)} layers" for i in (1, 2, 3, 4)), "all mini-batches"]
    assert plain["40 layers"] == columns["column 4, 40 layers"]
    assert plain["20 layers"] == columns["column 3, 20 layers"]
    ends = [line.get_ydata()[-1] for line in drawn.axes[1].get_lines() if line.get_linestyle() == "-"]
    assert ends == pytest.approx(list(COLUMN_LOSSES.values()))
    assert "digits, laptop scale" in figure.caption
    assert "Diamonds" not in figure.caption
    assert covered(drawn) == []


def test_on_the_papers_data_the_losses_of_table_4_are_diamonds(experiments):
    figure = by_name(fractalnet_figures(figure_data(experiments, records_at(experiments[0], "paper"))))[NAME]
    plain, columns = (
        [line.get_ydata()[0] for line in ax.get_lines() if line.get_marker() == "D"]
        for ax in drawn_figure(figure).axes
    )
    assert plain == [0.786, 0.159, 0.037, 0.58]  # Larsson et al. 2016, Table 4
    assert columns == [0.677, 0.141, 0.029, 0.016]
    assert figure.caption.endswith("Diamonds: the paper's losses after training, Table 4.")


def test_without_the_fractal_network_the_figure_names_the_command(experiments):
    plain = made_up_records(experiments[0], "laptop", ["fractal-plain-20", "fractal-plain-40"])
    missing = by_name(fractalnet_figures(figure_data(experiments, plain)))[NAME].missing
    assert missing == "No finished runs; start them with: repro run fractalnet/columns --scale laptop."
