"""Test figures: panels, lines, bands, charts, contact sheets."""

import numpy as np
import pytest

from pipeline.analyse.catalogue import NetworkCost
from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.report.figures import (
    ACROSS,
    CURVE_COLOURS,
    CURVES,
    POINTS,
    TEST_ERROR_METRIC,
    TRAIN_ERROR,
    balance_figure,
    binned,
    class_balance,
    complexity_chart,
    complexity_figure,
    contact_figure,
    contact_sheet,
    curves_figure,
    ensemble_figure,
    error_curves,
)
from tests.support.image_sets import random_image

STEPS = range(100, 1100, 100)


def curve(level, steps=STEPS):
    return [(step, level + 1 / step) for step in steps]


def both(level, seeds=3, steps=STEPS):
    return {
        TRAIN_ERROR: [curve(level + i, steps) for i in range(seeds)],
        TEST_ERROR_METRIC: [curve(level + 2 + i, steps) for i in range(seeds)],
    }


def lines(ax, style):
    return [line for line in ax.get_lines() if line.get_linestyle() == style]


def test_one_panel_per_network_and_one_colour_per_variant(experiment):
    curves = {"plain-20": both(10), "plain-32": both(20), "resnet-20": both(5)}
    figure = curves_figure(experiment, "paper", curves)
    plain, residual = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["plain", "resnet"]
    assert [text.get_text() for text in plain.get_legend().get_texts()] == ["plain-20", "plain-32"]
    for ax, variants in ((plain, 2), (residual, 1)):
        test, train = lines(ax, "-"), lines(ax, "--")
        assert (len(test), len(train), len(ax.collections)) == (variants, variants, 2 * variants)
        assert {line.get_color() for line in test} == {line.get_color() for line in train}
        assert len({line.get_color() for line in test}) == variants
        assert all(bold.get_linewidth() > thin.get_linewidth() for bold in test for thin in train)
    assert figure.get_suptitle() == "toy/depth at paper scale on cifar10: mean and range over 3 seeds"
    assert plain.get_ylim()[0] == plain.get_xlim()[0] == 0


def test_line_is_the_mean_and_band_the_range(experiment):
    figure = curves_figure(
        experiment, "paper", {"plain-20": {TEST_ERROR_METRIC: [[(10, 4.0)], [(10, 6.0)], [(10, 5.6)]]}}
    )
    (line,) = figure.axes[0].get_lines()
    assert line.get_xydata().tolist() == [[10, pytest.approx(5.2)]]
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (min(heights), max(heights)) == (4.0, 6.0)


def test_diverged_seed_is_drawn_to_its_last_step(experiment):
    short = [(100, 30.0), (200, 90.0)]
    figure = curves_figure(
        experiment, "paper", {"plain-20": {TEST_ERROR_METRIC: [[(s, 10.0) for s in STEPS], short]}}
    )
    (line,) = figure.axes[0].get_lines()
    drawn = dict(line.get_xydata().tolist())
    assert (drawn[100], drawn[200], drawn[300]) == (20.0, 50.0, 10.0)
    assert list(drawn) == list(STEPS)


def test_variant_without_an_evaluation_has_its_training_error(experiment):
    figure = curves_figure(experiment, "paper", {"plain-20": {TRAIN_ERROR: [curve(3)]}, "plain-32": both(4)})
    assert (len(lines(figure.axes[0], "--")), len(lines(figure.axes[0], "-"))) == (2, 1)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["plain-20", "plain-32"]


def test_protocol_is_in_the_title_or_if_they_differ_in_the_legend():
    vgg, curves = load_experiment("vgg/imagenet"), {"vgg-16": both(20)}
    figure = curves_figure(vgg, "paper", curves)
    assert figure.get_suptitle().startswith("vgg/imagenet at paper scale on imagenet, dense-of-256:\n")
    figure = curves_figure(vgg, "paper", curves | {"vgg-16-384": both(10)})
    assert figure.get_suptitle().startswith("vgg/imagenet at paper scale on imagenet:\n")
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["vgg-16, dense-of-256", "vgg-16-384, dense-of-384"]


def test_title_has_both_numbers_of_seeds(experiment):
    figure = curves_figure(experiment, "paper", {"plain-20": both(1, seeds=2), "plain-32": both(2, seeds=5)})
    assert figure.get_suptitle().endswith("over 2–5 seeds")


