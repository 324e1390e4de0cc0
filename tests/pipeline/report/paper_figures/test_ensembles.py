"""Test figures of the error against the number of averaged networks."""

from dataclasses import replace

import pytest

from pipeline.declare.load import load_experiment
from pipeline.report.paper_figures.ensembles import compared_panels, drawn_ensembles, ensemble_figures
from pipeline.report.paper_figures.figure_data import scale_runs
from pipeline.report.result_figures import figure_titles
from tests.support.fake_records import fake_record
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import figure_data, made_up_records
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
    [figure] = drawn_ensembles(scale_runs(declared, "paper", sizes_records(declared, rows)))
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
    [figure] = drawn_ensembles(scale_runs(declared, "paper", sizes_records(declared, rows)))
    [ax] = drawn_figure(figure).axes
    star = ax.get_lines()[1]
    assert (star.get_marker(), star.get_xydata().tolist()) == ("*", [[2, 7.5]])
    assert star.get_label() == "sizes, chosen on validation images"


def test_without_such_a_derived_run_there_is_no_figure(experiment):
    assert drawn_ensembles(scale_runs(experiment, "paper", [fake_record(experiment, "plain-20", 0, 9.0)])) == []
    assert list(ensemble_figures(figure_data([experiment], []))) == []


GOOGLENET = {  # Szegedy et al. 2014, Table 3: top-5 errors of 1 and 7 networks by crops
    "1-crop-224-of-square-256": (10.07, 8.09),
    "10-crop-224-of-square-256": (9.15, 7.62),
    "144-crop-224-of-256-288-320-352": (7.89, 6.67),
}


def panel_points(panel, what):
    return {
        series.name: {point.x: getattr(point, what) for point in series.points if getattr(point, what) is not None}
        for series in panel.series
    }


def test_googlenets_are_beside_table_3_by_crops():
    declared = load_experiment("googlenet/imagenet")
    records = made_up_records(declared, "paper", seeds=7)
    [figure] = ensemble_figures(figure_data([declared], records))
    assert (figure.source, figure.name) == ("Table 3", "googlenet-imagenet-paper-ensembles")
    [top5] = compared_panels(scale_runs(declared, "paper", records).only(["googlenet-sizes"]), "googlenet-sizes")
    assert panel_points(top5, "paper") == {name: {1: one, 7: seven} for name, (one, seven) in GOOGLENET.items()}
    ours = panel_points(top5, "ours")
    assert ours.keys() == GOOGLENET.keys()
    assert all(list(found) == [1, 2, 3, 4, 5, 6, 7] for found in ours.values())
    drawn = drawn_figure(figure, laid_out=True)
    assert len(drawn.axes) == 1  # both on ImageNet
    assert covered(drawn) == []


def test_on_other_data_the_papers_errors_are_on_axes_of_their_own():
    declared = load_experiment("googlenet/imagenet")
    records = made_up_records(declared, "stand-in", seeds=2)
    [figure] = ensemble_figures(figure_data([declared], records, scales=("stand-in",)))
    ours, paper = drawn_figure(figure).axes
    assert ours.get_title() == "ours: imagenet-standin, stand-in scale"
    assert {line.get_marker() for line in paper.get_lines()} == {"D"}
    assert "on imagenet, on axes of their own" in figure.caption


def test_alexnets_are_beside_table_2_and_the_7_networks_trained_otherwise():
    declared = load_experiment("alexnet/imagenet")
    records = made_up_records(declared, "paper", ["alexnet"], seeds=5)
    runs = scale_runs(declared, "paper", records).only(["alexnet-sizes"])
    top1, top5 = compared_panels(runs, "alexnet-sizes")
    crops, others = "10-crop-227-of-square-256", "with networks trained otherwise"
    assert panel_points(top1, "paper") == {crops: {1: 40.7, 5: 38.1}, others: {7: 36.7}}
    assert panel_points(top5, "paper") == {crops: {1: 18.2, 5: 16.4}, others: {7: 15.4}}
    assert panel_points(top5, "ours")[others] == {}
    [figure] = drawn_ensembles(runs)
    assert "2 of them first trained on more images" in figure.caption


def test_every_ensemble_of_an_experiment_is_drawn(monkeypatch):
    """Two that are compared with the paper, and two that are not."""
    declared = load_experiment("googlenet/imagenet")
    sizes = declared.derived["googlenet-sizes"]
    more = {f"sizes-{letter}": sizes for letter in "abc"}
    declared = declared.model_copy(update={"derived": {**declared.derived, **more}})
    runs = scale_runs(declared, "paper", made_up_records(declared, "paper", seeds=7))
    own = ["googlenet-sizes", *more]
    assert set(own) <= runs.records.keys()
    find, alone = compared_panels, {"sizes-b", "sizes-c"}
    panels = "pipeline.report.paper_figures.ensembles.compared_panels"
    monkeypatch.setattr(panels, lambda runs, name: [] if name in alone else find(runs, name))
    figures = drawn_ensembles(runs)
    stem = "googlenet-imagenet-paper-ensembles"
    assert [figure.name for figure in figures] == [f"{stem}-googlenet-sizes", f"{stem}-sizes-a", stem]
    ends = {figure.name.removeprefix("googlenet-imagenet-paper") for figure in figures}
    assert ends <= figure_titles(declared).keys()  # so that RESULTS.md shows them


def test_one_printed_error_is_no_comparison():
    declared = load_experiment("resnet/cifar10_depth")  # Table 6 prints one ResNet-56, and no ensemble
    records = made_up_records(declared, "paper", ["resnet-56"], seeds=5)
    assert compared_panels(scale_runs(declared, "paper", records), "resnet-56-ensembles") == []


def test_missing_ensembles_name_the_command(declare):
    [figure] = ensemble_figures(figure_data([declare("scales:\n", SIZES)], []))
    assert figure.missing == "No finished runs; start them with: repro run toy/depth --scale laptop."
    with pytest.raises(AssertionError):
        drawn_figure(figure)
