"""Files that `repro status` reads: launches, run folders and the supervisor's report."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster import launches
from pipeline.cluster.launches import Launch, LaunchTerms
from pipeline.cluster.status import ClusterStatus, RunStatus
from pipeline.declare.experiment import Experiment
from pipeline.plan.expand import plan_runs
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import cluster_files
from tests.support.fake_records import fake_record


def named_tasks(experiment: Experiment, home: Path, scale: str, code: str = "") -> list[Task]:
    """Return a task for each run; the identity begins with its number, the scale and `code`."""
    runs = plan_runs(experiment, scale=scale)
    names = [f"{number:04x}{scale}{code}{run.variant}" for number, run in enumerate(runs)]
    pairs = zip(runs, names, strict=True)
    return [Task(run, name, "code", {"sha256": "0"}, home / "runs" / name, home) for run, name in pairs]


def save_launch(
    tasks: Sequence[Task], terms: LaunchTerms | None = None, title: str = "toy/depth at smoke"
) -> Launch:
    """Create a launch of these tasks."""
    return launches.create_launch(title, Path("code"), terms or LaunchTerms(1), tuple(tasks))


def write_report(
    home: Path, runs: Mapping[str, Mapping[str, Any]] | None = None, *, ago: float = 0.0, **other: Any
) -> None:
    """Write the report of a supervisor with 8 GPUs, 2 of them free; `ago`: its age in seconds."""
    cluster_files(home).mkdir(parents=True, exist_ok=True)
    report = {"time": time.time() - ago, "devices": {"all": 8, "free": 2, "kind": "GPU"}, "runs": runs or {}}
    file = cluster_files(home) / "state.json"
    file.write_text(json.dumps(report | other), encoding="utf-8")
    moment = file.stat().st_mtime - ago
    os.utime(file, (moment, moment))


def finish(task: Task, experiment: Experiment, **fields: Any) -> None:
    """Give a run a result with a test error of 9.5 %."""
    folder = RunFolder(task.folder)
    folder.create({})
    folder.finish(fake_record(experiment, task.run.variant, task.run.seed, 9.5, scale="smoke", **fields))


def save_checkpoint(task: Task, step: int) -> None:
    """Give a run a checkpoint."""
    RunFolder(task.folder).save_checkpoint(step, lambda path: path.write_bytes(b"weights"))


def status_of(status: ClusterStatus, task: Task) -> RunStatus:
    """Return the status of a task's run."""
    (found,) = (run for run in status.runs if run.identity == task.identity)
    return found
