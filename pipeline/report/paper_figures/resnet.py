"""Figures 1, 4, 6 and 7 of arXiv:1512.03385: error curves of plain and residual networks, layer responses."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.declare.experiment import Experiment
from pipeline.report.paper_figures.error_curves import (
    TEST_CURVE,
    TRAIN_CURVE,
    CurvePanel,
    across_seeds,
    drawn_curves,
    spread_text,
    styles_text,
    variant_lines,
    words_of_panels,
)
from pipeline.report.paper_figures.figure_data import FigureData, over_seeds, paper_value
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import FULL_WIDTH, Theme, new_figure

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
PLAIN = [f"plain-{depth}" for depth in CIFAR_DEPTHS]
RESIDUAL = [f"resnet-{depth}" for depth in CIFAR_DEPTHS]
IMAGENET_PANELS = {"plain networks": ["plain-18", "plain-34"], "residual networks": ["resnet-18-a", "resnet-34-a"]}
CIFAR_PANELS = {"plain networks": PLAIN, "residual networks": RESIDUAL}
FIGURE_1 = FigureTitle("resnet-figure-1", "resnet", "Training and test error of plain networks", "Figure 1")
FIGURE_4 = FigureTitle(
    "resnet-figure-4", "resnet", "Training and validation error on ImageNet, plain and residual", "Figure 4"
)
FIGURE_6 = FigureTitle(
    "resnet-figure-6", "resnet", "Training and test error of plain and residual networks", "Figure 6"
)
FIGURE_7 = FigureTitle("resnet-figure-7", "resnet", "Standard deviation of layer responses", "Figure 7")
BATCHNORM = re.compile(r"(?:(map\d+)\.(\d+)\.)?bn(\d)\.weight")
STAGES = (None, "map32", "map16", "map8")  # in the order of the layers


def resnet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the ResNet paper."""
    if experiment := data.experiment("resnet/cifar10_depth"):
        yield plain_figure(data, experiment)
    if experiment := data.experiment("resnet/imagenet"):
        yield plain_and_residual(FIGURE_4, data, experiment, IMAGENET_PANELS, test="validation")
    if experiment := data.experiment("resnet/cifar10_depth"):
        yield plain_and_residual(FIGURE_6, data, experiment, CIFAR_PANELS, test="test")
        yield figure_7(data, experiment)


def plain_figure(data: FigureData, experiment: Experiment) -> PaperFigure:
    """Return Figure 1: training error left, test error right, of the plain networks of 20 and 56 layers."""
    names = ["plain-20", "plain-56"]
    runs = data.best_runs(experiment, names, least=2)
    if runs is None:
        return FIGURE_1.missing(data.why_missing(experiment, names, least=2))
    panels = [
        CurvePanel(title, f"top-1 error (%), {runs.data}", lines)
        for title, metric in (("training error", TRAIN_CURVE), ("test error", TEST_CURVE))
        if (lines := variant_lines(data.curves, runs, names, metric))
    ]
    caption = (
        f"Top-1 {words_of_panels(panels)} in percent against optimizer steps, of plain networks"
        f" with 20 and 56 layers; {runs.place}; {spread_text(panels)}."
    )
    return drawn_curves(FIGURE_1, caption, panels, {})


def plain_and_residual(
    title: FigureTitle, data: FigureData, experiment: Experiment, groups: Mapping[str, Sequence[str]], *, test: str
) -> PaperFigure:
    """Return a figure of error curves, plain networks left, residual networks right."""
    names = [name for group in groups.values() for name in group]
    runs = data.best_runs(experiment, names, least=2)
    if runs is None:
        return title.missing(data.why_missing(experiment, names, least=2))
    panels = []
    for heading, group in groups.items():
        tested = variant_lines(data.curves, runs, group, TEST_CURVE)
        if runs.is_papers_data():
            tested = [replace(line, paper=paper_value(experiment, line.name)) for line in tested]
        lines = [*variant_lines(data.curves, runs, group, TRAIN_CURVE, dashed=True), *tested]
        if lines:
            panels.append(CurvePanel(heading, f"top-1 error (%), {runs.data}", lines))
    keys = {test: False, "training": True}
    caption = (
        f"Top-1 error in percent against optimizer steps, of {words_of_panels(panels)};"
        f" {styles_text(panels, keys)}; {runs.place}; {spread_text(panels)}."
    )
    if any(line.paper is not None for panel in panels for line in panel.lines):
        caption += " Diamonds: the paper's errors after training."
    return drawn_curves(title, caption, panels, keys)


