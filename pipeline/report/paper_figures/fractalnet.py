"""Figures of arXiv:1605.07648: training loss of columns (Figure 3), and errors by depth (Tables 3 and 4)."""

from collections.abc import Iterator
from dataclasses import replace

from pipeline.declare.experiment import Experiment
from pipeline.declare.training import column_metric
from pipeline.report.paper_figures.comparison import comparison, network_point
from pipeline.report.paper_figures.error_curves import (
    CurveLine,
    CurvePanel,
    drawn_curves,
    spread_text,
    variant_lines,
    words_of_panels,
)
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns, paper_value
from pipeline.report.paper_figures.panels import Panel, Series
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

FRACTAL_CIFAR, COLUMN_LOSSES = "fractalnet/cifar", "fractalnet/columns"
LOSS, LOSS_AFTER_TRAINING = "train/loss", "trainset/loss"  # of a run, and of a column in Table 4
WITH_COLUMNS = "fractal-40-drop-path"
COLUMN_DEPTHS = {1: 5, 2: 10, 3: 20, 4: 40}  # column -> layers
FIGURE_3 = FigureTitle(
    "fractalnet-figure-3",
    "fractalnet",
    "Training loss of plain networks and of a fractal network's columns",
    "Figure 3",
)
BY_DEPTH = {
    "plain networks": {depth: f"fractal-plain-{depth}" for depth in (5, 10, 20, 40)},
    "columns of FractalNet-40": {5 * 2**i: f"fractal-40-column-{i + 1}" for i in range(4)},
    "fractal networks": {depth: f"fractal-{depth}" for depth in (5, 10, 20, 40, 80, 160)},
}
FRACTAL_COLUMNS = FigureTitle(
    "fractalnet-columns",
    "fractalnet",
    "Test error of plain networks, fractal networks and their columns",
    "Tables 3 and 4",
)


def fractalnet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the FractalNet paper."""
    if experiment := data.experiment(COLUMN_LOSSES):
        yield column_curves(data, experiment)
    if experiment := data.experiment(FRACTAL_CIFAR):
        yield comparison(
            FRACTAL_COLUMNS,
            data,
            experiment,
            [name for networks in BY_DEPTH.values() for name in networks.values()],
            depth_panels,
            "Top-1 test error against depth: plain networks, single columns of a fractal network of 40 layers, and"
            " whole fractal networks.",
        )


def column_curves(data: FigureData, experiment: Experiment) -> PaperFigure:
    """Return Figure 3: training loss of plain networks, left, and of the columns of a fractal network, right."""
    plain = {f"fractal-plain-{depth}": depth for depth in COLUMN_DEPTHS.values()}
    names = [WITH_COLUMNS, *plain]
    runs = data.best_runs(experiment, [WITH_COLUMNS])
    if runs is None:
        return FIGURE_3.missing(data.why_missing(experiment, [WITH_COLUMNS]))
    at_scale = data.runs(experiment, runs.scale)
    assert at_scale is not None
    runs = at_scale.only(names)
    printed = data.experiment(FRACTAL_CIFAR) if runs.is_papers_data() else None
    left = [
        replace(
            line,
            name=f"{plain[line.name]} layers",
            paper=paper_value(printed, line.name, LOSS) if printed else None,
            colour=list(COLUMN_DEPTHS.values()).index(plain[line.name]),
        )
        for line in variant_lines(data.curves, runs, list(plain), LOSS)
    ]
    right: list[CurveLine] = []
    for number, (column, depth) in enumerate(COLUMN_DEPTHS.items()):
        own = f"fractal-40-column-{column}"
        paper = paper_value(printed, own, LOSS_AFTER_TRAINING) if printed else None
        name = f"column {column}, {depth} layers"
        lines = variant_lines(data.curves, runs, [WITH_COLUMNS], column_metric(column), paper=paper)
        right += [replace(line, name=name, colour=number) for line in lines]
    whole = variant_lines(data.curves, runs, [WITH_COLUMNS], LOSS, dashed=True)
    right += [replace(line, name="all mini-batches", colour=len(COLUMN_DEPTHS)) for line in whole]
    ylabel = f"training loss, {runs.data}"
    panels = [
        CurvePanel(title, ylabel, lines)
        for title, lines in (("plain networks", left), ("columns of a fractal network", right))
        if lines
    ]
    caption = (
        f"Training loss (cross-entropy) against optimizer steps, of {words_of_panels(panels)}; the fractal network"
        " has 40 layers and drop-path: of a column the mean over the mini-batches that train it alone, dashed over"
        f" all mini-batches; {runs.place}; {spread_text(panels)}."
    )
    if any(line.paper is not None for line in (*left, *right)):
        caption += " Diamonds: the paper's losses after training, Table 4."
    return drawn_curves(FIGURE_3, caption, panels, {})


def depth_panels(runs: ScaleRuns) -> list[Panel]:
    """Return the panel of Tables 3 and 4: one series for each kind of network."""
    series = [
        Series(kind, [network_point(runs, name, depth) for depth, name in networks.items()])
        for kind, networks in BY_DEPTH.items()
    ]
    ticks = {float(depth): str(depth) for networks in BY_DEPTH.values() for depth in networks}
    return [Panel("", "layers", "top-1 test error (%)", series, log_x=True, ticks=ticks)]
