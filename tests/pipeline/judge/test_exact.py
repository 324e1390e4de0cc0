"""Test exact comparisons: outcomes of arithmetic and recipe claims, errata, refused arguments."""

import math
import re

import numpy as np
import pytest

from pipeline.judge.exact import judge_exact
from pipeline.judge.verdict import Outcome


@pytest.mark.parametrize(
    ("measured", "claimed", "margin", "outcome"),
    [
        (61_706, 61_706, 0, "confirmed"),
        (61_707, 61_706, 0, "not confirmed"),
        (269_722, 270_000, 5000, "confirmed"),
        (1_000_000_000_001, 1_000_000_000_000, 0, "not confirmed"),  # a difference of 1 in 1e12 counts
        (8.8, 8.75, 0.05, "confirmed"),  # 8.8 - 8.75 is 0.05000000000000071 in binary
        (8.81, 8.75, 0.05, "not confirmed"),
        (0.1 + 0.2, 0.3, 0, "confirmed"),
        (np.int64(5), 5.0, 0, "confirmed"),
        ((6, 28, 28), [6, 28, 28], 0, "confirmed"),  # YAML loads lists
        ((6, 28, 28), (6, 24, 24), 0, "not confirmed"),
        ((6, 28, 28), (6, 28), 0, "not confirmed"),
        ((6, 28, 28), (6, 27, 28), 1, "not confirmed"),  # a margin is for numbers
        ("relu", "relu", 0, "confirmed"),
        ("relu", "tanh", 0, "not confirmed"),
        (None, None, 0, "confirmed"),
        (None, 0, 0, "not confirmed"),
        (True, 1, 0, "not confirmed"),
        (math.inf, math.inf, 0, "confirmed"),
    ],
)
def test_exact_outcomes(measured, claimed, margin, outcome):
    assert judge_exact(measured, claimed=claimed, margin=margin).outcome == outcome


@pytest.mark.parametrize(
    ("measured", "outcome", "part"),
    [
        (20, "erratum", "agrees with the correction 20 and not with the claimed 10 ± 1"),
        (10, "confirmed", "the declared correction 20 is wrong"),
        (15, "not confirmed", "or with the correction 20"),
    ],
)
def test_exact_outcomes_with_a_correction(measured, outcome, part):
    verdict = judge_exact(measured, claimed=10, margin=1, corrected=20)
    assert verdict.outcome == outcome
    assert part in verdict.sentence


def test_margin_that_covers_claim_and_correction_shows_no_erratum():
    verdict = judge_exact(15, claimed=10, margin=5, corrected=20)
    assert verdict.outcome is Outcome.CONFIRMED
    assert "it shows no erratum" in verdict.sentence


def test_erratum_of_a_shape():
    verdict = judge_exact((96, 111, 111), claimed=[96, 109, 109], corrected=[96, 111, 111])
    assert verdict.outcome is Outcome.ERRATUM
    assert verdict.measured is None


@pytest.mark.parametrize(
    ("op", "outcomes"),  # of 1, 2 and 3; claimed is 2
    [("<", "yes no no"), ("<=", "yes yes no"), (">", "no no yes"), (">=", "no yes yes"), ("=", "no yes no")],
)
def test_exact_outcomes_of_inequalities(op, outcomes):
    names = {Outcome.CONFIRMED: "yes", Outcome.NOT_CONFIRMED: "no"}
    assert [names[judge_exact(n, claimed=2, op=op).outcome] for n in (1, 2, 3)] == outcomes.split()


@pytest.mark.parametrize(
    ("measured", "corrected", "outcome"),
    [
        (8.7113, 8.7, Outcome.ERRATUM),  # to the last digit of the correction
        (8.7501, 8.7, Outcome.NOT_CONFIRMED),
        (8.65, 8.7, Outcome.ERRATUM),
        (8.7113, 8, Outcome.NOT_CONFIRMED),  # a whole number is exact
        (1.44e7, 14_000_000, Outcome.NOT_CONFIRMED),
        (271.351808, 271.35, Outcome.ERRATUM),
    ],
)
def test_correction_agrees_to_its_printed_digits(measured, corrected, outcome):
    assert judge_exact(measured, claimed=12, corrected=corrected).outcome is outcome


@pytest.mark.parametrize(
    ("measured", "corrected", "outcome"),
    [
        (3_858_000_000, 3_900_000_000, Outcome.ERRATUM),  # to the last digit that is not zero
        (3_840_000_000, 3_900_000_000, Outcome.NOT_CONFIRMED),
        (0.7555, 0.756, Outcome.ERRATUM),
        (0.77, 0.756, Outcome.NOT_CONFIRMED),  # within the margin, but not the correction
    ],
)
def test_margin_does_not_widen_the_correction(measured, corrected, outcome):
    claimed, margin = (1.0, 0.1) if corrected < 1 else (3.0e9, 5e8)
    assert judge_exact(measured, claimed=claimed, margin=margin, corrected=corrected).outcome is outcome


def test_sentence_starts_with_the_source_of_the_measured_value():
    assert judge_exact(3, claimed=3, found="The paper prints").sentence.startswith("The paper prints 3, which")


@pytest.mark.parametrize(("measured", "outcome"), [(128, "followed"), (256, "erratum"), (64, "departs")])
def test_setting_of_a_recipe_is_followed_or_departs(measured, outcome):
    assert judge_exact(measured, claimed=128, corrected=256, recipe=True).outcome == outcome


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: judge_exact([1], claimed=2, op="<"), "compares numbers"),
        (lambda: judge_exact("x", claimed=2, op=">="), "compares numbers"),
        (lambda: judge_exact(1, claimed=math.nan), "NaN"),
        (lambda: judge_exact(math.nan, claimed=1), "NaN"),
        (lambda: judge_exact(1, claimed=1, margin=-1), ">= 0"),
        (lambda: judge_exact(1, claimed=2, corrected=2), "equals the claimed value"),
    ],
)
def test_invalid_arguments_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call()
