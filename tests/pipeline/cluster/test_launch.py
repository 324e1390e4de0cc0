"""Launch plans, and how runs are started and cancelled."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.cluster import estimate, launches
from pipeline.cluster.estimate import Estimator
from pipeline.cluster.launch import (
    cancel_runs,
    missing_networks,
    plan_launch,
    plan_variant,
    start_launch,
    with_devices,
)
from pipeline.cluster.launch_request import LaunchRequest, LaunchSelection
from pipeline.cluster.launches import LaunchTerms, task_devices
from pipeline.common.errors import UserError
from pipeline.declare.derived import EnsembleSpec
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import DerivedRun, plan_runs
from pipeline.plan.task import Task
from pipeline.report.launch_plan import plan_summary
from pipeline.track.run_folder import RunFolder
from tests.support.launch_tasks import RESNET, declare_only, of_variant, plan_of, set_home, tasks_of


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A REPRO_HOME without runs."""
    return set_home(monkeypatch, tmp_path)


@pytest.fixture
def tasks(experiment, home):
    """Three seeds of plain-20 and resnet-20 in turn, with 12 steps of 128 images each."""
    return tasks_of(experiment, home)


@pytest.fixture
def declared(monkeypatch, experiment):
    """The small experiment, as the only declared one."""
    return declare_only(monkeypatch, experiment)


# --- the plan -----------------------------------------------------------------------------------------------


def test_a_variant_plan_counts_finished_and_resumed_runs_and_the_remaining_work(declared, tasks, record):
    plain = of_variant(tasks, "plain-20")
    measured = [
        record(declared, "plain-20", 0, 9.0, scale="smoke", seconds=128.0)
    ]  # a twelfth of a second per image
    RunFolder(plain[1].folder).save_checkpoint(7, lambda path: path.write_bytes(b"weights"))
    plan = plan_variant(plain, LaunchTerms(4), {plain[0].identity}, Estimator(measured))
    assert (plan.runs, plan.finished, plan.resumed, plan.devices) == (3, 1, (7,), 4)
    assert plan.images == (12 + 5) * 128
    assert plan.hours == pytest.approx((12 + 5) * 128 / 12 / 3600)
    assert plan.progress_text == "3 runs, 1 finished, 1 to resume at step 7"


def test_a_run_with_a_result_in_its_folder_is_finished(declared, tasks, record):
    plain = of_variant(tasks, "plain-20")
    for task in plain:
        RunFolder(task.folder).create({})
        RunFolder(task.folder).finish(record(declared, "plain-20", task.run.seed, 9.0, scale="smoke"))
    plan = plan_variant(plain, LaunchTerms(1), set(), Estimator([]))
    assert (plan.progress_text, plan.images, plan.hours) == ("3 runs, all finished", 0, 0.0)


def test_a_derived_run_uses_one_device_and_trains_on_no_images(tmp_path):
    alexnet = load_experiment("alexnet/imagenet")
    derived = next(one for one in plan_runs(alexnet, scale="stand-in") if isinstance(one, DerivedRun))
    task = Task(derived, "derived", "code", {}, tmp_path / "derived", tmp_path)
    plan = plan_variant([task], LaunchTerms(4), set(), Estimator([]))
    assert (plan.kind, plan.devices, plan.images, plan.hours) == ("derived run", 1, 0, None)
    assert plan.progress_text == "1 derived run"


@pytest.fixture
def averaged(declare, home, monkeypatch, tasks):
    """Tasks of three seeds of plain-20 and of an ensemble of two of them; make_tasks returns them."""
    alone = of_variant(tasks, "plain-20")
    spec = EnsembleSpec(kind="ensemble", members={"plain-20": 2})
    members = tuple(task.run for task in alone[:2])
    derived = DerivedRun(RESNET, "smoke", "both", 0, spec, members)
    needs = tuple(task.identity for task in alone[:2])
    last = Task(derived, "ensemble", "code", {}, home / "runs" / "ensemble", home, needs=needs)
    monkeypatch.setattr("pipeline.schedule.tasks.make_tasks", lambda runs: [*alone, last])
    monkeypatch.setattr(estimate, "load_experiment", lambda name: None)
    return [*alone, last]


