"""Figure of arXiv:1605.07648: plain networks, fractal networks and their columns by depth, Tables 3 and 4."""

from collections.abc import Iterator

from pipeline.report.paper_figures.comparison import comparison, network_point
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.panels import Panel, Series
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

FRACTAL_CIFAR = "fractalnet/cifar"
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


def depth_panels(runs: ScaleRuns) -> list[Panel]:
    """Return the panel of Tables 3 and 4: one series for each kind of network."""
    series = [
        Series(kind, [network_point(runs, name, depth) for depth, name in networks.items()])
        for kind, networks in BY_DEPTH.items()
    ]
    ticks = {float(depth): str(depth) for networks in BY_DEPTH.values() for depth in networks}
    return [Panel("", "layers", "top-1 test error (%)", series, log_x=True, ticks=ticks)]
