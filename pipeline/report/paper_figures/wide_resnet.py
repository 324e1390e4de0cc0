"""Figure of arXiv:1605.07146: test error against depth and width, after Table 4."""

from collections.abc import Iterator

from pipeline.report.paper_figures.comparison import comparison, network_point
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.panels import Panel, Series
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

WIDTH = "wide_resnet/cifar_width"
TABLE_4 = {40: (1, 2, 4, 8), 28: (10, 12), 22: (8, 10), 16: (8, 10)}  # depth -> widening factors k
DEPTH_AND_WIDTH = FigureTitle(
    "wide-resnet-depth-and-width",
    "wide_resnet",
    "Test error of wide residual networks by depth and width",
    "Table 4",
)


def wide_resnet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the paper on wide residual networks: CIFAR-10, and CIFAR-100 where it was run."""
    experiment = data.experiment(WIDTH)
    if experiment is None:
        return
    names = [f"wrn-{depth}-{k}" for depth, factors in TABLE_4.items() for k in factors]
    yield comparison(
        DEPTH_AND_WIDTH,
        data,
        experiment,
        names,
        width_panels,
        "Top-1 test error against the widening factor k, one line for each depth.",
    )


def width_panels(runs: ScaleRuns) -> list[Panel]:
    """Return the panel of Table 4: one series for each depth."""
    series = [
        Series(f"{depth} layers", [network_point(runs, f"wrn-{depth}-{k}", k) for k in factors])
        for depth, factors in TABLE_4.items()
    ]
    ticks = {float(k): str(k) for factors in TABLE_4.values() for k in factors}
    return [Panel("", "widening factor k", "top-1 test error (%)", series, ticks=ticks)]
