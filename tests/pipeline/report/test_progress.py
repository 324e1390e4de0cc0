"""Test the progress of runs: lines, bars, plans."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.declare.experiment import Experiment
from pipeline.plan.expand import plan_runs
from pipeline.plan.task import Task
from pipeline.report import progress
from pipeline.report.progress import ProgressDisplay
from pipeline.schedule.local import Event
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def tasks(experiment: Experiment, tmp_path: Path) -> list[Task]:
    """Return the tasks of one seed at smoke scale: plain-20 and resnet-20."""
    runs = plan_runs(experiment, scale="smoke", seeds=1)
    return [Task(run, run.variant, "code", {}, tmp_path / run.variant, tmp_path) for run in runs]


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=80, highlight=False, no_color=True), file


def lines(tasks, *events, quietly=False):
    shown, file = console()
    with ProgressDisplay(tasks, shown, quietly=quietly) as seen:
        for event in events:
            seen.on_event(event)
    return file.getvalue().splitlines()


def test_lines_without_a_terminal(tasks, experiment, record):
    plain, resnet = tasks
    good = record(experiment, "plain-20", 0, 9.5, seconds=1234.4)
    bad = record(experiment, "resnet-20", 0, 9.5, status="not converged", ended="the loss became nan at step 3")
    shown = lines(
        tasks,
        Event("started", plain),
        Event("note", plain, "checkpoint [x] is damaged"),
        Event("ended", plain, record=good),
        Event("waiting", resnet, "another repro command trains it already"),
        Event("ended", resnet, record=bad),
    )
    assert shown == [
        "plain-20 seed 0: training",
        "plain-20 seed 0: checkpoint [x] is damaged",
        "plain-20 seed 0: test error 9.50 %, trained in 1,234 s",
        "resnet-20 seed 0: another repro command trains it already",
        "resnet-20 seed 0: did not converge: the loss became nan at step 3",
    ]


def test_stopping_is_printed_once_for_all_runs(tasks):
    shown = lines(
        tasks, *(Event("stopping", task) for task in tasks), Event("stopped", tasks[0], "stopped; resumable")
    )
    assert shown == [
        "Stopping at the next step and saving checkpoints. Press Ctrl-C again to end at once",
        "plain-20 seed 0: stopped; resumable",
    ]


def test_only_failures_are_printed_quietly(tasks):
    events = [Event("started", tasks[0]), Event("note", tasks[0], "x"), Event("failed", tasks[0], "[/no] disk")]
    assert lines(tasks, *events, quietly=True) == ["plain-20 seed 0: [/no] disk"]


def test_progress_lines(tasks, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.write_progress(6, 100.0)
    assert "25 % of all steps" in lines(tasks, Event("started", tasks[0]))


def test_bar_with_speed_on_a_terminal(tasks):
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.write_progress(6, 1234.5)
    shown, file = console(terminal=True)
    with ProgressDisplay(tasks, shown) as seen:
        seen.on_event(Event("started", tasks[0]))
        seen.tick()
        seen.bars.refresh()
    assert "plain-20 seed 0" in file.getvalue()
    assert "6/12" in file.getvalue()
    assert "1,234 images/s" in file.getvalue()


def test_finished_runs_are_counted_at_the_start(tasks, experiment, record):
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.finish(record(experiment, "plain-20", 0, 9.5))
    assert lines(tasks) == ["1 of 2 runs are already finished"]


# --- derived runs ------------------------------------------------------------------------------------------


@pytest.fixture
def with_ensemble(declare, tmp_path):
    """Return the tasks of two runs and their ensemble."""
    two = "derived:\n  two: {kind: ensemble, members: {plain-20: 2}}\nscales:\n"
    runs = plan_runs(declare("scales:\n", two), scale="smoke", variants=["plain-20"], seeds=2)
    names = [f"{run.variant}-{run.seed}" for run in runs]
    needs = [(), (), tuple(names[:2])]
    return [
        Task(run, name, "code", {}, tmp_path / name, tmp_path, needs=need)
        for run, name, need in zip(runs, names, needs, strict=True)
    ]


def test_lines_of_a_derived_run(with_ensemble, experiment, record):
    *_, ensemble = with_ensemble
    assert lines(
        with_ensemble,
        Event("started", ensemble),
        Event("ended", ensemble, record=record(experiment, "plain-20", 0, 9.5, seconds=3.2)),
        Event("skipped", ensemble, "needs plain-20 seed 0, which failed: no room"),
    ) == [
        "two seed 0: average of 2 plain-20",
        "two seed 0: test error 9.50 %, done in 3 s",
        "two seed 0 skipped: needs plain-20 seed 0, which failed: no room",
    ]


def test_error_of_a_run_that_predicts_boxes(tasks, experiment, record):
    metrics = {"test/localisation_error_pct": 33.1}
    good = record(experiment, "plain-20", 0, 0.0, metrics=metrics, seconds=5.0)
    assert lines(tasks, Event("ended", tasks[0], record=good)) == [
        "plain-20 seed 0: localisation error 33.10 %, trained in 5 s"
    ]


def test_bar_of_a_derived_run_has_no_total(with_ensemble):
    shown, _ = console(terminal=True)
    with ProgressDisplay(with_ensemble, shown) as seen:
        seen.on_event(Event("started", with_ensemble[2]))
        bar = seen.bars.tasks[seen.bar_of[with_ensemble[2].identity]]
        assert (bar.total, bar.visible) == (None, True)
        assert seen.bars.tasks[seen.total].total == 24  # two runs of 12


def test_result_of_a_transfer_without_a_top_1_error_is_its_scores():
    scores = {"test/15-per-class/mean_class_recall_pct": 83.8, "test/15-per-class/images": 10.0, "features": 64.0}
    assert progress.result_text(scores) == "test mean class recall (15 training images per class) 83.80 %"
    assert progress.result_text({"test/mean_ap_pct": 89.3}) == "test mean average precision 89.30 %"
    assert (
        progress.result_text({"test/top1_error_pct": 9.5, "test/mean_class_recall_pct": 90}) == "test error 9.50 %"
    )
