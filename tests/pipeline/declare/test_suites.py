"""Test the selection of a suite's experiments."""

import pytest

from pipeline.common.errors import UserError
from pipeline.declare.load import load_all
from pipeline.declare.suites import LECTURE_ORDER, suite_at


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


# Outline of Stanford CS231n, lecture 9 (2017), as a listener's notes have it
# (https://www.twblogs.net/a/5e4f7171bd9eee101df7ccd3). No other source of this project gives the lecture's order.
OUTLINE = (
    *("lenet5", "alexnet", "zfnet", "vgg", "googlenet", "resnet"),
    *(
        "nin",
        "preact_resnet",
        "wide_resnet",
        "resnext",
        "stochastic_depth",
        "fractalnet",
        "densenet",
        "squeezenet",
    ),
)


def test_papers_are_in_the_order_of_the_lecture():
    assert [folder for folder in LECTURE_ORDER if folder in OUTLINE] == list(OUTLINE)


def test_what_the_outline_does_not_name_is_beside_what_it_belongs_to():
    def before(first, *others):
        places = [LECTURE_ORDER.index(name) for name in (first, *others)]
        return places == sorted(places)

    assert before("alexnet", "ilsvrc", "zfnet")  # the chart of winners, shown with its first network
    assert before("resnet", "inception_v3", "inception_v4", "complexity", "nin")  # the comparison, after ResNet
    assert before("squeezenet", "deep_compression", "lecture")  # compressed with it; then the lecture's own ideas
    assert len(set(LECTURE_ORDER)) == len(LECTURE_ORDER)
