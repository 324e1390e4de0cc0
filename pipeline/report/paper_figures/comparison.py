"""Figures that compare networks of one experiment: errors against depth, width, parameters or operations."""

from collections.abc import Callable, Iterable, Sequence

from pipeline.declare.claims import MetricClaim
from pipeline.declare.experiment import Experiment
from pipeline.report.leaderboard import TOP1
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns, over_seeds, paper_value
from pipeline.report.paper_figures.panels import Panel, Point, beside_paper, panels_figure
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

HOW_READ = {
    "memory": "Some of the paper's numbers are quoted from memory.",
    "figure": "Some of the paper's numbers are read off a figure.",
}


def comparison(
    title: FigureTitle,
    data: FigureData,
    experiment: Experiment,
    names: Sequence[str],
    panels: Callable[[ScaleRuns], Sequence[Panel]],
    caption: str,
    *,
    least: int = 2,
    height: float = 3.0,
) -> PaperFigure:
    """Return a figure of these variants and derived runs, from the first scale that has runs of `least` of them.

    `panels` makes them when the figure is drawn, since sizes of networks take time. `caption`: what they show.
    """
    runs = data.best_runs(experiment, names, least=least)
    if runs is None:
        return title.missing(data.why_missing(experiment, names, least=least))
    same_data, printed = runs.is_papers_data(), papers_data(experiment, names)
    return title.drawn(
        comparison_caption(caption, runs, names),
        lambda theme: panels_figure(
            beside_paper(panels(runs), ours=runs.place, paper=printed, same_data=same_data), theme, height=height
        ),
    )


def comparison_caption(caption: str, runs: ScaleRuns, names: Iterable[str]) -> str:
    """Return the caption: content, then data, scale and seeds of our runs, then the paper's data."""
    printed = [
        claim for claim in runs.experiment.claims if isinstance(claim, MetricClaim) and claim.of in set(names)
    ]
    seeds = over_seeds("mean and standard deviation", runs.converged_seeds())
    parts = [f"{caption} Ours: {runs.place}; {seeds}."]
    if not printed:
        parts.append("The paper prints no numbers for these networks.")
    elif runs.is_papers_data():
        parts.append("Diamonds: the paper's numbers on the same data.")
    else:
        where = papers_data(runs.experiment, names)
        parts.append(f"Diamonds: the paper's numbers, on {where}, on axes of their own; they cannot be compared.")
    parts += [text for how, text in HOW_READ.items() if any(claim.confidence == how for claim in printed)]
    return " ".join(parts)


def papers_data(experiment: Experiment, names: Iterable[str]) -> str:
    """Return the names of the data sets on which the paper evaluates these networks."""
    return ", ".join(dict.fromkeys(experiment.paper_data(name) for name in names))


def network_point(
    runs: ScaleRuns, name: str, x: float, *, metric: str = TOP1, accuracy: bool = False, label: str = ""
) -> Point:
    """Return one network of a panel: our error and the paper's, or both as accuracies of 100 minus the error."""
    ours, paper = runs.mean(name, metric), paper_value(runs.experiment, name, metric)
    if accuracy:
        ours = (100 - ours[0], ours[1]) if ours else None
        paper = None if paper is None else 100 - paper
    return Point(x, ours, paper, label)
