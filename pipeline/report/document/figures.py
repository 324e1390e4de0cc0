"""Figures in the form that a page refers to: inlined, or as files of a site."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.report.document.anchors import anchor
from pipeline.report.paper_figures.paper_figure import FIGURE_FORMATS, ImageKind, PaperFigure

FIGURE_FOLDER = "figures"
EMBEDDED_IMAGES: tuple[ImageKind, ...] = (("svg", "light"), ("svg", "dark"))
PRINTED_IMAGES: tuple[ImageKind, ...] = (("svg", "light"),)
FILE_IMAGES: tuple[ImageKind, ...] = (*((format, "light") for format in FIGURE_FORMATS), ("svg", "dark"))


@dataclass(frozen=True)
class ShownFigure:
    """A figure on a page, or the reason why there is none."""

    anchor: str
    title: str
    source: str
    caption: str
    missing: str
    light: str = ""  # address of the image; "" if missing
    dark: str = ""  # the same for a dark page; "": the light one
    files: tuple[tuple[str, str], ...] = ()  # name and address of files to download


def shown_figure(
    figure: PaperFigure, light: str = "", dark: str = "", files: tuple[tuple[str, str], ...] = ()
) -> ShownFigure:
    """Return a figure with the addresses of its images."""
    name = anchor("figure", figure.name)
    return ShownFigure(name, figure.title, figure.source, figure.caption, figure.missing, light, dark, files)


def embed_figures(figures: Iterable[PaperFigure]) -> list[ShownFigure]:
    """Return figures whose images, light and dark, are part of the page."""
    shown = []
    for figure in figures:
        if figure.missing:
            shown.append(shown_figure(figure))
        else:
            drawn = figure.render_all(EMBEDDED_IMAGES)
            light, dark = map(svg_address, drawn.values())
            shown.append(shown_figure(figure, light, dark))
    return shown


def print_figures(figures: Iterable[PaperFigure]) -> list[ShownFigure]:
    """Return figures whose light images are part of the page, for paper."""
    return [
        shown_figure(figure) if figure.missing else shown_figure(figure, svg_address(figure.render("svg")))
        for figure in figures
    ]


def svg_address(svg: bytes) -> str:
    """Return an address that contains an SVG image. A browser runs no script of such an image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def figure_files(figure: PaperFigure) -> tuple[ShownFigure, dict[str, bytes]]:
    """Return a figure that refers to files, and their content: PNG, SVG and PDF, and an SVG for dark pages."""
    if figure.missing:
        return shown_figure(figure), {}
    stem = f"{FIGURE_FOLDER}/{anchor(figure.name)}"
    files = {
        f"{stem}{'' if theme == 'light' else '-dark'}.{format}": content
        for (format, theme), content in figure.render_all(FILE_IMAGES).items()
    }
    links = tuple((name.upper(), f"{stem}.{name}") for name in FIGURE_FORMATS)
    return shown_figure(figure, f"{stem}.svg", f"{stem}-dark.svg", links), files
