"""Launch requests and plans, and how runs are started and cancelled."""

from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.cli.selection import parse_changes
from pipeline.cluster import estimate, launches
from pipeline.cluster.estimate import Estimator
from pipeline.cluster.launch import (
    LaunchRequest,
    LaunchSelection,
    cancel_runs,
    check_global_batch,
    declared_name,
    plan_launch,
    plan_variant,
    select_runs,
    start_launch,
    with_devices,
)
from pipeline.cluster.launches import LaunchTerms, task_devices
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.derived import EnsembleSpec
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.plan.expand import DerivedRun, plan_runs
from pipeline.plan.task import Task
from pipeline.report.launch_plan import plan_summary
from pipeline.track.run_folder import RunFolder
from tests.support.elsewhere import ONLY_DERIVED
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


# --- requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"experiments": ()},
            "nothing to launch; name an experiment, as in repro launch resnet/cifar10_depth, or use"
            " --suite cs231n",
        ),
        ({"suite": "cs231"}, "unknown suite 'cs231'; known suites: cs231n"),
        ({"device_batch": 0}, "--device-batch 0: must be an integer >= 1"),
        ({"max_concurrent": -1}, "--max-concurrent -1: must be an integer >= 1"),
        ({"max_device_hours": 0.0}, "--max-gpu-hours 0: must be a number > 0"),
        ({"max_device_hours": float("nan")}, "--max-gpu-hours nan: must be a number > 0"),
        ({"price": float("inf")}, "--price inf: must be a number >= 0, the price of one device hour"),
        ({"price": -2.0}, "--price -2: must be a number >= 0, the price of one device hour"),
    ],
)
def test_an_invalid_request_is_refused(arguments, message):
    with pytest.raises(UserError) as caught:
        LaunchRequest(**({"experiments": (RESNET,), "scale": "smoke"} | arguments))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        (
            ("resnet/cifar10_dept",),
            "no experiment 'resnet/cifar10_dept'; did you mean 'resnet/cifar10_depth'",
        ),
        (("alexnet/architecture",), "alexnet/architecture trains nothing"),
        (("resnet/imagenet",), "resnet/imagenet has no scale 'smoke'"),
    ],
)
def test_a_wrong_name_or_scale_is_refused_before_data_is_read(experiments, message):
    with pytest.raises(UserError, match=message):
        select_runs(LaunchRequest(experiments, "smoke"))


def test_a_run_that_two_experiments_need_is_selected_once(tmp_path):
    """One trains it, the other consumes it in an ensemble."""
    file = tmp_path / "toy" / "pair.yaml"
    file.parent.mkdir()
    file.write_text(ONLY_DERIVED.replace("toy/depth", RESNET), encoding="utf-8")
    own = select_runs(LaunchRequest((RESNET,), "smoke")).runs
    both = select_runs(LaunchRequest((str(file), RESNET), "smoke")).runs
    assert [run for run in both if isinstance(run, DerivedRun) and run.variant == "pair"] == [both[2]]
    titles = [(run.experiment, run.variant, run.seed) for run in both]
    assert len(set(titles)) == len(titles) == len(own) + 1


def test_a_suite_selects_all_experiments_of_the_scale_and_names_the_others():
    found = select_runs(LaunchRequest((), "smoke", suite="cs231n"))
    trained = {name: scales for name in experiment_names() if (scales := load_experiment(name).scales)}
    assert {run.experiment for run in found.runs} == {
        name for name, scales in trained.items() if "smoke" in scales
    }
    assert found.without_scale == [name for name, scales in trained.items() if "smoke" not in scales]
    assert "vgg/imagenet" in found.without_scale
    more = select_runs(LaunchRequest((RESNET,), "smoke", suite="cs231n"))
    assert len(more.runs) == len(found.runs)
    with pytest.raises(
        UserError, match=r"no experiment of suite cs231n has a scale 'huge'; known scales: laptop, paper"
    ):
        select_runs(LaunchRequest((), "huge", suite="cs231n"))


def test_a_request_has_a_command_line_a_title_and_terms():
    request = LaunchRequest((RESNET,), "paper", "cs231n", 4, 32, 10.5, 2, 2.5, changes={"train.precision": "bf16"})
    assert " ".join(request.to_argv()) == (
        "launch resnet/cifar10_depth --scale paper --suite cs231n --gpus-per-run 4 --device-batch 32"
        " --max-gpu-hours 10.5 --max-concurrent 2 --price 2.5 --set train.precision=bf16"
    )
    assert request.title == "suite cs231n, resnet/cifar10_depth at paper, train.precision=bf16"
    assert request.terms == LaunchTerms(4, 10.5, 2)


