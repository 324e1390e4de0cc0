"""Faults of a cluster, with real processes: no run is lost or trained twice, results are equal to the bit."""

import os
import random
import re
import signal
from dataclasses import replace

import psutil
import pytest

from pipeline.cluster import launches
from pipeline.cluster.processes import is_alive
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.run_folder import RunFolder
from tests.support.clusters import (
    ENDING,
    ClusterHome,
    current_step,
    process_tree,
    run_log,
    small_task,
    training_pid,
    wait_until,
)
from tests.support.smoke_runs import journal_metrics, train_in, weights

RESUME_SECONDS = 30.0  # limit, from a death to the first step after it, where a run starts at once


def resume_limit(start):
    """Return the limit in seconds on a machine where `start` seconds pass from a launch to its first step."""
    return RESUME_SECONDS + 2 * start


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A REPRO_HOME and the processes started for it."""
    found = ClusterHome(tmp_path / "home", monkeypatch)
    yield found
    found.end()


def finished(task):
    """Return whether a run has ended with a result."""
    return RunFolder(task.folder).result() is not None


def assert_tracked_once(cluster, tasks):
    """Assert that MLflow has exactly these runs, each once and finished; they are sent every few seconds."""
    tracker = Tracker(f"sqlite:///{cluster.home / 'mlflow.db'}")

    def found():
        ids = [experiment.experiment_id for experiment in tracker.client.search_experiments()]
        rows = tracker.client.search_runs(ids, "tags.`repro.identity` LIKE '%'")
        return sorted((row.data.tags["repro.identity"], row.info.status) for row in rows)

    expected = sorted((task.identity, "FINISHED") for task in tasks)
    wait_until(lambda: found() == expected, "all runs are tracked once")


def assert_same_as_uninterrupted(task, tmp_path):
    """Assert that a run has the same weights and journal, to the bit, as one trained without interruption."""
    train_in(tmp_path / "uninterrupted", task.run)
    assert weights(task.folder) == weights(tmp_path / "uninterrupted")
    assert journal_metrics(task.folder) == journal_metrics(tmp_path / "uninterrupted")


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [(1, 150), (4, 500)])
def test_a_run_whose_worker_is_killed_resumes_with_the_same_bits(cluster, tmp_path, kills, steps):
    cluster.head(cpus=1)
    tasks = [small_task(0, steps=steps), small_task(1, steps=20)]
    driver = cluster.run(cluster.launch(tasks))
    start = wait_until(lambda: current_step(tasks[0]), "the first run trains")
    draw = random.Random(7)
    for kill in range(kills):
        before = current_step(tasks[0])
        wait_until(
            lambda before=before: current_step(tasks[0]) > before + draw.randrange(20, 60), "the first run trains"
        )
        newest = RunFolder(tasks[0].folder).last_step()
        os.kill(training_pid(tasks[0]), signal.SIGKILL)
        started = f"attempt {kill + 2}"
        took = wait_until(lambda started=started: started in run_log(tasks[0]), "it is started again")
        reached = newest
        took += wait_until(lambda reached=reached: current_step(tasks[0]) > reached, "it trains again")
        assert took < resume_limit(start)
        [resumed] = [line for line in run_log(tasks[0]).splitlines() if started in line]
        begun = re.search(r"from step ([\d,]+)", resumed)
        assert int(begun[1].replace(",", "") if begun else 0) >= newest  # only steps after the checkpoint are lost
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    assert_same_as_uninterrupted(tasks[0], tmp_path)
    assert finished(tasks[1])
    assert_tracked_once(cluster, tasks)


@pytest.mark.slow
def test_a_run_with_a_killed_rank_resumes_with_the_same_bits(cluster, tmp_path):
    cluster.head(cpus=2)
    task = small_task(0, steps=300)
    tasks = [task, replace(task, identity="uninterrupted", folder=task.folder.with_name("uninterrupted"))]
    draw = random.Random(11)
    driver = cluster.run(cluster.launch(tasks[:1], devices=2))
    start = wait_until(lambda: current_step(tasks[0]), "two ranks train")
    wait_until(lambda: current_step(tasks[0]) > draw.randrange(40, 150), "they train on")
    first = psutil.Process(training_pid(tasks[0]))
    others = [
        member
        for process in cluster.processes
        for member in process_tree(process.pid)
        if member.pid != first.pid and member.name().startswith("ray::RayTrain")
    ]
    os.kill(others[0].pid, signal.SIGKILL)
    took = wait_until(lambda: "attempt 2" in run_log(tasks[0]), "it is started again")
    before = current_step(tasks[0])
    took += wait_until(lambda: current_step(tasks[0]) != before or finished(tasks[0]), "it trains again")
    assert took < resume_limit(start)
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    again = cluster.run(cluster.launch(tasks[1:], devices=2))
    assert again.wait(ENDING) == 0, cluster.output(again)
    assert weights(tasks[0].folder) == weights(tasks[1].folder)
    assert journal_metrics(tasks[0].folder) == journal_metrics(tasks[1].folder)
    assert RunFolder(tasks[0].folder).result().world == 2


@pytest.mark.slow
def test_runs_continue_without_their_driver_and_resume_after_the_head_is_killed(cluster, tmp_path):
    head = cluster.head(cpus=1)
    tasks = [small_task(0, steps=200), small_task(1, steps=500), small_task(2, steps=200)]
    launch = cluster.launch(tasks)
    driver = cluster.run(launch)
    wait_until(lambda: current_step(tasks[0]) > 20, "the first run trains")
    for process in process_tree(driver.pid):
        process.kill()
    driver.wait()
    wait_until(lambda: finished(tasks[0]) and current_step(tasks[1]) > 50, "the runs go on without their driver")
    first = RunFolder(tasks[0].folder).result()
    for process in process_tree(head.pid):  # the head and all its processes at once
        process.kill()
    head.wait()
    assert not launches.is_over(launch.id)
    resumed = cluster.repro("resume")
    assert resumed.wait(ENDING) == 0, cluster.output(resumed)
    assert launches.is_over(launch.id)
    assert RunFolder(tasks[0].folder).result() == first  # not trained again
    assert run_log(tasks[0]).count("started") == 1
    assert_same_as_uninterrupted(tasks[1], tmp_path)
    assert_tracked_once(cluster, tasks)


@pytest.mark.slow
def test_a_run_of_a_lost_node_resumes_on_another_node(cluster, tmp_path):
    cluster.head(cpus=1)
    worker = cluster.repro("node", "--address", cluster.gcs(), "--cpus", 1)
    wait_until(lambda: "Joined" in cluster.output(worker) or worker.poll() is not None, "the node has joined")
    tasks = [small_task(seed, steps=600) for seed in (0, 1)]
    driver = cluster.run(cluster.launch(tasks))
    wait_until(lambda: all(current_step(task) > 20 for task in tasks), "a run trains on each node")
    worker_pids = {process.pid for process in process_tree(worker.pid)}
    [lost] = [task for task in tasks if training_pid(task) in worker_pids]
    for process in process_tree(worker.pid):
        process.kill()
    worker.wait()
    wait_until(lambda: "attempt 2" in run_log(lost), "it is started on the remaining node")
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    assert_same_as_uninterrupted(lost, tmp_path)


@pytest.mark.slow
def test_a_run_of_a_node_that_shuts_down_resumes_on_another_node_from_its_checkpoint(cluster, tmp_path):
    cluster.head(cpus=1)
    worker = cluster.repro("node", "--address", cluster.gcs(), "--cpus", 1, "--grace", 30)
    tasks = [small_task(seed, steps=600) for seed in (0, 1)]
    driver = cluster.run(cluster.launch(tasks))
    wait_until(lambda: all(current_step(task) > 20 for task in tasks), "a run trains on each node")
    tree = process_tree(worker.pid)
    worker_pids = {process.pid for process in tree}
    [moved] = [task for task in tasks if training_pid(task) in worker_pids]
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopped: its node is shutting down" in run_log(moved), "it stops by itself")
    assert worker.wait(ENDING) == 0, cluster.output(worker)
    assert [process.name() for process in tree if is_alive(process)] == []
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    assert_same_as_uninterrupted(moved, tmp_path)
    stopped = next(line for line in run_log(moved).splitlines() if "shutting down" in line)
    assert "resumes from step 0" not in stopped
    assert_tracked_once(cluster, tasks)


@pytest.mark.slow
def test_twenty_concurrent_launches_train_each_run_once(cluster):
    cluster.head(cpus=2)
    tasks = [small_task(seed, steps=40) for seed in (0, 1, 2)]
    drivers = [cluster.run(cluster.launch(tasks)) for _ in range(20)]
    for driver in drivers:
        assert driver.wait(ENDING) == 0, cluster.output(driver)
    for task in tasks:
        assert run_log(task).count("started") == 1
    assert_tracked_once(cluster, tasks)


@pytest.mark.slow
def test_runs_stop_resumable_at_the_end_of_a_budget_and_continue_in_another_launch(cluster, tmp_path):
    cluster.head(cpus=1)
    first = cluster.launch([small_task(9, steps=20)])
    driver = cluster.run(first)
    assert driver.wait(ENDING) == 0, cluster.output(driver)
    start = 3600 * launches.hours_used(first.id)  # of a run with few steps: mostly the start of its process
    assert start > 0
    budget = 8 + 3 * start  # seconds, so that the next run reaches its first steps also on a busy machine
    tasks = [small_task(seed, steps=100_000 if seed == 0 else 40) for seed in (0, 1)]
    launch = cluster.launch(tasks, max_device_hours=budget / 3600)
    driver = cluster.run(launch)
    wait_until(lambda: current_step(tasks[0]) > 0, "the first run trains")
    assert driver.wait(ENDING) == 0, cluster.output(driver)  # a requested stop is no failure
    for task in tasks:
        left = RunFolder(task.folder).unfinished()
        assert left["why"] == "over-budget"
        assert f"{budget / 3600:g}" in left["text"]
    assert RunFolder(tasks[0].folder).checkpoint_files()
    assert budget <= 3600 * launches.hours_used(launch.id) < budget + 12 + 2 * start
    RunFolder(tasks[1].folder).clear_unfinished()
    again = cluster.run(cluster.launch(tasks[1:]))
    assert again.wait(ENDING) == 0, cluster.output(again)
    assert finished(tasks[1])


@pytest.mark.slow
def test_a_cancelled_run_stops_resumable_and_the_others_continue(cluster):
    cluster.head(cpus=1)
    tasks = [small_task(0, steps=100_000), small_task(1, steps=100_000), small_task(2, steps=40)]
    driver = cluster.run(cluster.launch(tasks))
    wait_until(lambda: current_step(tasks[0]) > 5, "the first run trains")
    for task in tasks[:2]:
        RunFolder(task.folder).request_stop("cancelled")
    assert driver.wait(ENDING) == 0, cluster.output(driver)  # a requested stop is no failure
    assert [RunFolder(task.folder).unfinished().get("why") for task in tasks] == ["cancelled", "cancelled", None]
    assert RunFolder(tasks[0].folder).checkpoint_files()
    assert finished(tasks[2])
    assert "resumable" in cluster.output(driver)
