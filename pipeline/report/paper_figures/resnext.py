"""Figures of arXiv:1611.05431: cardinality at equal cost (Table 3), and cardinality on CIFAR-10 (Figure 7)."""

from collections.abc import Iterator

from pipeline.report.paper_figures.comparison import comparison, network_point
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.panels import Panel, Series
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

EQUAL_COST = ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4))  # cardinality and width of a bottleneck
RESNEXT_DEPTHS = (50, 101)
CIFAR_PATHS = (1, 2, 4, 8, 16)
TABLE_3 = FigureTitle(
    "resnext-table-3", "resnext", "Validation error by cardinality, at equal cost", "Table 3 and Figure 5"
)
FIGURE_7 = FigureTitle("resnext-figure-7", "resnext", "Test error by cardinality and parameters", "Figure 7")


def resnext_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the ResNeXt paper."""
    if experiment := data.experiment("resnext/imagenet"):
        names = [f"resnext-{depth}-{paths}x{width}d" for depth in RESNEXT_DEPTHS for paths, width in EQUAL_COST]
        yield comparison(
            TABLE_3,
            data,
            experiment,
            names,
            equal_cost_panels,
            "Top-1 validation error against the number of paths; the networks of a line have about the same number"
            " of operations.",
        )
    if experiment := data.experiment("resnext/cifar"):
        names = [f"resnext-29-{paths}x64d" for paths in CIFAR_PATHS]
        yield comparison(
            FIGURE_7,
            data,
            experiment,
            names,
            lambda runs: cardinality_panels(data, runs),
            "Top-1 test error of ResNeXt-29 against the number of its parameters; the labels are the number of"
            " paths and their width.",
        )


def equal_cost_panels(runs: ScaleRuns) -> list[Panel]:
    """Return the panel of Table 3: one series for each depth."""
    series = [
        Series(
            f"{depth} layers",
            [network_point(runs, f"resnext-{depth}-{paths}x{width}d", paths) for paths, width in EQUAL_COST],
        )
        for depth in RESNEXT_DEPTHS
    ]
    ticks = {float(paths): f"{paths} x {width}d" for paths, width in EQUAL_COST}
    return [Panel("", "paths x width", "top-1 validation error (%)", series, log_x=True, ticks=ticks)]


def cardinality_panels(data: FigureData, runs: ScaleRuns) -> list[Panel]:
    """Return the panel of Figure 7: errors against parameters in millions."""
    points = []
    for paths in CIFAR_PATHS:
        name = f"resnext-29-{paths}x64d"
        size = data.size(runs.experiment, name, "parameters") / 1e6
        points.append(network_point(runs, name, size, label=f"{paths} x 64d"))
    series = [Series("ResNeXt-29", points)]
    return [Panel("", "parameters (millions)", "top-1 test error (%)", series, log_x=True,
                  ticks={5.0: "5", 10.0: "10", 20.0: "20", 40.0: "40", 70.0: "70"})]  # fmt: skip
