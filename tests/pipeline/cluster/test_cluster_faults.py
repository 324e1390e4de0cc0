"""What a cluster survives, each with real processes: runs end with the bits of undisturbed ones, and nothing is
trained twice.
"""

import os
import random
import re
import signal
import time
from dataclasses import replace

import psutil
import pytest

from pipeline.cluster import launches
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import Place, log_of, said, small, step_of, trainer_of, tree, until
from tests.support.smoke_runs import journal_metrics, train_in, weights

RESUMES_WITHIN = 30.0  # seconds, from a death to the first update after it


@pytest.fixture
def place(tmp_path, monkeypatch):
    found = Place(tmp_path / "home", monkeypatch)
    yield found
    found.end()


def finished(task):
    return RunFolder(task.folder).result() is not None


def require_tracked_once(place, tasks):
    """MLflow has each of these runs once, as finished, and no other; they are sent every few seconds."""
    tracker = Tracker(f"sqlite:///{place.home / 'mlflow.db'}")

    def found():
        ids = [one.experiment_id for one in tracker.client.search_experiments()]
        rows = tracker.client.search_runs(ids, "tags.`repro.identity` LIKE '%'")
        return sorted((row.data.tags["repro.identity"], row.info.status) for row in rows)

    expected = sorted((task.identity, "FINISHED") for task in tasks)
    until(lambda: found() == expected, "all runs are tracked, each of them once", seconds=30)


def same_as_undisturbed(task, tmp_path):
    """Whether a run of one process has the bits of one that nobody disturbed."""
    train_in(tmp_path / "undisturbed", task.run)
    assert weights(task.folder) == weights(tmp_path / "undisturbed")
    assert journal_metrics(task.folder) == journal_metrics(tmp_path / "undisturbed")


@pytest.mark.parametrize(("kills", "steps"), [(1, 150), pytest.param(4, 500, marks=pytest.mark.slow)])
def test_a_killed_worker_s_run_goes_on_and_has_the_bits_of_an_undisturbed_one(place, tmp_path, kills, steps):
    place.head(cpus=1)
    tasks = [small(0, steps=steps), small(1, steps=20)]
    carried = place.carry(place.launch(tasks))
    draw = random.Random(7)
    for kill in range(kills):
        past = step_of(tasks[0])
        until(lambda past=past: step_of(tasks[0]) > past + draw.randrange(20, 60), "the first run trains")
        checkpoints = RunFolder(tasks[0].folder).checkpoint_files()
        newest = int(checkpoints[0].name.split("-")[1]) if checkpoints else 0
        os.kill(trainer_of(tasks[0]), signal.SIGKILL)
        started = f"attempt {kill + 2}"
        took = until(lambda started=started: started in log_of(tasks[0]), "it is started again")
        reached = newest
        took += until(lambda reached=reached: step_of(tasks[0]) > reached, "it trains again")
        assert took < RESUMES_WITHIN
        [resumed] = [line for line in log_of(tasks[0]).splitlines() if started in line]
        begun = re.search(r"from step ([\d,]+)", resumed)
        assert int(begun[1].replace(",", "") if begun else 0) >= newest  # what is lost came after the checkpoint
    assert carried.wait(120) == 0, said(carried)
    same_as_undisturbed(tasks[0], tmp_path)
    assert finished(tasks[1])
    require_tracked_once(place, tasks)


@pytest.mark.slow
def test_a_killed_rank_takes_its_group_along_and_both_resume_with_the_same_bits(place, tmp_path):
    place.head(cpus=2)
    task = small(0, steps=300)
    tasks = [task, replace(task, identity="undisturbed", folder=task.folder.with_name("undisturbed"))]
    draw = random.Random(11)
    carried = place.carry(place.launch(tasks[:1], devices=2))
    until(lambda: step_of(tasks[0]) > draw.randrange(40, 150), "two ranks train")
    first = psutil.Process(trainer_of(tasks[0]))
    others = [
        one
        for process in place.processes
        for one in tree(process.pid)
        if one.pid != first.pid and one.name().startswith("ray::RayTrain")
    ]
    os.kill(others[0].pid, signal.SIGKILL)
    took = until(lambda: "attempt 2" in log_of(tasks[0]), "it is started again")
    before = step_of(tasks[0])
    took += until(lambda: step_of(tasks[0]) != before or finished(tasks[0]), "it trains again")
    assert took < RESUMES_WITHIN
    assert carried.wait(180) == 0, said(carried)
    again = place.carry(place.launch(tasks[1:], devices=2))
    assert again.wait(180) == 0, said(again)
    assert weights(tasks[0].folder) == weights(tasks[1].folder)
    assert journal_metrics(tasks[0].folder) == journal_metrics(tasks[1].folder)
    assert RunFolder(tasks[0].folder).result().world == 2


