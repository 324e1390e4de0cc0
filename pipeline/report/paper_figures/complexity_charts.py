"""Charts after arXiv:1605.07678, which the lecture shows: accuracy, operations, parameters, memory and time."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.analyse.catalogue import BYTES, COMPLEXITY, NetworkCost
from pipeline.common.words import plural
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.report.paper_figures.figure_data import FigureData
from pipeline.report.paper_figures.labels import outside_legend, place_labels
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import FULL_WIDTH, Theme, new_figure
from pipeline.track.record import Record

MEASUREMENTS = "complexity/measurements"
FAMILIES = {  # start of a network's name -> name in the legend
    "resnet": "ResNet",
    "vgg": "VGG",
    "inception": "Inception",
    "googlenet": "GoogLeNet",
    "alexnet": "AlexNet",
    "bn-alexnet": "AlexNet",
    "bn-nin": "NIN",
}
AREA = 7.0  # of a disc, in square points for a million parameters
DISC_SIZES = (5, 50, 150)  # in the legend, in millions of parameters
FIGURE_1 = FigureTitle("complexity-figure-1", "complexity", "Top-1 accuracy of ImageNet networks", "Figure 1")
FIGURE_2 = FigureTitle(
    "complexity-figure-2", "complexity", "Top-1 accuracy against operations and parameters", "Figure 2"
)
COSTS = FigureTitle(
    "complexity-costs",
    "complexity",
    "Memory and forward time of ImageNet networks",
    "lecture, the comparison of networks",
)
COMPARISON = FigureTitle("complexity", "complexity", "The lecture's comparison of networks", "Figure 2")
AS_PUBLISHED = (
    "accuracies as published, a single central crop, read off the chart of arXiv:1605.07678 to within 1 point"
)


def complexity_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the charts on complexity: accuracies as published, all else of the networks built here."""
    experiment = data.experiment(COMPLEXITY)
    if experiment is None:
        return
    caption = f"Top-1 accuracy of ImageNet networks, {AS_PUBLISHED}"
    ours = own_accuracies(data, experiment)
    with_ours = (
        "; circles: our networks, trained at paper scale." if ours else "; none of them is trained here yet."
    )
    yield FIGURE_1.drawn(
        caption + with_ours, lambda theme: accuracy_bars(network_costs(data, experiment), ours, theme)
    )
    yield FIGURE_2.drawn(
        "Top-1 accuracy against the operations for one image, two for each multiply-add; the area of a disc is the"
        " number of parameters. Operations and parameters are those of the networks built here;"
        f" {AS_PUBLISHED}.",
        lambda theme: bubble_figure(network_costs(data, experiment), theme),
    )
    timed = data.experiment(MEASUREMENTS)
    runs = data.best_runs(timed, list(timed.derived)) if timed else None
    measured = by_hardware([row for rows in runs.records.values() for row in rows]) if runs else {}
    if not measured:
        yield cost_chart(COSTS, data, experiment, "", [])
    for hardware, rows in measured.items():
        one = COSTS if len(measured) == 1 else replace(COSTS, name=f"{COSTS.name}-{file_stem(hardware)}")
        yield cost_chart(one, data, experiment, hardware, rows)


def cost_chart(
    title: FigureTitle, data: FigureData, experiment: Experiment, hardware: str, rows: Sequence[Record]
) -> PaperFigure:
    """Return the chart of memory and forward time, from the timings of one hardware; without times if none."""
    times = forward_times_of(rows)
    count = plural(len(rows), "measurement")
    where = (
        f"forward times of one image measured on {hardware}, median and range over {count}"
        if rows
        else f"forward times are not measured yet; measure them with: repro run {MEASUREMENTS} --scale laptop"
    )
    return title.drawn(
        "Memory in megabytes of the parameters and, faded, of the feature maps of one image, in single"
        f" precision; {where}.",
        lambda theme: cost_figure(network_costs(data, experiment, times), hardware, theme),
    )


def network_costs(
    data: FigureData, experiment: Experiment, times: Mapping[str, Sequence[float]] | None = None
) -> list[NetworkCost]:
    """Return the costs of the networks with a published accuracy, the least accurate first."""
    rows = []
    for name in experiment.variants:
        printed = experiment.printed.get(f"top1_{name}")
        if printed is None:
            continue
        sizes: dict[str, Any] = {what: data.measure(f"model/{what}", experiment, name) for what in (
            "parameters", "multiply_adds", "activations", "memory_values", "longest_path", "input")}  # fmt: skip
        rows.append(
            NetworkCost(
                name=name,
                paper=experiment.folder,
                image=tuple(sizes["input"]),
                layers=sizes["longest_path"],
                parameters=sizes["parameters"],
                multiply_adds=sizes["multiply_adds"],
                activations=sizes["activations"],
                memory_mb=BYTES * (sizes["parameters"] + sizes["memory_values"]) / 1e6,
                top1_pct=float(printed.value),
                forward_s=tuple((times or {}).get(name, ())),
            )
        )
    return sorted(rows, key=lambda row: row.top1_pct or 0)


