"""Runs that start from the weights of another run: plan, identity, weights, resuming, errors."""

import pytest
import safetensors.torch
import torch

from pipeline.common.errors import UserError
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import load_experiment
from pipeline.judge.counting import declarations_of
from pipeline.plan.expand import make_runs, plan_runs, with_ancestors
from pipeline.plan.task import Task
from pipeline.schedule.tasks import make_tasks
from pipeline.track.run_folder import RunFolder
from pipeline.train import context
from pipeline.train.execution import Execution
from pipeline.train.train import train
from tests.support.smoke_runs import images_of, stop_after

EXPERIMENT = """
paper: {title: Toy, authors: Nobody, year: 2026, section: "1"}
question: Does a deeper network learn from a shallower one?
data: {name: noise}
train: {steps: 6, batch_size: 20, lr: 0.01, log_every: 2, eval_every: 3, optimizer: {name: sgd, momentum: 0.9}}
variants:
  shallow: {model: {name: resnet_cifar, depth: 8}}
  deep: {model: {name: resnet_cifar, depth: 14}, train: {start: {variant: shallow, layers: [conv1, map32.0, fc]}}}
  tuned: {model: {name: resnet_cifar, depth: 14}, train: {lr: 0.001, start: {variant: deep}}}
seeds: [0, 1]
scales: {paper: {}}
"""


@pytest.fixture
def load(tmp_path):
    def from_text(old="", new=""):
        assert old in EXPERIMENT
        file = tmp_path / "toy" / "start.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(EXPERIMENT.replace(old, new), encoding="utf-8")
        return load_experiment(str(file))

    return from_text


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def train_all(tasks, **options):
    images = images_of("noise")
    return [train(task, images, **options) for task in tasks]


def weights_of(task):
    return safetensors.torch.load_file(RunFolder(task.folder).network_file)


# --- the plan ------------------------------------------------------------------------------------------------


def test_a_run_follows_the_run_that_it_starts_from(load):
    planned = [(run.variant, run.seed) for run in plan_runs(load(), scale="paper", variants=["tuned"])]
    assert planned == [(variant, seed) for seed in (0, 1) for variant in ("shallow", "deep", "tuned")]


def test_an_ancestor_is_planned_once(load):
    planned = [(run.variant, run.seed) for run in plan_runs(load(), scale="paper", variants=["tuned", "shallow"])]
    assert len(planned) == len(set(planned)) == 6


def test_changes_apply_to_ancestors(load):
    run = make_runs(load(), "paper", "tuned", [0], {"train.steps": 2})[0]
    assert [ancestor.recipe.train.steps for ancestor in with_ancestors(run)] == [2, 2, 2]


# --- identity ------------------------------------------------------------------------------------------------


def test_identity_includes_that_of_the_ancestor(load, home):
    before = make_tasks(plan_runs(load(), scale="paper", variants=["tuned"], seeds=1))
    changed = make_tasks(plan_runs(load("lr: 0.01", "lr: 0.02"), scale="paper", variants=["tuned"], seeds=1))
    assert [task.needs for task in before] == [(), (before[0].identity,), (before[1].identity,)]
    assert before[2].run.recipe == changed[2].run.recipe  # tuned has its own rate
    assert before[2].identity != changed[2].identity


def test_names_of_variants_are_not_part_of_a_declaration(load):
    def declaration(experiment, variant):
        return make_runs(experiment, "paper", variant, [0])[0].declaration

    renamed = load("shallow", "flat")
    assert "flat" in renamed.variants
    assert declaration(load(), "deep") == declaration(renamed, "deep")


def test_layers_are_part_of_a_declaration(load):
    deep = [make_runs(declared, "paper", "deep", [0])[0] for declared in (load(), load("map32.0, fc", "fc"))]
    assert deep[0].declaration != deep[1].declaration


def test_records_are_matched_by_the_declaration_with_its_ancestors(load):
    run = make_runs(load(), "paper", "tuned", [1])[0]
    assert declarations_of(load(), "paper", "tuned", [1]) == {run.declaration}
    assert run.declaration != make_runs(load(), "paper", "tuned", [0])[0].declaration


