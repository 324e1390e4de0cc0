"""Margins of printed errors against the rule in the comment above them: standard errors of the error printed."""

import math

import pytest

from pipeline.declare.claims import MetricClaim
from pipeline.declare.load import load_experiment

TEST_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "mnist": 10_000, "svhn": 26_032, "svhn-extra": 26_032}

# Experiments whose margins are two standard errors of each error printed -> digits after the point.
TWO_STANDARD_ERRORS = {
    "alexnet/cifar10": 1,
    "densenet/cifar": 1,
    "densenet/resnets": 1,
    "densenet/svhn": 2,
    "fractalnet/cifar": 1,
    "fractalnet/svhn": 2,
    "nin/cifar": 1,
    "nin/mnist": 2,
    "nin/svhn": 2,
    "stochastic_depth/cifar": 1,
    "stochastic_depth/svhn": 2,
    "wide_resnet/svhn": 2,
}


def two_standard_errors(error_pct, images):
    """Twice the standard deviation of an error rate in percent, measured on so many images."""
    rate = error_pct / 100
    return 200 * math.sqrt(rate * (1 - rate) / images)


def margins(name):
    """Claim id -> its margin and two standard errors of its error, for the errors that an experiment claims."""
    declared = load_experiment(name)
    return {
        claim.id: (claim.margin, two_standard_errors(claim.claimed, TEST_IMAGES[declared.paper_data(claim.of)]))
        for claim in declared.claims
        if isinstance(claim, MetricClaim) and claim.metric == "test/top1_error_pct"
    }


@pytest.mark.parametrize(
    ("error_pct", "images", "expected"), [(50, 10_000, 1.0), (10, 10_000, 0.6), (2, 40_000, 0.14)]
)
def test_two_standard_errors_of_round_numbers(error_pct, images, expected):
    assert two_standard_errors(error_pct, images) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "digits"), TWO_STANDARD_ERRORS.items())
def test_a_margin_is_two_standard_errors_of_the_error_printed(name, digits):
    found = margins(name)
    assert found
    assert {claim: margin for claim, (margin, _) in found.items()} == {
        claim: round(expected, digits) for claim, (_, expected) in found.items()
    }
