"""Evidence: the finished runs that a verdict rests on."""

from dataclasses import dataclass
from typing import Any

from pipeline.judge.counting import ByVariant


@dataclass(frozen=True)
class Evidence:
    """Runs behind a verdict on trained networks: enough to find every one of them."""

    scale: str
    data: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # identities; those of `members` come last
    run_ids: tuple[str, ...]  # of MLflow
    declarations: tuple[str, ...]
    manifests: tuple[str, ...]
    code: tuple[str, ...]
    locks: tuple[str, ...]
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    images: int  # test images evaluated in each run; 0 if none converged
    world: tuple[int, ...] = ()  # devices that trained a run together
    device_batch: tuple[int, ...] = ()  # images per device in one batch normalisation; 0: not known
    members: tuple[str, ...] = ()  # of `runs`: only consumed by derived runs, not compared themselves


def make_evidence(scale: str, records: ByVariant) -> Evidence:
    """Return the evidence that the records of a verdict give."""
    rows = [record for rows in records.values() for record in rows]

    def distinct(field: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(getattr(record, field) for record in rows))

    compared = distinct("identity")
    consumed = dict.fromkeys(member for row in rows for member in row.members)
    members = tuple(member for member in consumed if member not in compared)
    return Evidence(
        scale=scale,
        data=rows[0].data,
        seeds=tuple(sorted({record.seed for record in rows})),
        runs=compared + members,
        run_ids=distinct("run_id"),
        declarations=distinct("declaration"),
        manifests=distinct("manifest"),
        code=distinct("code"),
        locks=distinct("lock"),
        commits=distinct("commit"),
        hardware=distinct("hardware"),
        precision=distinct("precision"),
        images=int(max(record.metrics.get("test/images", 0) for record in rows)),
        world=distinct("world"),
        device_batch=distinct("device_batch"),
        members=members,
    )
