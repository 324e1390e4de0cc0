"""Suites: named groups of experiments. Every declared experiment belongs to `cs231n`."""

from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import load_all

SUITES = ("cs231n",)
LECTURE_ORDER = (  # folders of experiments in the order in which the lecture presents their papers
    "lenet5",
    "alexnet",
    "ilsvrc",
    "zfnet",
    "vgg",
    "googlenet",
    "resnet",
    "inception_v3",
    "inception_v4",
    "complexity",
    "nin",
    "preact_resnet",
    "wide_resnet",
    "resnext",
    "stochastic_depth",
    "fractalnet",
    "densenet",
    "squeezenet",
    "deep_compression",
    "lecture",
)


@dataclass(frozen=True)
class SuiteSelection:
    """The experiments of a suite, at one scale."""

    experiments: list[Experiment]  # that have the scale
    without_scale: list[str]  # that train, but not at this scale


def check_suite(suite: str) -> None:
    """Raise UserError for an unknown suite."""
    if suite not in SUITES:
        raise UserError(f"unknown suite {suite!r}; known suites: {', '.join(SUITES)}")


def lecture_position(folder: str) -> tuple[int, str]:
    """Return a key that sorts folders of experiments as the lecture presents them; unknown ones come last."""
    known = folder in LECTURE_ORDER
    return LECTURE_ORDER.index(folder) if known else len(LECTURE_ORDER), folder


def suite_at(suite: str, scale: str) -> SuiteSelection:
    """Return the experiments of a suite that run at a scale. Raises UserError if there are none."""
    check_suite(suite)
    trained = [experiment for experiment in load_all() if experiment.scales]
    found = [experiment for experiment in trained if scale in experiment.scales]
    if not found:
        scales = sorted({scale for experiment in trained for scale in experiment.scales})
        raise UserError(f"no experiment of suite {suite} has a scale {scale!r}; known scales: {', '.join(scales)}")
    return SuiteSelection(found, [e.name for e in trained if scale not in e.scales])
