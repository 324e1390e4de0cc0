"""The look of the figures: colours of both themes, sizes, and settings that make files reproducible."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ThemeName = Literal["light", "dark"]

ONE_PANEL, FULL_WIDTH = 5.2, 7.2  # width of a figure in inches; 7.2 is one column of the report
SMALL_FONT, NORMAL = 8.0, 9.0  # font sizes in points at that width

NEARLY_BLACK = (
    "#000001"  # black is the default fill of SVG: Matplotlib would not write it, and recolour not find it
)


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. Text has a contrast of at least 4.5:1 with the background, a series at least 2.2:1."""

    background: str
    text: str
    grid: str
    series: tuple[str, ...]  # of Okabe and Ito, which stay distinct for colour-blind readers
    fill: str  # neutral area

    def settings(self) -> Mapping[str, Any]:
        """Return the Matplotlib settings of the theme."""
        return {
            "figure.facecolor": self.background,
            "savefig.facecolor": self.background,
            "axes.facecolor": self.background,
            "legend.facecolor": self.background,
            "text.color": self.text,
            "axes.labelcolor": self.text,
            "axes.titlecolor": self.text,
            "axes.edgecolor": self.text,
            "xtick.color": self.text,
            "ytick.color": self.text,
            "grid.color": self.grid,
        }

    def colours(self) -> tuple[str, ...]:
        """Return all colours of the theme, in the same order for each theme."""
        return (self.background, self.text, self.grid, *self.series, self.fill)


THEMES: Mapping[ThemeName, Theme] = {
    "light": Theme(
        background="#ffffff",
        text="#1a1a1a",
        grid="#dddddd",
        series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", NEARLY_BLACK, "#e69f00", "#56b4e9"),
        fill="#999999",
    ),
    "dark": Theme(
        background="#15181c",
        text="#e8e8e8",
        grid="#363b42",
        series=("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#ffffff", "#d55e00", "#f0e442"),
        fill="#8a8f96",
    ),
}

STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # part of Matplotlib: the same glyphs on every machine
    "font.size": NORMAL,
    "axes.labelsize": NORMAL,
    "axes.titlesize": NORMAL,
    "xtick.labelsize": SMALL_FONT,
    "ytick.labelsize": SMALL_FONT,
    "legend.fontsize": SMALL_FONT,
    "legend.title_fontsize": SMALL_FONT,
    "legend.frameon": False,
    "figure.titlesize": NORMAL,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titley": 1.0,  # no axis has ticks above it; without a place, each drawing looks for them
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.6,
    "text.parse_math": False,  # names come from declarations and may contain a dollar sign
    "svg.fonttype": "none",  # text remains text: it can be searched, selected and read aloud
    "svg.hashsalt": "cnn-repro",
    "pdf.fonttype": 42,  # the same in PDF: TrueType fonts, not outlines
}


@contextmanager
def figure_style(theme: Theme) -> Iterator[None]:
    """Context in which Matplotlib draws and saves figures in a theme."""
    settings: Any = {**STYLE, **theme.settings()}  # Matplotlib types the keys as literals
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, with automatic layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def recolour(svg: bytes, old: Theme, new: Theme) -> bytes:
    """Return an SVG file of a figure in the colours of another theme, which is faster than to draw it again."""
    colours = dict(zip(old.colours(), new.colours(), strict=True))
    pattern = f"""(?<=: |=")(?:{"|".join(colours)})"""  # in styles and attributes, not in text
    return re.sub(pattern.encode(), lambda found: colours[found[0].decode()].encode(), svg)


def fix_layout(figure: Figure) -> None:
    """Lay a figure out now, and not again for each file: Matplotlib does it twice each time it saves.

    Call it within `figure_style`, after everything is drawn.
    """
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