@pytest.mark.parametrize("seeds", [1, 3])
def test_title_of_one_panel_fits(seeds):
    long = load_experiment("resnet/imagenet")
    figure = curves_figure(long, "stand-in", {"resnet-18-a": both(1, seeds=seeds)})
    figure.canvas.draw()
    edges = figure._suptitle.get_window_extent()
    assert 0 <= edges.x0 < edges.x1 <= figure.bbox.width
    assert figure.get_suptitle().endswith({1: "\none seed", 3: "\nmean and range over 3 seeds"}[seeds])


SIZES = "derived:\n  sizes: {kind: ensemble-sizes, members: {plain-20: 3}, sizes: [1, 3]}\nscales:\n"


def test_ensembles_are_drawn_by_size_with_their_spread(declare):
    rows = [
        {f"test/of-{size}/top1_error_pct{end}": value for size, end, value in found}
        for found in (
            [(1, "", 9.0), (1, "_std", 0.5), (3, "", 8.0), (3, "_std", 0.0)],
            [(1, "", 10.0), (1, "_std", 1.0), (3, "", 8.5), (3, "_std", 0.0)],
        )
    ]
    figure = ensemble_figure(declare("scales:\n", SIZES), "paper", {"sizes": rows})
    [ax] = figure.axes
    [line] = ax.get_lines()
    assert line.get_xydata().tolist() == [[1, 9.5], [3, 8.25]]
    [band] = ax.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 8.75), (1.0, 10.25), (3.0, 8.25)} == corners
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["sizes"]
    assert figure.get_suptitle().startswith("toy/depth at paper scale on cifar10:\n")


def test_greedy_ensemble_is_a_star(declare):
    greedy = SIZES.replace("3}, sizes: [1, 3]", "3}, sizes: [1], greedy: true")
    declared = declare("scales:\n", greedy, "data: {name: cifar10,", "data: {name: cifar10, val: 100,")
    of_1 = {"test/of-1/top1_error_pct": 9.0, "test/of-1/top1_error_pct_std": 0.5}
    figure = ensemble_figure(
        declared, "paper", {"sizes": [of_1 | {"greedy/networks": 2.0, "test/greedy/top1_error_pct": 7.5}]}
    )
    star = figure.axes[0].get_lines()[1]
    assert (star.get_marker(), star.get_xydata().tolist()) == ("*", [[2, 7.5]])
    assert star.get_label() == "sizes, chosen on validation images"


def test_more_variants_than_colours_are_all_drawn(declare):
    many = 3 * len(CURVE_COLOURS) + 2
    more = "".join(f"  more-{i}: {{model: {{name: plain_cifar, depth: 20}}}}\n" for i in range(many))
    declared = declare("variants:\n", f"variants:\n{more}")
    figure = curves_figure(declared, "paper", {f"more-{i}": {TEST_ERROR_METRIC: [curve(i)]} for i in range(many)})
    assert len(lines(figure.axes[0], "-")) == many


def test_figure_is_written_with_the_same_bytes_twice(experiment, tmp_path):
    curves = {"plain-20": both(10, steps=range(1, 301)), "resnet-20": both(5)}
    first = error_curves(experiment, "laptop", curves, tmp_path / "new" / "one.png")
    second = error_curves(experiment, "laptop", curves, tmp_path / "two.png")
    assert first.read_bytes().startswith(b"\x89PNG\r\n")
    assert first.read_bytes() == second.read_bytes()


def test_long_training_curves_are_drawn_as_means_of_parts(experiment):
    steps = range(1, 20 * POINTS + 1)
    figure = curves_figure(experiment, "paper", {"plain-20": {TRAIN_ERROR: [[(s, float(s)) for s in steps]]}})
    (line,) = figure.axes[0].get_lines()
    assert len(line.get_xdata()) == POINTS
    assert line.get_xydata()[0].tolist() == [20, 10.5]  # mean of steps 1 to 20, at step 20


def test_binned():
    assert binned([(1, 1.0), (2, 3.0), (3, 8.0)], 2) == [(2, 2.0), (3, 8.0)]
    assert binned([(1, 1.0), (2, 3.0)], 1) == [(1, 1.0), (2, 3.0)]


def test_curve_metrics():
    assert CURVES == ("train/top1_error_pct", "test/top1_error_pct")


# --- the lecture's comparison ------------------------------------------------------------------------------


def cost(name, top1, *, paper="x", millions=10, giga=1.0, times=(0.02, 0.01, 0.04)):
    return NetworkCost(
        name=name,
        paper=paper,
        image=(3, 224, 224),
        layers=10,
        parameters=int(millions * 1e6),
        multiply_adds=int(giga * 1e9),
        activations=1,
        memory_mb=100.0,
        top1_pct=top1,
        forward_s=times,
    )


