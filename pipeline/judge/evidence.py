"""Evidence: the finished runs that verdicts rest on, from this machine and the tracking server."""

from dataclasses import dataclass
from typing import Any

from pipeline.judge.counting import ByVariant


@dataclass(frozen=True)
class Evidence:
    """What a verdict on trained networks rests on: enough to find every run again."""

    scale: str
    data: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # identities; those of the networks that steps are made of come last
    run_ids: tuple[str, ...]  # MLflow's
    declarations: tuple[str, ...]
    manifests: tuple[str, ...]
    code: tuple[str, ...]
    locks: tuple[str, ...]
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    images: int  # test images counted in each run; 0 where none converged
    world: tuple[int, ...] = ()  # devices that trained a run together
    device_batch: tuple[int, ...] = ()  # images that batch normalisation saw at a time; 0: not known
    members: tuple[str, ...] = ()  # of `runs`, those that are here only because a step is made of them


def make_evidence(scale: str, records: ByVariant) -> Evidence:
    """Where a verdict's numbers come from."""
    rows = [record for rows in records.values() for record in rows]

    def each(field: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(getattr(record, field) for record in rows))

    own = each("identity")
    members = tuple(one for one in dict.fromkeys(one for row in rows for one in row.members) if one not in own)
    return Evidence(
        scale=scale,
        data=rows[0].data,
        seeds=tuple(sorted({record.seed for record in rows})),
        runs=own + members,
        run_ids=each("run_id"),
        declarations=each("declaration"),
        manifests=each("manifest"),
        code=each("code"),
        locks=each("lock"),
        commits=each("commit"),
        hardware=each("hardware"),
        precision=each("precision"),
        images=int(max(record.metrics.get("test/images", 0) for record in rows)),
        world=each("world"),
        device_batch=each("device_batch"),
        members=members,
    )
