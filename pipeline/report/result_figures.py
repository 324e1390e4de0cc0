"""The figures beside RESULTS.md: curves and ensembles of every experiment and scale that has runs."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from pipeline.declare.derived import EnsembleSizesSpec
from pipeline.declare.experiment import Experiment
from pipeline.report.paper_figures.ensembles import drawn_ensembles
from pipeline.report.paper_figures.figure_data import CurveReader, ScaleRuns
from pipeline.report.paper_figures.training import has_curves, training_figure
from pipeline.report.recorded_curves import CURVES_FILE
from pipeline.report.run_files import unread_sentences
from pipeline.track.record import Record

CURVES, ENSEMBLES = "", "-ensembles"  # ends of the names of figures' files
MISSING_CURVES = f"its curves are neither on this machine nor in results/{CURVES_FILE}"

# Experiment, scale and end of the file's name -> path of the figure; for texts relative to RESULTS.md.
FigurePaths = dict[tuple[str, str, str], Path]
Figures = Mapping[tuple[str, str, str], str]


def figure_titles(experiment: Experiment) -> dict[str, str]:
    """Return the titles of an experiment's figures by the ends of their files' names."""
    found = {CURVES: "training and test error by step", ENSEMBLES: "test error by number of networks"}
    for name, spec in experiment.derived.items():
        if isinstance(spec, EnsembleSizesSpec):
            found[f"{ENSEMBLES}-{name}"] = f"test error by number of networks, {name}"
    return found


def draw_figures(
    found: Sequence[ScaleRuns],
    curves: CurveReader,
    folder: Path,
    *,
    elsewhere: Collection[str] = (),
    warn: Callable[[str], None] = lambda sentence: None,
) -> tuple[FigurePaths, FigurePaths]:
    """Write the figures of every experiment and scale that has curves or ensembles; return those drawn and kept.

    A figure drawn before stays where a variant has no run with curves, so that it loses no line. `warn` is
    called with a sentence about missing curves of the runs `elsewhere`, identities.
    """
    written: FigurePaths = {}
    kept: FigurePaths = {}
    for runs in found:
        key, stem = (runs.experiment.name, runs.scale), f"{runs.experiment.name.replace('/', '-')}-{runs.scale}"
        drawn = list(drawn_ensembles(runs))
        curve, before = training_figure(curves, runs), folder / f"{stem}.png"
        lost = variants_without_curves(curves, runs)
        if before.is_file() and (curve is None or lost):
            kept[(*key, CURVES)] = before
            if curve:
                where = f"here or in results/{CURVES_FILE}"
                warn(
                    f"{before} stays as it was drawn before: the runs of {', '.join(lost)} have no curves {where}"
                )
        elif curve:
            drawn.insert(0, curve)
            missing = [run for run in trained(runs) if run.identity in elsewhere and not has_curves(curves, run)]
            for sentence in unread_sentences(missing, {run.identity: MISSING_CURVES for run in missing}):
                warn(f"Missing from the figures: {sentence}")
        for figure in drawn:
            path = figure.write(folder / f"{figure.name}.png")
            written[(*key, figure.name.removeprefix(stem))] = path
    return written, kept


def variants_without_curves(curves: CurveReader, runs: ScaleRuns) -> list[str]:
    """Return the variants that have runs, none of them with curves."""
    seen = {run.variant for run in trained(runs) if has_curves(curves, run)}
    return [name for name in runs.records if name in runs.experiment.variants and name not in seen]


def trained(runs: ScaleRuns) -> list[Record]:
    """Return the runs that are not derived."""
    return [run for name, rows in runs.records.items() if name in runs.experiment.variants for run in rows]
