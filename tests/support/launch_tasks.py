"""Tasks and launch plans of the small declaration, for tests of launches and estimates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import estimate, launch_request
from pipeline.cluster.estimate import Estimator
from pipeline.cluster.launch import LaunchPlan, plan_variant
from pipeline.cluster.launch_request import LaunchRequest
from pipeline.declare import suites
from pipeline.declare.experiment import Experiment
from pipeline.plan.expand import Run, plan_runs
from pipeline.plan.task import Task
from pipeline.track.record import Record

RESNET = "resnet/cifar10_depth"
HARDWARE = "AMD EPYC, 2 cores"  # of this machine


def set_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Set REPRO_HOME and the name of this machine's hardware; return the REPRO_HOME."""
    home = tmp_path / "home"
    monkeypatch.setenv("REPRO_HOME", str(home))
    monkeypatch.setattr(estimate, "hardware_name", lambda: HARDWARE)
    return home


def declare_only(monkeypatch: pytest.MonkeyPatch, experiment: Experiment) -> Experiment:
    """Make `experiment` the only declared one for estimates and launches."""
    monkeypatch.setattr(estimate, "experiment_names", lambda: [experiment.name])
    monkeypatch.setattr(suites, "load_all", lambda: [experiment])
    for module in (estimate, launch_request):
        monkeypatch.setattr(module, "load_experiment", lambda name: experiment)
    return experiment


def tasks_of(experiment: Experiment, home: Path, scale: str = "smoke") -> list[Task]:
    """Return a task for each run of an experiment at a scale, with run folders under `home`."""
    runs = [run for run in plan_runs(experiment, scale=scale) if isinstance(run, Run)]
    names = [f"{number:04x}{scale}" for number in range(len(runs))]
    return [Task(run, name, "code", {}, home / "runs" / name, home) for run, name in zip(runs, names, strict=True)]


def of_variant(tasks: Sequence[Task], variant: str) -> list[Task]:
    """Return the tasks of a variant."""
    return [task for task in tasks if task.run.variant == variant]


def plan_of(tasks: list[Task], records: Sequence[Record] = (), **request: Any) -> LaunchPlan:
    """Return the plan of tasks of plain-20 and resnet-20; `records`: finished runs."""
    estimator = Estimator(records)
    ended = {record.identity for record in records}
    asked = LaunchRequest((RESNET,), "smoke", **request)
    names = ("plain-20", "resnet-20")
    variants = [plan_variant(of_variant(tasks, name), asked.terms, ended, estimator) for name in names]
    return LaunchPlan(asked, tasks, variants, [])
