"""Figures 3 and 4 of arXiv:1608.06993: errors against parameters and operations."""

from collections.abc import Iterator, Mapping
from functools import partial

from pipeline.report.paper_figures.comparison import comparison, network_point
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.panels import Panel, Series
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

Networks = Mapping[str, tuple[str, ...]]  # name in the legend -> variants

DENSE_IMAGENET: Networks = {
    "DenseNet": tuple(f"densenet-{depth}" for depth in (121, 169, 201, 264)),
    "ResNet": tuple(f"resnet-{depth}-stride-in-3x3" for depth in (50, 101)),
}
DENSE_CIFAR: Networks = {
    "DenseNet": ("densenet-40-12", "densenet-100-12", "densenet-100-24"),
    "DenseNet-BC": ("densenet-bc-100-12", "densenet-bc-250-24", "densenet-bc-190-40"),
}
THIRD: Networks = {
    "DenseNet-BC": ("densenet-bc-82-12", "densenet-bc-100-12"),
    "pre-activation ResNet": ("preact-resnet-164", "preact-resnet-1001-batch-64"),
}
FIGURE_3 = FigureTitle(
    "densenet-figure-3", "densenet", "Validation error against parameters and operations", "Figure 3"
)
CAPACITY = FigureTitle(
    "densenet-capacity",
    "densenet",
    "Test error of DenseNets against parameters and operations",
    "Table 2, column C10+",
)
FIGURE_4 = FigureTitle(
    "densenet-figure-4", "densenet", "Test error of DenseNet-BC and ResNet against parameters", "Figure 4"
)


def densenet_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the DenseNet paper."""
    for title, name, networks, kind in (
        (FIGURE_3, "densenet/imagenet", DENSE_IMAGENET, "validation"),
        (CAPACITY, "densenet/cifar", DENSE_CIFAR, "test"),
        (FIGURE_4, "densenet/resnets", THIRD, "test"),
    ):
        if experiment := data.experiment(name):
            yield comparison(
                title,
                data,
                experiment,
                [variant for variants in networks.values() for variant in variants],
                partial(cost_panels, data, networks, kind),
                f"Top-1 {kind} error against the parameters (left) and the multiply-adds (right) of the networks.",
            )


def cost_panels(data: FigureData, networks: Networks, kind: str, runs: ScaleRuns) -> list[Panel]:
    """Return one panel of errors against parameters and one against multiply-adds."""
    panels = []
    for what, unit, label in (
        ("parameters", 1e6, "parameters (millions)"),
        ("multiply_adds", 1e9, "multiply-adds per image (10⁹)"),
    ):
        series = [
            Series(
                name,
                [
                    network_point(runs, variant, data.size(runs.experiment, variant, what) / unit)
                    for variant in variants
                    if variant in runs.experiment.variants
                ],
            )
            for name, variants in networks.items()
        ]
        panels.append(Panel("", label, f"top-1 {kind} error (%)", series))
    return panels
