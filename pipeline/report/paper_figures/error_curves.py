"""Panels of error curves, after Figure 6 of arXiv:1512.03385: training error dashed, test error bold."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.report.paper_figures.figure_data import Curve
from pipeline.report.paper_figures.panels import diamonds, paper_key
from pipeline.report.paper_figures.style import FULL_WIDTH, ONE_PANEL, Theme, new_figure

TRAIN_ERROR, TEST_ERROR = "train/top1_error_pct", "test/top1_error_pct"
CURVES = (TRAIN_ERROR, TEST_ERROR)
POINTS = 40  # points of a training curve; each is the mean over a part of the run
SETTLED = 0.2  # part of a training after which an error is inside the axes

Curves = Mapping[str, Mapping[str, Sequence[Curve]]]  # variant -> metric -> one curve per seed


def curve_panels(
    panels: Mapping[str, Sequence[str]], curves: Curves, theme: Theme, *, marks: Mapping[str, float], ylabel: str
) -> Figure:
    """Return a figure with one panel of error curves for each title, its variants in the colours of the theme.

    The line is the mean over seeds, the band their range. `marks`: variant -> error that the paper prints, drawn
    as a diamond at the last step. The error axis begins at 0 and ends above the errors after a fifth of the steps.
    """
    count = max(len(panels), 1)
    figure = new_figure(ONE_PANEL if count == 1 else FULL_WIDTH, 3.6)
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    tops = [2.0]
    for ax, (title, variants) in zip(axes, panels.items(), strict=False):
        handles = []
        for colour, variant in zip(cycle(theme.series), variants, strict=False):
            tops += plot_curves(ax, curves[variant], colour)
            if variant in marks:
                end = max(step for rows in curves[variant].values() for row in rows for step, _ in row)
                style = diamonds(theme) | {"linestyle": ""}
                ax.plot(end, marks[variant], color=colour, clip_on=False, zorder=5, **style)
                tops.append(marks[variant])
            handles.append(Line2D([], [], color=colour, linewidth=2.2, label=variant))
        ax.set_title(title)
        ax.set_xlabel("steps")
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlim(left=0)
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    axes[0].set_ylabel(ylabel)
    axes[0].set_ylim(0, min(1.08 * max(tops), 100))
    key = [
        Line2D([], [], color=theme.text, linewidth=2.2, label="test"),
        Line2D([], [], color=theme.text, linewidth=1.1, linestyle="--", label="training"),
    ]
    if any(variant in marks for variants in panels.values() for variant in variants):
        key.append(paper_key(theme))
    figure.legend(handles=key, loc="outside upper center", ncols=3)
    return figure


def plot_curves(ax: Axes, curves: Mapping[str, Sequence[Curve]], colour: str) -> list[float]:
    """Draw both errors of one variant, over seeds; return the largest after a fifth of the steps."""
    tops = []
    for metric in CURVES:
        rows = [curve for curve in curves.get(metric, ()) if curve]
        if metric == TRAIN_ERROR and rows:
            size = -(-max(len(curve) for curve in rows) // POINTS)
            rows = [binned(curve, size) for curve in rows]
        if not rows:
            continue
        steps, (mean, low, high) = across_seeds(rows)
        bold = metric == TEST_ERROR
        style: dict[str, Any] = {"linewidth": 2.2} if bold else {"linewidth": 1.1, "linestyle": "--"}
        ax.plot(steps, mean, color=colour, **style)
        ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        tops.append(max(value for step, value in zip(steps, high, strict=True) if step >= SETTLED * steps[-1]))
    return tops


def across_seeds(rows: Sequence[Curve]) -> tuple[list[int], tuple[list[float], list[float], list[float]]]:
    """Return the steps, and mean, smallest and largest value at each, over the seeds that reached it."""
    values: dict[int, list[float]] = {}
    for row in rows:
        for step, value in row:
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    mean, low, high = ([of(values[step]) for step in steps] for of in (fmean, min, max))
    return steps, (mean, low, high)


def binned(curve: Curve, size: int) -> list[tuple[int, float]]:
    """Return the means of every `size` values of a curve, each at the last of their steps."""
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]