def own_accuracies(data: FigureData, experiment: Experiment) -> dict[str, tuple[float, float]]:
    """Return mean and spread of our top-1 accuracies by the protocol of the chart, at paper scale: by network."""
    found: dict[str, tuple[float, float]] = {}
    for claim in experiment.claims:
        of, metric = getattr(claim, "of", None), getattr(claim, "metric", "")
        if not of or not str(metric).startswith("test/"):
            continue
        owner, variant = experiment.owner(of)
        runs = data.runs(owner, PAPER_SCALE) if PAPER_SCALE in owner.scales else None
        if runs and (error := runs.mean(variant, metric)):
            found[CHART_NAMES.get(variant, variant)] = (100 - error[0], error[1])
    return found


CHART_NAMES = {"googlenet-with-aux": "googlenet", "inception-v3-1": "inception-v3", "v4-1": "inception-v4"}


def by_hardware(rows: Sequence[Record]) -> dict[str, list[Record]]:
    """Return timings by their hardware: times of different machines, or numbers of threads, do not compare."""
    found: dict[tuple[str, int], list[Record]] = {}
    for row in rows:
        found.setdefault((row.hardware, row.threads), []).append(row)
    machines = [hardware for hardware, _ in found]
    return {
        hardware if machines.count(hardware) == 1 else f"{hardware}, {plural(threads, 'thread')}": own
        for (hardware, threads), own in found.items()
    }


