"""`repro status` on the terminal: its lines, tables and hints; the work of reading many runs."""

import io
import json

import pytest
from rich.console import Console

from pipeline.cluster import launches, local_head, status
from pipeline.cluster.launches import LaunchTerms
from pipeline.cluster.local_head import ClusterAddress
from pipeline.cluster.status import ClusterStatus, StatusReader, result_status
from pipeline.plan.expand import plan_runs
from pipeline.plan.task import Task
from pipeline.report.status import render_status
from pipeline.track.run_folder import RunFolder
from tests.support.status_files import named_tasks, save_launch, write_report
from tests.support.work import count_calls


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


def lines(shown: ClusterStatus, *, width: int = 100, rows: int = 30) -> list[str]:
    """Return the lines of a status on a terminal of this width, without styles."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, no_color=True, highlight=False)
    console.print(render_status(shown, rows=rows))
    text = file.getvalue()
    for escape in ("\x1b[0m", "\x1b[1m", "\x1b[2m"):
        text = text.replace(escape, "")
    return [line.rstrip() for line in text.splitlines()]


def test_the_status_lists_training_then_unsuccessful_then_waiting_runs(home, tasks):
    first = save_launch(tasks, LaunchTerms(2, 10.0, 4))
    launches.record_hours(first.id, 1.234)
    folder = RunFolder(tasks[0].folder)
    folder.create({})
    folder.write_progress(3, 64.0)
    launches.mark_unfinished(tasks[1], "failed", "the [disk] is full")
    waits = {"state": "waiting", "why": "behind 3 other runs"}
    reported = {task.identity: waits for task in tasks[2:]}
    write_report(home, {tasks[0].identity: {"state": "running", "node": "gpu-7", "attempt": 2}, **reported})
    shown_lines = lines(StatusReader().status())
    assert shown_lines[0] == "Cluster running: 2 of 8 GPUs free."
    assert shown_lines[2].startswith("toy/depth at smoke, launched by ")
    assert shown_lines[2].endswith(" 0 s ago") or shown_lines[2].endswith(" 1 s ago")
    assert shown_lines[3:5] == [
        "  6 runs: 1 training, 4 waiting, 1 failed; 1.23 of 10 device hours used, 2 devices per run, at most",
        "  4 runs at a time",
    ]
    assert shown_lines[6].split() == ["training", "step", "%", "images/s", "left", "node"]
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
        "Log of a run: repro logs RUN, for example repro logs resnet-20/0",
        "To retry runs that failed, were cancelled or ran out of budget, launch them again.",
    ]


def test_runs_of_several_experiments_have_a_column_for_it(home, experiment, tasks):
    save_launch(tasks[:1])
    save_launch(named_tasks(experiment, home, "laptop")[:1], title="toy/depth at laptop")
    text = lines(StatusReader().status())
    assert [line.split()[3] for line in text if "plain-20 seed 0" in line] == [
        "toy/depth@smoke",
        "toy/depth@laptop",
    ]


def test_hundreds_of_runs_fit_on_a_terminal(home, declare):
    many = declare("seeds: [0, 1, 2, 3, 4]", f"seeds: {list(range(170))}")
    tasks = named_tasks(many, home, "paper")
    save_launch(tasks)
    running = {task.identity: {"state": "running", "node": "n"} for task in tasks[:100]}
    for task in tasks[100:200]:
        launches.mark_unfinished(task, "failed", "a long reason " * 20)
    write_report(home, running)
    seen = StatusReader().status()
    assert len(seen.runs) == 510
    for rows in (10, 20, 40):
        text = lines(seen, width=80, rows=rows)
        assert len(text) <= rows + 14
        assert sum("seed" in line for line in text) == rows
    assert sum("a long reason" in line for line in text) == 40 // 3
    assert "… and 81 training" in text
    assert "… and 302 waiting, 87 failed" in text
    assert "  510 runs: 100 training, 310 waiting, 100 failed; 0.00 device hours used" in text


def test_the_newest_ended_launches_are_shown_in_two_lines_each(tasks):
    for number in range(5):
        launches.mark_ended(save_launch(tasks, title=f"number {number}").id)
    seen = StatusReader().status()
    text = lines(seen)
    assert seen.runs == []
    assert text[0] == ""
    assert text[1] == "ended launches"
    assert [line.split(",")[0] for line in text[2:8:2]] == ["number 2", "number 3", "number 4"]
    assert text[8] == "and 2 earlier ones"
    assert text[-1] == "All launches have ended. Verdicts: repro verify EXPERIMENT"


def test_without_launches_the_first_command_is_shown():
    assert lines(StatusReader().status()) == [
        "No launches yet. Preview one with: repro launch EXPERIMENT --dry-run"
    ]


def test_errors_of_the_supervisor_are_shown(home, tasks):
    save_launch(tasks)
    write_report(home, trouble="the tracking server does not respond")
    assert "Warning: the tracking server does not respond" in lines(StatusReader().status())


def test_without_a_cluster_the_age_of_the_last_report_is_shown(home, tasks):
    save_launch(tasks)
    write_report(home, ago=16)
    text = lines(StatusReader().status(), width=200)
    assert text[0] == f"No cluster is running for {home}; last report 16 s ago."
    assert text[-1] == "To continue: repro resume"


def test_an_idle_cluster_is_shown_with_its_dashboard(monkeypatch):
    cluster = ClusterAddress("127.0.0.1:1", "http://127.0.0.1:8265", "", 1)
    monkeypatch.setattr(local_head, "find_local_cluster", lambda: cluster)
    first = lines(StatusReader().status())[0]
    assert first == "The cluster on this machine is idle. Ray dashboard: http://127.0.0.1:8265"


def test_a_cluster_without_a_live_supervisor_is_reported(monkeypatch, home, tasks):
    monkeypatch.setattr(
        local_head, "find_local_cluster", lambda: ClusterAddress("127.0.0.1:1", "http://127.0.0.1:8265", "", 1)
    )
    save_launch(tasks)
    text = lines(StatusReader().status())
    assert text[0] == (
        "A cluster runs on this machine (Ray dashboard: http://127.0.0.1:8265), but no supervisor runs on it."
    )
    assert "To continue: repro resume" in text


# --- many runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def many_runs(home, declare, record):
    """Launch a number of runs, half of them finished and half waiting, and return their identities."""

    def launch(count):
        runs = list(plan_runs(declare(), scale="paper"))
        names = [f"{number:016x}" for number in range(count)]
        first = save_launch([Task(runs[0], names[0], "code", {}, home, home)])
        raw = first.to_dict()
        raw["tasks"] = [raw["tasks"][0] | {"identity": name} for name in names]
        (launches.launches_folder() / f"{first.id}.json").write_text(json.dumps(raw), encoding="utf-8")
        result = home / "result.json"
        result.write_text(json.dumps(record(declare(), "plain-20", 0, 9.5).to_dict()), encoding="utf-8")
        for name in names[: count // 2]:
            (home / "runs" / name).mkdir(parents=True)
            (home / "runs" / name / "result.json").hardlink_to(result)
        states = {name: {"state": "waiting", "why": "behind others"} for name in names[count // 2 :]}
        write_report(home, states, ago=-600)  # a report that stays fresh
        return names

    return launch


def test_a_status_of_many_runs_takes_a_few_hundred_calls_per_run_and_reads_finished_runs_once(
    many_runs, monkeypatch
):
    names, read = many_runs(3000), []
    monkeypatch.setattr(status, "result_status", lambda place: read.append(place) or result_status(place))
    reader, printed = StatusReader(), []
    first, second = (count_calls(lambda: printed.append(lines(reader.status()))) for _ in range(2))
    assert all("  3,000 runs: 1,500 finished, 1,500 waiting; 0.00 device hours used" in text for text in printed)
    assert len(read) == len(set(read)) == 1500
    assert second < first < 450 * len(names)
