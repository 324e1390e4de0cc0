"""What a finished run says about itself: its numbers, and everything needed to trust them."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pipeline.plan import ROOT, Run

FINISHED, NOT_CONVERGED = "finished", "not converged"
COMPUTES = ("pipeline", "lightning_modules", "experiments", "pyproject.toml", "requirements.lock")
COPY_OF = "COMMIT"  # beside the code of a launch
LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "numpy")


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


def describe(run: Run, identity: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
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


@cache
def commit() -> str:
    """The checkout's commit, "-dirty" where what computes differs from it, "unknown" outside a checkout.

    A new file counts as a difference: a run of a network not yet committed cannot be found by the commit. A copy
    of the code that was made for a launch says in a file what it is a copy of.
    """
    if (ROOT / COPY_OF).is_file():
        return (ROOT / COPY_OF).read_text(encoding="utf-8").strip()
    if not (ROOT / "pyproject.toml").is_file():  # installed, perhaps into an environment inside another checkout
        return "unknown"
    try:
        head = git("rev-parse", "HEAD")
        return f"{head}-dirty" if git("status", "--porcelain", "--", *COMPUTES) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*words: str) -> str:
    """What git prints for `words` in the project's folder."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def lock_hash() -> str:
    """Hash of the locked requirements beside the code; of what is installed where there are none."""
    lock = ROOT / "requirements.lock"
    if lock.is_file():
        return hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    installed = sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())
    return "installed-" + hashlib.sha256("\n".join(installed).encode()).hexdigest()[:16]


@cache
def libraries() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


@cache
def hardware() -> str:
    """The device that trains, for a person: the GPU's name, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
