"""Tasks as plain data: another process reads the same run, with the same declaration."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.plan.task import Task, run_from_dict, run_to_dict
from tests.support.plans import DERIVED_OF_PLAIN_20, first_derived, first_run

SDLM = (
    "depth: 32}}",
    "depth: 32}, train: {batch_size: 1, loss: {name: map, j: 1.0, divided_by: 1.0}, "
    "optimizer: {name: sdlm, mu: 0.02, samples: 5}}}",
)


def task_of(run, **fields):
    defaults = {
        "identity": "0123",
        "code": "c0de",
        "manifest": {"name": "cifar10", "size": 3},
        "folder": Path("/home/runs/0123"),
        "data_root": Path("/home/data"),
    }
    return Task(run, **defaults | fields)


@pytest.fixture
def with_derived_runs(declare):
    """The declaration with two ensembles and a compression."""
    return declare("scales:\n", DERIVED_OF_PLAIN_20)


def through_json(value):
    return json.loads(json.dumps(value))


def test_a_run_is_read_back_from_json(experiment):
    run = first_run(experiment, changes={"train.lr": 0.05, "train.lr_drops.at": [1, 2]})
    run = dataclasses.replace(run, tunable=True)
    read = run_from_dict(through_json(run_to_dict(run)))
    assert read == run
    assert read.declaration == run.declaration


@pytest.mark.parametrize("name", ["pair", "mixed", "small"])
def test_a_derived_run_is_read_back_from_json(with_derived_runs, name):
    run = first_derived(with_derived_runs, name)
    read = run_from_dict(through_json(run_to_dict(run)))
    assert read == run
    assert read.declaration == run.declaration


def test_a_task_is_read_back_from_json(experiment):
    task = task_of(first_run(experiment), device_batch=32, needs=("a", "b"))
    assert Task.from_dict(through_json(task.to_dict())) == task


def test_a_title_names_experiment_variant_and_seed(experiment):
    assert task_of(first_run(experiment)).title == "toy/depth plain-20 seed 0"


def test_runs_are_distributable_except_those_of_sdlm(declare, with_derived_runs):
    assert task_of(first_run(declare())).is_distributable
    assert not task_of(first_run(declare(*SDLM), "plain-32")).is_distributable
    assert not task_of(first_derived(with_derived_runs)).is_distributable


def test_the_description_of_a_run_has_its_recipe(experiment):
    run = first_run(experiment, changes={"train.lr": 0.05})
    description = task_of(run).description()
    assert through_json(description) == description
    assert description["recipe"] == run.recipe.model_dump(mode="json")
    assert (description["declaration"], description["changes"]) == (run.declaration, {"train.lr": 0.05})
    assert "needs" not in description


def test_the_description_of_a_derived_run_has_its_members(with_derived_runs):
    run = first_derived(with_derived_runs)
    description = task_of(run, needs=("a", "b")).description()
    assert description["recipe"] == {"derived": run.spec.model_dump(mode="json")}
    assert description["needs"] == [
        {"run": "plain-20 seed 0", "identity": "a"},
        {"run": "plain-20 seed 1", "identity": "b"},
    ]


def test_the_task_of_a_derived_run_is_read_back_with_its_changes(with_derived_runs):
    run = first_derived(with_derived_runs, changes={"train.lr": 0.05})
    task = task_of(run, needs=("a", "b"))
    read = Task.from_dict(through_json(task.to_dict()))
    assert read == task
    assert (read.run.declaration, read.run.changes) == (run.declaration, {"train.lr": 0.05})
    assert not read.is_distributable


def test_a_derived_run_of_several_experiments_is_read_back_and_describes_its_needs(declare_other):
    mixed = first_derived(declare_other(), name="mixed")
    task = task_of(mixed, needs=("a", "b", "c"))
    back = Task.from_dict(through_json(task.to_dict()))
    assert (back, back.run.declaration) == (task, mixed.declaration)
    assert [member.experiment for member in back.run.members] == ["toy/depth", "toy/depth", "toy/wide"]
    assert [need["run"] for need in task.description()["needs"]] == [
        "toy/depth plain-20 seed 0", "toy/depth plain-20 seed 1", "wide seed 0",
    ]  # fmt: skip
