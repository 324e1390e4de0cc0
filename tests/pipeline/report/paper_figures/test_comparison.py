"""Test figures that compare networks: the paper's values are those of its tables, captions name the data."""

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.densenet import densenet_figures
from pipeline.report.paper_figures.figure_data import paper_value
from pipeline.report.paper_figures.fractalnet import fractalnet_figures
from pipeline.report.paper_figures.resnext import resnext_figures
from pipeline.report.paper_figures.squeezenet import squeezenet_figures
from pipeline.report.paper_figures.wide_resnet import wide_resnet_figures
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import by_name, figure_data, made_up_records

WIDTHS_OF_40_LAYERS = {1: 6.85, 2: 5.33, 4: 4.97, 8: 4.66}  # arXiv:1605.07146, Table 4
PATHS_OF_50_LAYERS = {1: 23.9, 2: 23.0, 4: 22.6, 8: 22.3, 32: 22.2}  # arXiv:1611.05431, Table 3
COLUMNS = {5: 37.23, 10: 32.85, 20: 31.31, 40: 31.75}  # arXiv:1605.07648, Table 4
GROWTH_12_AND_24 = [5.24, 4.1, 3.74]  # arXiv:1608.06993, Table 2, C10+
SQUEEZE_RATIOS = [80.3, 85.6, 86.0]  # arXiv:1602.07360, Figure 3a: top-5 accuracy with SR of 0.125, 0.5 and 0.75


def figure_of(draw, name, scale, figure, variants=()):
    experiment = load_experiment(name)
    records = made_up_records(experiment, scale, variants, seeds=2)
    return by_name(draw(figure_data([experiment], records)))[figure]


def paper_lines(ax):
    return [line.get_xydata() for line in ax.get_lines() if line.get_marker() == "D"]


def test_widths_are_those_of_table_4_on_axes_of_their_own():
    figure = figure_of(wide_resnet_figures, "wide_resnet/cifar_width", "laptop", "wide-resnet-depth-and-width")
    ours, theirs = drawn_figure(figure).axes
    assert [tuple(point) for point in paper_lines(theirs)[0]] == list(WIDTHS_OF_40_LAYERS.items())
    assert (ours.get_title(), theirs.get_title()) == ("ours: digits, laptop scale", "paper: cifar10")
    assert paper_lines(ours) == []
    assert figure.caption.endswith(
        "Ours: digits, laptop scale; mean and standard deviation over 2 seeds. Diamonds: the paper's numbers, on"
        " cifar10, on axes of their own; they cannot be compared."
    )


def test_cardinality_at_equal_cost_is_that_of_table_3():
    figure = figure_of(resnext_figures, "resnext/imagenet", "paper", "resnext-table-3")
    drawn = drawn_figure(figure, laid_out=True)
    [ax] = drawn.axes
    assert [tuple(point) for point in paper_lines(ax)[0]] == list(PATHS_OF_50_LAYERS.items())
    assert ax.get_title() == "imagenet, paper scale"
    assert [tick.get_text() for tick in ax.get_xticklabels()][:2] == ["1 x 64d", "2 x 40d"]
    assert covered(drawn) == []


def test_columns_are_those_of_table_4():
    variants = ["fractal-40", "fractal-plain-20", "fractal-plain-40"]
    figure = figure_of(fractalnet_figures, "fractalnet/cifar", "paper", "fractalnet-columns", variants)
    [ax] = drawn_figure(figure).axes
    assert [tuple(point) for point in paper_lines(ax)[1]] == list(COLUMNS.items())
    [plain, columns, fractal] = [line.get_xydata() for line in ax.get_lines() if line.get_marker() == "o"]
    assert [len(plain), len(columns), len(fractal)] == [2, 4, 1]
    assert figure.caption.endswith("Diamonds: the paper's numbers on the same data.")


@pytest.mark.parametrize(
    ("confidence", "how"), [("memory", "quoted from memory"), ("figure", "read off a figure")]
)
def test_a_number_that_was_not_read_in_the_paper_is_named(confidence, how):
    experiment = load_experiment("fractalnet/cifar")
    claims = [
        claim.model_copy(update={"confidence": confidence}) if claim.id == "fractal-plain-20-top1" else claim
        for claim in experiment.claims
    ]
    records = made_up_records(experiment, "paper", ["fractal-plain-20", "fractal-plain-40"], seeds=2)
    data = figure_data([experiment.model_copy(update={"claims": claims})], records)
    caption = by_name(fractalnet_figures(data))["fractalnet-columns"].caption
    assert caption.endswith(f"Some of the paper's numbers are {how}.")


def test_densenets_are_drawn_by_parameters_and_by_operations():
    figure = figure_of(densenet_figures, "densenet/cifar", "paper", "densenet-capacity")
    parameters, operations = drawn_figure(figure).axes
    for ax in (parameters, operations):
        assert sorted(paper_lines(ax)[0][:, 1], reverse=True) == GROWTH_12_AND_24
    assert parameters.get_xlabel() == "parameters (millions)"
    assert operations.get_xlabel() == "multiply-adds per image (10⁹)"


def test_squeezenets_are_drawn_by_size_with_labels_that_cover_nothing():
    figure = figure_of(squeezenet_figures, "squeezenet/design_space", "paper", "squeezenet-figure-3")
    drawn = drawn_figure(figure, "dark", laid_out=True)
    ratios, shares = drawn.axes
    assert sorted(paper_lines(ratios)[0][:, 1]) == pytest.approx(SQUEEZE_RATIOS)
    assert {"SR 0.125", "SR 0.75"} <= {text.get_text() for text in ratios.texts}
    assert {"1 %", "99 %"} <= {text.get_text() for text in shares.texts}
    assert covered(drawn) == []


def test_one_network_is_no_comparison():
    experiment = load_experiment("resnext/cifar")
    records = made_up_records(experiment, "laptop", ["resnext-29-1x64d"])
    figure = by_name(resnext_figures(figure_data([experiment], records)))["resnext-figure-7"]
    assert figure.missing == (
        "No scale has finished runs of 2 of its networks; start them with: repro run resnext/cifar --scale laptop."
    )


def test_papers_value_is_that_of_the_first_protocol():
    resnet = load_experiment("resnet/imagenet")
    assert paper_value(resnet, "resnet-34") == 24.52  # 10 crops, Table 3: ResNet-34 B
    assert paper_value(resnet, "resnet-34", "test/top5_error_pct") == 7.46
    assert paper_value(load_experiment("resnet/cifar10_depth"), "resnet-20-wd-1e-5") is None  # the lecture's
