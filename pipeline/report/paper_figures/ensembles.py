"""Test error against the number of averaged networks: of derived runs of kind ensemble-sizes.

Where the paper prints errors of several numbers of networks (AlexNet, Table 2; GoogLeNet, Table 3), they are
beside ours, by test protocol; elsewhere the chart is of ours alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.declare.claims import MetricClaim
from pipeline.declare.derived import (
    GREEDY,
    GREEDY_NETWORKS,
    SPREAD,
    EnsembleSizesSpec,
    EnsembleSpec,
    ProtocolSpec,
    size_name,
)
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.report.paper_figures.comparison import papers_data
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.panels import Panel, Point, Series, beside_paper, panels_figure
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import ONE_PANEL, Theme, new_figure

ERRORS = {"top1_error_pct": "top-1 error (%)", "top5_error_pct": "top-5 error (%)"}
OTHER_TRAINING = re.compile(r"(top[15])_(\d+)_networks")  # printed values of networks that are not trained here

ErrorsBySize = Mapping[int, float]  # number of networks -> the error that the paper prints


def ensemble_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield a figure for each experiment that declares ensembles of several sizes."""
    for experiment in data.experiments:
        names = [name for name, spec in experiment.derived.items() if isinstance(spec, EnsembleSizesSpec)]
        if not names:
            continue
        runs = data.best_runs(experiment, names)
        if runs and (figures := drawn_ensembles(runs)):
            yield from figures
        else:
            yield ensemble_title(experiment, names, "ensembles").missing(data.why_missing(experiment, names))


def ensemble_title(experiment: Experiment, names: Sequence[str], *stem: str) -> FigureTitle:
    """Return the title of the figure of these derived runs; its source if the paper prints several numbers.

    `stem`: further parts of the figure's name.
    """
    name = "-".join([experiment.name.replace("/", "-"), *stem])
    printed = [found for name in names for found in printed_claims(experiment, list(experiment.consumed(name)))]
    several = len({count for count, _ in printed}) > 1
    source = ", ".join(dict.fromkeys(claim.source for _, claim in printed)) if several else ""
    title = f"Test error by number of averaged networks, {experiment.name}"
    return FigureTitle(name, experiment.folder, title, source)


def drawn_ensembles(runs: ScaleRuns) -> list[PaperFigure]:
    """Return the figures of an experiment's derived runs of kind ensemble-sizes at a scale; [] without records.

    Each that can be compared with the paper has a figure of its own, whose name ends with that of the derived run
    if there are several figures; all others have one together.
    """
    experiment = runs.experiment
    own = runs.only(name for name, spec in experiment.derived.items() if isinstance(spec, EnsembleSizesSpec))
    compared = {name: panels for name in own.records if (panels := compared_panels(own, name))}
    others = [name for name in own.records if name not in compared]
    is_only = len(compared) + bool(others) == 1
    figures = []
    for name, panels in compared.items():
        end = "ensembles" if is_only else f"ensembles-{name}"
        figures.append(compared_figure(own, name, panels, ensemble_title(experiment, [name], runs.scale, end)))
    if others:
        title = ensemble_title(experiment, others, runs.scale, "ensembles")
        figures.append(sizes_figure(own.only(others), title))
    return figures


def sizes_figure(own: ScaleRuns, title: FigureTitle) -> PaperFigure:
    """Return the figure of derived runs of kind ensemble-sizes: one line for each.

    The line is the mean over the ensembles of a size, the band their standard deviation, the star the ensemble
    chosen on validation images. With several records of a derived run, each of these is a mean over them.
    """
    where = f"{own.experiment.name} at {own.scale} scale on {own.data}"
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

    return title.drawn(caption, draw)


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


def networks_of(experiment: Experiment, name: str) -> int | None:
    """Return the number of networks whose predictions a variant or derived run averages; None for other kinds."""
    spec = experiment.derived.get(name)
    if isinstance(spec, EnsembleSpec):
        return sum(spec.members.values())
    return 1 if spec is None or isinstance(spec, ProtocolSpec) else None


