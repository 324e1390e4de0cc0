"""Test the charts of accuracy, operations, parameters, memory and time."""

from dataclasses import replace

import pytest

from pipeline.analyse.catalogue import NetworkCost
from pipeline.declare.derived import RANDOM_PIXELS
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import plan_runs
from pipeline.report.paper_figures.complexity_charts import (
    accuracy_bars,
    bubble_figure,
    by_hardware,
    complexity_comparison,
    complexity_figures,
    cost_figure,
)
from pipeline.report.paper_figures.style import THEMES, figure_style
from tests.support.figure_boxes import covered, drawn_figure
from tests.support.figure_runs import by_name, figure_data, made_up_records

LIGHT = THEMES["light"]
COST = NetworkCost("a", "x", (3, 224, 224), 10, 10_000_000, 1_000_000_000, 1, 100.0, 70.0, (0.02, 0.01, 0.04))


def cost(name, top1, millions, giga):
    return replace(COST, name=name, top1_pct=top1, parameters=int(millions * 1e6), multiply_adds=int(giga * 1e9))


def test_place_is_accuracy_and_operations_and_area_is_parameters():
    rows = [cost("big", 76.0, 140, 15), cost("small", 57.0, 1.2, 0.8)]
    with figure_style(LIGHT):
        [ax] = bubble_figure(rows, LIGHT).axes
    assert {text.get_text(): text.xy for text in ax.texts if text.get_text()} == {
        "big": (30.0, 76.0),
        "small": (1.6, 57.0),  # a multiply-add counts as two operations
    }
    sizes = [one.get_sizes()[0] for one in ax.collections if one.get_alpha()]
    assert sizes[0] / sizes[1] == pytest.approx(140 / 1.2)
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1] == "paper"


def test_times_are_medians_with_their_range():
    with figure_style(LIGHT):
        memory, time = cost_figure([COST, replace(COST, name="b", forward_s=())], "two cores", LIGHT).axes
    assert [bar.get_width() for bar in time.patches] == pytest.approx([20, 0])
    ((low, _), (high, _)) = time.collections[0].get_segments()[0]
    assert (low, high) == pytest.approx((10, 40))
    assert [bar.get_width() for bar in memory.patches] == pytest.approx([40, 40, 60, 60])  # weights, feature maps
    assert "two cores" in time.get_xlabel()


def test_our_accuracies_are_circles_beside_the_published_bars():
    with figure_style(LIGHT):
        figure = accuracy_bars([COST, replace(COST, name="b", top1_pct=75.0)], {"b": (74.0, 0.3)}, LIGHT)
    [ax] = figure.axes
    [circle] = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert circle.get_xydata().tolist() == [[1, 74.0]]
    assert [bar.get_height() for bar in ax.patches] == [70.0, 75.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "paper, as published", "ours, mean ± standard deviation",
    ]  # fmt: skip


def test_comparison_leaves_out_networks_without_an_accuracy():
    figure = complexity_comparison([COST, replace(COST, name="bare", top1_pct=None)], "two cores")
    assert [text.get_text() for text in drawn_figure(figure).axes[2].texts] == ["a"]
    with pytest.raises(ValueError, match="no network has a published accuracy"):
        complexity_comparison([replace(COST, top1_pct=None)], "two cores")


def test_times_and_accuracies_are_those_of_the_runs():
    names = ("complexity/architecture", "complexity/measurements", "resnet/imagenet")
    experiments = [load_experiment(name) for name in names]
    trained = made_up_records(experiments[2], "paper", ["resnet-50"])
    found = by_name(complexity_figures(figure_data(experiments[:2], trained)))
    assert "circles: our networks, trained at paper scale" in found["complexity-figure-1"].caption
    assert "repro run complexity/measurements --scale laptop" in found["complexity-costs"].caption
    assert by_name(complexity_figures(figure_data(experiments, [])))["complexity-figure-1"].caption.endswith(
        "none of them is trained here yet."
    )
    for name in ("complexity-figure-1", "complexity-figure-2"):
        assert covered(drawn_figure(found[name], laid_out=True)) == []


def timing(run, hardware, seconds):
    """Return the record of a planned timing in which AlexNet takes so many seconds for an image."""
    [other] = made_up_records(load_experiment("resnet/cifar10_depth"), "laptop", ["resnet-20"], seeds=1)
    own = {"experiment": run.experiment, "variant": run.variant, "seed": run.seed, "declaration": run.declaration}
    metrics = {"alexnet/batch-1/seconds_per_image": seconds}
    return replace(other, data=RANDOM_PIXELS, hardware=hardware, metrics=metrics, **own)


def test_times_of_each_hardware_are_a_chart_of_their_own():
    experiments = [load_experiment(name) for name in ("complexity/architecture", "complexity/measurements")]
    slow, fast = (
        timing(run, hardware, seconds)
        for run, (hardware, seconds) in zip(
            plan_runs(experiments[1], scale="laptop", seeds=2),
            [("one core", 0.5), ("NVIDIA H200", 0.001)],
            strict=True,
        )
    )
    assert by_hardware([slow, fast]) == {"one core": [slow], "NVIDIA H200": [fast]}
    assert list(by_hardware([slow, replace(slow, threads=8)])) == ["one core, 1 thread", "one core, 8 threads"]
    found = by_name(complexity_figures(figure_data(experiments, [slow, fast])))
    names = {name: figure for name, figure in found.items() if name.startswith("complexity-costs")}
    assert list(names) == ["complexity-costs-one-core", "complexity-costs-nvidia-h200"]
    widths = {
        name: [bar.get_width() for bar in drawn_figure(figure).axes[1].patches if bar.get_width()]
        for name, figure in names.items()
    }
    assert widths == {"complexity-costs-one-core": [500.0], "complexity-costs-nvidia-h200": [1.0]}
    caption = names["complexity-costs-nvidia-h200"].caption
    assert "measured on NVIDIA H200, median and range over 1 measurement." in caption
