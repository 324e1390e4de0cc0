"""Error curves of any experiment at one scale, in the style of Figure 6 of arXiv:1512.03385."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.report.paper_figures.error_curves import (
    TEST_CURVE,
    TRAIN_CURVE,
    CurveLine,
    CurvePanel,
    curves_figure,
    spread_text,
    styles_text,
    variant_lines,
)
from pipeline.report.paper_figures.figure_data import CurveReader, FigureData, ScaleRuns
from pipeline.report.paper_figures.paper_figure import FigureTitle, PaperFigure
from pipeline.track.record import Record

MOST_LINES = 7  # variants in a panel, as many as there are colours
DRAWN_ELSEWHERE = ("resnet/cifar10_depth", "resnet/imagenet")  # by figures of their own
KEYS = {"test": False, "training": True}


def training_figures(data: FigureData) -> Iterator[PaperFigure]:
    """Yield the curves of every experiment that has some, at its first scale with runs."""
    for experiment in data.experiments:
        if not experiment.trains or experiment.name in DRAWN_ELSEWHERE:
            continue
        runs = data.best_runs(experiment, list(experiment.variants))
        if runs and (figure := training_figure(data.curves, runs)):
            yield figure


def training_figure(curves: CurveReader, runs: ScaleRuns) -> PaperFigure | None:
    """Return the curves of an experiment at a scale; None without any.

    One panel for each network and data set (plain beside residual), one colour for each variant. Names have the
    first test protocol where the variants differ in it. The caption counts the seeds that have curves.
    """
    experiment, scale = runs.experiment, runs.scale
    panels = curve_panels(curves, runs)
    if not panels:
        return None
    shown = runs.only({line.name.partition(", ")[0] for panel in panels for line in panel.lines})
    protocols = protocols_of(shown)
    stem = f"{experiment.name.replace('/', '-')}-{scale}"
    title = FigureTitle(stem, experiment.folder, f"Training and test error, {experiment.name}", "")
    where = f"{experiment.name} at {scale} scale on {shown.data}"
    if len(set(protocols.values())) == 1 and (protocol := next(iter(protocols.values()))):
        where += f", {protocol}"
    over = spread_text(panels)
    caption = f"Top-1 error in percent against optimizer steps, {where}; {styles_text(panels, KEYS)}; {over}."
    wide = max(len(line.name) for panel in panels for line in panel.lines) <= 40
    columns = 2 if wide else 1
    breaks = ":\n" if columns == 1 or len(panels) == 1 else ": "  # one panel is too narrow for a line
    return title.drawn(
        caption,
        lambda theme: curves_figure(
            panels,
            theme,
            keys=KEYS,
            share_y="," not in shown.data,
            columns=columns,
            title=f"{where}{breaks}{over}",
        ),
    )


def has_curves(curves: CurveReader, record: Record) -> bool:
    """Return True if the curves of a run's training or test error are at hand."""
    return any(curves(record, metric) for metric in (TRAIN_CURVE, TEST_CURVE))


def curve_panels(curves: CurveReader, runs: ScaleRuns) -> list[CurvePanel]:
    """Return the panels: variants by network and data set, at most as many in one as there are colours."""
    experiment = runs.experiment
    groups: dict[tuple[str, str], list[str]] = {}
    for name in experiment.variants:
        if name in runs.records:
            network = experiment.variants[name].model.name.removesuffix("_cifar")
            groups.setdefault((network, runs.records[name][0].data), []).append(name)
    several_sets = len({dataset for _, dataset in groups}) > 1
    panels = []
    for (network, dataset), names in groups.items():
        parts = [names[start : start + MOST_LINES] for start in range(0, len(names), MOST_LINES)]
        for number, part in enumerate(parts, 1):
            lines = [
                *variant_lines(curves, runs, part, TRAIN_CURVE, dashed=True),
                *variant_lines(curves, runs, part, TEST_CURVE),
            ]
            of = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
            on = f", {dataset}" if several_sets else ""
            if lines:
                panels.append(CurvePanel(f"{network}{on}{of}", "top-1 error (%)", named_lines(runs, lines)))
    return panels


def protocols_of(runs: ScaleRuns) -> dict[str, str]:
    """Return the first test protocol of each variant; "" for whole images."""
    return {name: next(iter(runs.experiment.protocols(name, runs.scale)), "") for name in runs.records}


def named_lines(runs: ScaleRuns, lines: Sequence[CurveLine]) -> list[CurveLine]:
    """Return the lines; their names have the test protocol if the protocols of the variants differ."""
    protocols = protocols_of(runs)
    if len(set(protocols.values())) == 1:
        return list(lines)
    return [replace(line, name=f"{line.name}, {protocols[line.name]}") for line in lines]
