"""Check that the texts and legends of a drawn figure cover nothing."""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from pipeline.report.paper_figures.paper_figure import PaperFigure
from pipeline.report.paper_figures.style import THEMES, ThemeName, figure_style

TOLERANCE = 1.0  # pixels by which boxes may touch


def drawn_figure(figure: PaperFigure, theme: ThemeName = "light", *, laid_out: bool = False) -> Figure:
    """Return the figure as Matplotlib has it; with its layout, which takes longer, if `laid_out`."""
    assert figure.draw is not None, figure.missing
    with figure_style(THEMES[theme]):
        drawn = figure.draw(THEMES[theme])
        if laid_out:
            drawn.draw_without_rendering()
    return drawn


def covered(figure: Figure) -> list[str]:
    """Return a sentence for each text or legend that covers another, leaves the figure, or hides a line."""
    texts = dict(visible_texts(figure))
    legends = [legend for legend in figure.findobj(Legend) if legend.get_visible()]
    found = [
        f"{one.get_text()!r} covers {other.get_text()!r}"
        for (one, first), (other, second) in combinations(texts.items(), 2)
        if share(first, second)
    ]
    found += [
        f"{text.get_text()!r} leaves the figure" for text, box in texts.items() if not holds(figure.bbox, box)
    ]
    for legend in legends:
        box = legend.get_window_extent()
        found += [f"a legend hides lines of {ax.get_title()!r}" for ax in figure.axes if hides(box, ax)]
        inside = {*legend.findobj(Text)}
        found += [
            f"a legend covers {text.get_text()!r}"
            for text, other in texts.items()
            if text not in inside and share(box, other)
        ]
    return found


def visible_texts(figure: Figure) -> Iterator[tuple[Text, Bbox]]:
    """Yield the texts that are drawn, with their boxes in pixels; tick labels outside the axes are not drawn."""
    hidden = {label for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for label in undrawn_labels(axis)}
    axes_hidden = {text for ax in figure.axes if not ax.get_visible() for text in ax.findobj(Text)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in hidden | axes_hidden:
            yield text, text.get_window_extent()


def undrawn_labels(axis: Axis) -> Iterator[Text]:
    """Yield the tick labels of an axis that lie outside its limits."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
        if not low - slack <= tick.get_loc() <= high + slack:
            yield from (tick.label1, tick.label2)


def share(one: Bbox, other: Bbox) -> bool:
    """Return True if two boxes overlap by more than the tolerance."""
    common = Bbox.intersection(one, other)
    return common is not None and min(common.width, common.height) > TOLERANCE


def holds(outer: Bbox, inner: Bbox) -> bool:
    """Return True if a box lies within another, up to the tolerance."""
    low, high = outer.min - TOLERANCE, outer.max + TOLERANCE
    return bool((inner.min >= low).all() and (inner.max <= high).all())


def hides(box: Bbox, ax: Axes) -> bool:
    """Return True if a part of a line of the axes lies within a box."""
    inside = ax.get_window_extent()
    if not share(box, inside):
        return False
    for line in ax.get_lines():
        path = line.get_transform().transform(line.get_xydata())
        for start, end in pairwise(path):
            along = np.linspace(start, end, 50)
            seen = (along >= inside.min).all(axis=1) & (along <= inside.max).all(axis=1)
            if ((along > box.min) & (along < box.max)).all(axis=1)[seen].any():
                return True
    return False
