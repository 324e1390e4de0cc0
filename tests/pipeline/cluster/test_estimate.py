"""Estimates of the device time of runs, from finished runs."""

from fractions import Fraction

import pytest

from pipeline.cluster.estimate import Estimate, Estimator
from tests.support.launch_tasks import HARDWARE, declare_only, set_home
from tests.support.plans import first_run


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A REPRO_HOME without runs."""
    return set_home(monkeypatch, tmp_path)


@pytest.fixture
def declared(monkeypatch, experiment):
    """The small experiment, as the only declared one."""
    return declare_only(monkeypatch, experiment)


def test_an_estimate_is_the_median_over_runs_of_the_same_variant(declared, record):
    seconds = (640.0, 6400.0, 1280.0)
    ended = [
        record(declared, "plain-20", seed, 9.0, seconds=s, hardware=HARDWARE) for seed, s in enumerate(seconds)
    ]
    found = Estimator(ended).estimate(first_run(declared), 1)
    assert found is not None
    assert found.seconds == 1280 / (64_000 * 128)
    assert (found.runs, found.where) == (3, f"on {HARDWARE}")


def test_a_run_on_several_devices_costs_the_time_of_all_of_them(declared, record):
    ended = [record(declared, "plain-20", 0, 9.0, seconds=640.0, world=4)]
    found = Estimator(ended).estimate(first_run(declared), 1)
    assert found is not None
    assert found.seconds == 4 * 640 / (64_000 * 128)


def test_runs_on_the_hardware_of_this_machine_are_preferred(declared, record):
    far = record(declared, "plain-20", 0, 9.0, seconds=10.0, hardware="H100")
    near = record(declared, "plain-20", 1, 9.0, seconds=20.0, hardware=HARDWARE)
    run = first_run(declared)
    assert Estimator([far, near]).estimate(run, 1).where == f"on {HARDWARE}"
    assert Estimator([far]).estimate(run, 1).where == "on H100"


def test_runs_on_the_same_number_of_devices_are_preferred(declared, record):
    one = record(declared, "plain-20", 0, 9.0, seconds=640.0, hardware=HARDWARE)
    four = [record(declared, "plain-20", n, 9.0, seconds=320.0 + n, hardware=HARDWARE, world=4) for n in (1, 2, 3)]
    found, run = Estimator([one, *four]), first_run(declared)
    images = 64_000 * 128
    assert found.estimate(run, 1) == Estimate(640 / images, 1, f"on {HARDWARE}")
    assert found.estimate(run, 4) == Estimate(
        4 * 322 / images, 3, f"on {HARDWARE}"
    )  # not pooled with the run on one device
    assert Estimator(four).estimate(run, 1) == Estimate(4 * 322 / images, 3, f"on {HARDWARE}, on 4 devices each")
    assert Estimator([one]).estimate(run, 2).where == f"on {HARDWARE}, on 1 device each"


def test_runs_that_shared_a_device_are_charged_their_part_and_preferred_for_runs_that_share(declared, record):
    alone = record(declared, "plain-20", 0, 9.0, seconds=640.0, hardware=HARDWARE)
    name = f"{HARDWARE}, shared by 4 runs"
    shared = record(declared, "plain-20", 1, 9.0, seconds=1280.0, hardware=name, runs_per_device=4)
    images, run = 64_000 * 128, first_run(declared)
    both = Estimator([alone, shared])
    assert both.estimate(run, 1) == Estimate(640 / images, 1, f"on {HARDWARE}")
    assert both.estimate(run, Fraction(1, 4)) == Estimate(1280 / 4 / images, 1, f"on {HARDWARE}")
    assert Estimator([alone]).estimate(run, Fraction(1, 4)) == Estimate(
        640 / images, 1, f"on {HARDWARE}, on 1 device each"
    )
    assert Estimator([shared]).estimate(run, 1).where == f"on {HARDWARE}, on 1/4 of a device each"


def test_a_run_of_another_variant_with_the_same_network_and_data_is_used(declare, monkeypatch, record):
    toy = declare(
        "  plain-32:", "  plain-20-again: {model: {name: plain_cifar, depth: 20}, train: {lr: 0.2}}\n  plain-32:"
    )
    declare_only(monkeypatch, toy)
    ended = [record(toy, "plain-20", 0, 9.0, seconds=64.0)]
    found = Estimator(ended).estimate(first_run(toy, "plain-20-again"), 1)
    assert found is not None
    assert found.where == "of the same network (toy/depth, plain-20) at paper scale on one core"
    assert Estimator(ended).estimate(first_run(toy, "plain-32"), 1) is None


def test_a_run_of_the_same_network_on_another_data_set_is_not_used(declared, record):
    ended = [record(declared, "plain-20", 0, 9.0, seconds=1.0, scale="laptop")]
    assert Estimator(ended).estimate(first_run(declared, scale="laptop"), 1) is not None
    assert Estimator(ended).estimate(first_run(declared, scale="paper"), 1) is None


@pytest.mark.parametrize(
    "other",
    [
        {"status": "not converged"},  # ended early, after an unknown number of images
        {"declaration": "of a recipe that has changed"},
        {"experiment": "toy/gone"},
        {"scale": "gone"},
    ],
)
def test_a_run_whose_amount_of_work_is_unknown_is_not_used(declared, record, other):
    ended = record(declared, "plain-20", 0, 9.0, seconds=640.0)
    assert Estimator([ended]).estimate(first_run(declared), 1) is not None
    ended = type(ended).from_dict(ended.to_dict() | other)
    assert Estimator([ended]).estimate(first_run(declared), 1) is None