@pytest.mark.slow
def test_a_killed_driver_stops_nothing_and_a_killed_head_nothing_for_long(place, tmp_path):
    head = place.head(cpus=1)
    tasks = [small(0, steps=200), small(1, steps=500), small(2, steps=200)]
    launch = place.launch(tasks)
    driver = place.carry(launch)
    until(lambda: step_of(tasks[0]) > 20, "the first run trains")
    for one in tree(driver.pid):
        one.kill()
    driver.wait()
    until(lambda: finished(tasks[0]) and step_of(tasks[1]) > 50, "the runs go on without their driver")
    first = RunFolder(tasks[0].folder).result()
    for one in tree(head.pid):  # the head and all on it, at one blow
        one.kill()
    head.wait()
    assert not launches.is_over(launch.id)
    resumed = place.repro("resume")
    assert resumed.wait(240) == 0, said(resumed)
    assert launches.is_over(launch.id)
    assert RunFolder(tasks[0].folder).result() == first  # not trained again
    assert log_of(tasks[0]).count("started") == 1
    same_as_undisturbed(tasks[1], tmp_path)
    require_tracked_once(place, tasks)


@pytest.mark.slow
def test_runs_of_a_lost_node_go_on_elsewhere(place, tmp_path):
    place.head(cpus=1)
    worker = place.repro("node", "--address", place.gcs(), "--cpus", 1)
    until(lambda: "2" in said(worker) or worker.poll() is not None, "the second node is there")
    tasks = [small(seed, steps=600) for seed in (0, 1)]
    carried = place.carry(place.launch(tasks))
    until(lambda: all(step_of(task) > 20 for task in tasks), "a run trains on each node")
    there = {one.pid for one in tree(worker.pid)}
    [lost] = [task for task in tasks if trainer_of(task) in there]
    for one in tree(worker.pid):
        one.kill()
    worker.wait()
    until(lambda: "attempt 2" in log_of(lost), "it is started on the node that is left")
    assert carried.wait(240) == 0, said(carried)
    same_as_undisturbed(lost, tmp_path)


@pytest.mark.slow
def test_a_node_asked_to_end_leaves_a_checkpoint_and_the_same_run_goes_on_elsewhere(place, tmp_path):
    place.head(cpus=1)
    worker = place.repro("node", "--address", place.gcs(), "--cpus", 1, "--grace", 30)
    tasks = [small(seed, steps=600) for seed in (0, 1)]
    carried = place.carry(place.launch(tasks))
    until(lambda: all(step_of(task) > 20 for task in tasks), "a run trains on each node")
    was_there = tree(worker.pid)
    there = {one.pid for one in was_there}
    [moved] = [task for task in tasks if trainer_of(task) in there]
    worker.send_signal(signal.SIGTERM)
    began = time.monotonic()
    until(lambda: "stopped: its machine is about to end" in log_of(moved), "it stops by itself")
    assert worker.wait(60) == 0, said(worker)
    assert time.monotonic() - began < 30
    alive = [one.name() for one in was_there if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert alive == []
    assert carried.wait(240) == 0, said(carried)
    same_as_undisturbed(moved, tmp_path)
    stopped = next(line for line in log_of(moved).splitlines() if "about to end" in line)
    assert "to go on from step 0" not in stopped
    require_tracked_once(place, tasks)


@pytest.mark.slow
def test_twenty_launchers_at_once_train_each_run_once(place):
    place.head(cpus=2)
    tasks = [small(seed, steps=40) for seed in (0, 1, 2)]
    drivers = [place.carry(place.launch(tasks)) for _ in range(20)]
    for driver in drivers:
        assert driver.wait(240) == 0, said(driver)
    for task in tasks:
        assert log_of(task).count("started") == 1
    require_tracked_once(place, tasks)


@pytest.mark.slow
def test_at_a_budget_s_end_runs_stop_resumable_and_a_larger_budget_goes_on(place, tmp_path):
    place.head(cpus=1)
    tasks = [small(seed, steps=100_000 if seed == 0 else 40) for seed in (0, 1)]
    launch = place.launch(tasks, max_device_hours=8 / 3600)
    carried = place.carry(launch)
    assert carried.wait(120) == 0, said(carried)  # as it was asked
    for task in tasks:
        left = RunFolder(task.folder).unfinished()
        assert left["why"] == "over-budget"
        assert "0.00222" in left["text"]
    assert RunFolder(tasks[0].folder).checkpoint_files()
    assert 8 <= 3600 * launches.hours_used(launch.id) < 20
    RunFolder(tasks[1].folder).clear_unfinished()
    again = place.carry(place.launch(tasks[1:]))
    assert again.wait(120) == 0, said(again)
    assert finished(tasks[1])


@pytest.mark.slow
def test_a_cancelled_run_stops_resumable_and_the_others_go_on(place):
    place.head(cpus=1)
    tasks = [small(0, steps=100_000), small(1, steps=100_000), small(2, steps=40)]
    carried = place.carry(place.launch(tasks))
    until(lambda: step_of(tasks[0]) > 5, "the first run trains")
    for task in tasks[:2]:
        RunFolder(task.folder).request_stop("cancelled")
    assert carried.wait(120) == 0, said(carried)  # as it was asked
    assert [RunFolder(task.folder).unfinished().get("why") for task in tasks] == ["cancelled", "cancelled", None]
    assert RunFolder(tasks[0].folder).checkpoint_files()
    assert finished(tasks[2])
    assert "resumable" in said(carried)
