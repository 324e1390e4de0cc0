"""Test the selection of a suite's experiments."""

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.load import load_all
from pipeline.declare.suites import suite_at


def test_a_suite_has_all_experiments_of_a_scale_and_names_the_others():
    trained = [experiment for experiment in load_all() if experiment.scales]
    selection = suite_at("cs231n", "laptop")
    assert [e.name for e in selection.experiments] == [e.name for e in trained if "laptop" in e.scales]
    assert selection.without_scale == [e.name for e in trained if "laptop" not in e.scales]


def test_unknown_suites_and_scales_are_refused():
    with pytest.raises(UserError, match=r"^unknown suite 'cs231'; known suites: cs231n$"):
        suite_at("cs231", "laptop")
    with pytest.raises(
        UserError, match=r"^no experiment of suite cs231n has a scale 'huge'; known scales: laptop, "
    ):
        suite_at("cs231n", "huge")
