"""The status of launches and runs, read from the files of a REPRO_HOME."""

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.cluster import launches, local_head, status
from pipeline.cluster.state_file import STALE_SECONDS
from pipeline.cluster.status import (
    ClusterStatus,
    LaunchOutline,
    StatusReader,
    find_run,
    run_history,
    run_outcome,
)
from pipeline.common.errors import UserError
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import cluster_files
from tests.support.status_files import (
    finish,
    named_tasks,
    save_checkpoint,
    save_launch,
    status_of,
    write_report,
)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A REPRO_HOME without a cluster."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    monkeypatch.setattr(local_head, "find_local_cluster", lambda: None)
    return tmp_path


@pytest.fixture
def tasks(experiment, home):
    """Three seeds of plain-20 and resnet-20, with 12 steps of 128 images each."""
    return named_tasks(experiment, home, "smoke")


# --- states -------------------------------------------------------------------------------------------------


def test_every_state_of_a_run_is_read(home, tasks, experiment):
    plain0, resnet0, plain1, resnet1, plain2, resnet2 = tasks
    save_launch(tasks)
    finish(plain0, experiment)
    finish(resnet0, experiment, status="not converged", ended="the loss became nan at step 3")
    RunFolder(plain1.folder).create({})
    RunFolder(plain1.folder).write_progress(3, 64.0)
    launches.mark_unfinished(resnet1, "failed", "the disk is full")
    launches.mark_unfinished(plain2, "over-budget", "the launch's budget is used up")
    reported = {
        plain1.identity: {"state": "running", "node": "gpu-7", "attempt": 2, "since": "2026-01-01"},
        resnet2.identity: {"state": "waiting", "why": "needs 8 devices, 2 free"},
    }
    write_report(home, reported)
    seen = StatusReader().status()
    assert [run.state for run in seen.runs] == [
        "finished",
        "did not converge",
        "training",
        "failed",
        "over-budget",
        "waiting",
    ]
    assert status_of(seen, plain0).why == "test error 9.50 %"
    assert status_of(seen, resnet0).why == "the loss became nan at step 3"
    assert status_of(seen, resnet1).why == "the disk is full"
    assert status_of(seen, resnet2).why == "needs 8 devices, 2 free"
    training = status_of(seen, plain1)
    assert (training.step, training.steps, training.node, training.attempt) == (3, 12, "gpu-7", 2)
    assert training.seconds_left == (12 - 3) * 128 / 64.0
    assert seen.launches[0].counts == dict.fromkeys([run.state for run in seen.runs], 1)
    assert seen.alive
    assert ClusterStatus.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_without_a_supervisor_a_run_with_a_checkpoint_is_stopped(home, tasks):
    save_launch(tasks)
    save_checkpoint(tasks[0], 7)
    write_report(home, {tasks[1].identity: {"state": "running"}}, ago=STALE_SECONDS + 1)
    seen = StatusReader().status()
    assert not seen.alive
    assert (status_of(seen, tasks[0]).state, status_of(seen, tasks[0]).why) == ("stopped", "at step 7 of 12")
    assert status_of(seen, tasks[1]).state == "not begun"


def test_a_run_without_a_supervisor_trains_while_it_reports_progress(tasks):
    save_launch(tasks)
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.write_progress(5, 10.0)
    assert status_of(StatusReader().status(), tasks[0]).state == "training"
    before = time.time() - status.HEARTBEAT_LIMIT - 5
    os.utime(folder.path / "progress.json", (before, before))
    assert status_of(StatusReader().status(), tasks[0]).state == "not begun"


def test_a_run_with_a_stop_request_says_so(home, tasks):
    save_launch(tasks)
    for task in tasks[:2]:
        RunFolder(task.folder).request_stop("cancelled")
    RunFolder(tasks[0].folder).write_progress(5, 10.0)
    write_report(home, {tasks[0].identity: {"state": "running"}, tasks[1].identity: {"state": "waiting"}})
    seen = StatusReader().status()
    assert (status_of(seen, tasks[0]).state, status_of(seen, tasks[0]).why) == (
        "training",
        "stop requested: cancelled",
    )
    assert (status_of(seen, tasks[1]).state, status_of(seen, tasks[1]).why) == (
        "waiting",
        "stop requested: cancelled",
    )


def test_a_damaged_result_affects_only_its_run(tasks):
    save_launch(tasks)
    RunFolder(tasks[0].folder).create({})
    RunFolder(tasks[0].folder).result_file.write_text("{", encoding="utf-8")
    seen = StatusReader().status()
    assert status_of(seen, tasks[0]).state == "failed"
    assert "is not a run's record" in status_of(seen, tasks[0]).why


