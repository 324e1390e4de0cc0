"""What `repro status` and `repro logs` make of the files: every state, what is on the screen, how fast."""

import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.cluster import launches, local_head, status
from pipeline.cluster.launches import LaunchTerms
from pipeline.cluster.local_head import ClusterAddress
from pipeline.cluster.status import (
    ClusterStatus,
    RunStatus,
    StatusReader,
    find_run,
    result_status,
    run_history,
    run_outcome,
)
from pipeline.common.errors import UserError
from pipeline.declare.experiment import Experiment
from pipeline.plan.expand import plan_runs
from pipeline.plan.task import Task
from pipeline.report.status import render_status
from pipeline.track.run_folder import RunFolder
from tests.support.work import count_calls


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home without a cluster."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    monkeypatch.setattr(local_head, "find_local_cluster", lambda: None)
    return tmp_path


@pytest.fixture
def tasks(experiment: Experiment, home: Path) -> list[Task]:
    """Three seeds of two variants, 12 steps of 128 images each."""
    return made(experiment, home, "smoke")


def made(experiment: Experiment, home: Path, scale: str, code: str = "") -> list[Task]:
    runs = plan_runs(experiment, scale=scale)
    names = [f"{number:04x}{scale}{code}{run.variant}" for number, run in enumerate(runs)]
    pairs = zip(runs, names, strict=True)
    return [Task(run, name, "code", {"sha256": "0"}, home / "runs" / name, home) for run, name in pairs]


def launched(tasks: Sequence[Task], terms: LaunchTerms | None = None, words: str = "toy/depth at smoke"):
    return launches.create_launch(words, Path("code"), terms or LaunchTerms(1), tuple(tasks))


def heard(home: Path, runs: dict | None = None, *, ago: float = 0.0, **other) -> None:
    """The supervisor's last word."""
    (home / "cluster").mkdir(exist_ok=True)
    said = {"time": time.time() - ago, "devices": {"all": 8, "free": 2, "kind": "GPU"}, "runs": runs or {}} | other
    (home / "cluster" / "state.json").write_text(json.dumps(said), encoding="utf-8")


def finish(task: Task, record, experiment: Experiment, **other) -> None:
    folder = RunFolder(task.folder)
    folder.create({})
    ended = record(experiment, task.run.variant, task.run.seed, 9.5, scale="smoke", **other)
    folder.finish(ended, None)


def checkpoint(task: Task, step: int) -> None:
    RunFolder(task.folder).save_checkpoint(step, lambda path: path.write_bytes(b"weights"))


def run(seen: ClusterStatus, task: Task) -> RunStatus:
    (found,) = (one for one in seen.runs if one.identity == task.identity)
    return found


def lines(seen: ClusterStatus, *, width: int = 100, rows: int = 30) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, no_color=True, highlight=False)
    console.print(render_status(seen, rows=rows))
    text = file.getvalue()
    for escape in ("\x1b[0m", "\x1b[1m", "\x1b[2m"):
        text = text.replace(escape, "")
    return [line.rstrip() for line in text.splitlines()]


# --- states ------------------------------------------------------------------------------------------------


def test_every_state_that_a_run_can_be_in(home, tasks, experiment, record):
    plain0, resnet0, plain1, resnet1, plain2, resnet2 = tasks
    launched(tasks)
    finish(plain0, record, experiment)
    finish(resnet0, record, experiment, status="not converged", ended="the loss became nan at step 3")
    RunFolder(plain1.folder).create({})
    RunFolder(plain1.folder).write_progress(3, 64.0)
    launches.mark_unfinished(resnet1, "failed", "the disk is full")
    launches.mark_unfinished(plain2, "over-budget", "the launch's budget is used up")
    said = {
        plain1.identity: {"state": "running", "node": "gpu-7", "attempt": 2, "since": "2026-01-01"},
        resnet2.identity: {"state": "waiting", "why": "8 of 2 free devices"},
    }
    heard(home, said)
    seen = StatusReader().status()
    assert [one.state for one in seen.runs] == [
        "finished",
        "did not converge",
        "training",
        "failed",
        "over-budget",
        "waiting",
    ]
    assert run(seen, plain0).why == "test error 9.50 %"
    assert run(seen, resnet0).why == "the loss became nan at step 3"
    assert run(seen, resnet1).why == "the disk is full"
    assert run(seen, resnet2).why == "8 of 2 free devices"
    training = run(seen, plain1)
    assert (training.step, training.steps, training.node, training.attempt) == (3, 12, "gpu-7", 2)
    assert training.seconds_left == (12 - 3) * 128 / 64.0
    assert seen.launches[0].counts == dict.fromkeys([one.state for one in seen.runs], 1)
    assert seen.alive
    assert ClusterStatus.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_without_a_supervisor_what_is_left_can_be_resumed(home, tasks):
    launched(tasks)
    checkpoint(tasks[0], 7)
    heard(home, {tasks[1].identity: {"state": "running"}}, ago=status.STALE_SECONDS + 1)
    seen = StatusReader().status()
    assert not seen.alive
    assert (run(seen, tasks[0]).state, run(seen, tasks[0]).why) == ("stopped", "at step 7 of 12")
    assert run(seen, tasks[1]).state == "not begun"
    said = lines(seen)
    assert " ".join(said[:2]) == f"No cluster is at work for {home}; last heard of 16 s ago"
    assert "To go on where it stopped: repro resume" in said


