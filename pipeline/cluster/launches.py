"""Launches, kept as files: what somebody asked the cluster for, on what terms, and how far it is.

launches/<id>.json       what was asked, written once
launches/<id>.spent      device hours used so far
launches/<id>.over       there once all of it has ended; what a `resume` leaves alone
"""

import contextlib
import getpass
import json
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.paths import home
from pipeline.schedule.task import Task
from pipeline.track.run_folder import RunFolder, UnfinishedReason


@dataclass(frozen=True)
class LaunchTerms:
    """On what terms a launch's runs are trained."""

    devices: int  # of each run: GPUs, or processes on CPUs where the cluster has no GPU
    max_device_hours: float | None = None  # of all its runs together; at its end they stop, resumable
    max_concurrent: int | None = None  # runs at a time


@dataclass(frozen=True)
class Launch:
    """What was asked for at one time."""

    id: str  # begins with the time, so that sorted is first come, first served
    words: str  # for a person: "resnet/cifar10_depth at laptop"
    by: str  # user@host
    created: str  # UTC, ISO 8601
    code: str  # the folder that holds the code it was planned with
    terms: LaunchTerms
    tasks: tuple[Task, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; a manifest that thousands of tasks share comes once."""
        manifests = list({id(task.manifest): task.manifest for task in self.tasks}.values())
        places = {id(manifest): place for place, manifest in enumerate(manifests)}
        tasks = [task.to_dict() | {"manifest": places[id(task.manifest)]} for task in self.tasks]
        about = {name: getattr(self, name) for name in ("id", "words", "by", "created", "code")}
        return about | {"terms": asdict(self.terms), "manifests": manifests, "tasks": tasks}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Launch":
        """From `to_dict`'s."""
        about = {name: value for name, value in raw.items() if name not in ("manifests", "tasks", "terms")}
        manifests = raw["manifests"]
        tasks = tuple(Task.from_dict(task | {"manifest": manifests[task["manifest"]]}) for task in raw["tasks"])
        return cls(**about, terms=LaunchTerms(**raw["terms"]), tasks=tasks)


def launches_folder() -> Path:
    """Where launches are kept."""
    return home() / "launches"


def create_launch(words: str, code: Path, terms: LaunchTerms, tasks: tuple[Task, ...]) -> Launch:
    """A launch of this moment, written down before anything else is done about it."""
    now = datetime.now(UTC)
    name = f"{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    by = f"{getpass.getuser()}@{socket.gethostname()}"
    launch = Launch(name, words, by, now.isoformat(timespec="seconds"), str(code), terms, tasks)
    launches_folder().mkdir(parents=True, exist_ok=True)
    write_atomically(launches_folder() / f"{name}.json", json.dumps(launch.to_dict()))
    return launch


def all_launches() -> Iterator[Launch]:
    """All launches, first come first."""
    for path in sorted(launches_folder().glob("*.json")):
        yield read_launch(path.stem)


def print_warning(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr)


def unfinished_launches(tell: Callable[[str], None] = print_warning) -> Iterator[Launch]:
    """Those that have not ended; one whose file cannot be read is left out, and that is told."""
    for path in sorted(launches_folder().glob("*.json")):
        if not is_over(path.stem):
            try:
                yield read_launch(path.stem)
            except UserError as error:
                tell(f"Left out: {error}")


def is_over(name: str) -> bool:
    """Whether all of it has ended."""
    return (launches_folder() / f"{name}.over").exists()


def mark_ended(name: str) -> None:
    """Nothing of it is left to do."""
    (launches_folder() / f"{name}.over").touch()


def hours_used(name: str) -> float:
    """Device hours it has used."""
    with contextlib.suppress(OSError, ValueError):
        return float((launches_folder() / f"{name}.spent").read_text(encoding="utf-8"))
    return 0.0


def record_hours(name: str, hours: float) -> None:
    """It has used so many device hours by now."""
    write_atomically(launches_folder() / f"{name}.spent", f"{hours:.6f}")


def read_launch(name: str) -> Launch:
    """A launch by its id; UserError for one that is not there, or whose file is damaged or of another version."""
    path = launches_folder() / f"{name}.json"
    if not path.is_file():
        raise UserError(f"there is no launch {name} in {launches_folder()}; repro status lists them")
    with explain_read_errors(path):
        return Launch.from_dict(json.loads(path.read_text(encoding="utf-8")))


@contextlib.contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Within, what cannot be read of a launch's file becomes a UserError that says what to do."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} cannot be read as a launch: it is damaged, or another version wrote it; move it away, and"
            " launch again what it asked for"
        ) from error


def mark_unfinished(task: Task, why: UnfinishedReason, text: str, asked: float | None = None) -> None:
    """Write down why a run is not finished, and what it is if it never began: the ledger says so then."""
    run_folder = RunFolder(task.folder)
    if not (run_folder.path / "run.json").is_file():
        run_folder.create(task.description())
    run_folder.mark_unfinished(why, text, asked)