def test_run_folders_are_found_in_this_home_whatever_path_the_launch_has(home, tasks, experiment):
    moved = [Task(t.run, t.identity, t.code, t.manifest, Path("/other/runs") / t.identity, home) for t in tasks]
    save_launch(moved)
    finish(tasks[0], experiment)
    assert StatusReader().status().launches[0].counts == {"finished": 1, "not begun": 5}


def test_a_run_of_two_launches_is_listed_once(tasks):
    save_launch(tasks)
    save_launch(tasks[:2])
    seen = StatusReader().status()
    assert len(seen.runs) == 6
    assert [sum(launch.counts.values()) for launch in seen.launches] == [6, 2]


def test_a_damaged_report_is_ignored(home, tasks):
    save_launch(tasks)
    cluster_files(home).mkdir(parents=True)
    (cluster_files(home) / "state.json").write_text('{"time": 17', encoding="utf-8")
    assert StatusReader().status().heard is None


# --- one run ------------------------------------------------------------------------------------------------


def outlines() -> list[LaunchOutline]:
    """Return all launches."""
    return StatusReader().all()


@pytest.mark.parametrize("name", ["resnet-20 seed 1", "resnet-20/1", "resnet-20  seed 1", "0003smoke", "0003"])
def test_a_run_is_found_by_variant_and_seed_or_the_first_digits_of_its_identity(tasks, name):
    save_launch(tasks)
    assert find_run(name, outlines()).identity == tasks[3].identity


def test_an_ambiguous_name_lists_the_runs(home, experiment, tasks):
    save_launch(tasks)
    save_launch(named_tasks(experiment, home, "laptop"))
    with pytest.raises(UserError) as caught:
        find_run("plain-20/0", outlines())
    assert str(caught.value) == (
        "'plain-20/0' is ambiguous: 0000smok (toy/depth@smoke, plain-20 seed 0) or 0000lapt (toy/depth@laptop,"
        " plain-20 seed 0); use the digits instead"
    )
    with pytest.raises(UserError, match=r"'0000' is ambiguous: .*; use the digits"):
        find_run("0000", outlines())


def test_of_runs_that_differ_only_in_code_the_last_launched_is_found(home, experiment, tasks):
    save_launch(tasks)
    newer = named_tasks(experiment, home, "smoke", code="b")
    save_launch(newer)
    assert find_run("plain-20/0", outlines()).identity == newer[0].identity
    assert find_run(tasks[0].identity, outlines()).identity == tasks[0].identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-20/9", "no launched run 'resnet-20/9'; use VARIANT/SEED, as in 'resnet-20/"),
        ("000", "no launched run '000'; use VARIANT/SEED, as in 'plain-20/0'"),  # too short for an identity
    ],
)
def test_an_unknown_run_is_an_error_with_an_example(tasks, name, message):
    save_launch(tasks)
    with pytest.raises(UserError) as caught:
        find_run(name, outlines())
    assert str(caught.value).startswith(message)


def test_without_launches_no_run_is_found():
    with pytest.raises(UserError, match="no launched run 'x'; no runs have been launched"):
        find_run("x", outlines())


def test_a_history_has_log_and_measurements_in_order_of_time(tasks):
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    stamp = "2026-11-23 18:00:0{} {}\n"
    folder.log_file.write_text(
        stamp.format(1, "started")
        + stamp.format(3, "noted")
        + stamp.format(5, "died")
        + stamp.format(5, "resumes from step 4")
    )
    second = 1_795_456_800  # 2026-11-23 18:00:00 UTC
    folder.append_journal(
        {"step": 400, "time": second + 3.9, "metrics": {"train/loss": 1.234567, "test/top1": 40.1}}
    )
    folder.append_journal({"step": 1800, "time": second + 9, "metrics": {"train/loss": 1.0}})
    assert run_history(tasks[0].identity) == [
        "2026-11-23 18:00:01 started",
        "2026-11-23 18:00:03 step 400: test/top1 40.1, train/loss 1.23457",
        "2026-11-23 18:00:03 noted",
        "2026-11-23 18:00:05 died",
        "2026-11-23 18:00:05 resumes from step 4",
        "2026-11-23 18:00:09 step 1,800: train/loss 1",
    ]


def test_an_outcome_is_a_result_or_a_reason(tasks, experiment):
    assert run_outcome(tasks[0].identity) == ""
    finish(tasks[0], experiment)
    assert run_outcome(tasks[0].identity) == "finished: test error 9.50 %"
    launches.mark_unfinished(tasks[1], "cancelled", "cancelled by repro cancel")
    assert run_outcome(tasks[1].identity) == "cancelled: cancelled by repro cancel"
