"""Test figures of the error against the number of averaged networks."""

from dataclasses import replace

import pytest

from pipeline.report.paper_figures.ensembles import ensemble_figure, ensemble_figures
from pipeline.report.paper_figures.figure_data import scale_runs
from tests.support.fake_records import fake_record
from tests.support.figure_boxes import drawn_figure
from tests.support.figure_runs import figure_data
from tests.support.ledgers import derived_records

SIZES = "derived:\n  sizes: {kind: ensemble-sizes, members: {plain-20: 3}, sizes: [1, 3]}\nscales:\n"


def sizes_records(declared, rows):
    [record] = derived_records(declared, "sizes", [1.0], seeds=3)
    return [replace(record, metrics=metrics) for metrics in rows]


def test_line_is_the_mean_and_band_the_spread(declare):
    rows = [
        {f"test/of-{size}/top1_error_pct{end}": value for size, end, value in found}
        for found in (
            [(1, "", 9.0), (1, "_std", 0.5), (3, "", 8.0), (3, "_std", 0.0)],
            [(1, "", 10.0), (1, "_std", 1.0), (3, "", 8.5), (3, "_std", 0.0)],
        )
    ]
    declared = declare("scales:\n", SIZES)
    figure = ensemble_figure(scale_runs(declared, "paper", sizes_records(declared, rows)))
    assert figure.name == "toy-depth-paper-ensembles"
    drawn = drawn_figure(figure)
    [ax] = drawn.axes
    [line], [band] = ax.get_lines(), ax.collections
    assert line.get_xydata().tolist() == [[1, 9.5], [3, 8.25]]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 8.75), (1.0, 10.25), (3.0, 8.25)} == corners
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["sizes"]
    assert drawn.get_suptitle().startswith("toy/depth at paper scale on cifar10:\n")


def test_ensemble_chosen_on_validation_images_is_a_star(declare):
    greedy = SIZES.replace("3}, sizes: [1, 3]", "3}, sizes: [1], greedy: true")
    declared = declare("scales:\n", greedy, "data: {name: cifar10,", "data: {name: cifar10, val: 100,")
    of_1 = {"test/of-1/top1_error_pct": 9.0, "test/of-1/top1_error_pct_std": 0.5}
    rows = [of_1 | {"greedy/networks": 2.0, "test/greedy/top1_error_pct": 7.5}]
    [ax] = drawn_figure(ensemble_figure(scale_runs(declared, "paper", sizes_records(declared, rows)))).axes
    star = ax.get_lines()[1]
    assert (star.get_marker(), star.get_xydata().tolist()) == ("*", [[2, 7.5]])
    assert star.get_label() == "sizes, chosen on validation images"


def test_without_such_a_derived_run_there_is_no_figure(experiment):
    assert ensemble_figure(scale_runs(experiment, "paper", [fake_record(experiment, "plain-20", 0, 9.0)])) is None
    assert list(ensemble_figures(figure_data([experiment], []))) == []


def test_missing_ensembles_name_the_command(declare):
    [figure] = ensemble_figures(figure_data([declare("scales:\n", SIZES)], []))
    assert figure.missing == "No finished runs; start them with: repro run toy/depth --scale laptop."
    with pytest.raises(AssertionError):
        drawn_figure(figure)
