"""Test the list of all figures: what the lecture and the papers show is there, and every command is a real one."""

import io
import re

import pytest

from pipeline.declare.load import load_all
from pipeline.report.paper_figures.collect import paper_figures
from pipeline.report.paper_figures.paper_figure import DPI, NO_DATES
from pipeline.report.paper_figures.style import THEMES, figure_style, fix_layout
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import made_up_curve, made_up_records, made_up_size, no_weights

ALWAYS = {
    "ours-against-papers", "ilsvrc-winners", "complexity-figure-1", "complexity-figure-2", "complexity-costs",
    "alexnet-figure-1", "alexnet-figure-3", "resnet-figure-1", "resnet-figure-4", "resnet-figure-6",
    "resnet-figure-7", "stochastic-depth-figure-3", "stochastic-depth-figure-7", "stochastic-depth-figure-8",
    "wide-resnet-depth-and-width", "resnext-table-3", "resnext-figure-7", "fractalnet-columns",
    "densenet-figure-3", "densenet-capacity", "densenet-figure-4", "squeezenet-figure-3", "lecture-gradients",
    "resnet-cifar10_depth-ensembles", "alexnet-imagenet-ensembles", "googlenet-imagenet-ensembles",
    "fractalnet-figure-3",
}  # fmt: skip


@pytest.fixture(scope="module")
def experiments():
    """All experiments."""
    return load_all()


def collected(experiments, records, **other):
    return paper_figures(
        experiments, records, [], curves=made_up_curve, weights=no_weights, measure=made_up_size, **other
    )


def test_every_figure_has_a_name_and_without_runs_a_command(experiments):
    found = {figure.name: figure for figure in collected(experiments, [])}
    assert found.keys() >= ALWAYS
    declared = {experiment.name: experiment for experiment in experiments}
    missing = [figure for figure in found.values() if figure.missing]
    assert len(missing) == len(found) - 4  # the four charts of printed values and of built networks
    for figure in missing:
        [(name, scale)] = re.findall(r": repro run (\S+) --scale ([\w-]+)\.$", figure.missing)
        assert scale in declared[name].scales, figure.name
        assert figure.paper in ("", declared[name].folder)


def test_figures_are_those_of_the_chosen_experiments(experiments):
    chosen = [one for one in experiments if one.folder == "squeezenet"]
    names = [figure.name for figure in collected(chosen, [])]
    assert names == ["ours-against-papers", "squeezenet-figure-3"]


def figures_with_runs(experiments, scale):
    """All figures with curves of runs at a scale, apart from those of each experiment, which look alike."""
    chosen = [one for one in experiments if one.trains and scale in one.scales]
    records = [row for one in chosen for row in made_up_records(one, scale, one.variants_at(scale), seeds=2)]
    found = collected(experiments, records, scales=(scale,))
    figures = [figure for figure in found if figure.source and not figure.missing]
    assert len(figures) > 12
    return figures


@pytest.mark.slow
def test_a_dark_svg_file_is_what_matplotlib_draws_in_the_dark_theme(experiments):
    for figure in figures_with_runs(experiments, "laptop"):
        expected = io.BytesIO()
        with figure_style(THEMES["dark"]):
            drawn = drawn_figure(figure, "dark")
            fix_layout(drawn)
            drawn.savefig(expected, format="svg", dpi=DPI, metadata=NO_DATES["svg"])
        same = [without_names(file) for file in (figure.render("svg", "dark"), expected.getvalue())]
        assert same[0] == same[1], figure.name


def without_names(svg):
    """An SVG file with its internal names numbered: Matplotlib derives them from the colours too."""
    names = {}
    return re.sub(
        rb"\b[hmpC_0-9a-f]*[0-9a-f]{10}\b", lambda found: names.setdefault(found[0], b"%d" % len(names)), svg
    )


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "theme"), [("paper", "dark"), ("laptop", "light")])  # one layout in both themes
def test_nothing_is_covered_in_any_figure(experiments, scale, theme):
    figures = figures_with_runs(experiments, scale)
    faults = {figure.name: covered(drawn_figure(figure, theme, laid_out=True)) for figure in figures}
    assert {name: found for name, found in faults.items() if found} == {}