def test_a_derived_run_is_left_out_if_a_network_is_only_on_another_machine(
    averaged, experiment, record, monkeypatch
):
    monkeypatch.setattr(estimate, "measured_runs", lambda records: [])
    *runs, ensemble = averaged
    request, selection = LaunchRequest((RESNET,), "smoke"), LaunchSelection([], [])
    assert plan_launch(request, selection, []).tasks == averaged  # everything is trained on this machine
    tracked = record(experiment, "plain-20", 0, 9.0, scale="smoke", identity=runs[0].identity)
    found = plan_launch(request, selection, [tracked])
    assert found.tasks == found.todo == runs[1:]  # the others remain
    assert [variant.variant for variant in found.variants] == ["plain-20"]
    why = "needs toy/depth plain-20 seed 0, which has not been trained on this machine"
    assert found.left_out == [(ensemble, why)]
    assert f"Skipped: {ensemble.title} {why}." in plan_summary(found)
    assert RunFolder(ensemble.folder).unfinished() == {}  # a plan writes no files
    started = start_launch(found, Path("code"))
    assert {need for task in started.tasks for need in task.needs} == set()
    assert RunFolder(ensemble.folder).unfinished()["text"] == why
    RunFolder(runs[0].folder).create({})
    RunFolder(runs[0].folder).finish(tracked)  # its folder was copied to this machine
    assert plan_launch(request, selection, [tracked]).tasks == averaged
    done = record(experiment, "plain-20", 0, 9.0, scale="smoke", identity=ensemble.identity)
    assert plan_launch(request, selection, [tracked, done]).left_out == []


def test_a_run_is_left_out_if_one_that_it_needs_is_left_out(averaged, home):
    *runs, ensemble = averaged
    run = DerivedRun(RESNET, "smoke", "of both", 0, ensemble.run.spec, (ensemble.run,))
    last = replace(
        ensemble,
        run=run,
        identity="last",
        folder=home / "runs" / "last",
        needs=(ensemble.identity,),
    )
    found = missing_networks([*averaged, last], {runs[0].identity})
    assert [task.identity for task, _ in found] == ["ensemble", "last"]
    assert found[1][1] == "needs both seed 0, which has not been trained on this machine"


def test_a_request_to_share_devices_reaches_another_machine_and_the_launch_file(tasks):
    request = LaunchRequest((RESNET,), "smoke", runs_per_device=4)
    argv = request.to_argv()
    assert argv[argv.index("--gpus-per-run") + 1] == "1/4"
    launch = start_launch(plan_of(tasks, runs_per_device=4), Path("code"))
    assert launches.read_launch(launch.id).terms == LaunchTerms(1, runs_per_device=4)
    assert with_devices(launch, 2).terms == LaunchTerms(2)


def test_a_launch_of_an_earlier_version_has_a_device_for_each_run(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(2), tuple(tasks))
    raw = launch.to_dict()
    del raw["terms"]["runs_per_device"]
    assert launches.Launch.from_dict(raw).terms == LaunchTerms(2)


def test_the_devices_of_a_task(tasks, tmp_path):
    assert [task_devices(terms, tasks[0]) for terms in (LaunchTerms(4), LaunchTerms(1, runs_per_device=4))] == [
        4,
        Fraction(1, 4),
    ]
    runs = plan_runs(load_experiment("complexity/measurements"), scale="laptop")
    timing = next(run for run in runs if isinstance(run, DerivedRun) and run.networks)
    task = Task(timing, "timing", "code", {}, tmp_path / "timing", tmp_path)
    assert task_devices(LaunchTerms(1, runs_per_device=4), task) == 1  # its neighbours would slow it


# --- start and cancellation ---------------------------------------------------------------------------------


