"""Figures 3, 7 and 8 of arXiv:1603.09382: curves, gradient magnitudes, survival probabilities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.declare.experiment import Experiment
from pipeline.declare.training import GRADIENT_NORM
from pipeline.report.paper_figures.comparison import papers_data
from pipeline.report.paper_figures.error_curves import (
    TEST_CURVE,
    CurvePanel,
    drawn_curves,
    spread_text,
    variant_lines,
    words_of_panels,
)
from pipeline.report.paper_figures.figure_data import FigureData, ScaleRuns, over_seeds, paper_value
from pipeline.report.paper_figures.panels import Panel, Point, Series, beside_paper, panels_figure
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure

STOCHASTIC_CIFAR, SURVIVAL = "stochastic_depth/cifar", "stochastic_depth/survival"
LABELS = {"stochastic-depth-110-constant": "constant depth", "stochastic-depth-110": "stochastic depth"}
GRADIENT = f"{GRADIENT_NORM}map32.0.f.conv1"
TRAINING_LOSS = "train/loss"
IN_BOTH = "stochastic-depth-110-0.2"  # a variant that both experiments declare
RULES = {  # rule -> survival probability -> variant, of either experiment
    "linear decay": {0.5: "stochastic-depth-110"}
    | {p: f"stochastic-depth-110-{p}" for p in (0.2, 0.4, 0.6, 0.8)}
    | {1.0: "stochastic-depth-110-constant"},
    "one probability for all blocks": {0.5: "stochastic-depth-110-uniform"}
    | {p: f"stochastic-depth-110-uniform-{p}" for p in (0.2, 0.4, 0.6, 0.8)}
    | {1.0: "stochastic-depth-110-constant"},
}
FIGURE_3 = FigureTitle(
    "stochastic-depth-figure-3",
    "stochastic_depth",
    "Test error and training loss with stochastic depth",
    "Figure 3",
)
FIGURE_7 = FigureTitle(
    "stochastic-depth-figure-7", "stochastic_depth", "Gradient magnitude of the first block", "Figure 7"
)
FIGURE_8 = FigureTitle(
    "stochastic-depth-figure-8", "stochastic_depth", "Test error by survival probability", "Figure 8"
)


def stochastic_depth_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figures of the paper on stochastic depth."""
    if experiment := data.experiment(STOCHASTIC_CIFAR):
        yield loss_figure(data, experiment)
        yield gradient_figure(
            FIGURE_7, data, experiment, LABELS, GRADIENT, "the first convolution of the first block"
        )
    cifar, survival = data.experiment(STOCHASTIC_CIFAR), data.experiment(SURVIVAL)
    if cifar and survival:
        yield figure_8(data, cifar, survival)


def loss_figure(data: FigureData, experiment: Experiment) -> PaperFigure:
    """Return Figure 3: test error left, training loss right, with constant and with stochastic depth."""
    runs = data.best_runs(experiment, list(LABELS), least=2)
    if runs is None:
        return FIGURE_3.missing(data.why_missing(experiment, list(LABELS), least=2))
    printed = {name: paper_value(experiment, name) if runs.is_papers_data() else None for name in LABELS}
    panels = []
    for title, metric, ylabel in (
        ("top-1 test error", TEST_CURVE, f"top-1 test error (%), {runs.data}"),
        ("training loss", TRAINING_LOSS, "cross-entropy, with dropped blocks"),
    ):
        lines = [
            replace(line, name=LABELS[line.name], paper=printed[line.name] if metric == TEST_CURVE else None)
            for line in variant_lines(data.curves, runs, list(LABELS), metric)
        ]
        if lines:
            panels.append(CurvePanel(title, ylabel, lines))
    caption = (
        f"{words_of_panels(panels).capitalize()} against optimizer steps, of a residual"
        f" network of 110 layers with constant and with stochastic depth; {runs.place}; {spread_text(panels)}."
    )
    if any(line.paper is not None for panel in panels for line in panel.lines):
        caption += " Diamonds: the paper's errors after training."
    return drawn_curves(FIGURE_3, caption, panels, {}, share_y=False)


def gradient_figure(
    title: FigureTitle,
    data: FigureData,
    experiment: Experiment,
    labels: Mapping[str, str],
    metric: str,
    layer: str,
) -> PaperFigure:
    """Return a figure of gradient magnitudes; `labels`: variant -> its name in the legend."""
    runs = data.best_runs(experiment, list(labels), least=2)
    if runs is None:
        return title.missing(data.why_missing(experiment, list(labels), least=2))
    lines = [
        replace(line, name=labels[line.name]) for line in variant_lines(data.curves, runs, list(labels), metric)
    ]
    panels = [CurvePanel("", f"mean gradient magnitude, {runs.data}", lines)]
    caption = (
        f"Mean magnitude of the gradient of {layer} against optimizer steps; {runs.place}; {spread_text(panels)}."
    )
    return drawn_curves(title, caption, panels, {})


def figure_8(data: FigureData, cifar: Experiment, survival: Experiment) -> PaperFigure:
    """Return Figure 8: test error against the survival probability p_L, for both rules.

    The networks with p_L = 0.5 are those of another experiment, drawn if its recipe at the scale is the same.
    """
    own = [name for rule in RULES.values() for name in rule.values() if name in survival.variants]
    runs = data.best_runs(survival, own, least=2)
    if runs is None:
        return FIGURE_8.missing(data.why_missing(survival, own, least=2))
    drawn = [runs]
    if runs.scale in cifar.scales and cifar.recipe(IN_BOTH, runs.scale) == survival.recipe(IN_BOTH, runs.scale):
        drawn += filter(None, [data.runs(cifar, runs.scale)])
    series = [Series(rule, list(survival_points(drawn, cifar, networks))) for rule, networks in RULES.items()]
    places = sorted({point.x for one in series for point in one.points})
    panel = Panel(
        "",
        "survival probability p_L",
        "top-1 test error (%)",
        series,
        ticks={x: f"{x:g}" for x in places},
        limits=(min(places) - 0.05, max(places) + 0.05),
    )
    same_data, printed = runs.is_papers_data(), papers_data(survival, own)
    caption = (
        "Top-1 test error in percent against the survival probability of the last block: linear decay from 1 to"
        f" p_L, and p_L for all blocks. Ours: {runs.place};"
        f" {over_seeds('mean and standard deviation', runs.converged_seeds())}."
    )
    if any(point.paper is not None for one in series for point in one.points):
        where = "" if same_data else ", on axes of their own; they cannot be compared"
        caption += f" Diamonds: the paper's numbers in section 4, on {printed}{where}."
    return FIGURE_8.drawn(
        caption,
        lambda theme: panels_figure(
            beside_paper([panel], ours=runs.place, paper=printed, same_data=same_data), theme
        ),
    )


def survival_points(
    drawn: Sequence[ScaleRuns], cifar: Experiment, networks: Mapping[float, str]
) -> Iterator[Point]:
    """Yield the networks of one rule: our errors from the first runs that have them, and the paper's."""
    for probability, name in networks.items():
        ours = next((found for runs in drawn if (found := runs.mean(name, TEST_CURVE))), None)
        paper = paper_value(cifar, name) if name in cifar.variants else None
        yield Point(probability, ours, paper)