def figure_7(data: FigureData, experiment: Experiment) -> PaperFigure:
    """Return Figure 7: standard deviations of layer responses, in the order of the layers, and sorted.

    They follow from the weights. A batch normalisation gives each channel the variance of its scale squared and
    the mean of its shift, so the responses of a layer have a variance of mean(scale²) + var(shift).
    """
    names = ["plain-20", "plain-56", "resnet-20", "resnet-56", "resnet-110"]
    runs = data.best_runs(experiment, names, least=2)
    if runs is None:
        return FIGURE_7.missing(data.why_missing(experiment, names, least=2))
    weights = {row.identity: data.weights(row) for rows in runs.records.values() for row in rows}
    runs = runs.where(lambda row: weights[row.identity] is not None)
    found = {
        name: [layer_responses(tensors) for row in rows if (tensors := weights[row.identity]) is not None]
        for name, rows in runs.records.items()
    }
    if not found:
        return FIGURE_7.missing(
            "The weights of the finished runs are not on this machine; train them here or copy their folders."
        )
    caption = (
        "Standard deviation of the responses of each 3x3 layer, after batch normalisation and before the"
        f" nonlinearity: in the order of the layers (left) and sorted (right); {runs.place};"
        f" {over_seeds('mean', runs.seeds())}. Computed from the scales and shifts of the batch normalisations,"
        " that is, with the statistics of the training images."
    )
    return FIGURE_7.drawn(caption, partial(draw_responses, found))


def layer_responses(tensors: Mapping[str, Any]) -> list[float]:
    """Return the standard deviation of the responses of each layer, in the order of the layers."""
    layers = []
    for name in tensors:
        if match := BATCHNORM.fullmatch(name):
            stage, block, number = match.groups()
            layers.append((STAGES.index(stage), int(block or 0), int(number), name))
    result = []
    for *_, name in sorted(layers):
        scale, shift = (
            np.asarray(tensors[f"{name.removesuffix('weight')}{end}"], float) for end in ("weight", "bias")
        )
        result.append(float(np.sqrt(np.mean(scale**2) + np.var(shift))))
    return result


def draw_responses(found: Mapping[str, Sequence[Sequence[float]]], theme: Theme) -> Figure:
    """Draw the responses; `found`: network -> a list over layers for each seed. Plain networks are dashed."""
    figure = new_figure(FULL_WIDTH, 3.4)
    axes = figure.subplots(1, 2, sharey=True)
    colours = dict(zip(found, theme.series, strict=False))
    for ax, ordered, label in zip(
        axes, (False, True), ("layer index", "layer index, sorted by magnitude"), strict=True
    ):
        for name, rows in found.items():
            curves = [list(enumerate(sorted(row, reverse=True) if ordered else row, 1)) for row in rows]
            layers, (mean, *_) = across_seeds(curves)
            ax.plot(layers, mean, color=colours[name], **response_line(name))
        ax.set_xlabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("standard deviation")
    keys = [Line2D([], [], color=colours[name], label=name, **response_line(name)) for name in found]
    outside_legend(figure, keys)
    return figure


def response_line(name: str) -> dict[str, Any]:
    """Return the style of a network's line."""
    return {"linewidth": 1.6, "linestyle": "--" if name.startswith("plain") else "-"}
