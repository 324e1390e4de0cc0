"""What a launch would do and need, the copy of the code it is done with, and how launches are cancelled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster import code_copy, estimate, launch, launches
from pipeline.cluster.code_copy import code_files, copy_code
from pipeline.cluster.estimate import Estimator
from pipeline.cluster.launch import (
    LaunchPlan,
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
from pipeline.cluster.launches import LaunchTerms
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.derived import EnsembleSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import load_experiment
from pipeline.plan.expand import DerivedRun, Run, plan_runs
from pipeline.report.launch_plan import estimate_sources, plan_rows, plan_summary
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder

RESNET = "resnet/cifar10_depth"
HERE = "AMD EPYC, 2 cores"


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(estimate, "hardware_name", lambda: HERE)
    return tmp_path / "home"


@pytest.fixture
def tasks(experiment: Experiment, home: Path) -> list[Task]:
    """Three seeds of two variants, 12 steps of 128 images each: plain-20 and resnet-20 in turn."""
    return made(experiment, home)


def made(experiment: Experiment, home: Path, scale: str = "smoke") -> list[Task]:
    runs = [run for run in plan_runs(experiment, scale=scale) if isinstance(run, Run)]
    names = [f"{number:04x}{scale}" for number in range(len(runs))]
    return [Task(run, name, "code", {}, home / "runs" / name, home) for run, name in zip(runs, names, strict=True)]


def of(tasks: list[Task], variant: str) -> list[Task]:
    return [task for task in tasks if task.run.variant == variant]


# --- what can be asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"experiments": ()}, "name what to launch, as in: repro launch resnet/cifar10_depth, or --suite cs231n"),
        ({"suite": "cs231"}, "there is no suite 'cs231'; there is cs231n"),
        ({"devices": 0}, "--gpus-per-run 0: a number from 1 on is needed"),
        ({"max_concurrent": -1}, "--max-concurrent -1: a number from 1 on is needed"),
        ({"max_device_hours": 0.0}, "--max-gpu-hours 0: a number above 0 is needed"),
        ({"max_device_hours": float("nan")}, "--max-gpu-hours nan: a number above 0 is needed"),
        ({"price": float("inf")}, "--price inf: what one device costs an hour is needed, 0 or more"),
        ({"price": -2.0}, "--price -2: what one device costs an hour is needed, 0 or more"),
    ],
)
def test_an_impossible_number_is_a_sentence(words, said):
    with pytest.raises(UserError) as caught:
        LaunchRequest(**({"experiments": (RESNET,), "scale": "smoke"} | words))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ("resnet/cifar10_dept",),
            "no experiment 'resnet/cifar10_dept'; did you mean 'resnet/cifar10_depth'",
        ),
        (("alexnet/architecture",), "alexnet/architecture trains nothing"),
        (("resnet/imagenet",), "resnet/imagenet has no scale 'smoke'"),
    ],
)
def test_a_wrong_name_or_scale_is_told_before_anything_is_read(asked, said):
    with pytest.raises(UserError, match=said):
        select_runs(LaunchRequest(asked, "smoke"))


def test_the_suite_is_all_that_trains_at_the_scale_and_names_what_does_not():
    found = select_runs(LaunchRequest((), "smoke", suite="cs231n"))
    assert {run.experiment for run in found.runs} == {"lenet5/mnist", RESNET}
    imagenet = ("alexnet", "googlenet", "resnet", "vgg", "zfnet")
    assert found.lacking == [f"{paper}/imagenet" for paper in imagenet]
    more = select_runs(LaunchRequest((RESNET,), "smoke", suite="cs231n"))
    assert len(more.runs) == len(found.runs)
    with pytest.raises(
        UserError, match=r"nothing of suite cs231n has a scale 'huge'; there are gpu, laptop, paper"
    ):
        select_runs(LaunchRequest((), "huge", suite="cs231n"))


def test_the_words_ask_the_same_again(tmp_path):
    asked = LaunchRequest((RESNET,), "gpu", "cs231n", 4, 32, 10.5, 2, 2.5)
    assert " ".join(asked.to_argv()) == (
        "launch resnet/cifar10_depth --scale gpu --suite cs231n --gpus-per-run 4 --device-batch 32"
        " --max-gpu-hours 10.5 --max-concurrent 2 --price 2.5"
    )
    assert asked.title == "suite cs231n, resnet/cifar10_depth at gpu"
    assert asked.terms == LaunchTerms(4, 10.5, 2)


def test_a_file_goes_to_a_cluster_only_with_the_experiments(tmp_path):
    assert declared_name(str(ROOT / "experiments" / "resnet" / "cifar10_depth.yaml")) == RESNET
    with pytest.raises(UserError, match=r"mine.yaml is not below .*experiments, which alone is sent to a cluster"):
        LaunchRequest((str(tmp_path / "mine.yaml"),), "smoke").to_argv()


def test_a_batch_that_devices_cannot_share_names_the_counts_that_can(declare):
    toy = declare()
    runs = plan_runs(toy, scale="paper")
    check_global_batch(runs, 8, None)
    with pytest.raises(UserError) as caught:
        check_global_batch(runs, 3, None)
    assert str(caught.value) == (
        "toy/depth, resnet-20: a batch of 128 images cannot be shared equally by 3 devices; use 1, 2, 4, 8, 16,"
        " 32, 64 or 128 devices, with a device batch of 128, 64, 32, 16, 8, 4, 2 or 1"
    )
    mixed = declare("train: {warmup", "train: {batch_size: 48, warmup")
    with pytest.raises(UserError, match=r"resnet-20: a batch of 48 images cannot be shared equally by 32 devices"):
        check_global_batch(plan_runs(mixed, scale="paper"), 32, None)
    check_global_batch(plan_runs(mixed, scale="paper"), 2, 8)
    with pytest.raises(
        UserError, match=r"resnet-20: a device batch of 0 images cannot be; .* by 1, 2, 4, 8, 16, 32 or 64"
    ):
        check_global_batch(runs, 2, 0)


def test_patterns_learnt_one_by_one_take_one_device():
    runs = plan_runs(load_experiment("lenet5/mnist"), scale="smoke")
    check_global_batch(runs, 1, None)
    with pytest.raises(UserError, match="optimizer 'sdlm' learns one pattern at a time, on one device"):
        check_global_batch(runs, 2, None)
    check_global_batch(
        [*runs, *plan_runs(load_experiment(RESNET), scale="smoke")], 2, None
    )  # beside others they get their one device


# --- estimates ---------------------------------------------------------------------------------------------


@pytest.fixture
def declared(monkeypatch, experiment):
    """The declared experiments are the small one alone."""
    for module in (estimate, launch):
        monkeypatch.setattr(module, "names", lambda: [experiment.name])
        monkeypatch.setattr(module, "load", lambda name: experiment)
    return experiment


def smoke_run(experiment: Experiment, variant: str = "plain-20", scale: str = "paper") -> Run:
    (run,) = plan_runs(experiment, scale=scale, variants=[variant], seeds=1)
    assert isinstance(run, Run)
    return run


def test_an_estimate_is_the_median_of_the_same_variants_runs(declared, record):
    seconds = (640.0, 6400.0, 1280.0)
    ended = [record(declared, "plain-20", seed, 9.0, seconds=s, hardware=HERE) for seed, s in enumerate(seconds)]
    found = Estimator(ended).estimate(smoke_run(declared), 1)
    assert found is not None
    assert found.seconds == 1280 / (64_000 * 128)
    assert (found.runs, found.where) == (3, f"on {HERE}")


def test_a_run_on_several_devices_costs_all_of_them(declared, record):
    ended = [record(declared, "plain-20", 0, 9.0, seconds=640.0, world=4)]
    found = Estimator(ended).estimate(smoke_run(declared), 1)
    assert found is not None
    assert found.seconds == 4 * 640 / (64_000 * 128)


def test_this_machines_hardware_and_the_same_scale_are_preferred(declared, record):
    far = record(declared, "plain-20", 0, 9.0, seconds=10.0, hardware="H100")
    near = record(declared, "plain-20", 1, 9.0, seconds=20.0, hardware=HERE)
    run = smoke_run(declared)
    assert Estimator([far, near]).estimate(run, 1).where == f"on {HERE}"
    assert Estimator([far]).estimate(run, 1).where == "on H100"


def test_as_many_devices_as_are_asked_for_are_preferred_and_others_are_named(declared, record):
    one = record(declared, "plain-20", 0, 9.0, seconds=640.0, hardware=HERE)
    four = [record(declared, "plain-20", n, 9.0, seconds=320.0 + n, hardware=HERE, world=4) for n in (1, 2, 3)]
    found, run = Estimator([one, *four]), smoke_run(declared)
    images = 64_000 * 128
    assert found.estimate(run, 1) == estimate.Estimate(640 / images, 1, f"on {HERE}")
    assert found.estimate(run, 4) == estimate.Estimate(
        4 * 322 / images, 3, f"on {HERE}"
    )  # not pooled with the one
    assert Estimator(four).estimate(run, 1) == estimate.Estimate(
        4 * 322 / images, 3, f"on {HERE}, on 4 devices each"
    )
    assert Estimator([one]).estimate(run, 2).where == f"on {HERE}, on 1 device each"


def test_another_variant_with_the_same_network_and_data_will_do(declare, monkeypatch, record):
    toy = declare(
        "  plain-32:", "  plain-20-again: {model: {name: plain_cifar, depth: 20}, train: {lr: 0.2}}\n  plain-32:"
    )
    for module in (estimate, launch):
        monkeypatch.setattr(module, "names", lambda: [toy.name])
        monkeypatch.setattr(module, "load", lambda name: toy)
    ended = [record(toy, "plain-20", 0, 9.0, seconds=64.0)]
    found = Estimator(ended).estimate(smoke_run(toy, "plain-20-again"), 1)
    assert found is not None
    assert found.where == "of the same network (toy/depth, plain-20) at paper scale on one core"
    assert Estimator(ended).estimate(smoke_run(toy, "plain-32"), 1) is None


def test_the_same_network_on_other_images_says_nothing(declared, record):
    ended = [record(declared, "plain-20", 0, 9.0, seconds=1.0, scale="laptop")]
    assert Estimator(ended).estimate(smoke_run(declared, scale="laptop"), 1) is not None
    assert Estimator(ended).estimate(smoke_run(declared, scale="paper"), 1) is None


@pytest.mark.parametrize(
    "other",
    [
        {"status": "not converged"},  # ended early, nobody knows after how many images
        {"declaration": "of a recipe that is declared no more"},
        {"experiment": "toy/gone"},
        {"scale": "gone"},
    ],
)
def test_a_run_of_which_it_is_not_known_how_much_it_did_is_no_measure(declared, record, other):
    ended = record(declared, "plain-20", 0, 9.0, seconds=640.0)
    assert Estimator([ended]).estimate(smoke_run(declared), 1) is not None
    ended = type(ended).from_dict(ended.to_dict() | other)
    assert Estimator([ended]).estimate(smoke_run(declared), 1) is None


# --- the plan ----------------------------------------------------------------------------------------------


def test_a_group_says_what_is_finished_what_goes_on_and_what_that_needs(declared, tasks, record):
    plain = of(tasks, "plain-20")
    measured = [
        record(declared, "plain-20", 0, 9.0, scale="smoke", seconds=128.0)
    ]  # a twelfth of a second an image
    RunFolder(plain[1].folder).save_checkpoint(7, lambda path: path.write_bytes(b"weights"))
    group = plan_variant(plain, 4, {plain[0].identity}, Estimator(measured))
    assert (group.runs, group.finished, group.resumed, group.devices) == (3, 1, (7,), 4)
    assert group.images == (12 + 5) * 128
    assert group.hours == pytest.approx((12 + 5) * 128 / 12 / 3600)
    assert group.words == "3 runs, 1 finished, 1 to resume at step 7"


def test_a_result_in_the_folder_is_finished_too(declared, tasks, record):
    plain = of(tasks, "plain-20")
    for task in plain:
        RunFolder(task.folder).create({})
        RunFolder(task.folder).finish(record(declared, "plain-20", task.run.seed, 9.0, scale="smoke"), None)
    group = plan_variant(plain, 1, set(), Estimator([]))
    assert (group.words, group.images, group.hours) == ("3 runs, all finished", 0, 0.0)


def test_a_step_is_one_piece_of_work_that_needs_one_device(tmp_path):
    alexnet = load_experiment("alexnet/imagenet")
    step = next(one for one in plan_runs(alexnet, scale="stand-in") if isinstance(one, DerivedRun))
    task = Task(step, "step", "code", {}, tmp_path / "step", tmp_path)
    group = plan_variant([task], 4, set(), Estimator([]))
    assert (group.kind, group.devices, group.images, group.hours) == ("step", 1, 0, None)
    assert group.words == "1 step"


def whole(tasks, records=(), **asked) -> LaunchPlan:
    estimates = Estimator(records)
    ended = {record.identity for record in records}
    groups = [plan_variant(of(tasks, name), 1, ended, estimates) for name in ("plain-20", "resnet-20")]
    return LaunchPlan(LaunchRequest((RESNET,), "smoke", **asked), tasks, groups, [])


def test_the_plan_in_words_with_costs(declared, tasks, record):
    seconds = 12 * 128 * 10.0  # ten seconds an image
    ended = [record(declared, v, 0, 9.0, scale="smoke", seconds=seconds) for v in ("plain-20", "resnet-20")]
    made = whole(tasks, ended, price=2.5, max_device_hours=100.0)
    assert plan_rows(made.groups, 2.5)[0] == {
        "variant": "plain-20",
        "runs": "3 runs",
        "devices": "1",
        "images": "4,608",
        "device time": "12.8 h",
        "cost": "32.00",
    }
    assert plan_summary(made) == [
        "6 runs, 0 finished, 6 to do: 9,216 images to train on, 25.6 h of device time, which at 2.5 an hour cost"
        " 64.00.",
        "Estimated from 1 run each on one core: plain-20, resnet-20.",
        "--max-gpu-hours 100: 26 % of it will be used by this estimate.",
    ]
    assert plan_summary(whole(tasks, ended, max_device_hours=12.8))[-1] == (
        "--max-gpu-hours 12.8: enough for 50 % of it by this estimate; at its end runs stop, resumable."
    )


def test_what_nobody_has_measured_is_said(declared, tasks, record):
    made = whole(tasks, price=1.0, max_device_hours=1.0)
    assert "cost" in plan_rows(made.groups, 1.0)[0]
    assert plan_rows(made.groups, 1.0)[0]["device time"] == "not measured"
    assert plan_summary(made) == [
        "6 runs, 0 finished, 6 to do: 9,216 images to train on, how long is not measured yet, and what it costs"
        " follows from that.",
        "--max-gpu-hours 1: nobody knows yet whether that is enough; at its end runs stop, resumable.",
    ]
    half = whole(
        tasks, [record(declared, "plain-20", 0, 9.0, scale="smoke", seconds=1536.0)], max_device_hours=4.0
    )
    assert plan_summary(half) == [
        "6 runs, 0 finished, 6 to do: 9,216 images to train on, at least 1.3 h of device time.",
        "Estimated from 1 run on one core: plain-20.",
        "Not measured yet: toy/depth resnet-20.",
        "--max-gpu-hours 4: at least 32 % of it will be used by this estimate.",
    ]


def test_next_to_nothing_left_to_do_is_measured_all_the_same(declared, tasks, record):
    ended = [record(declared, v, 0, 9.0, scale="smoke", seconds=1.0) for v in ("plain-20", "resnet-20")]
    for task in tasks:
        RunFolder(task.folder).save_checkpoint(12, lambda path: path.write_bytes(b"weights"))
    said = plan_summary(whole(tasks, ended, price=2.0, max_device_hours=1.0))
    assert said[0].endswith(": 0 images to train on, 0 s of device time, which at 2 an hour cost 0.00.")
    assert said[1:] == [
        "Estimated from 1 run each on one core: plain-20, resnet-20.",
        "--max-gpu-hours 1: 0 % of it will be used by this estimate.",
    ]


@pytest.fixture
def averaged(declare, home, monkeypatch, tasks):
    """Tasks of three seeds of plain-20, and of an ensemble of two of them: what is asked for."""
    alone = [task for task in tasks if task.run.variant == "plain-20"]
    kind = EnsembleSpec(kind="ensemble", members={"plain-20": 2})
    members = tuple(task.run for task in alone[:2])
    step = DerivedRun(RESNET, "smoke", "both", 0, kind, members)
    needs = tuple(task.identity for task in alone[:2])
    last = Task(step, "ensemble", "code", {}, home / "runs" / "ensemble", home, needs=needs)
    monkeypatch.setattr("pipeline.schedule.tasks.make_tasks", lambda runs: [*alone, last])
    monkeypatch.setattr(estimate, "load_experiment", lambda name: None)
    return [*alone, last]


def test_a_step_whose_run_has_ended_on_another_machine_alone_is_left_out_and_named(
    averaged, experiment, record, monkeypatch
):
    monkeypatch.setattr(estimate, "measured_runs", lambda records: [])
    *runs, step = averaged
    asked, what = LaunchRequest((RESNET,), "smoke"), LaunchSelection([], [])
    assert plan_launch(asked, what, []).tasks == averaged  # all of it is trained here
    tracked = record(experiment, "plain-20", 0, 9.0, scale="smoke", identity=runs[0].identity)
    found = plan_launch(asked, what, [tracked])
    assert found.tasks == found.todo == runs[1:]  # all else is done
    assert [group.variant for group in found.groups] == ["plain-20"]
    why = "needs plain-20 seed 0, which has not been trained on this machine"
    assert found.left_out == [(step, why)]
    assert f"Left out: {step.title}, as it {why}." in plan_summary(found)
    assert RunFolder(step.folder).unfinished() == {}  # a plan alone writes nothing
    begun = start_launch(found, Path("code"))
    assert {need for task in begun.tasks for need in task.needs} == set()
    assert RunFolder(step.folder).unfinished()["text"] == why
    RunFolder(runs[0].folder).create({})
    RunFolder(runs[0].folder).finish(tracked, None)  # its folder was copied here
    assert plan_launch(asked, what, [tracked]).tasks == averaged
    done = record(experiment, "plain-20", 0, 9.0, scale="smoke", identity=step.identity)
    assert plan_launch(asked, what, [tracked, done]).left_out == []


def test_without_a_price_there_is_no_column_for_it(declared, tasks):
    assert list(plan_rows(whole(tasks).groups, None)[0]) == ["variant", "runs", "devices", "images", "device time"]


def test_estimates_of_one_origin_are_one_sentence(declared, tasks, record):
    ended = [record(declared, "plain-20", seed, 9.0, scale="smoke", identity=f"x{seed}") for seed in range(3)]
    assert estimate_sources(whole(tasks, ended).groups) == ["Estimated from 3 runs on one core: plain-20."]


# --- the copy of the code ----------------------------------------------------------------------------------


def test_the_copy_holds_all_that_the_packages_consist_of():
    copied = {path.relative_to(ROOT) for path in code_files(ROOT)}
    for package in code_copy.PACKAGES:
        there = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file()}
        missing = {path for path in there - copied if "__pycache__" not in path.parts}
        assert missing == set(), "give their suffix a place in launch.KINDS"
    assert {Path("pyproject.toml"), Path("requirements.lock")} <= copied


def a_checkout(root: Path) -> Path:
    files = {
        "pipeline/a.py": "a",
        "lightning_modules/b.py": "b",
        "experiments/c/d.yaml": "d",
        "pyproject.toml": "p",
    }
    extra = {"pipeline/__pycache__/a.py": "x", "tests/t.py": "t", "data/big.bin": "x", "pipeline/notes.swp": "x"}
    for name, text in (files | extra).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_copy_is_made_once_for_each_content(tmp_path, home, monkeypatch):
    monkeypatch.setattr(code_copy, "commit", lambda: "0123-dirty")
    root = a_checkout(tmp_path / "checkout")
    first = copy_code(root)
    assert names_in(first) == {
        "pipeline/a.py",
        "lightning_modules/b.py",
        "experiments/c/d.yaml",
        "pyproject.toml",
        "COMMIT",
    }
    assert (first / "COMMIT").read_text() == "0123-dirty\n"
    made_at = first.stat().st_mtime_ns
    assert copy_code(root) == first
    assert first.stat().st_mtime_ns == made_at
    (root / "pipeline" / "a.py").write_text("changed", encoding="utf-8")
    second = copy_code(root)
    assert second != first
    assert (first / "pipeline" / "a.py").read_text() == "a"
    assert copy_code(first) == first  # a command that runs by a copy copies nothing
    assert sorted(path.name for path in (home / "code").iterdir()) == sorted([first.name, second.name])


def test_a_copy_that_cannot_be_written_leaves_nothing(tmp_path, home, monkeypatch):
    root = a_checkout(tmp_path / "checkout")
    write = Path.write_bytes

    def full(self, data):
        if self.name == "d.yaml":
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write to .*home: no space left on device"):
        copy_code(root)
    assert list((home / "code").iterdir()) == []
    monkeypatch.setattr(Path, "write_bytes", write)
    assert (copy_code(root) / "experiments" / "c" / "d.yaml").read_text() == "d"


def test_two_commands_at_once_make_one_copy(tmp_path, home, monkeypatch):
    root = a_checkout(tmp_path / "checkout")
    rename = Path.rename

    def late(self, target):  # the other was quicker, in this moment
        target.mkdir(parents=True)
        (target / "whole").touch()
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    place = copy_code(root)
    assert names_in(place) == {"whole"}
    assert list((home / "code").iterdir()) == [place]


def test_the_commands_work_by_the_copy_alone(home):
    place = copy_code()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(place)}
    code = (
        "import pipeline.cli, pipeline.record as r, pipeline.plan as p, pipeline.experiment as e;"
        "print(p.ROOT, r.commit(), len(e.names()))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=home, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(place),
        (place / "COMMIT").read_text().strip(),
        str(len(estimate.experiment_names())),
    ]


# --- carrying it out ---------------------------------------------------------------------------------------


def test_a_launch_is_written_down_and_wants_anew_what_was_left(tasks, home):
    launches.mark_unfinished(tasks[0], "cancelled", "cancelled by repro cancel")
    RunFolder(tasks[1].folder).request_stop("over-budget")
    launch = start_launch(whole(tasks, max_concurrent=2), Path("code"))
    assert [one.id for one in launches.unfinished_launches()] == [launch.id]
    assert (launch.words, launch.terms, launch.code) == (f"{RESNET} at smoke", LaunchTerms(1, None, 2), "code")
    assert launch.tasks == tuple(tasks)
    assert RunFolder(tasks[0].folder).unfinished() == {}
    assert RunFolder(tasks[1].folder).stop_reason() == ""


def test_a_supervisor_is_asked_and_answers_itself(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    assert cancel_runs([launch], tasks[2].identity, supervised=True, training=set()) == [tasks[2]]
    assert RunFolder(tasks[2].folder).stop_reason() == "cancelled"
    assert RunFolder(tasks[2].folder).unfinished() == {}
    assert not launches.is_over(launch.id)


def test_without_a_supervisor_runs_are_left_and_the_launch_ends(tasks, declared, record):
    RunFolder(tasks[0].folder).create({})
    RunFolder(tasks[0].folder).finish(record(declared, "plain-20", 0, 9.0, scale="smoke"), None)
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


def test_a_supervisor_that_was_only_silent_hears_of_it_and_a_later_launch_forgets_it(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    cancel_runs([launch], None, supervised=False, training=set())
    for task in tasks:
        assert (
            RunFolder(task.folder).stop_reason() == "cancelled"
        )  # what trains it, or is about to, looks for this
        assert RunFolder(task.folder).unfinished()["why"] == "cancelled"
    start_launch(whole(tasks), Path("code"))
    for task in tasks:
        assert (RunFolder(task.folder).stop_reason(), RunFolder(task.folder).unfinished()) == ("", {})


@pytest.mark.parametrize(
    "text", ['{"id": "x', "[]", "{}", "\xff", '{"id": 1, "terms": {}, "tasks": [], "manifests": []}']
)
def test_a_damaged_launch_is_a_sentence_and_the_others_go_on(tasks, text):
    damaged, whole_one = (
        launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks)) for _ in range(2)
    )
    path = launches.launches_folder() / f"{damaged.id}.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        launches.read_launch(damaged.id)
    assert str(caught.value) == (
        f"{path} cannot be read as a launch: it is damaged, or another version wrote it; move it away, and launch"
        " again what it asked for"
    )
    told = []
    assert [one.id for one in launches.unfinished_launches(told.append)] == [whole_one.id]
    assert told == [f"Left out: {caught.value}"]


def test_what_is_trained_without_a_supervisor_is_asked_and_not_left(tasks):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks))
    cancel_runs([launch], None, supervised=False, training={tasks[0].identity})
    assert RunFolder(tasks[0].folder).stop_reason() == "cancelled"
    assert not launches.is_over(launch.id)


def test_a_run_of_two_launches_is_cancelled_once(tasks):
    both = [launches.create_launch("w", Path("code"), LaunchTerms(1), tuple(tasks)) for _ in range(2)]
    assert cancel_runs(both, None, supervised=True, training=set()) == tasks


def test_a_launch_goes_on_with_other_devices(tasks, home):
    launch = launches.create_launch("w", Path("code"), LaunchTerms(1, 5.0), tuple(tasks))
    assert with_devices(launch, 4).terms == LaunchTerms(4, 5.0)
    assert [one.terms for one in launches.all_launches()] == [LaunchTerms(4, 5.0)]
    with pytest.raises(UserError, match="cannot be shared equally by 3 devices"):
        with_devices(launch, 3)
    assert [one.terms.devices for one in launches.all_launches()] == [4]
