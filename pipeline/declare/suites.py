"""Suites: named groups of experiments. Every declared experiment belongs to `cs231n`."""

from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import load_all

SUITES = ("cs231n",)


@dataclass(frozen=True)
class SuiteSelection:
    """The experiments of a suite, at one scale."""

    experiments: list[Experiment]  # that have the scale
    without_scale: list[str]  # that train, but not at this scale


def check_suite(suite: str) -> None:
    """Raise UserError for an unknown suite."""
    if suite not in SUITES:
        raise UserError(f"unknown suite {suite!r}; known suites: {', '.join(SUITES)}")


def suite_at(suite: str, scale: str) -> SuiteSelection:
    """Return the experiments of a suite that run at a scale. Raises UserError if there are none."""
    check_suite(suite)
    trained = [experiment for experiment in load_all() if experiment.scales]
    found = [experiment for experiment in trained if scale in experiment.scales]
    if not found:
        scales = sorted({scale for experiment in trained for scale in experiment.scales})
        raise UserError(f"no experiment of suite {suite} has a scale {scale!r}; known scales: {', '.join(scales)}")
    return SuiteSelection(found, [e.name for e in trained if scale not in e.scales])
