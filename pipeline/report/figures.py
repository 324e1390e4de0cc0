"""Figures in the style of the papers: error curves, ensembles, cost of networks, images and classes of a set."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean, median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from pipeline.analyse.catalogue import NetworkCost
from pipeline.common.errors import explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.declare.derived import GREEDY, GREEDY_NETWORKS, SPREAD, EnsembleSizesSpec, size_name
from pipeline.declare.experiment import Experiment

Curve = Sequence[tuple[int, float]]  # (step, value)
EnsembleMetrics = Mapping[str, Sequence[Mapping[str, float]]]  # derived run -> metrics of its records
TRAIN_ERROR, TEST_ERROR_METRIC = "train/top1_error_pct", "test/top1_error_pct"
CURVES = (TRAIN_ERROR, TEST_ERROR_METRIC)
CURVE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
ACROSS = 8  # images in a row of a contact sheet
POINTS = 40  # points of a training curve; each is the mean over a part of the run


def save_figure(figure: Figure, path: Path, *, dpi: int) -> Path:
    """Write `figure` to the PNG file `path` atomically. Raises UserError if the folder cannot be written."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None})
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, png.getvalue())
    return path


def error_curves(
    experiment: Experiment, scale: str, curves: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path
) -> Path:
    """Write `curves_figure` to the PNG file `path`."""
    return save_figure(curves_figure(experiment, scale, curves), path, dpi=150)


def curves_figure(
    experiment: Experiment, scale: str, curves: Mapping[str, Mapping[str, Sequence[Curve]]]
) -> Figure:
    """Return figure 6 of arXiv:1512.03385 for any experiment: training error dashed, test error bold.

    One panel per network (plain beside residual), one colour per variant. The line is the mean over seeds, the
    band their range. The title names the first test protocol of the variants; if they differ, the legend does.
    `curves`: variant -> metric -> one curve per seed.
    """
    protocols = {v: next(iter(experiment.protocols(v, scale)), "") for v in experiment.variants if v in curves}
    protocols_differ = len(set(protocols.values())) > 1
    panels: dict[str, list[str]] = {}
    for variant in experiment.variants:
        if variant in curves:
            panels.setdefault(experiment.variants[variant].model.name, []).append(variant)
    figure = Figure(figsize=(5.2 * max(len(panels), 1), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)[0]
    for ax, (network, variants) in zip(axes, panels.items(), strict=False):
        for colour, variant in zip(cycle(CURVE_COLOURS), variants, strict=False):
            plot_variant(
                ax, curves[variant], colour, f"{variant}, {protocols[variant]}" if protocols_differ else variant
            )
        ax.set_title(network.removesuffix("_cifar"), fontsize=11)
        ax.set_xlabel("steps")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=9, title="bold: test, dashed: training", title_fontsize=8)
    axes[0].set_ylabel("top-1 error (%)")
    counts = {max(len(rows) for rows in metrics.values()) for metrics in curves.values()}
    seeds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    recipe = experiment.recipe(next(iter(curves)), scale)
    shown = "" if protocols_differ else next((f", {protocol}" for protocol in protocols.values() if protocol), "")
    over = "one seed" if seeds == "1" else f"mean and range over {seeds} seeds"
    between = ":\n" if len(panels) < 2 else ": "  # one panel is too narrow for a line
    figure.suptitle(f"{experiment.name} at {scale} scale on {recipe.data.name}{shown}{between}{over}", fontsize=10)
    return figure


def plot_variant(ax: Axes, curves: Mapping[str, Sequence[Curve]], colour: str, label: str) -> None:
    """Draw both errors of one variant: mean and range over seeds."""
    labelled = TEST_ERROR_METRIC if any(curves.get(TEST_ERROR_METRIC, ())) else TRAIN_ERROR
    for metric in CURVES:
        rows = [curve for curve in curves.get(metric, ()) if curve]
        if metric == TRAIN_ERROR and rows:
            size = -(-max(len(curve) for curve in rows) // POINTS)
            rows = [binned(curve, size) for curve in rows]
        values: dict[int, list[float]] = {}  # step -> values of the seeds that reached it
        for row in rows:
            for step, value in row:
                values.setdefault(step, []).append(value)
        if not values:
            continue
        steps = sorted(values)
        mean, low, high = ([of(values[step]) for step in steps] for of in (fmean, min, max))
        bold = metric == TEST_ERROR_METRIC
        style: dict[str, Any] = {"linewidth": 2.2} if bold else {"linewidth": 1.1, "linestyle": "--"}
        ax.plot(steps, mean, color=colour, label=label if metric == labelled else None, **style)
        ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)