def test_a_cluster_whose_supervisor_is_silent_is_said_to_be_so(monkeypatch, home, tasks):
    monkeypatch.setattr(local_head, "find_local_cluster", lambda: ClusterAddress("127.0.0.1:1", "http://127.0.0.1:8265", "", 1))
    launched(tasks)
    said = lines(StatusReader().status())
    assert said[0] == (
        "A cluster runs on this machine (its pages: http://127.0.0.1:8265), but nothing is supervised on it"
    )
    assert "To go on where it stopped: repro resume" in said


def test_a_run_that_some_other_command_trains_is_seen(tasks):
    launched(tasks)
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.write_progress(5, 10.0)
    assert run(StatusReader().status(), tasks[0]).state == "training"
    before = time.time() - status.HEARTBEAT_LIMIT - 5
    os.utime(folder.path / "progress.json", (before, before))
    assert run(StatusReader().status(), tasks[0]).state == "not begun"


def test_a_run_asked_to_stop_says_so(home, tasks):
    launched(tasks)
    for task in tasks[:2]:
        RunFolder(task.folder).request_stop("cancelled")
    RunFolder(tasks[0].folder).write_progress(5, 10.0)
    heard(home, {tasks[0].identity: {"state": "running"}, tasks[1].identity: {"state": "waiting"}})
    seen = StatusReader().status()
    assert (run(seen, tasks[0]).state, run(seen, tasks[0]).why) == ("training", "asked to stop: cancelled")
    assert (run(seen, tasks[1]).state, run(seen, tasks[1]).why) == ("waiting", "asked to stop: cancelled")


def test_a_damaged_result_is_that_runs_trouble_alone(tasks):
    launched(tasks)
    RunFolder(tasks[0].folder).create({})
    RunFolder(tasks[0].folder).result_file.write_text("{", encoding="utf-8")
    seen = StatusReader().status()
    assert run(seen, tasks[0]).state == "failed"
    assert "is not a run's record" in run(seen, tasks[0]).why


def test_folders_are_found_below_this_home_wherever_the_cluster_has_it(home, tasks, experiment, record):
    elsewhere = [Task(t.run, t.identity, t.code, t.manifest, Path("/far/runs") / t.identity, home) for t in tasks]
    launched(elsewhere)
    finish(tasks[0], record, experiment)
    assert StatusReader().status().launches[0].counts == {"finished": 1, "not begun": 5}


def test_a_run_of_two_launches_is_listed_once(tasks):
    launched(tasks)
    launched(tasks[:2])
    seen = StatusReader().status()
    assert len(seen.runs) == 6
    assert [sum(one.counts.values()) for one in seen.launches] == [6, 2]


def test_a_half_written_state_is_no_state(home, tasks):
    launched(tasks)
    (home / "cluster").mkdir()
    (home / "cluster" / "state.json").write_text('{"time": 17', encoding="utf-8")
    assert StatusReader().status().heard is None


# --- the screen --------------------------------------------------------------------------------------------


