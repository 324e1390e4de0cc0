"""Ours against the paper's: every judged number of trained networks in one figure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from pipeline.declare.claims import GainClaim, MetricClaim, RatioClaim
from pipeline.declare.experiment import Experiment
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome
from pipeline.report.paper_figures.figure_data import FigureData
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import FULL_WIDTH, Theme, new_figure

JUDGED = FigureTitle("ours-against-papers", "", "Our numbers against the papers'", "all experiments")
MOST_ROWS = 16  # rows of the differences beside the scatter; more are below it
SCATTER = 4.4  # height of the scatter above them, in inches
CROWDED = 8  # numbers in a row from which on they are drawn smaller
LINEAR = 12.0  # margins from which on the differences are on a logarithmic axis
ERROR_END = "error_pct"
# outcome -> marker; shapes and colours differ, so that either is enough
MARKERS = {
    Outcome.REPRODUCED: "o",
    Outcome.BETTER: "^",
    Outcome.REACHED: "s",
    Outcome.NOT_REPRODUCED: "X",
    Outcome.CANNOT_JUDGE: "D",
}


@dataclass(frozen=True)
class JudgedNumber:
    """One printed number with ours."""

    name: str
    experiment: str
    metric: str
    printed: float
    measured: float
    interval: tuple[float, float]
    margin: float
    outcome: Outcome
    is_error: bool  # an error rate in percent, and not a difference or ratio of two


@dataclass(frozen=True)
class Mark:
    """A number at its place in a panel."""

    number: JudgedNumber
    x: float
    y: float
    unit: float = 1.0  # of the axis along which its interval is drawn
    of: int = 1  # numbers in its row


def project_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the figure of the whole project."""
    numbers = judged_numbers(data.entries)
    if not numbers:
        yield JUDGED.missing(
            "No number of a paper is judged from trained networks yet. This needs runs at paper scale, the"
            " smallest with: repro run lenet5/mnist --scale paper."
        )
        return
    counts = ", ".join(
        f"{outcome.value}: {sum(number.outcome is outcome for number in numbers)}"
        for outcome in MARKERS
        if any(number.outcome is outcome for number in numbers)
    )
    yield JUDGED.drawn(
        f"Every number of a paper that runs at paper scale have measured, {len(numbers)} in all ({counts})."
        " Error rates: ours with their 90 % intervals over seeds against the paper's, the line of equality,"
        " and in grey the margins of the claims. Differences from the paper: in units of the margin, of all"
        " numbers; inside the grey band the difference is within the margin.",
        lambda theme: judged_figure(numbers, theme),
    )


def with_numbers(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Return the experiments with the claims that this figure shows alone, to judge no others."""
    shown = (MetricClaim, GainClaim, RatioClaim)
    return [
        one.model_copy(update={"claims": tuple(claim for claim in one.claims if isinstance(claim, shown))})
        for one in experiments
    ]


def judged_numbers(entries: Sequence[LedgerEntry]) -> list[JudgedNumber]:
    """Return the claims about a printed number that have been measured, by experiment."""
    found = []
    for entry in entries:
        claim, verdict = entry.claim, entry.verdict
        if not isinstance(claim, MetricClaim | GainClaim | RatioClaim) or verdict.measured is None:
            continue
        if claim.by != "paper" or not claim.margin or verdict.outcome not in MARKERS:
            continue
        interval = verdict.interval or (verdict.measured, verdict.measured)
        found.append(
            JudgedNumber(
                claim.id, entry.experiment, claim.metric, claim.claimed, verdict.measured, interval, claim.margin,
                verdict.outcome, isinstance(claim, MetricClaim) and claim.metric.endswith(ERROR_END),
            )
        )  # fmt: skip
    return found


def judged_figure(numbers: Sequence[JudgedNumber], theme: Theme) -> Figure:
    """Return the scatter of error rates, and the differences of all numbers in units of their margins."""
    errors = [n for n in numbers if n.is_error and n.printed > 0 and n.measured > 0]
    rows = difference_rows(numbers)
    tall = 0.19 * len(rows) + 0.7
    panels: tuple[Axes, ...]
    if len(rows) <= MOST_ROWS:
        figure = new_figure(FULL_WIDTH, max(tall + 0.5, 3.6))
        panels = tuple(figure.subplots(1, 2 if errors else 1, squeeze=False)[0])
    else:
        heights = [SCATTER, tall] if errors else [tall]
        figure = new_figure(FULL_WIDTH, sum(heights) + 0.5)
        panels = tuple(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if errors:
        draw_identity(panels[0], errors, theme)
    draw_differences(panels[-1], rows, theme)
    outcomes = [outcome for outcome in MARKERS if any(number.outcome is outcome for number in numbers)]
    colours = outcome_colours(theme)
    keys = [
        Line2D([], [], marker=MARKERS[outcome], color=colours[outcome], linestyle="", label=outcome.value)
        for outcome in outcomes
    ]
    outside_legend(figure, [*keys, Patch(color=theme.fill, alpha=0.5, label="margin of the claim")])
    return figure


def difference_rows(numbers: Sequence[JudgedNumber]) -> dict[str, list[JudgedNumber]]:
    """Return the rows of the differences: one for each number if they are few, else one for each experiment."""
    rows: dict[str, list[JudgedNumber]] = {}
    for number in numbers:
        name = f"{number.experiment.partition('/')[0]}: {number.name}" if len(numbers) <= MOST_ROWS else ""
        rows.setdefault(name or number.experiment, []).append(number)
    return rows


def outcome_colours(theme: Theme) -> dict[Outcome, str]:
    """Return the colour of each outcome."""
    return dict(zip(MARKERS, (theme.series[i] for i in (2, 0, 5, 1, 3)), strict=True))


def draw_identity(ax: Axes, numbers: Sequence[JudgedNumber], theme: Theme) -> None:
    """Draw ours against the paper's on logarithmic axes, with the line of equality and the margins."""
    ends = [
        value for n in numbers for value in (n.printed, *n.interval, n.printed - n.margin, n.printed + n.margin)
    ]
    positive = [value for value in ends if value > 0]
    low, high = min(positive) / 1.15, max(positive) * 1.15
    ax.plot([low, high], [low, high], color=theme.text, linewidth=0.9)
    for number in numbers:
        bottom = max(number.printed - number.margin, low)
        margin: Any = {"linewidth": 6, "solid_capstyle": "butt", "alpha": 0.5, "zorder": 1}
        ax.plot([number.printed] * 2, [bottom, number.printed + number.margin], color=theme.fill, **margin)
    draw_numbers(ax, [Mark(number, number.printed, number.measured) for number in numbers], theme)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0) if high > 10 * low else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
        )
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("paper's error rate (%)")
    ax.set_ylabel("our error rate (%)")


