"""Figures 1 and 3 of Krizhevsky et al. 2012: ReLU against tanh, and the filters of the first layer."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.declare.experiment import Experiment
from pipeline.report.paper_figures.error_curves import (
    TRAIN_CURVE,
    CurvePanel,
    drawn_curves,
    spread_text,
    variant_lines,
)
from pipeline.report.paper_figures.figure_data import FigureData
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import FULL_WIDTH, new_figure

ACTIVATIONS = {"alexnet-cifar": "ReLU", "alexnet-cifar-tanh": "tanh"}
ERROR_LEVEL = 25.0  # training error in percent that Figure 1 compares
FILTERS = (("alexnet/imagenet", "alexnet"), ("alexnet/cifar10", "alexnet-cifar"))  # the paper's network first
FIRST_LAYER = "conv1.weight"
FILTERS_ACROSS = 16  # filters in a row
FIGURE_1 = FigureTitle("alexnet-figure-1", "alexnet", "Training error with ReLU and with tanh", "Figure 1")
FIGURE_3 = FigureTitle("alexnet-figure-3", "alexnet", "Filters of the first convolutional layer", "Figure 3")


def alexnet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the AlexNet paper."""
    if experiment := data.experiment("alexnet/cifar10"):
        yield activation_figure(data, experiment)
    if declared := [(found, name) for one, name in FILTERS if (found := data.experiment(one))]:
        yield filter_figure(data, declared)


def activation_figure(data: FigureData, experiment: Experiment) -> PaperFigure:
    """Return Figure 1: training errors of a network of four layers, with a line at 25 %."""
    names = list(ACTIVATIONS)
    runs = data.best_runs(experiment, names, least=2)
    if runs is None:
        return FIGURE_1.missing(data.why_missing(experiment, names, least=2))
    lines = [
        replace(line, name=ACTIVATIONS[line.name], dashed=line.name.endswith("tanh"))
        for line in variant_lines(data.curves, runs, names, TRAIN_CURVE)
    ]
    panels = [CurvePanel("", f"top-1 training error (%), {runs.data}", lines, level=ERROR_LEVEL)]
    caption = (
        "Top-1 training error in percent against optimizer steps, of a network of four layers with ReLU (bold) and"
        f" with tanh (dashed); the horizontal line is at {ERROR_LEVEL:g} %; {runs.place}; {spread_text(panels)}."
    )
    return drawn_curves(FIGURE_1, caption, panels, {})


def filter_figure(data: FigureData, declared: list[tuple[Experiment, str]]) -> PaperFigure:
    """Return Figure 3: the filters of the first layer, of the first seed whose weights are here."""
    for experiment, name in declared:
        runs = data.best_runs(experiment, [name])
        for record in runs.records[name] if runs else []:
            if runs and (tensors := data.weights(record)) is not None:
                return filters_figure(tensors, f"{name}: {runs.place}, seed {record.seed}")
    return FIGURE_3.missing(f"No finished run with weights on this machine; {missing_command(data, declared)}")


def filters_figure(tensors: Mapping[str, Any], where: str) -> PaperFigure:
    """Return Figure 3 with the weights of a run: `where` names its network, data, scale and seed."""
    filters = np.asarray(tensors[FIRST_LAYER], float)
    caption = (
        f"The {len(filters)} filters of {filter_size(filters)} of the first convolutional layer of {where}."
        " Each is scaled to its own range. The paper shows 96 filters of 11 x 11 x 3, learned on ImageNet."
    )
    return FIGURE_3.drawn(caption, lambda _: draw_filters(filters, where))


def filter_size(filters: Any) -> str:
    """Return the size of filters (N, C, H, W) as the paper prints it: "11 x 11 x 3"."""
    _, channels, high, wide = filters.shape
    return f"{high} x {wide} x {channels}"


def missing_command(data: FigureData, declared: list[tuple[Experiment, str]]) -> str:
    """Return the end of the sentence that says which command makes the cheapest run."""
    experiment, name = declared[-1]
    return data.why_missing(experiment, [name]).partition("; ")[2]


def draw_filters(filters: Any, title: str) -> Figure:
    """Draw filters (N, C, H, W) in rows of 16: in colour with three channels, else in grey, their mean over C."""
    count, channels, high, wide = filters.shape
    rows = -(-count // FILTERS_ACROSS)
    sheet = np.zeros((rows * (high + 1) + 1, FILTERS_ACROSS * (wide + 1) + 1, 4))  # transparent between filters
    for number, one in enumerate(filters):
        picture = one if channels == 3 else np.repeat(one.mean(axis=0, keepdims=True), 3, axis=0)
        low, span = picture.min(), max(picture.max() - picture.min(), 1e-12)
        top, left = (1 + (number // FILTERS_ACROSS) * (high + 1)), (1 + (number % FILTERS_ACROSS) * (wide + 1))
        sheet[top : top + high, left : left + wide, :3] = ((picture - low) / span).transpose(1, 2, 0)
        sheet[top : top + high, left : left + wide, 3] = 1
    figure = new_figure(FULL_WIDTH, FULL_WIDTH * sheet.shape[0] / sheet.shape[1] + 0.4)
    ax = figure.subplots()
    ax.set_axis_off()
    ax.imshow(sheet, interpolation="nearest")
    ax.set_title(title)
    return figure
