"""Figures of a data set: some of its images, and the images of each class."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from pipeline.common.errors import explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.report.paper_figures.style import THEMES

ACROSS = 8  # images in a row of a contact sheet


def save_figure(figure: Figure, path: Path, *, dpi: int) -> Path:
    """Write `figure` to the PNG file `path` atomically. Raises UserError if the folder cannot be written."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi, metadata={"Software": None})
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, png.getvalue())
    return path


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
    for ax, colour, (split, values) in zip(panels, cycle(THEMES["light"].series), counts.items(), strict=False):
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