def test_a_task_with_its_ancestors_becomes_plain_data_and_back(load, home):
    task = make_tasks(plan_runs(load(), scale="paper", variants=["tuned"], seeds=1))[2]
    assert Task.from_dict(task.to_dict()) == task
    assert task.description()["needs"] == [{"run": "deep seed 0", "identity": task.needs[0]}]


# --- weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def initial(monkeypatch):
    """The initial weights of each run that is trained, in order."""
    states, build = [], context.RunContext.feed

    def feed(self, start):
        states.append({name: value.clone() for name, value in self.module.network.state_dict().items()})
        return build(self, start)

    monkeypatch.setattr(context.RunContext, "feed", feed)
    return states


def test_declared_layers_are_copied_and_others_keep_their_initial_weights(load, home, initial):
    tasks = make_tasks(plan_runs(load(), scale="paper", variants=["tuned"], seeds=1))
    records = train_all(tasks)
    shallow, deep = weights_of(tasks[0]), weights_of(tasks[1])
    fresh = make_fresh(load())
    for name, value in initial[1].items():
        copied = name.startswith(("conv1.", "map32.0.", "fc."))
        assert torch.equal(value, shallow[name] if copied else fresh[name]), name
    assert all(torch.equal(value, deep[name]) for name, value in initial[2].items())
    assert [record.members for record in records] == [task.needs for task in tasks]


def make_fresh(experiment):
    """Initial weights of the deep network without a start."""
    from pipeline.data.manifest import manifest_of

    run = make_runs(experiment, "paper", "deep", [0])[0]
    as_declared = Execution("fp32", channels_last=False, compiled=False, threads=1)
    return context.build_module(run, manifest_of(images_of("noise")), as_declared).network.state_dict()


def test_a_stopped_run_resumes_without_its_ancestor(load, home, tmp_path):
    tasks = make_tasks(plan_runs(load(), scale="paper", variants=["deep"], seeds=1))
    train_all(tasks)
    expected = weights_of(tasks[1])
    RunFolder(tasks[1].folder).result_file.unlink()
    RunFolder(tasks[1].folder).network_file.unlink()
    RunFolder(tasks[1].folder).journal_file.unlink()
    assert train(tasks[1], images_of("noise"), stop=stop_after(3)) is None
    RunFolder(tasks[0].folder).network_file.rename(tmp_path / "moved")
    assert train(tasks[1], images_of("noise"))
    found = weights_of(tasks[1])
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


# --- errors --------------------------------------------------------------------------------------------------


def test_missing_weights_are_named(load, home):
    tasks = make_tasks(plan_runs(load(), scale="paper", variants=["deep"], seeds=1))
    with pytest.raises(
        UserError, match=r"starts from shallow seed 0, whose weights are not at .*network.safetensors"
    ):
        train(tasks[1], images_of("noise"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "variant: shallow",
            "variant: shalow",
            "variants.deep.train.start.variant: unknown variant 'shalow'; did you",
        ),
        ("variant: shallow", "variant: tuned", "deep starts from tuned starts from deep"),
        ("variant: deep", "variant: tuned", "variants.tuned.train.start.variant: tuned starts from tuned"),
        ("layers: [conv1,", "layers: [fc,", "'fc' is listed twice"),
    ],
)
def test_an_impossible_start_is_an_error_of_the_declaration(load, old, new, message):
    with pytest.raises(DeclarationError, match=message):
        load(old, new)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("map32.0, fc", "map32.9, fc", "deep on noise: this network has no layer 'map32.9' with weights"),
        ("{variant: shallow, layers: [conv1, map32.0, fc]}", "{variant: shallow}", "has no map16.1"),
        ("[conv1, map32.0, fc]", "[map32.1]", "deep on noise: the network to start from has no layer 'map32.1'"),
    ],
)
def test_networks_that_do_not_fit_are_refused_before_training(load, home, old, new, message):
    with pytest.raises(UserError, match=message):
        make_tasks(plan_runs(load(old, new), scale="paper", seeds=1))


def test_start_from_another_experiment(load):
    other = load("start: {variant: deep}", "start: {experiment: resnet/cifar10_depth, variant: resnet-20}")
    run = make_runs(other, "paper", "tuned", [0])[0]
    assert (run.start.experiment, run.start.variant, run.start.recipe.train.steps) == (
        "resnet/cifar10_depth",
        "resnet-20",
        64000,
    )
