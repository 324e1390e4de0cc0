"""Requests of a launch: their arguments, the runs that they select, and device counts."""

import pytest

from pipeline.cli.selection import parse_changes
from pipeline.cluster.launch_request import (
    LaunchRequest,
    check_global_batch,
    declared_name,
    select_runs,
)
from pipeline.cluster.launches import LaunchTerms
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.load import experiment_names, load_experiment
from pipeline.plan.expand import DerivedRun, plan_runs
from tests.support.elsewhere import ONLY_DERIVED
from tests.support.launch_tasks import RESNET, set_home


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A REPRO_HOME without runs."""
    return set_home(monkeypatch, tmp_path)


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
