"""Ledgers of the declaration in tests/pipeline/conftest.py, judged from made-up records."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeline.declare.experiment import Experiment
from pipeline.judge.ledger import LedgerEntry, ledger
from pipeline.plan.expand import plan_runs
from pipeline.track.record import Record
from tests.support.fake_records import fake_record

PLAIN, DEEP = [9.4, 9.5, 9.6, 9.5, 9.5], [10.4, 10.5, 10.6, 10.4, 10.6]  # means 9.5 and 10.5: a ratio of 1.105

DERIVED = """derived:
  pair: {kind: ensemble, members: {plain-20: 2}}
  small: {kind: compression, of: plain-20, density: 0.5, conv_bits: 8, fc_bits: 5}
scales:
"""
OF_PAIR = ("scales:\n", DERIVED, "of: plain-20, metric: test", "of: pair, metric: test")
OF_SMALL = ("scales:\n", DERIVED, "of: plain-20, metric: test", "of: small, metric: test")
AS_GAIN = (  # makes a gain of the claim "deeper"
    'kind: ordering, says: "Deeper is worse", lhs: plain-32, op: ">", rhs: plain-20,',
    'kind: gain, says: "By 1 point", claimed: 1.0, margin: 0.3, lhs: plain-20, rhs: plain-32,',
)
SIX_SEEDS = ("seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3, 4, 5]")


def fixed_measure(metric: str, experiment: Experiment, variant: str | None) -> float:
    """Return the exact values of the declaration without building a network."""
    return 269_722 if metric == "model/parameters" else 1e-4


def judge_by_id(experiment: Experiment, records: Iterable[Record], **other: Any) -> dict[str, LedgerEntry]:
    """Return the ledger's entries by the id of their claims."""
    return {entry.claim.id: entry for entry in ledger(experiment, records, fixed_measure, **other)}


def outcomes(experiment: Experiment, records: Iterable[Record], **other: Any) -> dict[str, str]:
    """Return the outcome by claim id: 'reproduced', or 'cannot judge: not-run'."""
    return {
        name: entry.verdict.outcome + (f": {entry.verdict.reason}" if entry.verdict.reason else "")
        for name, entry in judge_by_id(experiment, records, **other).items()
    }


def derived_records(
    experiment: Experiment, name: str, errors: list[float], *, scale: str = "paper", **other: Any
) -> list[Record]:
    """Return records of a derived run that never ran, one for each test error in percent."""
    seeds = other.pop("seeds", None)
    runs = [run for run in plan_runs(experiment, scale=scale, seeds=seeds) if run.variant == name]
    base = fake_record(experiment, "plain-20", 0, 0.0, scale=scale)
    return [
        replace(base, variant=name, seed=run.seed, identity=f"{name}-{run.seed}", declaration=run.declaration,
                metrics=base.metrics | {"test/top1_error_pct": error}, **other)
        for run, error in zip(runs, errors, strict=False)
    ]  # fmt: skip


def with_device_batches(records: list[Record], batches: list[int]) -> list[Record]:
    """Return the records as if each device had trained on so many of the 128 images of a batch."""
    return [
        replace(record, world=128 // batch, device_batch=batch)
        for record, batch in zip(records, batches, strict=True)
    ]
