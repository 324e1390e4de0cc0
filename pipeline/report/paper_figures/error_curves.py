"""Panels of curves against optimizer steps, after Figure 6 of arXiv:1512.03385: training dashed, test bold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import ceil
from statistics import fmean
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.report.paper_figures.figure_data import Curve, CurveReader, ScaleRuns, over_seeds, seeds_text
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.panels import diamonds
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import FULL_WIDTH, ONE_PANEL, SMALL_FONT, Theme, new_figure

TRAIN_CURVE, TEST_CURVE = "train/top1_error_pct", "test/top1_error_pct"
POINTS = {"train": 40, "test": 400}  # largest number of points of a line; each is the mean over a part of the run
SETTLED = 0.2  # part of a training after which a curve is inside the axes
NO_CURVES = "The curves of the finished runs are neither on this machine nor on the tracking server."
LETTER, KEY = 0.062, 0.6  # widths in inches of a letter of a legend, and of an entry without its text


@dataclass(frozen=True)
class CurveLine:
    """One line: the mean over seeds, with a band from the smallest to the largest."""

    name: str  # lines of one name have one colour
    curves: Sequence[Curve]  # one per seed
    points: int  # of the line
    dashed: bool = False
    paper: float | None = None  # value that the paper prints for the end of the training
    colour: int | None = None  # number of the colour; None: the next one that is free in the panel

    @cached_property
    def drawn(self) -> tuple[list[int], tuple[list[float], list[float], list[float]]]:
        """Steps, and mean, smallest and largest value at each; the same for each theme."""
        return across_seeds(binned(self.curves, self.points))


@dataclass(frozen=True)
class CurvePanel:
    """One pair of axes with lines."""

    title: str
    ylabel: str
    lines: Sequence[CurveLine]
    level: float | None = None  # a horizontal line across the panel


def variant_lines(
    curves: CurveReader, runs: ScaleRuns, names: Sequence[str], metric: str, **more: Any
) -> list[CurveLine]:
    """Return a line of a metric for each of these variants that has curves."""
    points = POINTS["train" if metric.startswith("train/") else "test"]
    read = {name: [curves(row, metric) for row in runs.records.get(name, [])] for name in names}
    found = {name: [curve for curve in rows if curve] for name, rows in read.items()}
    return [CurveLine(name, rows, points, **more) for name, rows in found.items() if rows]


def curves_figure(
    panels: Sequence[CurvePanel],
    theme: Theme,
    *,
    keys: Mapping[str, bool] | None = None,
    share_y: bool = True,
    columns: int = 2,
    title: str = "",
) -> Figure:
    """Return a figure of panels in rows, each with its legend below it.

    A value axis begins at 0 and ends above the values after a fifth of the steps. `keys`: what the bold lines
    (False) and the dashed ones (True) show, for a legend below all panels.
    """
    across = max(min(columns, len(panels)), 1)
    rows = max(-(-len(panels) // across), 1)
    entries = max((len({line.name for line in panel.lines}) for panel in panels), default=1)
    figure = new_figure(ONE_PANEL if across == 1 else FULL_WIDTH, (2.9 + 0.11 * entries) * rows + 0.5)
    axes = list(figure.subplots(rows, across, sharey=share_y, squeeze=False).flat)
    tops = [draw_curves(ax, panel, theme) for ax, panel in zip(axes, panels, strict=False)]
    for ax, top in zip(axes, tops, strict=False):
        ax.set_ylim(0, max(tops) if share_y else top)
    for number, ax in enumerate(axes):
        ax.set_visible(number < len(panels))
        if share_y and number % across:
            ax.set_ylabel("")
    found: list[Artist] = [
        Line2D([], [], color=theme.text, label=text, **line_style(dashed))
        for text, dashed in drawn_styles(panels, keys or {}).items()
    ]
    if any(line.paper is not None for panel in panels for line in panel.lines):
        style = diamonds(theme) | {"linestyle": ""}
        found.append(Line2D([], [], color=theme.text, label="paper, after training", **style))
    if found:
        outside_legend(figure, found)
    if title:
        figure.suptitle(title)
    return figure


def drawn_styles(panels: Sequence[CurvePanel], keys: Mapping[str, bool]) -> dict[str, bool]:
    """Return those of `keys`, what bold lines (False) and dashed ones (True) show, that have a line."""
    drawn = {line.dashed for panel in panels for line in panel.lines}
    return {text: dashed for text, dashed in keys.items() if dashed in drawn}


def styles_text(panels: Sequence[CurvePanel], keys: Mapping[str, bool]) -> str:
    """Return what the lines show, for a caption: "bold: test, dashed: training"."""
    found = drawn_styles(panels, keys)
    return ", ".join(f"{'dashed' if dashed else 'bold'}: {text}" for text, dashed in found.items())


def words_of_panels(panels: Sequence[CurvePanel]) -> str:
    """Return the titles of one or two panels, for a caption: "training error (left) and test error (right)"."""
    if len(panels) != 2:
        return " and ".join(panel.title for panel in panels)
    left, right = panels
    return f"{left.title} (left) and {right.title} (right)"


def spread_text(panels: Sequence[CurvePanel]) -> str:
    """Return what the lines show of the seeds that have curves: "mean and range over 5 seeds", "one seed"."""
    return over_seeds("mean and range", seeds_text(len(line.curves) for panel in panels for line in panel.lines))


def drawn_curves(
    title: FigureTitle, caption: str, panels: Sequence[CurvePanel], keys: Mapping[str, bool], **layout: Any
) -> PaperFigure:
    """Return the figure of these panels; a missing one if no run has curves."""
    if not any(panel.lines for panel in panels):
        return title.missing(NO_CURVES)
    return title.drawn(caption, partial(curves_figure, panels, keys=keys, **layout))


def draw_curves(ax: Axes, panel: CurvePanel, theme: Theme) -> float:
    """Draw a panel with its legend; return the top of its value axis."""
    names = list(dict.fromkeys(line.name for line in panel.lines))
    given = {line.name: line.colour for line in panel.lines if line.colour is not None}
    colours = {name: theme.series[given.get(name, i) % len(theme.series)] for i, name in enumerate(names)}
    tops = [panel.level or 0.0]
    for line in panel.lines:
        steps, (mean, low, high) = line.drawn
        colour = colours[line.name]
        ax.plot(steps, mean, color=colour, **line_style(line.dashed))
        ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        tops.append(max(value for step, value in zip(steps, high, strict=True) if step >= SETTLED * steps[-1]))
        if line.paper is not None:
            style = diamonds(theme) | {"linestyle": ""}
            ax.plot(steps[-1], line.paper, color=colour, clip_on=False, zorder=5, **style)
            tops.append(line.paper)
    if panel.level is not None:
        ax.axhline(panel.level, color=theme.text, linewidth=0.9, linestyle=(0, (6, 3)))
    ax.set_title(panel.title)
    ax.set_xlabel("steps")
    ax.set_ylabel(panel.ylabel)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_xlim(left=0)
    columns = 2 if LETTER * max(map(len, names), default=0) + KEY < 1.6 else 1
    ax.legend(
        handles=[Line2D([], [], color=colours[name], linewidth=3, label=name) for name in names],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.24),
        ncols=columns,
        fontsize=SMALL_FONT,
    )
    return min(1.08 * max(tops), 100.0) if "%" in panel.ylabel else 1.08 * max(tops)


def line_style(dashed: bool) -> dict[str, Any]:
    """Return the style of a bold or a dashed line."""
    return {"linewidth": 1.1, "linestyle": "--"} if dashed else {"linewidth": 2.2}


def across_seeds(rows: Sequence[Curve]) -> tuple[list[int], tuple[list[float], list[float], list[float]]]:
    """Return the steps, and mean, smallest and largest value at each, over the seeds that reached it."""
    values: dict[int, list[float]] = {}
    for row in rows:
        for step, value in row:
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    mean, low, high = ([of(values[step]) for step in steps] for of in (fmean, min, max))
    return steps, (mean, low, high)


def binned(curves: Sequence[Curve], points: int) -> list[Curve]:
    """Return the means over parts of the curves of several seeds, each at the last step of its part.

    The parts are the same steps for all seeds, also for one that ended early: `points` at most. Curves without
    more values are returned as they are.
    """
    if max(map(len, curves), default=0) <= points:
        return list(curves)
    width = max(curve[-1][0] for curve in curves if curve) / points
    ends: dict[int, int] = {}  # part -> its last step
    parts: list[dict[int, list[float]]] = []  # of each seed
    for curve in curves:
        own: dict[int, list[float]] = {}
        for step, value in curve:
            part = ceil(step / width - 1e-9)
            ends[part] = max(step, ends.get(part, step))
            own.setdefault(part, []).append(value)
        parts.append(own)
    return [[(ends[part], fmean(values)) for part, values in own.items()] for own in parts]