def test_the_screen_says_what_is_trained_then_what_needs_a_look_then_what_waits(home, tasks):
    first = launched(tasks, LaunchTerms(2, 10.0, 4))
    launches.record_hours(first.id, 1.234)
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.write_progress(3, 64.0)
    launches.mark_unfinished(tasks[1], "failed", "the [disk] is full")
    waits = {"state": "waiting", "why": "behind 3 others"}
    said = {task.identity: waits for task in tasks[2:]}
    heard(home, {tasks[0].identity: {"state": "running", "node": "gpu-7", "attempt": 2}, **said})
    shown_lines = lines(StatusReader().status())
    assert shown_lines[0] == "The cluster is at work: 2 of 8 GPUs free"
    assert shown_lines[2].startswith("toy/depth at smoke, by ")
    assert shown_lines[2].endswith(" 0 s ago") or shown_lines[2].endswith(" 1 s ago")
    assert shown_lines[3:5] == [
        "  6 runs: 1 training, 4 waiting, 1 failed; 1.23 of 10 device hours used, 2 devices a run, at most 4",
        "  at a time",
    ]
    assert shown_lines[6].split() == ["training", "step", "%", "images/s", "left", "where"]
    assert shown_lines[7].split() == [
        "plain-20",
        "seed",
        "0",
        "3/12",
        "25",
        "64",
        "18",
        "s",
        "gpu-7,",
        "attempt",
        "2",
    ]
    assert shown_lines[9].split() == ["not", "training", "state", "why"]
    assert shown_lines[10].split()[3:] == ["failed", "the", "[disk]", "is", "full"]
    assert [line.split()[3] for line in shown_lines[11:15]] == ["waiting"] * 4
    assert shown_lines[16:] == [
        "What happened to a run: repro logs RUN, as in: repro logs resnet-20/0",
        "To try anew what failed, was cancelled or is at its budget's end: launch it again",
    ]


def test_runs_of_several_experiments_say_which(home, experiment, tasks):
    launched(tasks[:1])
    launched(made(experiment, home, "laptop")[:1], words="toy/depth at laptop")
    said = lines(StatusReader().status())
    assert [line.split()[3] for line in said if "plain-20 seed 0" in line] == [
        "toy/depth@smoke",
        "toy/depth@laptop",
    ]


def test_hundreds_of_runs_fit_a_screen(home, declare):
    many = declare("seeds: [0, 1, 2, 3, 4]", f"seeds: {list(range(170))}")
    tasks = made(many, home, "paper")
    launched(tasks)
    running = {task.identity: {"state": "running", "node": "n"} for task in tasks[:100]}
    for task in tasks[100:200]:
        launches.mark_unfinished(task, "failed", "a long story " * 20)
    heard(home, running)
    seen = StatusReader().status()
    assert len(seen.runs) == 510
    for rows in (10, 20, 40):
        said = lines(seen, width=80, rows=rows)
        assert len(said) <= rows + 14
        assert sum("seed" in line for line in said) == rows
    assert sum("a long story" in line for line in said) == 40 // 3
    assert "… and 81 training" in said
    assert "… and 302 waiting, 87 failed" in said
    assert "  510 runs: 100 training, 310 waiting, 100 failed; 0.00 device hours used" in said


def test_launches_that_ended_take_two_lines_each_and_the_newest_are_shown(tasks):
    for number in range(5):
        launches.mark_ended(launched(tasks, words=f"number {number}").id)
    seen = StatusReader().status()
    said = lines(seen)
    assert seen.runs == []
    assert said[0] == ""
    assert said[1] == "ended launches"
    assert [line.split(",")[0] for line in said[2:8:2]] == ["number 2", "number 3", "number 4"]
    assert said[8] == "and 2 earlier ones"
    assert said[-1] == "All launches have ended; the verdicts: repro verify EXPERIMENT"


def test_where_nothing_was_launched_the_first_step_is_named():
    assert lines(StatusReader().status()) == [
        "Nothing was launched yet; start with: repro launch EXPERIMENT --dry-run"
    ]


def test_trouble_is_said(home, tasks):
    launched(tasks)
    heard(home, trouble="the tracking server does not answer")
    assert "Trouble: the tracking server does not answer" in lines(StatusReader().status())


# --- ten thousand runs -------------------------------------------------------------------------------------


