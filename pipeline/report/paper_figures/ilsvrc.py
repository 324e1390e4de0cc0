"""The lecture's chart of ILSVRC winners: top-5 error by year, with the depth of each network."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pipeline.declare.experiment import Experiment
from pipeline.report.paper_figures.figure_data import FigureData
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import FULL_WIDTH, SMALL_FONT, Theme, new_figure
from pipeline.report.winners import CHART, DEPTH, charted_error

ENTRIES = (  # printed value, name in the chart, variant with the network
    ("2010", "2010", None),
    ("2011", "2011", None),
    ("2012", "2012\nAlexNet", "alexnet"),
    ("2013_zfnet", "2013\nZFNet", "zfnet"),
    ("2014_vgg", "2014\nVGG", "vgg-19"),
    ("2014", "2014\nGoogLeNet", "googlenet"),
    ("2015", "2015\nResNet", "resnet-152"),
    ("2016", "2016", None),
    ("2017", "2017\nSENet", None),
    ("human", "human", None),
)
WINNERS = FigureTitle(
    "ilsvrc-winners", "ilsvrc", "ILSVRC: top-5 error and depth by year", "lecture, slide of the ILSVRC winners"
)


@dataclass(frozen=True)
class Entry:
    """One bar of the chart."""

    label: str
    error: float  # top-5 in percent, as the papers print it
    depth: int | None  # layers with weights of the network built here; None for no network of ours
    charted: float | None  # the error in the lecture's chart where it is another


def ilsvrc_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the chart of winners. All its errors are printed ones: the challenge's test labels are not public."""
    if experiment := data.experiment(CHART):
        yield WINNERS.drawn(
            "Top-5 error in percent of the ILSVRC classification task by year, as the papers print it, on the"
            " challenge's test sets; crosses: the lecture's chart where it shows another number. The labels are"
            " the layers with weights of the networks built here. No error of this chart is measured here, since"
            " the test labels were never published.",
            lambda theme: winners_figure(list(winner_entries(data, experiment)), theme),
        )


def winner_entries(data: FigureData, experiment: Experiment) -> Iterator[Entry]:
    """Yield the bars whose values are declared as printed."""
    charted = dict(
        found
        for claim in experiment.claims
        if getattr(claim, "corrected", None) is not None and (found := charted_error(claim))
    )
    for key, label, variant in ENTRIES:
        if printed := experiment.printed.get(f"top5_{key}"):
            depth = data.measure(DEPTH, experiment, variant) if variant else None
            yield Entry(label, float(printed.value), depth, charted.get(key))


def winners_figure(entries: list[Entry], theme: Theme) -> Figure:
    """Return the chart: a hatched bar for each printed error, with the depth of the network above it."""
    figure = new_figure(FULL_WIDTH, 3.8)
    ax = figure.subplots()
    colour = theme.series[0]
    bars: Any = {"color": colour, "alpha": 0.45, "edgecolor": colour, "linewidth": 1.2, "hatch": "//"}
    ax.bar(range(len(entries)), [entry.error for entry in entries], width=0.62, **bars)
    for place, entry in enumerate(entries):
        top = max(entry.error, entry.charted or 0.0)
        text = f"{entry.error:g}" + (f"\n{entry.depth} layers" if entry.depth else "")
        ax.annotate(
            text,
            (place, top),
            xytext=(0, 9 if entry.charted else 5),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL_FONT,
        )
        if entry.charted is not None:
            ax.plot(place, entry.charted, **cross_style(theme))
    ax.set_xticks(range(len(entries)), [entry.label for entry in entries])
    ax.set_ylabel("top-5 error (%)")
    ax.margins(y=0.16)
    ax.grid(visible=False, axis="x")
    cross = Line2D([], [], label="lecture's chart, where it differs", **cross_style(theme))
    outside_legend(
        figure, [Patch(facecolor=colour, edgecolor=colour, alpha=0.45, hatch="//", label="paper"), cross]
    )
    return figure


def cross_style(theme: Theme) -> dict[str, Any]:
    """Return the style of the lecture's numbers."""
    edge = {"markeredgecolor": theme.text, "markeredgewidth": 0.7}
    return {"marker": "X", "markersize": 7, "linestyle": "", "color": theme.series[1]} | edge
