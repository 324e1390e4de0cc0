"""From runs and steps to tasks with identities; and why runs were left, for the ledger."""

import os

import pytest

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.data import sources
from pipeline.declare.derived import CompressionSpec, EnsembleSpec, TransferSpec
from pipeline.judge.collect import judge_experiments, unfinished_runs
from pipeline.judge.counting import declarations_of
from pipeline.plan.expand import DerivedRun
from pipeline.schedule import reproduce
from pipeline.schedule.reproduce import split_finished
from pipeline.schedule.tasks import make_tasks
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import smoke_run


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_DATA", raising=False)


RUNS = [smoke_run(seed=seed) for seed in range(3)]
KIND = EnsembleSpec(kind="ensemble", members={"resnet-20": 2})


def a_step(kind=KIND, runs=tuple(RUNS[:2])):
    return DerivedRun("resnet/cifar10_depth", "smoke", "it", 0, kind, runs)


def test_a_step_names_its_runs_by_their_identities():
    first, second, step = make_tasks([*RUNS[:2], a_step()])
    assert step.needs == (first.identity, second.identity)
    assert (first.needs, step.manifest) == ((), first.manifest)
    assert step.folder == runs_folder() / step.identity
    assert step.code not in (first.code, "")


def test_a_step_is_named_so_also_without_its_runs():
    *_, step = make_tasks([*RUNS[:2], a_step()])
    assert make_tasks([a_step()]) == [step]


def test_other_runs_or_another_kind_are_another_step():
    kinds = [
        a_step(),
        a_step(runs=tuple(RUNS[1:3])),
        a_step(
            CompressionSpec(kind="compression", of="resnet-20", density=0.5, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
        a_step(
            CompressionSpec(kind="compression", of="resnet-20", density=0.4, conv_bits=8, fc_bits=8), (RUNS[0],)
        ),
    ]
    assert len({task.identity for task in make_tasks(kinds)}) == 4


def test_a_transfers_data_are_the_other_set(monkeypatch):
    step = a_step(TransferSpec(kind="transfer", of="resnet-20", data="digits", c=1.0), (RUNS[0],))
    [task] = make_tasks([step])
    assert task.manifest["name"] == "digits"


def test_a_set_that_is_not_there_is_told_before_anything_starts():
    step = a_step(TransferSpec(kind="transfer", of="resnet-20", data="digts", c=1.0), (RUNS[0],))
    with pytest.raises(UserError, match=r"no data set 'digts'.*did you mean 'digits'"):
        make_tasks([step])


def test_each_set_is_read_once(monkeypatch):
    read = []
    load = sources.load_images
    monkeypatch.setattr(
        sources, "load_images", lambda name, *rest, **other: read.append(name) or load(name, *rest, **other)
    )
    make_tasks([*RUNS, a_step()])
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
    declared = declarations_of(experiment, run["scale"], run["variant"], {run["seed"]}, run["changes"])
    folder = RunFolder(runs_folder() / name)
    folder.create(run | {"declaration": next(iter(declared))})
    folder.mark_unfinished(why, text)
    os.utime(folder.path / "left.json", (at, at))
    return folder


def test_why_runs_were_left_is_found_in_their_folders(experiment):
    leave("a", "over-budget", "spent", experiment=experiment)
    leave("b", "failed", "no room", experiment=experiment, variant="plain-32", seed=3)
    assert unfinished_runs([experiment]) == {
        ("toy/depth", "paper", "plain-20", 0): {"why": "over-budget", "text": "spent"},
        ("toy/depth", "paper", "plain-32", 3): {"why": "failed", "text": "no room"},
    }


def test_the_latest_word_on_a_run_counts(experiment):
    leave("old", "failed", "old code", at=5.0, experiment=experiment)
    leave("new", "over-budget", "spent", at=9.0, experiment=experiment)
    leave("older", "cancelled", "long ago", at=2.0, experiment=experiment)
    assert [left["text"] for left in unfinished_runs([experiment]).values()] == ["spent"]


def test_of_runs_that_are_now_declared_otherwise_nothing_is_told(declare):
    steps = "derived:\n  pair: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    before = declare("scales:\n", steps)
    leave("now", "failed", "of the recipe before", at=9.0, experiment=before)
    leave("step", "failed", "of a step before", experiment=before, variant="pair")
    leave("gone", "failed", "of a scale before", experiment=before, scale="laptop")
    assert len(unfinished_runs([before])) == 3
    now = declare("scales:\n", steps, "steps: 64000", "steps: 64001", "  laptop:", "  desktop:")
    assert unfinished_runs([now]) == {}
    leave("again", "cancelled", "by root", at=1.0, experiment=now)  # said before the other's last word
    assert unfinished_runs([now]) == {
        ("toy/depth", "paper", "plain-20", 0): {"why": "cancelled", "text": "by root"}
    }
    assert unfinished_runs([declare("plain-20:", "other-20:", "of: plain-20", "of: other-20", "of: plain-20", "of: other-20",
                          "of: plain-20", "of: other-20", "rhs: plain-20", "rhs: other-20",
                          "rhs: plain-20", "rhs: other-20", "[plain-20,", "[other-20,")]) == {}  # fmt: skip
    assert unfinished_runs([]) == {}


def test_of_changed_finished_and_half_written_runs_nothing_is_told(experiment, record):
    leave("changed", "failed", "x", experiment=experiment, changes={"train.lr": 1.0})
    leave("finished", "failed", "x", experiment=experiment).finish(record(experiment, "plain-20", 0, 9.5), None)
    leave("broken", "failed", "x", experiment=experiment).path.joinpath("left.json").write_text(
        "{", encoding="utf-8"
    )
    (runs_folder() / "nothing").mkdir()
    (runs_folder() / "nothing" / "left.json").write_text('{"why": "failed", "text": "x"}', encoding="utf-8")
    assert unfinished_runs([experiment]) == {}


def test_the_ledger_tells_what_is_known_here(experiment):
    def reason():
        return next(
            entry for entry in judge_experiments([experiment], []) if entry.claim.id == "error"
        ).verdict.reason

    assert reason() == "not-run"
    leave("a", "over-budget", "spent", experiment=experiment)
    assert reason() == "over-budget"
    assert [
        entry.verdict.reason for entry in judge_experiments([experiment], [], left={}) if entry.claim.id == "error"
    ] == ["not-run"]


def test_who_starts_a_run_anew_wants_it_again(monkeypatch):
    """Its folder no longer says that it was cancelled, or that it should stop."""
    [task] = make_tasks(RUNS[:1])
    folder = RunFolder(task.folder)
    folder.create(task.description())
    folder.mark_unfinished("cancelled", "by root")
    folder.request_stop("asked")
    seen = []

    def ends(tasks, **_):
        seen.append((folder.unfinished(), folder.stop_reason()))
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
    monkeypatch.setattr(reproduce, "BackgroundSync", Silent)
    assert split_finished([task], Silent()) == ({}, [task])
    reproduce.run_tasks([task], threads=1, on_event=lambda _: None)
    assert seen == [({}, "")]