def draw_numbers(ax: Axes, marks: Sequence[Mark], theme: Theme, *, along: Literal["x", "y"] = "y") -> None:
    """Draw numbers with their intervals along an axis; one call of Matplotlib for those of one look.

    Those that are not judged are below all others, those that are not reproduced above them.
    """
    colours = outcome_colours(theme)
    looks: dict[tuple[Outcome, bool], list[Mark]] = {}
    first, last = Outcome.CANNOT_JUDGE, Outcome.NOT_REPRODUCED
    for mark in sorted(marks, key=lambda one: (one.number.outcome == last, one.number.outcome != first)):
        looks.setdefault((mark.number.outcome, mark.of < CROWDED), []).append(mark)
    for (outcome, is_large), group in looks.items():
        bars = [
            [abs(one.number.measured - one.number.interval[end]) / one.unit for one in group] for end in (0, 1)
        ]
        ax.errorbar(
            [one.x for one in group],
            [one.y for one in group],
            linestyle="none",
            color=colours[outcome],
            elinewidth=1.0,
            marker=MARKERS[outcome],
            markersize=5 if is_large else 3.5,
            capsize=2 if is_large else 0,
            xerr=bars if along == "x" else None,
            yerr=bars if along == "y" else None,
        )


def draw_differences(ax: Axes, rows: Mapping[str, Sequence[JudgedNumber]], theme: Theme) -> None:
    """Draw (ours - paper) / margin in rows; the numbers of a row stand below each other."""
    ax.axvspan(-1, 1, color=theme.fill, alpha=0.25, linewidth=0)
    ax.axvline(0, color=theme.text, linewidth=0.9)
    reach = 2.0
    marks = []
    for row, numbers in enumerate(rows.values()):
        for place, number in enumerate(numbers, 1):
            difference = (number.measured - number.printed) / number.margin
            height = row - 0.4 + 0.8 * place / (len(numbers) + 1)
            marks.append(Mark(number, difference, height, number.margin, len(numbers)))
            ends = ((edge - number.printed) / number.margin for edge in (number.measured, *number.interval))
            reach = max([reach, *(1.1 * abs(end) for end in ends)])
    draw_numbers(ax, marks, theme, along="x")
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xlabel("(ours - paper) / margin")
    ax.set_xlim(-reach, reach)
    if reach > LINEAR:
        ax.set_xscale("symlog", linthresh=2)
        decades = [10.0**power for power in range(1, 9) if 10.0**power < reach]
        ax.set_xticks([*(-value for value in reversed(decades)), -1, 0, 1, *decades])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(visible=False, axis="y")
