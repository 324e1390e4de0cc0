"""From runs and steps to tasks with identities; and why runs were left, for the ledger."""

import os

import pytest

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.data import sources
from pipeline.declare.derived import CompressionStep, EnsembleStep, TransferStep
from pipeline.judge.collect import judged, lefts
from pipeline.judge.counting import declarations
from pipeline.plan.expand import Step
from pipeline.schedule import reproduce
from pipeline.schedule.reproduce import finished
from pipeline.schedule.tasks import tasks_for
from pipeline.track.run_folder import RunFolder
from tests.support.real_runs import a_run


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_DATA", raising=False)


RUNS = [a_run(seed=seed) for seed in range(3)]
KIND = EnsembleStep(kind="ensemble", members={"resnet-20": 2})


def a_step(kind=KIND, runs=tuple(RUNS[:2])):
    return Step("resnet/cifar10_depth", "smoke", "it", 0, kind, runs)


def test_a_step_names_its_runs_by_their_identities():
    first, second, step = tasks_for([*RUNS[:2], a_step()])
    assert step.needs == (first.identity, second.identity)
    assert (first.needs, step.manifest) == ((), first.manifest)
    assert step.folder == runs_folder() / step.identity
    assert step.code not in (first.code, "")


def test_a_step_is_named_so_also_without_its_runs():
    *_, step = tasks_for([*RUNS[:2], a_step()])
    assert tasks_for([a_step()]) == [step]


def test_other_runs_or_another_kind_are_another_step():
    kinds = [
        a_step(),
        a_step(runs=tuple(RUNS[1:3])),
        a_step(
            CompressionStep(kind="compression", of="resnet-20", density=0.5, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
        a_step(
            CompressionStep(kind="compression", of="resnet-20", density=0.4, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
    ]
    assert len({task.identity for task in tasks_for(kinds)}) == 4


def test_a_transfers_data_are_the_other_set(monkeypatch):
    step = a_step(TransferStep(kind="transfer", of="resnet-20", data="digits", c=1.0), (RUNS[0],))
    [task] = tasks_for([step])
    assert task.manifest["name"] == "digits"


def test_a_set_that_is_not_there_is_told_before_anything_starts():
    step = a_step(TransferStep(kind="transfer", of="resnet-20", data="digts", c=1.0), (RUNS[0],))
    with pytest.raises(UserError, match=r"no data set is called 'digts'.*did you mean 'digits'"):
        tasks_for([step])


def test_each_set_is_read_once(monkeypatch):
    read = []
    load = sources.load
    monkeypatch.setattr(
        sources, "load", lambda name, *rest, **other: read.append(name) or load(name, *rest, **other)
    )
    tasks_for([*RUNS, a_step()])
    assert read == ["noise"]


# --- what was left unfinished ------------------------------------------------------------------------------


def leave(name, why, text, *, at=1.0, **other):
    """A folder that says why its run was left; `experiment` is the one it was declared by."""
    experiment = other.pop("experiment")
    run = {
        "experiment": experiment.name,
        "scale": "paper",
        "variant": "plain-20",
        "seed": 0,
        "changes": {},
    } | other
    declared = declarations(experiment, run["scale"], run["variant"], {run["seed"]}, run["changes"])
    folder = RunFolder(runs_folder() / name)
    folder.create(run | {"declaration": next(iter(declared))})
    folder.leave(why, text)
    os.utime(folder.path / "left.json", (at, at))
    return folder


def test_why_runs_were_left_is_found_in_their_folders(experiment):
    leave("a", "over-budget", "spent", experiment=experiment)
    leave("b", "failed", "no room", experiment=experiment, variant="plain-32", seed=3)
    assert lefts([experiment]) == {
        ("toy/depth", "paper", "plain-20", 0): {"why": "over-budget", "text": "spent"},
        ("toy/depth", "paper", "plain-32", 3): {"why": "failed", "text": "no room"},
    }


def test_the_latest_word_on_a_run_counts(experiment):
    leave("old", "failed", "old code", at=5.0, experiment=experiment)
    leave("new", "over-budget", "spent", at=9.0, experiment=experiment)
    leave("older", "cancelled", "long ago", at=2.0, experiment=experiment)
    assert [left["text"] for left in lefts([experiment]).values()] == ["spent"]


def test_of_runs_that_are_now_declared_otherwise_nothing_is_told(declare):
    steps = "steps:\n  pair: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    before = declare("scales:\n", steps)
    leave("now", "failed", "of the recipe before", at=9.0, experiment=before)
    leave("step", "failed", "of a step before", experiment=before, variant="pair")
    leave("gone", "failed", "of a scale before", experiment=before, scale="laptop")
    assert len(lefts([before])) == 3
    now = declare("scales:\n", steps, "steps: 64000", "steps: 64001", "  laptop:", "  desktop:")
    assert lefts([now]) == {}
    leave("again", "cancelled", "by root", at=1.0, experiment=now)  # said before the other's last word
    assert lefts([now]) == {("toy/depth", "paper", "plain-20", 0): {"why": "cancelled", "text": "by root"}}
    assert lefts([declare("plain-20:", "other-20:", "of: plain-20", "of: other-20", "of: plain-20", "of: other-20",
                          "of: plain-20", "of: other-20", "rhs: plain-20", "rhs: other-20",
                          "rhs: plain-20", "rhs: other-20", "[plain-20,", "[other-20,")]) == {}  # fmt: skip
    assert lefts([]) == {}


def test_of_changed_finished_and_half_written_runs_nothing_is_told(experiment, record):
    leave("changed", "failed", "x", experiment=experiment, changes={"train.lr": 1.0})
    leave("finished", "failed", "x", experiment=experiment).finish(record(experiment, "plain-20", 0, 9.5), None)
    leave("broken", "failed", "x", experiment=experiment).path.joinpath("left.json").write_text(
        "{", encoding="utf-8"
    )
    (runs_folder() / "nothing").mkdir()
    (runs_folder() / "nothing" / "left.json").write_text('{"why": "failed", "text": "x"}', encoding="utf-8")
    assert lefts([experiment]) == {}


def test_the_ledger_tells_what_is_known_here(experiment):
    def reason():
        return next(entry for entry in judged([experiment], []) if entry.claim.id == "error").verdict.reason

    assert reason() == "not-run"
    leave("a", "over-budget", "spent", experiment=experiment)
    assert reason() == "over-budget"
    assert [entry.verdict.reason for entry in judged([experiment], [], left={}) if entry.claim.id == "error"] == [
        "not-run"
    ]


def test_who_starts_a_run_anew_wants_it_again(monkeypatch):
    """Its folder no longer says that it was cancelled, or that it should stop."""
    [task] = tasks_for(RUNS[:1])
    folder = RunFolder(task.folder)
    folder.create(task.description())
    folder.leave("cancelled", "by root")
    folder.ask("asked")
    seen = []

    def ends(tasks, **_):
        seen.append((folder.left(), folder.asked()))
        return "ended"

    class Silent:
        trouble = ""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def watch(self, path):
            pass

        def sync(self):
            pass

        def records(self):
            return []

    monkeypatch.setattr(reproduce, "run_all", ends)
    monkeypatch.setattr(reproduce, "Syncing", Silent)
    assert finished([task], Silent()) == ({}, [task])
    reproduce.carry_out([task], threads=1, happened=lambda _: None)
    assert seen == [({}, "")]
