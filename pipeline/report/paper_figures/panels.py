"""Panels with our values and the paper's: on one pair of axes if both are of one data set, else side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.report.paper_figures.labels import outside_legend, place_labels
from pipeline.report.paper_figures.style import FULL_WIDTH, ONE_PANEL, Theme, new_figure


@dataclass(frozen=True)
class Point:
    """One network: a place on the x axis, our value with its spread, and the paper's value."""

    x: float
    ours: tuple[float, float] | None = None  # mean and standard deviation over the seeds
    paper: float | None = None
    label: str = ""  # written beside the point


@dataclass(frozen=True)
class Series:
    """Networks that are joined by a line, in the order of x."""

    name: str  # in the legend; series of one name have one colour
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    xlabel: str
    ylabel: str
    series: Sequence[Series]
    log_x: bool = False
    ticks: Mapping[float, str] | None = None  # of the x axis; None: automatic
    limits: tuple[float, float] | None = None  # of the x axis; None: those of the values
    shows_ours: bool = True
    shows_paper: bool = True


def beside_paper(panels: Sequence[Panel], *, ours: str, paper: str, same_data: bool) -> list[Panel]:
    """Return panels with our values and the paper's together; on other data, ours and the paper's apart.

    `ours`, `paper`: data set and scale of each, for the titles.
    """
    if same_data:
        return [replace(panel, title=joined(panel.title, ours)) for panel in panels]
    own = [replace(panel, title=joined(panel.title, f"ours: {ours}"), shows_paper=False) for panel in panels]
    theirs = [replace(panel, title=joined(panel.title, f"paper: {paper}"), shows_ours=False) for panel in panels]
    has_numbers = any(point.paper is not None for panel in panels for one in panel.series for point in one.points)
    return [*own, *theirs] if has_numbers else own


def joined(title: str, where: str) -> str:
    """Return the title of a panel and what it shows, on two lines if there are both."""
    return f"{title}\n{where}" if title else where


def panels_figure(panels: Sequence[Panel], theme: Theme, *, columns: int = 2, height: float = 3.0) -> Figure:
    """Return a figure of panels in rows, with one legend below them. `height`: of a row, in inches.

    Ours: filled circles with error bars, joined by lines. The paper's: hollow diamonds, joined by dotted lines.
    """
    across = min(columns, len(panels))
    rows = -(-len(panels) // across)
    figure = new_figure(ONE_PANEL if across == 1 else FULL_WIDTH, height * rows + 0.6)
    axes = list(figure.subplots(rows, across, squeeze=False).flat)
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colours = {name: theme.series[i % len(theme.series)] for i, name in enumerate(names)}
    for ax, panel in zip(axes, panels, strict=False):
        draw_panel(ax, panel, colours, theme)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    outside_legend(figure, legend_keys(panels, colours, theme))
    for ax, panel in zip(figure.axes, panels, strict=False):
        label_points(ax, panel, theme)
    return figure


def draw_panel(ax: Axes, panel: Panel, colours: Mapping[str, str], theme: Theme) -> None:
    """Draw the series of a panel, without labels of points."""
    for series in panel.series:
        points, colour = sorted(series.points, key=lambda point: point.x), colours[series.name]
        if panel.shows_paper and (printed := [(p.x, p.paper) for p in points if p.paper is not None]):
            ax.plot(*zip(*printed, strict=True), color=colour, linewidth=1.0, **diamonds(theme), zorder=3)
        if panel.shows_ours and (measured := [(p.x, *p.ours) for p in points if p.ours is not None]):
            x, mean, spread = zip(*measured, strict=True)
            style: Any = {"linewidth": 1.6, "marker": "o", "markersize": 5, "capsize": 3, "elinewidth": 1.0}
            ax.errorbar(x, mean, yerr=spread, color=colour, zorder=4, **style)
    ax.set_title(panel.title)
    ax.set_xlabel(panel.xlabel)
    ax.set_ylabel(panel.ylabel)
    if panel.log_x:
        ax.set_xscale("log")
    if panel.ticks is not None:
        texts = dict(panel.ticks)
        ax.xaxis.set_major_locator(FixedLocator(list(texts)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: texts.get(x, f"{x:g}")))
    elif not panel.log_x:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.margins(0.1, 0.12)
    if panel.limits is not None:
        ax.set_xlim(*panel.limits)


def label_points(ax: Axes, panel: Panel, theme: Theme) -> None:
    """Write the labels of a panel's points beside them."""
    drawn = [
        (point.x, value, point.label)
        for series in panel.series
        for point in series.points
        for value in shown_values(panel, point)
    ]
    labelled = [(x, y, label) for x, y, label in drawn if label]
    if labelled:
        place_labels(ax, [(x, y) for x, y, _ in labelled], [label for _, _, label in labelled], theme,
            beside=[(x, y) for x, y, label in drawn if not label])  # fmt: skip


def shown_values(panel: Panel, point: Point) -> list[float]:
    """Return the values of a point that a panel shows, the labelled one first."""
    found = [point.ours[0]] if panel.shows_ours and point.ours else []
    return found or ([point.paper] if panel.shows_paper and point.paper is not None else [])


def legend_keys(panels: Sequence[Panel], colours: Mapping[str, str], theme: Theme) -> list[Artist]:
    """Return the entries of the legend: the series by colour, then what the shapes mean."""
    keys: list[Artist] = []
    if len(colours) > 1:
        keys = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items()]
    points = [(panel, point) for panel in panels for series in panel.series for point in series.points]
    if any(panel.shows_ours and point.ours for panel, point in points):
        keys.append(ours_key(theme))
    if any(panel.shows_paper and point.paper is not None for panel, point in points):
        keys.append(paper_key(theme))
    return keys


def ours_key(theme: Theme, label: str = "ours, mean ± standard deviation") -> Line2D:
    """Return the entry of a legend for our values."""
    return Line2D([], [], color=theme.text, marker="o", markersize=5, linewidth=1.2, label=label)


def paper_key(theme: Theme, label: str = "paper") -> Line2D:
    """Return the entry of a legend for the values that the paper prints."""
    return Line2D([], [], color=theme.text, linewidth=1.0, label=label, **diamonds(theme))


def diamonds(theme: Theme) -> dict[str, Any]:
    """Return the style of the paper's values."""
    face = theme.background
    return {"linestyle": ":", "marker": "D", "markersize": 6, "markerfacecolor": face, "markeredgewidth": 1.4}
