"""Records: the results and the provenance of an ended run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from pipeline.common.provenance import commit, hardware_name, library_versions, lock_hash, runs_per_device
from pipeline.common.words import plural
from pipeline.plan.task import Task

FINISHED, NOT_CONVERGED = "finished", "not converged"


@dataclass(frozen=True)
class Record:
    """Results and provenance of an ended run, kept in its folder and in MLflow; all that judging reads."""

    identity: str
    experiment: str
    scale: str
    variant: str
    seed: int
    status: Literal["finished", "not converged"]
    ended: str  # end of training: "64000 steps", or "the loss became nan at step 17"
    changes: Mapping[str, Any]  # by --set; a changed run counts for no claim
    declaration: str  # hashes
    manifest: str
    code: str
    lock: str
    commit: str  # with "-dirty" if the working tree had changes
    data: str
    metrics: Mapping[str, float]  # final ones: test/top1_error_pct, test/images, …
    precision: str  # precision used; fp32 where the processor lacks bf16
    compiled: bool  # by torch.compile
    threads: int
    hardware: str
    libraries: Mapping[str, str]
    seconds: float  # of training with evaluations, over all sessions
    finished: str  # UTC, ISO 8601
    run_id: str = ""  # MLflow's, once synced
    world: int = 1  # number of devices in its last session
    device_batch: int = 0  # images of one micro-batch, which batch normalisation sees; 0: unknown
    members: tuple[str, ...] = ()  # identities of the runs that a derived run is made from
    costs: Mapping[str, float] = field(default_factory=dict)  # train/seconds, …; differ between machines
    runs_per_device: int = 1  # number of runs that shared its device in its last session
    channels_last: bool | None = None  # memory format of the weights; None: unknown
    # Seconds of an optimizer step in the execution settings that were timed before training, by their text.
    step_seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def execution(self) -> str:
        """How its steps were computed: 'bf16, channels-last, 2 threads'."""
        return execution_text(self.precision, bool(self.channels_last), self.compiled, self.threads)

    @property
    def measured(self) -> dict[str, float]:
        """Metrics and costs: all values that a claim can name."""
        return {**self.metrics, **self.costs}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Record":
        """Return the record that `to_dict` described; unknown keys of later versions are ignored."""
        kept = {**raw, "members": tuple(raw.get("members", ()))}  # JSON has lists only
        for unknown in kept.keys() - record_fields():
            del kept[unknown]
        return cls(**kept)


def execution_text(precision: str, channels_last: bool, compiled: bool, threads: int) -> str:
    """Return 'bf16, channels-last, compiled, 2 threads'."""
    words = ["channels-last"] * channels_last + ["compiled"] * compiled
    return ", ".join([precision, *words, plural(threads, "thread")])


@cache
def record_fields() -> frozenset[str]:
    """Return the names of a record's fields."""
    return frozenset(one.name for one in fields(Record))


def make_record(
    task: Task,
    *,
    status: Literal["finished", "not converged"],
    ended: str,
    metrics: Mapping[str, float],
    precision: str,
    compiled: bool,
    threads: int,
    seconds: float,
    world: int = 1,
    device_batch: int = 0,
    members: tuple[str, ...] = (),
    costs: Mapping[str, float] | None = None,
    channels_last: bool | None = None,
    step_seconds: Mapping[str, float] | None = None,
) -> Record:
    """Return the record of a run or derived run that ended now, from its task and its results."""
    run = task.run
    return Record(
        identity=task.identity,
        experiment=run.experiment,
        scale=run.scale,
        variant=run.variant,
        seed=run.seed,
        status=status,
        ended=ended,
        changes=dict(run.changes),
        declaration=run.declaration,
        manifest=task.manifest["sha256"][:16],
        code=task.code,
        lock=lock_hash(),
        commit=commit(),
        data=task.manifest["name"],
        metrics=metrics,
        precision=precision,
        compiled=compiled,
        threads=threads,
        hardware=hardware_name(),
        libraries=library_versions(),
        seconds=seconds,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        world=world,
        device_batch=device_batch,
        members=members,
        costs=dict(costs or {}),
        runs_per_device=runs_per_device(),
        channels_last=channels_last,
        step_seconds=dict(step_seconds or {}),
    )