def test_variants_seeds_and_changes_of_a_request_are_those_of_repro_run():
    changes = {"train.lr_drops": {"at": [100]}, "data.augment": ["flip"]}
    request = LaunchRequest((RESNET,), "smoke", variants=("resnet-20", "plain-20"), seeds=2, changes=changes)
    words = request.to_argv()
    assert words[-8:] == [
        *("--variant", "resnet-20", "--variant", "plain-20"),
        *("--set", "train.lr_drops={at: [100]}", "--set", "data.augment=[flip]"),
    ]
    assert parse_changes(words[-3::2]) == changes  # another machine reads the same values
    assert request.title == (
        f"{RESNET} at smoke, variant resnet-20, plain-20, 2 seeds,"
        " train.lr_drops={at: [100]}, data.augment=[flip]"
    )
    request = LaunchRequest((RESNET,), "smoke", variants=("resnet-20",), seeds=2, changes={"train.lr": 0.5})
    runs = select_runs(request).runs
    assert [(run.variant, run.seed, dict(run.changes)) for run in runs] == [
        ("resnet-20", 0, {"train.lr": 0.5}),
        ("resnet-20", 1, {"train.lr": 0.5}),
    ]


def test_derived_runs_of_a_launch_follow_the_chosen_variants():
    """As in `repro run`: a derived run is made if all the variants that it consumes are chosen."""
    several = {"densenet/resnets", "lenet5/mnist", "fractalnet/cifar"}
    found = set()
    for name in several:
        experiment = load_experiment(name)
        for chosen in experiment.variants_at("smoke"):
            runs = select_runs(LaunchRequest((name,), "smoke", variants=(chosen,))).runs
            derived = {run.variant for run in runs if isinstance(run, DerivedRun)}
            assert derived == set(experiment.derived_at("smoke", [chosen]))
            found |= derived
    assert "lenet5-compressed" in found


def test_variants_are_those_of_one_experiment():
    with pytest.raises(UserError, match="--variant names a variant of one experiment, but 2 are selected"):
        select_runs(LaunchRequest((RESNET, "lenet5/mnist"), "smoke", variants=("resnet-20",)))
    with pytest.raises(UserError, match="no variant 'resnet-21'; did you mean"):
        select_runs(LaunchRequest((RESNET,), "smoke", variants=("resnet-21",)))


def test_only_files_below_the_experiments_folder_are_sent_to_a_cluster(tmp_path):
    assert declared_name(str(ROOT / "experiments" / "resnet" / "cifar10_depth.yaml")) == RESNET
    with pytest.raises(UserError, match=r"mine.yaml is not below .*experiments, and only files there are sent"):
        LaunchRequest((str(tmp_path / "mine.yaml"),), "smoke").to_argv()


def test_an_indivisible_batch_names_the_possible_device_counts(declare):
    toy = declare()
    runs = plan_runs(toy, scale="paper")
    check_global_batch(runs, 8, None)
    with pytest.raises(UserError) as caught:
        check_global_batch(runs, 3, None)
    assert str(caught.value) == (
        "toy/depth, resnet-20: 3 devices cannot share a batch of 128 images equally; use 1, 2, 4, 8, 16,"
        " 32, 64 or 128 devices, with a device batch of 128, 64, 32, 16, 8, 4, 2 or 1"
    )
    mixed = declare("train: {warmup", "train: {batch_size: 48, warmup")
    with pytest.raises(UserError, match=r"resnet-20: 32 devices cannot share a batch of 48 images equally"):
        check_global_batch(plan_runs(mixed, scale="paper"), 32, None)
    check_global_batch(plan_runs(mixed, scale="paper"), 2, 8)
    with pytest.raises(
        UserError,
        match=r"a batch of 128 images on 2 devices cannot use a device batch of 0; use 1, 2, 4, 8, 16, 32 or 64",
    ):
        check_global_batch(runs, 2, 0)


def test_a_run_with_sdlm_uses_one_device():
    runs = plan_runs(load_experiment("lenet5/mnist"), scale="smoke")
    check_global_batch(runs, 1, None)
    with pytest.raises(UserError, match="optimizer 'sdlm' learns one pattern at a time, on one device"):
        check_global_batch(runs, 2, None)
    check_global_batch(
        [*runs, *plan_runs(load_experiment(RESNET), scale="smoke")], 2, None
    )  # together with distributable runs it is allowed


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
