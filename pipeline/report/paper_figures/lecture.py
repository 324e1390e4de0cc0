"""Figures of the lecture's own comparisons (Stanford CS231n, lecture 9)."""

from collections.abc import Iterator

from pipeline.declare.training import GRADIENT_NORM
from pipeline.report.paper_figures.figure_data import FigureData
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.stochastic_depth import gradient_figure

DENSE = {
    "densenet-40-12": "with dense connections",
    "chain-40-12": "without, same filters",
    "chain-40-57": "without, as many parameters",
}
GRADIENTS = FigureTitle(
    "lecture-gradients", "lecture", "Gradient magnitude with and without dense connections", "notes, on DenseNet"
)


def lecture_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the lecture's comparisons."""
    if experiment := data.experiment("lecture/gradients"):
        yield gradient_figure(GRADIENTS, data, experiment, DENSE, f"{GRADIENT_NORM}conv1", "the first convolution")