def binned(curve: Curve, size: int) -> list[tuple[int, float]]:
    """Return the means of every `size` values of a curve, each at the last of their steps."""
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


def ensemble_chart(experiment: Experiment, scale: str, metrics: EnsembleMetrics, path: Path) -> Path:
    """Write `ensemble_figure` to the PNG file `path`."""
    return save_figure(ensemble_figure(experiment, scale, metrics), path, dpi=150)


def ensemble_figure(experiment: Experiment, scale: str, metrics: EnsembleMetrics) -> Figure:
    """Return a figure of the top-1 test error against the number of averaged networks.

    One colour per derived run of kind ensemble-sizes. The line is the mean over the ensembles of a size, the band
    their standard deviation, the star the ensemble chosen on validation images. With several records of a derived
    run, each of these is a mean over them. `metrics`: derived run -> the metrics of its records.
    """
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for colour, (name, rows) in zip(cycle(CURVE_COLOURS), metrics.items(), strict=False):
        spec = experiment.derived_spec(name, scale)
        assert isinstance(spec, EnsembleSizesSpec)
        errors = [f"test/{size_name(size)}/top1_error_pct" for size in spec.measured_sizes]
        mean = [fmean(row[error] for row in rows) for error in errors]
        spread = [fmean(row[error + SPREAD] for row in rows) for error in errors]
        ax.plot(spec.measured_sizes, mean, color=colour, marker="o", markersize=4, label=name)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        ax.fill_between(spec.measured_sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        if spec.greedy:
            place = [fmean(row[key] for row in rows) for key in (GREEDY_NETWORKS, f"test/{GREEDY}/top1_error_pct")]
            label = f"{name}, chosen on validation images"
            ax.plot(*place, color=colour, marker="*", markersize=11, linestyle="", label=label)
    ax.set_xlabel("networks averaged")
    ax.set_ylabel("top-1 test error (%)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    data = experiment.recipe(next(iter(experiment.derived[next(iter(metrics))].consumes)), scale).data.name
    over = "mean and standard deviation over ensembles"
    figure.suptitle(f"{experiment.name} at {scale} scale on {data}:\n{over}", fontsize=10)
    return figure


def complexity_chart(rows: Sequence[NetworkCost], hardware: str, path: Path) -> Path:
    """Write `complexity_figure` to the PNG file `path`."""
    return save_figure(complexity_figure(rows, hardware), path, dpi=150)


def complexity_figure(rows: Sequence[NetworkCost], hardware: str) -> Figure:
    """Return the lecture's comparison, after arXiv:1605.07678: accuracy, operations, parameters, memory and time.

    Left: accuracy against operations; the area of a disc is the number of parameters. Right: memory and forward
    time of one image; the bar is the median of the repeats, the line their range. Networks without a published
    accuracy are left out.
    """
    shown = sorted((row for row in rows if row.top1_pct is not None), key=lambda row: row.top1_pct or 0)
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    discs, memory, time = figure.subplots(1, 3, width_ratios=[2.2, 1, 1])
    papers = list(dict.fromkeys(row.paper for row in shown))
    colour = dict(zip(papers, cycle(CURVE_COLOURS), strict=False))
    for row in sorted(shown, key=lambda row: -row.parameters):  # small discs on top of large ones
        x, y = 2 * row.multiply_adds / 1e9, row.top1_pct
        discs.scatter(x, y, s=row.parameters / 1e6 * 12, color=colour[row.paper], alpha=0.55, linewidths=0)
        discs.scatter(x, y, s=6, color="black", linewidths=0)
        discs.annotate(row.name, (x, y), xytext=(4, 5), textcoords="offset points", fontsize=8)
    for size in (5, 50, 150):
        discs.scatter([], [], s=size * 12, color="#999999", alpha=0.5, linewidths=0, label=f"{size} M")
    discs.legend(title="parameters", frameon=False, loc="lower right", labelspacing=3, borderpad=2.4, fontsize=8)
    discs.set_xlabel("operations per image (10⁹; a multiply-add counts as two)")
    discs.set_ylabel("published top-1 accuracy, single central crop (%)")
    discs.margins(0.14)
    discs.set_xlim(left=0)
    names = [row.name for row in shown]
    colours = [colour[row.paper] for row in shown]
    weights = [4 * row.parameters / 1e6 for row in shown]
    memory.barh(names, weights, color=colours)
    rest = [row.memory_mb - own for row, own in zip(shown, weights, strict=True)]
    memory.barh(names, rest, left=weights, color=colours, alpha=0.4)
    memory.set_xlabel("memory (MB): parameters,\nfeature maps of one image (pale)")
    timed = [[1000 * s for s in row.forward_s] for row in shown]
    middle = [median(times) if times else 0.0 for times in timed]
    low = [m - min(times) if times else 0.0 for m, times in zip(middle, timed, strict=True)]
    high = [max(times) - m if times else 0.0 for m, times in zip(middle, timed, strict=True)]
    time.barh(names, middle, xerr=[low, high], color=colours, error_kw={"linewidth": 1, "capsize": 2})
    time.set_xlabel(f"forward time (ms), one image, fp32,\n{hardware}")
    time.set_yticklabels([])
    for ax in (discs, memory, time):
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Accuracy as published (read from the chart of arXiv:1605.07678); all else measured here", fontsize=10
    )
    return figure


def contact_sheet(images: Sequence[Any], titles: Sequence[str], path: Path, *, heading: str = "") -> Path:
    """Write `contact_figure` to the PNG file `path`."""
    return save_figure(contact_figure(images, titles, heading), path, dpi=110)


def contact_figure(images: Sequence[Any], titles: Sequence[str], heading: str = "") -> Figure:
    """Return a figure of images in rows of eight, uncropped and undistorted, each above its title.

    `images`: uint8 (H, W, 3) of any size; large ones are subsampled to a few hundred pixels.
    """
    rows = max(-(-len(images) // ACROSS), 1)
    figure = Figure(
        figsize=(1.55 * ACROSS, 1.75 * rows + (0.45 if heading else 0.1)),
        layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.04, wspace=0.02, hspace=0.02),
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, ACROSS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image, title in zip(axes.flat, images, titles, strict=False):
        stride = max(max(image.shape[:2]) // 320, 1)
        ax.imshow(image[::stride, ::stride], interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
        short = title if len(title) <= 21 else f"{title[:20]}…"
        ax.text(0.5, -0.03, short, transform=ax.transAxes, ha="center", va="top", fontsize=7.5, parse_math=False)
    if heading:
        figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure


def class_balance(counts: Mapping[str, Sequence[int]], path: Path, *, heading: str = "") -> Path:
    """Write `balance_figure` to the PNG file `path`."""
    return save_figure(balance_figure(counts, heading), path, dpi=110)


def balance_figure(counts: Mapping[str, Sequence[int]], heading: str = "") -> Figure:
    """Return a figure of the images per class, the largest class first, with one panel per split.

    `counts`: split -> number of images of each class.
    """
    figure = Figure(figsize=(5.2 * max(len(counts), 1), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(len(counts), 1), squeeze=False)[0]
    for ax, colour, (split, values) in zip(panels, cycle(CURVE_COLOURS), counts.items(), strict=False):
        sizes = sorted(values, reverse=True)
        ax.fill_between(
            range(len(sizes) + 1), [*sizes, sizes[-1]], step="post", color=colour, alpha=0.6, linewidth=0
        )
        ax.set_title(f"{split}: {sum(sizes):,} images, {min(sizes):,} to {max(sizes):,} per class", fontsize=10)
        ax.set_xlabel("classes, largest first")
        ax.set_ylabel("images")
        ax.set_xlim(0, len(sizes))
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    if heading:
        figure.suptitle(heading, fontsize=10, parse_math=False)
    return figure
