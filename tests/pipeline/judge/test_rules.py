"""Test the rules: kind of claim x what ran x result of the test, against the table of the design."""

from dataclasses import replace

import pytest

from pipeline.judge.rules import conclude
from pipeline.judge.verdict import Outcome, Reason, Verdict, cannot_judge

INSIDE = Verdict(Outcome.REPRODUCED, None, 1.0, (0.5, 1.5), 0.9, 0.01, 2.0, 5, "Measured 1.")
OUTSIDE = replace(INSIDE, outcome=Outcome.NOT_REPRODUCED, p_value=0.9)
RESULTS = {
    "inside": INSIDE,
    "outside": OUTSIDE,
    "better": replace(OUTSIDE, outcome=Outcome.BETTER),
    "underpowered": replace(INSIDE, outcome=Outcome.CANNOT_JUDGE, reason=Reason.UNDERPOWERED, enough=8),
    "diverged": cannot_judge(Reason.DID_NOT_CONVERGE, "Lost.", 5),
}
CHOICES, DEPARTURES = {"choices": ["No flips."]}, {"departures": ["Pixels are scaled"]}
RAN = {
    "as printed": {"full": True},
    "choices": {"full": True} | CHOICES,
    "departures": {"full": True} | DEPARTURES,
    "both": {"full": True} | CHOICES | DEPARTURES,
    "smaller": {"full": False, "where": "at laptop scale on digits"},
    "smaller, both": {"full": False, "where": "at laptop scale on digits"} | CHOICES | DEPARTURES,
}
UNSPECIFIED, DEPARTS = "cannot judge: recipe-unspecified", "cannot judge: recipe-departs"
NOT_RUN, POWER, LOST = (f"cannot judge: {reason}" for reason in ("not-run", "underpowered", "did-not-converge"))

TABLE = [  # what ran, result of the test, word for a number, word for an ordering
    ("as printed", "inside", "reproduced", "reproduced"),
    ("as printed", "outside", "not reproduced", "not reproduced"),
    ("as printed", "better", "better than claimed", None),
    ("choices", "inside", "reproduced", "reproduced"),
    ("choices", "outside", UNSPECIFIED, UNSPECIFIED),
    ("choices", "better", UNSPECIFIED, None),
    ("departures", "inside", "reached", "reached"),
    ("departures", "outside", DEPARTS, DEPARTS),
    ("departures", "better", DEPARTS, None),
    ("both", "inside", "reached", "reached"),
    ("both", "outside", DEPARTS, DEPARTS),
    ("both", "better", DEPARTS, None),
    ("smaller", "inside", NOT_RUN, "trend supported"),
    ("smaller", "outside", NOT_RUN, "trend not supported"),
    ("smaller", "better", NOT_RUN, None),
    ("smaller, both", "inside", NOT_RUN, "trend supported"),
    ("smaller, both", "outside", NOT_RUN, "trend not supported"),
    ("smaller, both", "better", NOT_RUN, None),
    *((ran, "underpowered", POWER, POWER) for ran in list(RAN)[:4]),
    *((ran, "diverged", LOST, LOST) for ran in list(RAN)[:4]),
    *((ran, "underpowered", NOT_RUN, POWER) for ran in list(RAN)[4:]),
    *((ran, "diverged", NOT_RUN, LOST) for ran in list(RAN)[4:]),
]  # fmt: skip
CASES = [
    (number, ran, result, word)
    for ran, result, of_number, of_ordering in TABLE
    for number, word in ((True, of_number), (False, of_ordering))
    if word
]


@pytest.mark.parametrize(("number", "ran", "result", "word"), CASES)
def test_word_of_every_case(number, ran, result, word):
    verdict = conclude(RESULTS[result], number=number, **RAN[ran])
    assert verdict.outcome + (f": {verdict.reason}" if verdict.reason else "") == word


def test_every_case_is_in_the_table():
    # an ordering cannot be better than claimed
    assert len({case[:3] for case in CASES}) == len(CASES) == len(RAN) * (2 * len(RESULTS) - 1)


@pytest.mark.parametrize("ran", ["choices", "departures", "both"])
@pytest.mark.parametrize("result", ["inside", "outside", "better"])
def test_measured_numbers_are_kept(ran, result):
    before = RESULTS[result]
    after = conclude(before, number=True, **RAN[ran])
    assert replace(after, outcome=before.outcome, reason=None, sentence=before.sentence) == before


@pytest.mark.parametrize("result", ["underpowered", "diverged"])
def test_test_without_a_result_stays_as_it_is(result):
    for ran in ("as printed", "choices", "departures", "both"):
        assert conclude(RESULTS[result], number=True, **RAN[ran]) == RESULTS[result]


@pytest.mark.parametrize(
    ("ran", "result", "sentence"),
    [
        ("choices", "inside", "Measured 1. Chosen where the source is silent: No flips."),
        (
            "choices",
            "outside",
            "Measured 1. Chosen where the source is silent: No flips. Another choice may give another result.",
        ),
        ("departures", "inside", "Measured 1. The recipe departs from the paper's: Pixels are scaled."),
        (
            "departures",
            "outside",
            "Measured 1. The recipe departs from the paper's: Pixels are scaled. The paper's own recipe may give"
            " another result.",
        ),
        (
            "smaller",
            "inside",
            "Measured 1. Runs at laptop scale on digits can show a trend only, and this supports it.",
        ),
        (
            "smaller",
            "outside",
            "Measured 1. Runs at laptop scale on digits can show a trend only, and this does not support it.",
        ),
    ],
)
def test_sentence_lists_what_differs(ran, result, sentence):
    assert conclude(RESULTS[result], number=False, **RAN[ran]).sentence == sentence


def test_number_below_paper_scale_names_the_runs():
    verdict = conclude(INSIDE, number=True, **RAN["smaller"])
    assert verdict.sentence == (
        "Not run at paper scale; runs at laptop scale on digits cannot be compared with the paper's number."
    )
    assert (verdict.n, verdict.measured) == (5, None)
