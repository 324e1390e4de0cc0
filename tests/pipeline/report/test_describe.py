"""`repro show`: the words and the estimate of the work."""

import dataclasses

import pytest

from pipeline.analyse import analysis
from pipeline.experiment import Drops, Experiment, load
from pipeline.plan import plan
from pipeline.report.describe import counted, drop_words, multiply_adds, words, work


def test_settings_in_words():
    assert words({"depth": 20, "warmup": {"lr": 0.01, "below": 80.0}, "augment": ["flip", "distort"]}) == (
        "depth 20, warmup.lr 0.01, warmup.below 80.0, augment flip/distort"
    )
    assert words({}, start="; ") == ""
    assert words({"a": 1}, start="; ") == "; a 1"


def test_drops_in_words():
    assert drop_words(Drops(at=(5, 32000), factor=0.1)) == "times 0.1 from update 5, times 0.1 from update 32,000"
    assert drop_words(Drops(at=(5, 6), factor=(0.4, 0.5))) == "times 0.4 from update 5, times 0.5 from update 6"


def test_one_run_two_runs():
    assert (counted(1, "run"), counted(2000, "run")) == ("1 run", "2,000 runs")


@pytest.mark.parametrize(
    ("experiment", "variant", "scale"),
    [
        ("resnet/cifar10_depth", "resnet-20", "paper"),
        ("resnet/cifar10_depth", "plain-56", "laptop"),
        ("lenet5/mnist", "lenet5", "paper"),
    ],
)
def test_work_is_three_passes_of_the_analysed_network_over_every_image(experiment, variant, scale):
    run = plan(load(experiment), scale=scale, variants=[variant], seeds=1)[0]
    train = run.recipe.train
    assert multiply_adds(run) == 3 * analysis(run.recipe).multiply_adds * train.batch_size * train.steps


def test_work_of_a_scale(experiment: Experiment):
    assert work(experiment, "smoke", []).startswith("6 runs (2 variants x 3 seeds), 72 updates, ")


def test_work_names_hardware_once_runs_have_shown_it(experiment: Experiment, row_of_seeds):
    records = row_of_seeds(experiment, "plain-20", [9.0, 9.1, 9.2], scale="smoke")
    records = [dataclasses.replace(one, seconds=float(s)) for one, s in zip(records, (1, 2000, 3000), strict=True)]
    assert work(experiment, "smoke", records).endswith("; measured: 2,000 s a run in the median of 3 on one core")
