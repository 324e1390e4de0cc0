"""What a finished run says about itself: its numbers, and everything needed to trust them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pipeline.common.provenance import commit
from pipeline.plan.expand import Run

FINISHED, NOT_CONVERGED = "finished", "not converged"


@dataclass(frozen=True)
class Record:
    """One ended run. Kept beside its checkpoints and in MLflow; all judging and reporting reads only this."""

    identity: str
    experiment: str
    scale: str
    variant: str
    seed: int
    status: Literal["finished", "not converged"]
    ended: str  # what happened, in words: "64000 steps", or "the loss became nan at step 17"
    changes: Mapping[str, Any]  # of --set; anything here and the run never counts for a claim
    declaration: str  # hashes
    manifest: str
    code: str
    lock: str
    commit: str  # with "-dirty" where the tree held changes
    data: str
    metrics: Mapping[str, float]  # final ones: test/top1_error_pct, test/images, …
    precision: str  # used, which may be less than declared where the processor lacks it
    compiled: bool  # by torch.compile, where declared and a C++ compiler was found
    threads: int
    hardware: str
    libraries: Mapping[str, str]
    seconds: float  # of training, evaluations included, over all its sessions
    finished: str  # UTC, ISO 8601
    run_id: str = ""  # MLflow's, once tracked
    world: int = 1  # devices that trained it together, in its last session
    device_batch: int = 0  # images that batch normalisation saw at a time; 0: unknown, of an older record
    members: tuple[str, ...] = ()  # identities of the runs that a step looked at

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Record":
        """From `to_dict`'s; keys of a later version are left aside."""
        known = {field.name for field in fields(cls)}
        kept = {key: value for key, value in raw.items() if key in known}
        return cls(**kept | {"members": tuple(kept.get("members", ()))})  # JSON has lists only


def describe_run(run: Run, identity: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is, as plain data, for its folder and for tracking while it trains."""
    return {
        "identity": identity,
        "experiment": run.experiment,
        "scale": run.scale,
        "variant": run.variant,
        "seed": run.seed,
        "changes": dict(run.changes),
        "declaration": run.declaration,
        "recipe": run.recipe.model_dump(mode="json"),
        "manifest": dict(manifest),
        "commit": commit(),
    }