def printed_claims(experiment: Experiment, members: Sequence[str]) -> Iterator[tuple[int, MetricClaim]]:
    """Yield the claims about mean test errors of networks of these variants, with the number of networks."""
    for claim in experiment.claims:
        if not isinstance(claim, MetricClaim) or claim.by != "paper" or claim.statistic.startswith("best"):
            continue
        count = networks_of(experiment, claim.of)
        if count and claim.metric.startswith("test/") and set(experiment.consumed(claim.of)) == set(members):
            yield count, claim


def errors_by_size(experiment: Experiment, members: Sequence[str], metric: str) -> dict[int, float]:
    """Return the mean errors that the paper prints for so many networks of these variants."""
    found: dict[int, float] = {}
    for count, claim in printed_claims(experiment, members):
        if claim.metric == metric:
            found.setdefault(count, claim.claimed)
    return found


def other_networks(experiment: Experiment, error: str) -> dict[int, float]:
    """Return the printed errors of ensembles with networks that are not trained here."""
    found = {}
    for name, printed in experiment.printed.items():
        match = OTHER_TRAINING.fullmatch(name)
        if match and error.startswith(match[1]) and isinstance(printed.value, int | float):
            found[int(match[2])] = float(printed.value)
    return found


def compared_panels(runs: ScaleRuns, name: str) -> list[Panel]:
    """Return a panel for each error of which the paper prints several numbers of networks; [] without any."""
    experiment, spec = runs.experiment, runs.experiment.derived[name]
    assert isinstance(spec, EnsembleSizesSpec)
    protocols = dict.fromkeys([*experiment.protocols(name, PAPER_SCALE), *experiment.protocols(name, runs.scale)])
    panels = []
    for error, label in ERRORS.items():
        paper = {one: errors_by_size(experiment, list(spec.members), f"test/{one}/{error}") for one in protocols}
        if max((len(sizes) for sizes in paper.values()), default=0) < 2:
            continue
        series = [Series(one, size_points(runs, name, one, error, paper[one])) for one in protocols]
        if others := other_networks(experiment, error):
            series.append(
                Series("with networks trained otherwise", [Point(n, None, v) for n, v in others.items()])
            )
        sizes = {point.x for one in series for point in one.points}
        panels.append(Panel("", "networks averaged", label, series, ticks={n: f"{n:g}" for n in sorted(sizes)}))
    return panels


def size_points(runs: ScaleRuns, name: str, protocol: str, error: str, paper: ErrorsBySize) -> list[Point]:
    """Return a point for each number of networks: ours with the spread over ensembles, and the paper's."""
    spec, rows = runs.experiment.derived_spec(name, runs.scale), [row.metrics for row in runs.records[name]]
    assert isinstance(spec, EnsembleSizesSpec)
    points = []
    for size in sorted({*spec.measured_sizes, *paper}):
        metric = f"test/{protocol}/{size_name(size)}/{error}"
        measured = [row for row in rows if metric in row]
        ours = tuple(fmean(row[metric + end] for row in measured) for end in ("", SPREAD)) if measured else None
        points.append(Point(size, (ours[0], ours[1]) if ours else None, paper.get(size)))
    return points


def compared_figure(runs: ScaleRuns, name: str, panels: Sequence[Panel], title: FigureTitle) -> PaperFigure:
    """Return the figure of one derived run with the paper's errors."""
    experiment, same_data = runs.experiment, runs.is_papers_data()
    printed = papers_data(experiment, [name])
    where = "on the same data" if same_data else f"on {printed}, on axes of their own; they cannot be compared"
    caption = (
        "Error in percent against the number of networks whose predictions are averaged, by test protocol. Ours:"
        f" {runs.place}; mean and standard deviation over the ensembles of a size. Diamonds: the paper's numbers,"
        f" {where}."
    )
    others = [value.where for key, value in experiment.printed.items() if OTHER_TRAINING.fullmatch(key)]
    if others:
        caption += f" Diamonds of networks trained otherwise: {', '.join(dict.fromkeys(others))}."
    return title.drawn(
        caption,
        lambda theme: panels_figure(
            beside_paper(panels, ours=runs.place, paper=printed, same_data=same_data), theme
        ),
    )
