"""Launch files: the runs of each `repro launch`, their terms, and their progress.

launches/<id>.json       the launch; `resume --gpus-per-run` changes its terms, nothing else does
launches/<id>.spent      device hours used so far
launches/<id>.over       exists once all its runs have ended; `resume` skips it
"""

import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.cluster.sharing import Devices
from pipeline.common.environment import user_name
from pipeline.common.errors import UserError
from pipeline.common.files import write_atomically
from pipeline.common.paths import home
from pipeline.plan.expand import DerivedRun
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder, UnfinishedReason


@dataclass(frozen=True)
class LaunchTerms:
    """Devices and limits of a launch."""

    devices: int  # per run: GPUs, or CPU processes on a cluster without GPUs
    max_device_hours: float | None = None  # total over all runs; when used up, runs stop resumable
    max_concurrent: int | None = None  # runs at the same time
    runs_per_device: int = 1  # runs that share a device; with more than one, `devices` is 1

    @property
    def devices_per_run(self) -> Devices:
        """Devices per run, a fraction where runs share a device."""
        return self.devices if self.runs_per_device == 1 else Fraction(1, self.runs_per_device)


@dataclass(frozen=True)
class Launch:
    """The tasks of one `repro launch`. The fields are the keys of the launch file."""

    id: str  # begins with the time of creation, so that ids sort by age
    words: str  # title: "resnet/cifar10_depth at laptop"
    by: str  # user@host
    created: str  # UTC, ISO 8601
    code: str  # folder of the code copy it trains with
    terms: LaunchTerms
    tasks: tuple[Task, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; a manifest shared by many tasks is stored once."""
        manifests = list({id(task.manifest): task.manifest for task in self.tasks}.values())
        indices = {id(manifest): index for index, manifest in enumerate(manifests)}
        tasks = [task.to_dict() | {"manifest": indices[id(task.manifest)]} for task in self.tasks]
        header = {name: getattr(self, name) for name in ("id", "words", "by", "created", "code")}
        return header | {"terms": asdict(self.terms), "manifests": manifests, "tasks": tasks}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Launch":
        """Return the launch that `to_dict` described."""
        header = {name: value for name, value in raw.items() if name not in ("manifests", "tasks", "terms")}
        manifests = raw["manifests"]
        tasks = tuple(Task.from_dict(task | {"manifest": manifests[task["manifest"]]}) for task in raw["tasks"])
        return cls(**header, terms=LaunchTerms(**raw["terms"]), tasks=tasks)


def task_devices(terms: LaunchTerms, task: Task) -> Devices:
    """Return the devices of a task in a launch with these terms.

    A task that cannot be distributed uses at most one device. A timing never shares its device: other runs there
    would slow the network that it measures.
    """
    if isinstance(task.run, DerivedRun) and task.run.networks:
        return 1
    return terms.devices_per_run if task.is_distributable else min(1, terms.devices_per_run)


# Variable with the path of a file for the id of the launch that a batch job has saved. The job resumes that launch
# when it is requeued.
LAUNCH_NOTE = "REPRO_LAUNCH_NOTE"


def launches_folder() -> Path:
    """Return the folder of the launch files."""
    return home() / "launches"


def launch_file(launch_id: str) -> Path:
    """Return the path of a launch's JSON file."""
    return launches_folder() / f"{launch_id}.json"


def launch_ids() -> list[str]:
    """Return the ids of all launches, oldest first."""
    return sorted(path.stem for path in launches_folder().glob("*.json"))


def create_launch(title: str, code: Path, terms: LaunchTerms, tasks: tuple[Task, ...]) -> Launch:
    """Create a launch and write its file; and its id into the file LAUNCH_NOTE names, for the script of a job."""
    now = datetime.now(UTC)
    launch_id = f"{now:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(2)}"
    by = f"{user_name()}@{socket.gethostname()}"
    launch = Launch(launch_id, title, by, now.isoformat(timespec="seconds"), str(code), terms, tasks)
    write_launch(launch)
    if note := os.environ.get(LAUNCH_NOTE):
        write_atomically(Path(note), launch.id)
    return launch


def noted_launch() -> str:
    """Return the id of the launch that this batch job has saved, in the file LAUNCH_NOTE names; else ""."""
    with contextlib.suppress(OSError):
        return Path(os.environ.get(LAUNCH_NOTE, "")).read_text(encoding="utf-8").strip()
    return ""


def write_launch(launch: Launch) -> None:
    """Write a launch's file."""
    launches_folder().mkdir(parents=True, exist_ok=True)
    write_atomically(launch_file(launch.id), json.dumps(launch.to_dict()))


def all_launches() -> Iterator[Launch]:
    """Yield all launches, oldest first; UserError for a damaged file."""
    for launch_id in launch_ids():
        yield read_launch(launch_id)


def print_warning(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr)


def unfinished_launches(report: Callable[[str], None] = print_warning) -> Iterator[Launch]:
    """Yield the launches that have not ended, oldest first; unreadable ones are skipped and reported."""
    for launch_id in launch_ids():
        if not is_over(launch_id):
            try:
                yield read_launch(launch_id)
            except UserError as error:
                report(f"Skipped: {error}")


def is_over(launch_id: str) -> bool:
    """Return whether all runs of a launch have ended."""
    return (launches_folder() / f"{launch_id}.over").exists()


def mark_ended(launch_id: str) -> None:
    """Mark a launch as ended."""
    (launches_folder() / f"{launch_id}.over").touch()


def hours_used(launch_id: str) -> float:
    """Return the device hours that a launch has used."""
    with contextlib.suppress(OSError, ValueError):
        return float((launches_folder() / f"{launch_id}.spent").read_text(encoding="utf-8"))
    return 0.0


def record_hours(launch_id: str, hours: float) -> None:
    """Write the device hours that a launch has used."""
    write_atomically(launches_folder() / f"{launch_id}.spent", f"{hours:.6f}")


def read_launch(launch_id: str) -> Launch:
    """Return a launch by its id; UserError where its file is missing, damaged or of another version."""
    path = launch_file(launch_id)
    if not path.is_file():
        raise UserError(f"launch {launch_id} not found in {launches_folder()}; list launches with: repro status")
    with explain_read_errors(path):
        return Launch.from_dict(json.loads(path.read_text(encoding="utf-8")))


@contextlib.contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Turn an error while reading a launch file into a UserError that says what to do."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the launch file {path}: it is damaged or was written by another version; move it away"
            " and launch its experiments again"
        ) from error


def mark_unfinished(task: Task, why: UnfinishedReason, text: str, asked: float | None = None) -> None:
    """Record in the run folder why a run is not finished; describe the run there if it never started.

    `asked`: Unix time of the stop request, now if None.
    """
    run_folder = RunFolder(task.folder)
    if not (run_folder.path / "run.json").is_file():
        run_folder.create(task.description())
    run_folder.mark_unfinished(why, text, asked)
