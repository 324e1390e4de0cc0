"""Labels and legends that cover nothing: labels beside points, legends outside the axes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from pipeline.report.paper_figures.style import SMALL_FONT, Theme

DISTANCES = (5.0, 9.0, 14.0, 20.0, 28.0, 38.0, 50.0)  # from a point to its label, in points
DIRECTIONS = tuple((np.cos(angle), np.sin(angle)) for angle in np.deg2rad(np.arange(45, 405, 22.5)))
LEADER = 14.0  # from this distance on, a thin line joins the label to its point
GAP = 1.0  # between a label and what is beside it, in points


def place_labels(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    theme: Theme,
    *,
    beside: Sequence[tuple[float, float]] = (),
    size: float = SMALL_FONT,
) -> list[Annotation]:
    """Write a text beside each point, at the nearest place inside the axes where it covers nothing.

    Texts are placed in order. They cover neither each other, nor the points, nor points `beside` them, all in data
    coordinates. Where everything near is taken, the text stands at the place with the smallest overlap. Call it
    last: the limits of the axes must not change afterwards.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # so that the layout has placed the axes
    unit = figure.dpi / 72  # pixels of one point
    inside, lines = ax.get_window_extent(), drawn_lines(ax, unit)
    taken = [centred(ax.transData.transform(point), 3.0 * unit) for point in [*points, *beside]]
    placed = []
    for point, text in zip(points, texts, strict=True):
        style: Any = {"fontsize": size, "color": theme.text, "ha": "center", "va": "center", "zorder": 6}
        label = ax.annotate(text, point, xytext=(0, 0), textcoords="offset points", **style)
        width, height = label.get_window_extent().size
        centre = ax.transData.transform(point)
        places = list(candidates(centre, width, height, unit))
        corners = np.stack([(box.min, box.max) for box in taken])
        costs = [crowding(box.padded(GAP * unit), corners, lines, inside, unit) for _, box in places]
        offset, box = places[int(np.argmin(costs))]
        label.set_position(offset)
        label.set_in_layout(False)
        gap = (np.clip(centre, box.min, box.max) - centre) / unit  # from the point to the box
        if np.hypot(*gap) > LEADER:
            line = {"arrowstyle": "-", "linewidth": 0.6, "color": theme.text, "shrinkA": 1, "shrinkB": 2}
            leader = ax.annotate("", point, xytext=tuple(gap), textcoords="offset points", arrowprops=line)
            leader.set_in_layout(False)
        taken.append(box)
        placed.append(label)
    return placed


def candidates(
    centre: Any, width: float, height: float, unit: float
) -> Iterator[tuple[tuple[float, float], Bbox]]:
    """Yield places of a label, the nearest first: the offset of its centre in points, and its box in pixels."""
    for distance, (across, up) in product(DISTANCES, DIRECTIONS):
        dx = across * distance * unit + np.sign(round(across, 6)) * width / 2
        dy = up * distance * unit + np.sign(round(up, 6)) * height / 2
        x, y = centre[0] + dx, centre[1] + dy
        box = Bbox.from_extents(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        yield (dx / unit, dy / unit), box


def crowding(box: Bbox, taken: Any, lines: Any, inside: Bbox, unit: float) -> float:
    """Return what a box covers, in square pixels: boxes taken, the outside of the axes, and at less cost lines.

    `taken`: (N, 2, 2), the lower left and upper right corners of boxes. `lines`: points, (N, 2).
    """
    sides = np.minimum(taken[:, 1], box.max) - np.maximum(taken[:, 0], box.min)
    shared = np.prod(np.clip(sides, 0, None), axis=1).sum()
    within = np.prod(np.clip(np.minimum(inside.max, box.max) - np.maximum(inside.min, box.min), 0, None))
    crossed = np.count_nonzero(((lines > box.min) & (lines < box.max)).all(axis=1)) * (2 * unit) ** 2
    return float(10 * shared + 20 * (box.width * box.height - within) + crossed)


def centred(point: Any, half: float) -> Bbox:
    """Return a square box around a point, in pixels."""
    x, y = point
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def drawn_lines(ax: Axes, unit: float) -> Any:
    """Return points along all lines and error bars of the axes, about three points apart, (N, 2) in pixels."""
    paths = [ax.transData.transform(line.get_xydata()) for line in ax.get_lines()]
    for bars in (one for one in ax.collections if isinstance(one, LineCollection)):
        paths += [ax.transData.transform(segment) for segment in bars.get_segments()]
    found = [np.empty((0, 2))]
    for path in paths:
        for start, end in pairwise(path[np.isfinite(path).all(axis=1)]):
            count = int(np.hypot(*(end - start)) / (3 * unit)) + 2
            found.append(np.linspace(start, end, count))
    return np.concatenate(found)


def outside_legend(figure: Figure, handles: Sequence[Artist]) -> Legend:
    """Add a legend below all axes, with as many columns as the figure is wide enough for."""
    columns = min(len(handles), 6)
    while True:
        legend: Legend = figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)
        if columns <= 1 or legend.get_window_extent().width <= 0.99 * figure.bbox.width:
            return legend
        legend.remove()
        columns -= 1
