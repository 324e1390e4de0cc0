"""Rows of the leaderboard as MLflow's runs of networks. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.counting import variants_of
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Outcome
from pipeline.report.leaderboard import TOP1, TOP5, TRAIN_TOP1, LeaderboardRow
from pipeline.track.mlflow_networks import NetworkRun, network_prefix
from pipeline.track.mlflow_views import RANK_TAG
from pipeline.track.record import Record


def network_runs(rows: Iterable[LeaderboardRow], records: Sequence[Record]) -> list[NetworkRun]:
    """Return one run for each row. `records`: of the runs that the rows are made from, with MLflow's ids.

    Runs that several test protocols have measured are below the first of their rows (`in_protocol_order`).
    """
    tracked = {record.identity: record.run_id for record in records if record.run_id}
    manifests = {record.identity: record.manifest for record in records}
    taken: set[str] = set()
    found = []
    for row in rows:
        runs = tuple(tracked[identity] for identity in row.runs if identity in tracked)
        found.append(
            NetworkRun(
                key=f"{network_prefix(row.experiment, row.scale)}{row_key(row)}",
                name=row.variant + (f" [{row.departs}]" if row.departs else ""),
                tags=row_tags(row),
                metrics=row_metrics(row),
                run_ids=runs,
                is_parent=not taken.intersection(runs),
                data=next(((row.data, manifests[one]) for one in row.runs if one in manifests), None),
            )
        )
        taken.update(runs)
    return found


def with_trends(rows: Iterable[LeaderboardRow], entries: Sequence[LedgerEntry]) -> list[LeaderboardRow]:
    """Return the rows; those without a verdict have the trends of the claims about their networks, and how many.

    Below paper scale a network has no verdict of its own, but "trend supported (2), trend not supported (1)".
    `entries` are judged at the scale of the rows.
    """
    return [row if row.verdict else replace(row, verdict=trends_of(row, entries)) for row in rows]


def trends_of(row: LeaderboardRow, entries: Iterable[LedgerEntry]) -> str:
    """Return the trends of the claims about a row's network; "" for none, or if settings were changed."""
    if row.departs:
        return ""
    found = Counter(
        entry.verdict.outcome
        for entry in entries
        if entry.experiment == row.experiment and row.variant in variants_of(entry.claim)
    )
    return ", ".join(f"{trend} ({found[trend]})" for trend in (Outcome.TREND, Outcome.NO_TREND) if found[trend])


def row_key(row: LeaderboardRow) -> str:
    """Return what tells a row from others of its experiment and scale; MLflow's search escapes no quotes."""
    return "|".join((row.variant, row.data, row.protocol, row.departs)).replace("'", "").replace('"', "")


def row_tags(row: LeaderboardRow) -> dict[str, str]:
    """Return the texts of a row; without those that are empty."""
    tags = {
        "repro.experiment": row.experiment,
        "repro.paper": row.experiment.partition("/")[0],
        "repro.variant": row.variant,
        "repro.scale": row.scale,
        "repro.data": row.data,
        "repro.protocol": row.protocol,
        "repro.verdict": row.verdict,
        "repro.changes": row.departs,
        "repro.hardware": row.hardware,
        "mlflow.source.name": "repro",
        "mlflow.source.type": "LOCAL",
        RANK_TAG: rank_key(row),
    }
    return {key: value for key, value in tags.items() if value}


def rank_key(row: LeaderboardRow) -> str:
    """Return a text by which rows sort as `ranked` sorts them: paper scale first, then by group, then by error.

    MLflow sorts by one column, and an error on one data set is no better than a higher one on another.
    """
    error = "diverged" if row.top1 is None else f"{row.top1:010.6f}"
    place = "0" if row.scale == PAPER_SCALE else "1"
    return " | ".join((place, row.scale, row.data, row.protocol, error))


def row_metrics(row: LeaderboardRow) -> dict[str, float]:
    """Return the numbers of a row, errors in percent; without those that it lacks.

    MLflow's table shows all digits of a number, so errors have two decimals, as in our other tables. The exact
    means are on the parent run. The errors are named as in the runs of the seeds: one chart shows both.
    """
    low, high = row.difference_interval or (None, None)
    numbers = {
        TOP1: row.top1,
        TOP5: row.top5,
        TRAIN_TOP1: row.train,
        "spread": row.top1_std,
        "paper": row.paper,
        "paper_top5": row.paper_top5,
        "difference": row.difference,
        "difference_low": low,
        "difference_high": high,
        "noise": row.noise,
        "images": row.images or None,
        "seeds": row.seeds,
        "diverged": row.diverged,
        "parameters": row.parameters,
        "multiply_adds": row.multiply_adds,
        "seconds": row.seconds,
    }
    return {key: round(float(value), 2) + 0.0 for key, value in numbers.items() if value is not None}
