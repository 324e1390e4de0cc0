"""Test error against the number of averaged networks: of derived runs of kind ensemble-sizes."""

from collections.abc import Iterator
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.declare.derived import GREEDY, GREEDY_NETWORKS, SPREAD, EnsembleSizesSpec, size_name
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import ONE_PANEL, Theme, new_figure


def ensemble_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield a figure for each experiment that declares ensembles of several sizes."""
    for experiment in data.experiments:
        names = [name for name, spec in experiment.derived.items() if isinstance(spec, EnsembleSizesSpec)]
        if not names:
            continue
        runs = data.best_runs(experiment, names)
        if runs and (figure := ensemble_figure(runs)):
            yield figure
        else:
            yield ensemble_title(experiment.name, experiment.folder).missing(data.why_missing(experiment, names))


def ensemble_title(experiment: str, paper: str, scale: str = "") -> FigureTitle:
    """Return the title of the figure of an experiment."""
    stem = "-".join(filter(None, [experiment.replace("/", "-"), scale, "ensembles"]))
    return FigureTitle(stem, paper, f"Test error by number of averaged networks, {experiment}", "")


def ensemble_figure(runs: ScaleRuns) -> PaperFigure | None:
    """Return the figure of an experiment at a scale: one line for each derived run of kind ensemble-sizes.

    None without records of such a derived run.

    The line is the mean over the ensembles of a size, the band their standard deviation, the star the ensemble
    chosen on validation images. With several records of a derived run, each of these is a mean over them.
    """
    experiment, scale = runs.experiment, runs.scale
    own = runs.only(name for name, spec in experiment.derived.items() if isinstance(spec, EnsembleSizesSpec))
    if not own.records:
        return None
    where = f"{experiment.name} at {scale} scale on {own.data}"
    caption = (
        f"Top-1 test error in percent against the number of networks whose predictions are averaged, {where};"
        " mean and standard deviation over the ensembles of a size."
    )

    def draw(theme: Theme) -> Figure:
        figure = new_figure(ONE_PANEL, 3.8)
        ax = figure.subplots()
        handles: list[Line2D] = []
        for number, name in enumerate(own.records):
            handles += draw_sizes(ax, own, name, theme.series[number % len(theme.series)])
        ax.set_xlabel("networks averaged")
        ax.set_ylabel("top-1 test error (%)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        outside_legend(figure, handles)
        figure.suptitle(f"{where}:\nmean and standard deviation over ensembles")
        return figure

    return ensemble_title(experiment.name, experiment.folder, scale).drawn(caption, draw)


def draw_sizes(ax: Axes, runs: ScaleRuns, name: str, colour: str) -> list[Line2D]:
    """Draw one derived run; return the entries of the legend."""
    spec, rows = runs.experiment.derived_spec(name, runs.scale), [row.metrics for row in runs.records[name]]
    assert isinstance(spec, EnsembleSizesSpec)
    errors = [f"test/{size_name(size)}/top1_error_pct" for size in spec.measured_sizes]
    mean = [fmean(row[error] for row in rows) for error in errors]
    spread = [fmean(row[error + SPREAD] for row in rows) for error in errors]
    handles = ax.plot(spec.measured_sizes, mean, color=colour, marker="o", markersize=4, label=name)
    low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
    ax.fill_between(spec.measured_sizes, low, high, color=colour, alpha=0.15, linewidth=0)
    if spec.greedy:
        place = [fmean(row[key] for row in rows) for key in (GREEDY_NETWORKS, f"test/{GREEDY}/top1_error_pct")]
        label = f"{name}, chosen on validation images"
        handles += ax.plot(*place, color=colour, marker="*", markersize=11, linestyle="", label=label)
    return handles
