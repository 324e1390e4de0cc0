"""A figure of a paper, drawn from our runs on demand."""

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.report.paper_figures.style import THEMES, Theme, ThemeName, figure_style, fix_layout, recolour

FigureFormat = Literal["png", "svg", "pdf"]
ImageKind = tuple[FigureFormat, ThemeName]  # of one file
Draw = Callable[[Theme], Figure]

FIGURE_FORMATS: tuple[FigureFormat, ...] = ("png", "svg", "pdf")
NO_DATES: dict[FigureFormat, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
DPI = 150  # of PNG files


@dataclass(frozen=True)
class FigureTitle:
    """The fixed part of a figure: its name, paper, title and source."""

    name: str  # stem of its files: "resnet-figure-6"
    paper: str  # folder under experiments; "" for a figure of the whole project
    title: str
    source: str  # "Figure 6"

    def missing(self, why: str) -> "PaperFigure":
        """Return the figure without evidence, with the reason and the command that would give some."""
        return PaperFigure(self.name, self.paper, self.title, self.source, caption="", missing=why)

    def drawn(self, caption: str, draw: Draw) -> "PaperFigure":
        """Return the figure with its caption and the function that draws it."""
        return PaperFigure(self.name, self.paper, self.title, self.source, caption=caption, draw=draw)


@dataclass(frozen=True)
class PaperFigure:
    """A figure in the style of a paper's, drawn from our runs; or the reason why there is none yet."""

    name: str  # stem of its files: "resnet-figure-6"
    paper: str  # folder under experiments; "" for a figure of the whole project
    title: str
    source: str  # "Figure 6"
    caption: str  # content, data, scale and seeds; also the alternative text
    missing: str = ""  # one sentence: why there is no evidence, and which command would give it; "" if drawn
    draw: Draw | None = field(default=None, repr=False, compare=False)  # None if `missing`
    images: Mapping[ImageKind, bytes] = field(default_factory=dict, repr=False, compare=False)  # rendered before

    def __post_init__(self) -> None:
        if (self.draw is None) != bool(self.missing):
            raise ValueError(f"figure {self.name}: give either 'draw' or 'missing'")

    def to_dict(self) -> dict[str, str]:
        """Return plain data, for JSON."""
        return {name: getattr(self, name) for name in ("name", "paper", "title", "source", "caption", "missing")}

    def render(self, format: FigureFormat, theme: ThemeName = "light") -> bytes:
        """Return the bytes of the figure's file; the same bytes for the same data.

        Raises UserError if there is no evidence to draw.
        """
        return self.render_all([(format, theme)])[format, theme]

    def render_all(self, wanted: Collection[ImageKind]) -> dict[ImageKind, bytes]:
        """Return the bytes of several files of the figure, each as `render` does.

        The figure is drawn once for each theme; an SVG file in the dark theme is the light one in other colours.
        Those of `images` are not drawn again. Raises UserError if there is no evidence.
        """
        if self.draw is None:
            raise UserError(f"figure {self.name} cannot be drawn. {self.missing}")
        if all(one in self.images for one in wanted):
            return {one: self.images[one] for one in wanted}
        needed = dict.fromkeys((format, "light" if format == "svg" else theme) for format, theme in wanted)
        drawn: dict[ImageKind, bytes] = {}
        for theme in dict.fromkeys(theme for _, theme in needed):
            with figure_style(THEMES[theme]):
                figure = self.draw(THEMES[theme])
                fix_layout(figure)
                for format in (format for format, of in needed if of == theme):
                    file = io.BytesIO()
                    figure.savefig(file, format=format, dpi=DPI, metadata=NO_DATES[format])
                    drawn[format, theme] = file.getvalue()
        if ("svg", "dark") in wanted:
            drawn["svg", "dark"] = recolour(drawn["svg", "light"], THEMES["light"], THEMES["dark"])
        return {one: drawn[one] for one in wanted}

    def write(self, path: Path, theme: ThemeName = "light") -> Path:
        """Write the figure to a file atomically, in the format of its suffix: .png, .svg or .pdf.

        Raises UserError for another suffix, if there is no evidence, and if the folder cannot be written.
        """
        formats = {f".{format}": format for format in FIGURE_FORMATS}
        if path.suffix not in formats:
            raise UserError(f"{path}: the format of a figure must be one of {', '.join(formats)}")
        content = self.render(formats[path.suffix], theme)
        with explain_write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        return path
