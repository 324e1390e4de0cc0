"""Figures in the manner of the papers, drawn from the curves of tracked runs."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.experiment import Experiment

Curve = Sequence[tuple[int, float]]  # (update, value)
TRAIN, TEST = "train/top1_error_pct", "test/top1_error_pct"
CURVES = (TRAIN, TEST)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito
POINTS = 40  # a training error is drawn as the mean over this many parts of a run


def error_curves(
    experiment: Experiment, scale: str, curves: Mapping[str, Mapping[str, Sequence[Curve]]], path: Path
) -> Path:
    """Write `curves_figure` to `path`, a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    curves_figure(experiment, scale, curves).savefig(path, dpi=150, metadata={"Software": None})
    return path


def curves_figure(
    experiment: Experiment, scale: str, curves: Mapping[str, Mapping[str, Sequence[Curve]]]
) -> Figure:
    """Figure 6 of arXiv:1512.03385 for any experiment: training error dashed, test error bold.

    One panel a network (plain beside residual), one colour a variant; the line is the mean over seeds, the band
    reaches from the lowest to the highest. `curves`: variant -> metric -> one curve per seed.
    """
    panels: dict[str, list[str]] = {}
    for variant in experiment.variants:
        if variant in curves:
            panels.setdefault(experiment.variants[variant].model.name, []).append(variant)
    figure = Figure(figsize=(5.2 * max(len(panels), 1), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)[0]
    for ax, (network, variants) in zip(axes, panels.items(), strict=False):
        for colour, variant in zip(cycle(COLOURS), variants, strict=False):
            draw(ax, curves[variant], colour, variant)
        ax.set_title(network.removesuffix("_cifar"), fontsize=11)
        ax.set_xlabel("updates")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=9, title="bold: test, dashed: training", title_fontsize=8)
    axes[0].set_ylabel("top-1 error (%)")
    counts = {max(len(rows) for rows in metrics.values()) for metrics in curves.values()}
    seeds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    recipe = experiment.recipe(next(iter(curves)), scale)
    figure.suptitle(
        f"{experiment.name} at {scale} scale on {recipe.data.name}: mean and range over {seeds} seeds", fontsize=10
    )
    return figure


def draw(ax: Axes, curves: Mapping[str, Sequence[Curve]], colour: str, label: str) -> None:
    """One variant: both errors, mean and range over seeds."""
    named = TEST if any(curves.get(TEST, ())) else TRAIN
    for metric in CURVES:
        rows = [curve for curve in curves.get(metric, ()) if curve]
        if metric == TRAIN and rows:
            size = -(-max(len(curve) for curve in rows) // POINTS)
            rows = [binned(curve, size) for curve in rows]
        values: dict[int, list[float]] = {}  # of the seeds that came so far
        for row in rows:
            for step, value in row:
                values.setdefault(step, []).append(value)
        if not values:
            continue
        steps = sorted(values)
        mean, low, high = ([of(values[step]) for step in steps] for of in (fmean, min, max))
        bold = metric == TEST
        style: dict[str, Any] = {"linewidth": 2.2} if bold else {"linewidth": 1.1, "linestyle": "--"}
        ax.plot(steps, mean, color=colour, label=label if metric == named else None, **style)
        ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)


def binned(curve: Curve, size: int) -> list[tuple[int, float]]:
    """A long curve as the means of every `size` values, each placed at its last update."""
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]