def test_comparison_shows_accuracy_operations_and_parameters():
    rows = [
        cost("big", 76.0, millions=140, giga=15),
        cost("small", 57.0, millions=1.2, giga=0.8),
        cost("bare", None),
    ]
    discs, memory, time = complexity_figure(rows, "two cores").axes
    positions = {text.get_text(): text.xy for text in discs.texts}
    assert positions == {"big": (30.0, 76.0), "small": (1.6, 57.0)}  # a multiply-add counts as two operations
    sizes = [c.get_sizes()[0] for c in discs.collections if len(c.get_offsets()) and c.get_sizes()[0] > 7]
    assert sizes[0] / sizes[1] == pytest.approx(140 / 1.2)
    assert [label.get_text() for label in memory.get_yticklabels()] == ["small", "big"]  # by accuracy
    assert "two cores" in time.get_xlabel()


def test_times_are_medians_with_their_range():
    (_, _, time) = complexity_figure([cost("a", 70.0)], "x").axes
    (bar,) = time.patches
    assert bar.get_width() == pytest.approx(20)
    (whiskers,) = time.collections
    ((low, _), (high, _)) = whiskers.get_segments()[0]
    assert (low, high) == pytest.approx((10, 40))


def test_chart_is_a_png(tmp_path):
    path = complexity_chart([cost("a", 70.0)], "x", tmp_path / "new" / "c.png")
    assert path.read_bytes().startswith(b"\x89PNG")


# --- a folder that cannot be written -----------------------------------------------------------------------

DRAWERS = {  # every figure that is written to a file
    "training": lambda experiment, path: error_curves(experiment, "laptop", {"plain-20": both(10)}, path),
    "complexity": lambda experiment, path: complexity_chart([cost("a", 70.0)], "x", path),
    "images": lambda experiment, path: contact_sheet([np.zeros((9, 9, 3), np.uint8)], ["a"], path),
    "classes": lambda experiment, path: class_balance({"train": [3, 9, 1]}, path),
}


@pytest.mark.parametrize("drawer", DRAWERS)
def test_folder_that_cannot_be_created_raises_user_error(experiment, tmp_path, drawer):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "report"
    with pytest.raises(UserError) as caught:
        DRAWERS[drawer](experiment, folder / "f.png")
    assert str(caught.value) == (
        f"cannot write to {folder}: not a directory; free some space, fix the folder, or set REPRO_HOME to"
        " another one, and run the same command again"
    )


@pytest.mark.parametrize("drawer", DRAWERS)
def test_full_disk_keeps_the_previous_figure(experiment, tmp_path, drawer):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "f.png").write_bytes(b"previous")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the kernel raises the error of a full disk
    try:
        with pytest.raises(UserError, match=rf"^cannot write to {tmp_path}: file too large; .*REPRO_HOME"):
            DRAWERS[drawer](experiment, tmp_path / "f.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "f.png").read_bytes() == b"previous"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["f.png"]


def test_contact_sheet_shows_every_image_with_its_title(tmp_path):
    images, titles = [random_image(seed) for seed in range(15)], [f"class {seed // 5}" for seed in range(15)]
    figure = contact_figure(images, [*titles[:-1], "$n_0$ of a very long name"], "images")
    shown = [ax for ax in figure.axes if ax.images]
    assert len(figure.axes) == 2 * ACROSS
    assert [ax.texts[0].get_text() for ax in shown] == [*titles[:-1], "$n_0$ of a very long…"]
    assert all((ax.images[0].get_array() == image).all() for ax, image in zip(shown, images, strict=True))
    path = contact_sheet(images, titles, tmp_path / "new" / "sheet.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert contact_sheet(images, titles, tmp_path / "2.png").read_bytes() == path.read_bytes()


def test_balance_figure_sorts_classes_by_size(tmp_path):
    figure = balance_figure({"train": [3, 9, 1], "test": [2, 2, 2]}, "images")
    assert [ax.get_title() for ax in figure.axes] == [
        "train: 13 images, 1 to 9 per class",
        "test: 6 images, 2 to 2 per class",
    ]
    (area,) = figure.axes[0].collections
    heights = area.get_paths()[0].vertices[:, 1]
    assert heights.max() == 9
    assert class_balance({"train": [3, 9, 1]}, tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