def test_a_started_launch_clears_earlier_failures_and_cancellations(tasks, home):
    launches.mark_unfinished(tasks[0], "cancelled", "cancelled by repro cancel")
    RunFolder(tasks[1].folder).request_stop("over-budget")
    launch = start_launch(plan_of(tasks, max_concurrent=2), Path("code"))
    assert [one.id for one in launches.unfinished_launches()] == [launch.id]
    assert (launch.words, launch.terms, launch.code) == (f"{RESNET} at smoke", LaunchTerms(1, None, 2), "code")
    assert launch.tasks == tuple(tasks)
    assert RunFolder(tasks[0].folder).unfinished() == {}
    assert RunFolder(tasks[1].folder).stop_reason() == ""


def test_with_a_supervisor_a_cancelled_run_gets_a_stop_request(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    assert cancel_runs([launch], tasks[2].identity, supervised=True, training=set()) == [tasks[2]]
    assert RunFolder(tasks[2].folder).stop_reason() == "cancelled"
    assert RunFolder(tasks[2].folder).unfinished() == {}
    assert not launches.is_over(launch.id)


def test_without_a_supervisor_cancelled_runs_are_marked_and_the_launch_ends(tasks, declared, record):
    RunFolder(tasks[0].folder).create({})
    RunFolder(tasks[0].folder).finish(record(declared, "plain-20", 0, 9.0, scale="smoke"))
    launches.mark_unfinished(tasks[1], "failed", "the disk is full")
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    assert cancel_runs([launch], tasks[2].identity, supervised=False, training=set()) == [tasks[2]]
    left = {"why": "cancelled", "text": "cancelled by repro cancel"}
    assert left.items() <= RunFolder(tasks[2].folder).unfinished().items()
    assert RunFolder(tasks[2].folder).description()["variant"] == tasks[2].run.variant  # for the ledger
    assert not launches.is_over(launch.id)
    assert cancel_runs([launch], None, supervised=False, training=set()) == tasks[3:]
    assert RunFolder(tasks[1].folder).unfinished()["why"] == "failed"
    assert launches.is_over(launch.id)
    assert cancel_runs([launch], None, supervised=False, training=set()) == []


def test_an_unresponsive_supervisor_finds_the_stop_request_and_a_later_launch_clears_it(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    cancel_runs([launch], None, supervised=False, training=set())
    for task in tasks:
        assert RunFolder(task.folder).stop_reason() == "cancelled"  # read by the process that trains it, if any
        assert RunFolder(task.folder).unfinished()["why"] == "cancelled"
    start_launch(plan_of(tasks), Path("code"))
    for task in tasks:
        assert (RunFolder(task.folder).stop_reason(), RunFolder(task.folder).unfinished()) == ("", {})


def test_a_training_run_without_a_supervisor_gets_a_stop_request(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    cancel_runs([launch], None, supervised=False, training={tasks[0].identity})
    assert RunFolder(tasks[0].folder).stop_reason() == "cancelled"
    assert not launches.is_over(launch.id)


def test_a_run_of_two_launches_is_cancelled_once(tasks):
    both = [launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks)) for _ in range(2)]
    assert cancel_runs(both, None, supervised=True, training=set()) == tasks


def test_the_devices_of_a_launch_can_be_changed(tasks, home):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1, 5.0), tuple(tasks))
    assert with_devices(launch, 4).terms == LaunchTerms(4, 5.0)
    assert [one.terms for one in launches.all_launches()] == [LaunchTerms(4, 5.0)]
    with pytest.raises(UserError, match="3 devices cannot share a batch of 128 images equally"):
        with_devices(launch, 3)
    assert [one.terms.devices for one in launches.all_launches()] == [4]


def test_the_script_of_a_job_finds_the_id_of_its_saved_launch(monkeypatch, tmp_path):
    note = tmp_path / "slurm-7.launch"
    launches.create_launch("w", Path("code"), LaunchTerms(1), ())
    assert not note.exists()
    monkeypatch.setenv("REPRO_LAUNCH_NOTE", str(note))
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), ())
    assert note.read_text(encoding="utf-8") == launch.id