@pytest.fixture
def many_runs(home, declare, record):
    """Launch this number of runs, of which half are finished and half wait; -> their identities."""

    def launch(count):
        runs = list(plan_runs(declare(), scale="paper"))
        names = [f"{number:016x}" for number in range(count)]
        first = launched([Task(runs[0], names[0], "code", {}, home, home)])
        raw = first.to_dict()
        raw["tasks"] = [raw["tasks"][0] | {"identity": name} for name in names]
        (launches.launches_folder() / f"{first.id}.json").write_text(json.dumps(raw), encoding="utf-8")
        result = home / "result.json"
        result.write_text(json.dumps(record(declare(), "plain-20", 0, 9.5).to_dict()), encoding="utf-8")
        for name in names[: count // 2]:
            (home / "runs" / name).mkdir(parents=True)
            (home / "runs" / name / "result.json").hardlink_to(result)
        states = {name: {"state": "waiting", "why": "behind others"} for name in names[count // 2 :]}
        heard(home, states, ago=-600)  # a report that stays fresh
        return names

    return launch


def test_a_status_of_many_runs_takes_a_few_hundred_calls_per_run_and_reads_finished_runs_once(many_runs, monkeypatch):
    names, read = many_runs(3000), []
    monkeypatch.setattr(status, "result_status", lambda place: read.append(place) or result_status(place))
    reader, printed = StatusReader(), []
    first, second = (count_calls(lambda: printed.append(lines(reader.status()))) for _ in range(2))
    assert all("  3,000 runs: 1,500 finished, 1,500 waiting; 0.00 device hours used" in text for text in printed)
    assert len(read) == len(set(read)) == 1500
    assert second < first < 450 * len(names)


# --- one run -----------------------------------------------------------------------------------------------


def asked() -> list[status.LaunchOutline]:
    reader = StatusReader()
    return [reader.outline(name) for name in reader.names()]


@pytest.mark.parametrize("text", ["resnet-20 seed 1", "resnet-20/1", "resnet-20  seed 1", "0003smoke", "0003"])
def test_a_run_is_found_by_variant_and_seed_or_the_first_digits(tasks, text):
    launched(tasks)
    assert find_run(text, asked()).identity == tasks[3].identity


def test_a_name_of_several_runs_lists_them(home, experiment, tasks):
    launched(tasks)
    launched(made(experiment, home, "laptop"))
    with pytest.raises(UserError) as caught:
        find_run("plain-20/0", asked())
    assert str(caught.value) == (
        "'plain-20/0' may be 0000smok (toy/depth@smoke, plain-20 seed 0) or 0000lapt (toy/depth@laptop, plain-20"
        " seed 0); give the digits of the one that is meant"
    )
    with pytest.raises(UserError, match=r"'0000' may be .*; give the digits"):
        find_run("0000", asked())


def test_of_runs_that_differ_in_their_code_alone_the_last_launched_is_meant(home, experiment, tasks):
    launched(tasks)
    newer = made(experiment, home, "smoke", code="b")
    launched(newer)
    assert find_run("plain-20/0", asked()).identity == newer[0].identity
    assert find_run(tasks[0].identity, asked()).identity == tasks[0].identity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resnet-20/9", "there is no launched run 'resnet-20/9'; runs are called as in 'resnet-20/"),
        ("000", "there is no launched run '000'; runs are called as in 'plain-20/0'"),  # too short for an identity
    ],
)
def test_a_run_that_is_not_there_is_a_sentence(tasks, text, said):
    launched(tasks)
    with pytest.raises(UserError) as caught:
        find_run(text, asked())
    assert str(caught.value).startswith(said)


def test_where_nothing_was_launched_no_run_is_found():
    with pytest.raises(UserError, match="there is no launched run 'x', and none at all"):
        find_run("x", asked())


def test_a_history_is_log_and_measurements_in_the_order_of_time(tasks):
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    stamp = "2026-11-23 18:00:0{} {}\n"
    folder.log_file.write_text(
        stamp.format(1, "started")
        + stamp.format(3, "noted")
        + stamp.format(5, "died")
        + stamp.format(5, "goes on from step 4")
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
        "2026-11-23 18:00:05 goes on from step 4",
        "2026-11-23 18:00:09 step 1,800: train/loss 1",
    ]


def test_an_outcome_is_a_result_or_why_it_was_left(tasks, experiment, record):
    assert run_outcome(tasks[0].identity) == ""
    finish(tasks[0], record, experiment)
    assert run_outcome(tasks[0].identity) == "finished: test error 9.50 %"
    launches.mark_unfinished(tasks[1], "cancelled", "cancelled by repro cancel")
    assert run_outcome(tasks[1].identity) == "cancelled: cancelled by repro cancel"
