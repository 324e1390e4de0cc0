"""Made-up runs for figures: records of every variant of an experiment, their curves, exact values of networks."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from pipeline.declare.experiment import Experiment
from pipeline.declare.training import GRADIENT_NORM
from pipeline.plan.expand import DerivedRun, plan_runs
from pipeline.report.paper_figures.figure_data import Curve, FigureData, paper_value
from pipeline.track.record import Record

TOP5_METRIC = "test/top5_error_pct"


def made_up_records(
    experiment: Experiment, scale: str, variants: Sequence[str] = (), *, seeds: int = 3
) -> list[Record]:
    """Return finished records of these variants, default all, and of the derived runs made from them.

    The error of seed s is the paper's plus s tenths, or one that is made up from the name. `seeds`: at most.
    """
    names = list(variants or experiment.variants)
    runs = plan_runs(experiment, scale=scale, variants=names, seeds=seeds)
    chosen = {*names, *experiment.derived}  # without the runs whose weights others start from
    return [made_up_record(experiment, scale, run) for run in runs if run.variant in chosen]


def made_up_record(experiment: Experiment, scale: str, run: Any) -> Record:
    """Return the finished record of one planned run."""
    consumed = next(iter(run.spec.consumes)) if isinstance(run, DerivedRun) else run.variant
    recipe = experiment.recipe(consumed, scale)
    made_up = 4.0 + sum(map(ord, run.variant)) % 17
    top1 = (paper_value(experiment, run.variant) or made_up) + run.seed / 10
    top5 = (paper_value(experiment, run.variant, TOP5_METRIC) or made_up / 3) + run.seed / 10
    errors = {"top1_error_pct": top1, "top5_error_pct": top5}
    metrics = {f"test/{name}": value for name, value in errors.items()}
    for protocol in experiment.protocols(run.variant, scale):
        metrics |= {f"test/{protocol}/{name}": value for name, value in errors.items()}
        for (name, value), size in product(errors.items(), range(1, 8)):
            metrics |= {
                f"test/{protocol}/of-{size}/{name}": value / size,
                f"test/{protocol}/of-{size}/{name}_std": 0.2,
            }
    for size in range(1, 6):
        metrics |= {f"test/of-{size}/top1_error_pct": top1 / size, f"test/of-{size}/top1_error_pct_std": 0.2}
    return Record(
        identity=f"{run.variant}-{run.seed}-{scale}",
        experiment=experiment.name,
        scale=scale,
        variant=run.variant,
        seed=run.seed,
        status="finished",
        ended=f"{recipe.train.steps} steps",
        changes={},
        declaration=run.declaration,
        manifest=f"manifest of {recipe.data.name}",
        code="code-1",
        lock="lock-1",
        commit="0123456789abcdef",
        data=recipe.data.name,
        metrics=metrics | {"train/top1_error_pct": top1 / 2, "train/loss": top1 / 50, "test/images": 10_000.0},
        precision="fp32",
        compiled=False,
        threads=1,
        hardware="one core",
        libraries={"torch": "2.10"},
        seconds=60.0,
        finished=f"2026-01-01T00:00:0{run.seed}+00:00",
    )


def made_up_curve(record: Record, metric: str) -> Curve:
    """Return a curve that falls from 90 to the record's value, which it reaches after the last of 30 reports."""
    end = record.metrics.get(metric, 0.001 if metric.startswith(GRADIENT_NORM) else None)
    if end is None:
        return []
    steps = int(record.ended.split()[0])
    return [(max(part * steps // 30, 1), end + (90 - end) * math.exp(-part / 2)) for part in range(1, 30)] + [
        (steps, end)
    ]


def made_up_size(metric: str, experiment: Experiment, variant: str | None) -> Any:
    """Return an exact value of a network, made up from its name."""
    if metric == "model/input":
        return [3, 224, 224]
    if metric == "model/longest_path":
        return 8 + len(variant or "")
    return 1e6 * (1 + sum(map(ord, variant or "")) % 97) * (100 if metric == "model/multiply_adds" else 1)


def no_weights(record: Record) -> None:
    """Return no weights, as on a machine without the run folders."""


def figure_data(experiments: Sequence[Experiment], records: Sequence[Record], **other: Any) -> FigureData:
    """Return the input of figures from made-up values."""
    values: dict[str, Any] = {
        "entries": [], "curves": made_up_curve, "weights": no_weights, "measure": made_up_size,
    }  # fmt: skip
    return FigureData(experiments, records, **(values | other))


def by_name(figures: Iterator[Any]) -> dict[str, Any]:
    """Return figures by their names."""
    return {figure.name: figure for figure in figures}