def file_stem(text: str) -> str:
    """Return a text as a part of a file's name: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def forward_times_of(rows: Sequence[Record]) -> dict[str, list[float]]:
    """Return the forward times of one image in seconds, one for each measurement, by network."""
    end = "/batch-1/seconds_per_image"
    names = dict.fromkeys(key.removesuffix(end) for row in rows for key in row.measured if key.endswith(end))
    return {name: [row.measured[name + end] for row in rows if name + end in row.measured] for name in names}


def family_colours(rows: Sequence[NetworkCost], theme: Theme) -> dict[str, str]:
    """Return the colour of each network: one for each family."""
    families = {row.name: family(row.name) for row in rows}
    colours = dict(zip(dict.fromkeys(FAMILIES.values()), theme.series, strict=False))
    return {name: colours.get(of, theme.fill) for name, of in families.items()}


def family(name: str) -> str:
    """Return the family of a network; "" for an unknown one."""
    return next((title for start, title in FAMILIES.items() if name.startswith(start)), "")


def accuracy_bars(rows: Sequence[NetworkCost], ours: Mapping[str, tuple[float, float]], theme: Theme) -> Figure:
    """Return Figure 1: a bar for the published accuracy of each network, a circle for ours."""
    figure = new_figure(FULL_WIDTH, 3.8)
    ax = figure.subplots()
    colours = family_colours(rows, theme)
    names = [row.name for row in rows]
    ax.bar(names, [row.top1_pct or 0 for row in rows], color=[colours[name] for name in names], alpha=0.45,
        edgecolor=[colours[name] for name in names], linewidth=1.2, hatch="//", width=0.7)  # fmt: skip
    measured = [(i, *ours[name]) for i, name in enumerate(names) if name in ours]
    if measured:
        x, mean, spread = zip(*measured, strict=True)
        ax.errorbar(x, mean, yerr=spread, color=theme.text, marker="o", markersize=5, capsize=3, linestyle="")
    lowest = min([row.top1_pct or 0 for row in rows] + [value for _, value, _ in measured])
    ax.set_ylim(max(lowest - 6, 0), None)
    ax.set_ylabel("top-1 accuracy (%)")
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.grid(visible=False, axis="x")
    keys: list[Any] = [Line2D([], [], color=theme.fill, linewidth=8, alpha=0.6, label="paper, as published")]
    if measured:
        keys.append(
            Line2D([], [], color=theme.text, marker="o", linestyle="", label="ours, mean ± standard deviation")
        )
    outside_legend(figure, keys)
    return figure


def bubble_figure(rows: Sequence[NetworkCost], theme: Theme) -> Figure:
    """Return Figure 2: accuracy against operations, the area of a disc is the number of parameters."""
    figure = new_figure(FULL_WIDTH, 4.8)
    draw_bubbles(figure.subplots(), rows, theme)
    return figure


def draw_bubbles(ax: Axes, rows: Sequence[NetworkCost], theme: Theme) -> None:
    """Draw Figure 2 on these axes, with its legend below the axes."""
    colours = family_colours(rows, theme)
    points = {row.name: (2 * row.multiply_adds / 1e9, row.top1_pct or 0.0) for row in rows}
    for row in sorted(rows, key=lambda row: -row.parameters):  # small discs on top of large ones
        ax.scatter(
            *points[row.name], s=AREA * row.parameters / 1e6, color=colours[row.name], alpha=0.4, linewidths=0
        )
        ax.scatter(*points[row.name], s=9, marker="D", color=theme.text, linewidths=0)
    ax.set_xlabel("operations per image (10⁹; a multiply-add counts as two)")
    ax.set_ylabel("top-1 accuracy (%), as published")
    ax.margins(0.13, 0.16)
    ax.set_xlim(left=0)
    keys = [
        Line2D([], [], marker="o", linestyle="", color=theme.fill, alpha=0.6, markeredgewidth=0,
               markersize=(AREA * size) ** 0.5, label=f"{size} M parameters") for size in DISC_SIZES
    ]  # fmt: skip
    keys.append(Line2D([], [], marker="D", linestyle="", color=theme.text, markersize=3, label="paper"))
    roomy = {"borderpad": 1.4, "columnspacing": 3.0, "handletextpad": 1.8}  # for the largest disc
    ax.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, **roomy)
    place_labels(ax, list(points.values()), list(points), theme)


def cost_figure(rows: Sequence[NetworkCost], hardware: str, theme: Theme) -> Figure:
    """Return bars of memory and forward time of one image; networks without a measured time have no second bar."""
    figure = new_figure(FULL_WIDTH, 0.24 * len(rows) + 1.4)
    memory, time = figure.subplots(1, 2)
    draw_costs(memory, time, rows, hardware, theme)
    return figure


def draw_costs(memory: Axes, time: Axes, rows: Sequence[NetworkCost], hardware: str, theme: Theme) -> None:
    """Draw bars of memory and time; the time bar is the median of the passes, the line their range."""
    colours = family_colours(rows, theme)
    names = [row.name for row in rows]
    weights = [BYTES * row.parameters / 1e6 for row in rows]
    rest = [row.memory_mb - own for row, own in zip(rows, weights, strict=True)]
    shades = [colours[name] for name in names]
    memory.barh(names, weights, color=shades)
    memory.barh(names, rest, left=weights, color=shades, alpha=0.4)
    memory.set_xlabel("memory (MB): parameters,\nfeature maps of one image (faded)")
    timed = [[1000 * s for s in row.forward_s] for row in rows]
    middle = [median(times) if times else 0.0 for times in timed]
    low = [m - min(times) if times else 0.0 for m, times in zip(middle, timed, strict=True)]
    high = [max(times) - m if times else 0.0 for m, times in zip(middle, timed, strict=True)]
    time.barh(
        names, middle, xerr=[low, high], color=shades, ecolor=theme.text, error_kw={"linewidth": 1, "capsize": 2}
    )
    time.set_xlabel(
        f"forward time (ms), one image,\n{hardware}" if hardware else "forward time (ms): not measured"
    )
    time.set_yticklabels([])
    for ax in (memory, time):
        ax.set_xlim(left=0)
        ax.grid(visible=False, axis="y")


def complexity_comparison(rows: Sequence[NetworkCost], hardware: str) -> PaperFigure:
    """Return the lecture's comparison of networks that were timed now, in one figure.

    Networks without a published accuracy are left out. Raises ValueError if none has one.
    """
    shown = sorted((row for row in rows if row.top1_pct is not None), key=lambda row: row.top1_pct or 0)
    if not shown:
        raise ValueError("no network has a published accuracy")
    caption = (
        f"Top-1 accuracy against operations, {AS_PUBLISHED}; memory and forward time of one image on {hardware}."
    )
    return COMPARISON.drawn(caption, lambda theme: comparison_chart(shown, hardware, theme))


def comparison_chart(shown: Sequence[NetworkCost], hardware: str, theme: Theme) -> Figure:
    """Return the discs above the bars of memory and time."""
    figure = new_figure(FULL_WIDTH, 8.2)
    grid = figure.add_gridspec(2, 2, height_ratios=[1.35, 1])
    draw_costs(figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1]), shown, hardware, theme)
    figure.suptitle(f"Accuracy {AS_PUBLISHED.removeprefix('accuracies ')};\nall else of the networks built here")
    draw_bubbles(figure.add_subplot(grid[0, :]), shown, theme)
    return figure
