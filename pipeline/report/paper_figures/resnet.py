"""Figures of arXiv:1512.03385: training and test errors of plain and residual networks on CIFAR-10."""

import re
from collections.abc import Iterator

from pipeline.report.leaderboard import paper_error
from pipeline.report.paper_figures.error_curves import CURVES, curve_panels
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

DEPTH = "resnet/cifar10_depth"
FIGURE_6 = FigureTitle(
    "resnet-figure-6", "resnet", "Training and test error of plain and residual networks", "Figure 6"
)


def resnet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the ResNet paper."""
    if experiment := data.experiment(DEPTH):
        yield figure_6(data, data.best_runs(experiment, list(experiment.variants)))


def figure_6(data: FigureData, runs: ScaleRuns | None) -> PaperFigure:
    """Return Figure 6: error curves, plain networks left, residual networks right."""
    if runs is None:
        return FIGURE_6.missing(f"no finished runs; start them with: repro run {DEPTH} --scale laptop")
    shown = [name for name in runs.experiment.variants if name in runs.records]
    panels = {
        title: [name for name in shown if re.fullmatch(rf"{prefix}-\d+", name)]
        for title, prefix in (("plain networks", "plain"), ("residual networks", "resnet"))
    }
    shown = [name for names in panels.values() for name in names]
    curves = {
        name: {metric: [data.curves(row, metric) for row in runs.records[name]] for metric in CURVES}
        for name in shown
    }
    same = runs.data == runs.experiment.data.name
    marks = {name: error for name in shown if same and (error := paper_error(runs.experiment, name)) is not None}
    caption = (
        f"Top-1 error in percent on {runs.data} at {runs.scale} scale against optimizer steps, of plain networks"
        " (left) and residual networks (right); bold: test, dashed: training; mean and range of"
        f" {runs.only(shown).seeds()}."
    )
    return FIGURE_6.drawn(
        caption,
        lambda theme: curve_panels(
            {title: names for title, names in panels.items() if names},
            curves,
            theme,
            marks=marks,
            ylabel=f"top-1 error (%), {runs.data}",
        ),
    )
