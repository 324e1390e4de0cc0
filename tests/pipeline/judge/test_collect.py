"""Test why runs are unfinished, as read from their folders, and that the ledger shows it."""

import os

import pytest

from pipeline.common.paths import runs_folder
from pipeline.judge.collect import judge_experiments, unfinished_runs
from pipeline.judge.counting import declarations_of
from pipeline.track.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Set REPRO_HOME to a folder of the test."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("REPRO_DATA", raising=False)


def mark_unfinished(name, why, text, *, at=1.0, **other):
    """Write the folder `name` of an unfinished run that `experiment` declares; modified at time `at`."""
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


def test_reasons_are_read_from_the_run_folders(experiment):
    mark_unfinished("a", "over-budget", "spent", experiment=experiment)
    mark_unfinished("b", "failed", "no room", experiment=experiment, variant="plain-32", seed=3)
    assert unfinished_runs([experiment]) == {
        ("toy/depth", "paper", "plain-20", 0): {"why": "over-budget", "text": "spent"},
        ("toy/depth", "paper", "plain-32", 3): {"why": "failed", "text": "no room"},
    }


def test_latest_reason_of_a_run_counts(experiment):
    mark_unfinished("old", "failed", "old code", at=5.0, experiment=experiment)
    mark_unfinished("new", "over-budget", "spent", at=9.0, experiment=experiment)
    mark_unfinished("older", "cancelled", "long ago", at=2.0, experiment=experiment)
    assert [left["text"] for left in unfinished_runs([experiment]).values()] == ["spent"]


def test_runs_whose_declaration_changed_are_left_out(declare):
    derived = "derived:\n  pair: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    before = declare("scales:\n", derived)
    mark_unfinished("now", "failed", "of the recipe before", at=9.0, experiment=before)
    mark_unfinished("derived", "failed", "of a derived run before", experiment=before, variant="pair")
    mark_unfinished("gone", "failed", "of a scale before", experiment=before, scale="laptop")
    assert len(unfinished_runs([before])) == 3
    now = declare("scales:\n", derived, "steps: 64000", "steps: 64001", "  laptop:", "  desktop:")
    assert unfinished_runs([now]) == {}
    mark_unfinished(
        "again", "cancelled", "by root", at=1.0, experiment=now
    )  # earlier than that of the old declaration
    assert unfinished_runs([now]) == {
        ("toy/depth", "paper", "plain-20", 0): {"why": "cancelled", "text": "by root"}
    }
    renamed = [("plain-20:", "other-20:"), *[("of: plain-20", "of: other-20")] * 3]
    renamed += [*[("rhs: plain-20", "rhs: other-20")] * 2, ("[plain-20,", "[other-20,")]
    assert unfinished_runs([declare(*(text for pair in renamed for text in pair))]) == {}
    assert unfinished_runs([]) == {}


def test_changed_finished_and_incomplete_runs_are_left_out(experiment, record):
    mark_unfinished("changed", "failed", "x", experiment=experiment, changes={"train.lr": 1.0})
    mark_unfinished("finished", "failed", "x", experiment=experiment).finish(
        record(experiment, "plain-20", 0, 9.5), None
    )
    mark_unfinished("broken", "failed", "x", experiment=experiment).path.joinpath("left.json").write_text(
        "{", encoding="utf-8"
    )
    (runs_folder() / "incomplete").mkdir()
    (runs_folder() / "incomplete" / "left.json").write_text('{"why": "failed", "text": "x"}', encoding="utf-8")
    assert unfinished_runs([experiment]) == {}


def test_ledger_shows_the_reasons(experiment):
    def reason(**options):
        entries = judge_experiments([experiment], [], **options)
        return next(entry for entry in entries if entry.claim.id == "error").verdict.reason

    assert reason() == "not-run"
    mark_unfinished("a", "over-budget", "spent", experiment=experiment)
    assert reason() == "over-budget"
    assert reason(unfinished={}) == "not-run"
