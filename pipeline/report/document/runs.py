"""Rows of the table of runs, and what the runs of an experiment cost. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.common.words import duration, plural
from pipeline.declare.experiment import Experiment
from pipeline.report.leaderboard import changes_label
from pipeline.report.paper_page import Rates, scale_cells
from pipeline.report.text import without_empty_columns
from pipeline.track.record import FINISHED, Record


@dataclass(frozen=True)
class RunRow:
    """One finished run, as shown."""

    identity: str
    record: Record
    label: str  # changes by --set
    top1: float | None
    top5: float | None
    train: float | None
    hardware: str
    is_counted: bool  # a row of the leaderboard or a verdict rests on it
    address: str  # on the tracking server; "" if it is not known
    metrics: tuple[tuple[str, str], ...]
    unread: str = ""  # which of its files cannot be read, and why


def run_row(record: Record, *, is_counted: bool, address: str, unread: str = "") -> RunRow:
    """Return the row of a run."""
    measured = record.measured
    devices = f"{plural(record.world, 'device')}, " if record.world > 1 else ""
    return RunRow(
        identity=record.identity,
        record=record,
        label=changes_label(record),
        top1=measured.get("test/top1_error_pct"),
        top5=measured.get("test/top5_error_pct"),
        train=measured.get("train/top1_error_pct"),
        hardware=f"{record.hardware} ({devices}{plural(record.threads, 'thread')}, {record.precision})",
        is_counted=is_counted,
        address=address,
        metrics=tuple((name, f"{value:.6g}") for name, value in sorted(measured.items())),
        unread=unread,
    )


def cost_rows(
    experiment: Experiment, records: Iterable[Record], rates: Rates, scales: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Return the scales of an experiment: data and planned work; number, time and hardware of the finished runs.

    `scales`: only these; empty: all.
    """
    rows = []
    for scale in scales or experiment.scales:
        own = [
            one for one in records if (one.experiment, one.scale) == (experiment.name, scale) and not one.changes
        ]
        converged = [one.seconds for one in own if one.status == FINISHED]
        rows.append(
            scale_cells(experiment, scale, rates)
            | {
                "scale": scale,
                "finished": str(len(own) or ""),
                "time per run": duration(median(converged)) if converged else "",
                "device time": duration(sum(one.seconds * one.world for one in own)) if own else "",
                "hardware": ", ".join(dict.fromkeys(one.hardware for one in own)),
                "purpose": experiment.scales[scale].why,
            }
        )
    return without_empty_columns(rows)
