"""Test the plan of `repro run --dry-run`: the state of every run, as lines and as rows."""

import json

import pytest

from pipeline.plan.expand import plan_runs
from pipeline.plan.task import Task
from pipeline.report.run_plan import plan_lines, planned_runs
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def tasks(experiment, tmp_path):
    """Return the tasks of one seed at smoke scale: plain-20 and resnet-20."""
    runs = plan_runs(experiment, scale="smoke", seeds=1)
    return [Task(run, run.variant, "code", {}, tmp_path / run.variant, tmp_path) for run in runs]


def lines(tasks):
    return list(plan_lines(planned_runs(tasks)))


def test_plan_shows_the_state_of_every_run(tasks, experiment, record):
    assert lines(tasks) == [
        "plain-20 seed 0   to train, 12 steps",
        "resnet-20 seed 0  to train, 12 steps",
        "2 runs, 0 finished, 2 to train",
    ]
    for task in tasks:
        RunFolder(task.folder).create({})
    RunFolder(tasks[0].folder).finish(record(experiment, "plain-20", 0, 9.5))
    RunFolder(tasks[1].folder).save_checkpoint(7, lambda path: path.write_text(json.dumps("weights")))
    assert lines(tasks) == [
        "plain-20 seed 0   finished",
        "resnet-20 seed 0  to resume at step 7 of 12",
        "2 runs, 1 finished, 1 to train",
    ]
    assert lines(tasks[:1])[-1] == "1 run, 1 finished, 0 to train"
    assert [row.state for row in planned_runs(tasks, {"resnet-20"})] == ["finished", "finished"]  # on the server
    finished, resumed = planned_runs(tasks)
    assert (finished.state, finished.step, finished.steps) == ("finished", 0, 12)
    assert (resumed.state, resumed.step, resumed.steps, resumed.kind) == ("to resume", 7, 12, "run")


def test_plan_shows_derived_runs(declare, tmp_path):
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    runs = plan_runs(declare("scales:\n", two), scale="smoke", variants=["plain-20"], seeds=2)
    names = [f"{run.variant}-{run.seed}" for run in runs]
    tasks = [
        Task(run, name, "code", {}, tmp_path / name, tmp_path, needs=need)
        for run, name, need in zip(runs, names, [(), (), tuple(names[:2])], strict=True)
    ]
    assert lines(tasks) == [
        "plain-20 seed 0  to train, 12 steps",
        "plain-20 seed 1  to train, 12 steps",
        "two seed 0       to do after its runs: average of 2 plain-20",
        "2 runs and 1 derived run, 0 finished, 3 to do",
    ]
    derived = planned_runs(tasks)[-1]
    assert (derived.kind, derived.steps, derived.needs) == ("derived run", 0, ("plain-20-0", "plain-20-1"))
    assert derived.what == "average of 2 plain-20"
