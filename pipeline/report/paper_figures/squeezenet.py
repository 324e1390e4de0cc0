"""Figure 3 of arXiv:1602.07360: accuracy against model size, by squeeze ratio and by share of 3x3 filters."""

from collections.abc import Iterator

from pipeline.report.leaderboard import TOP5
from pipeline.report.paper_figures.comparison import comparison, network_point
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.panels import Panel, Series
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

DESIGN = "squeezenet/design_space"
MEGABYTE = 2**20 / 4  # parameters of 4 bytes
RATIOS = {"squeezenet": "SR 0.125"} | {f"squeezenet-sr-{ratio}": f"SR {ratio}" for ratio in (0.25, 0.5, 0.75, 1)}
SHARES = {
    "squeezenet-sr-0.5-1-pct-3x3": "1 %",
    "squeezenet-sr-0.5-12.5-pct-3x3": "12.5 %",
    "squeezenet-sr-0.5-25-pct-3x3": "25 %",
    "squeezenet-sr-0.5-37.5-pct-3x3": "37.5 %",
    "squeezenet-sr-0.5": "50 %",
    "squeezenet-sr-0.5-62.5-pct-3x3": "62.5 %",
    "squeezenet-sr-0.5-75-pct-3x3": "75 %",
    "squeezenet-sr-0.5-87.5-pct-3x3": "87.5 %",
    "squeezenet-sr-0.5-mostly-3x3": "99 %",
}
FIGURE_3 = FigureTitle(
    "squeezenet-figure-3", "squeezenet", "Accuracy of SqueezeNets against the size of the model", "Figure 3"
)


def squeezenet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the SqueezeNet paper."""
    if experiment := data.experiment(DESIGN):
        yield comparison(
            FIGURE_3,
            data,
            experiment,
            list(RATIOS | SHARES),
            lambda runs: design_panels(data, runs),
            "Top-5 accuracy against the size of the model, 4 bytes for each parameter: by squeeze ratio SR, with"
            " half of the expand filters 3x3, and by the share of 3x3 filters, with SR = 0.5.",
        )


def design_panels(data: FigureData, runs: ScaleRuns) -> list[Panel]:
    """Return the panels of Figures 3a and 3b."""
    panels = []
    for title, labels in (("squeeze ratio", RATIOS), ("share of 3x3 filters", SHARES)):
        points = []
        for name, label in labels.items():
            size = data.size(runs.experiment, name, "parameters") / MEGABYTE
            points.append(network_point(runs, name, size, metric=TOP5, accuracy=True, label=label))
        panels.append(Panel(title, "size of the model (MB)", "top-5 accuracy (%)", [Series("SqueezeNet", points)]))
    return panels
