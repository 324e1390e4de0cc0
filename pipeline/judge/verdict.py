"""The verdict on one claim: outcome, reason, measured number with its interval, sentence. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """Result of judging a claim."""

    CONFIRMED = "confirmed"  # arithmetic
    FOLLOWED = "followed"  # recipe
    ERRATUM = "erratum"  # arithmetic or recipe: the source is wrong
    NOT_CONFIRMED = "not confirmed"  # arithmetic
    DEPARTS = "departs"  # recipe
    REPRODUCED = "reproduced"  # trained at paper scale
    BETTER = "better than claimed"
    NOT_REPRODUCED = "not reproduced"
    REACHED = "reached"  # with a recipe that departs from the paper's
    TREND = "trend supported"  # at a smaller scale or on other data
    NO_TREND = "trend not supported"
    CANNOT_JUDGE = "cannot judge"


CONTRADICTIONS = frozenset({Outcome.NOT_CONFIRMED, Outcome.DEPARTS, Outcome.NOT_REPRODUCED})
"""Outcomes with which `repro verify` exits 1: the evidence is complete and against the claim."""


TRENDS = frozenset({Outcome.TREND, Outcome.NO_TREND})


class Reason(StrEnum):
    """Reason why a claim cannot be judged."""

    NOT_RUN = "not-run"
    NO_DATA = "no-data"
    NO_LABELS = "no-labels"
    UNDERPOWERED = "underpowered"
    RECIPE_UNSPECIFIED = "recipe-unspecified"
    PROTOCOL_UNSPECIFIED = "protocol-unspecified"
    RECIPE_DEPARTS = "recipe-departs"
    DID_NOT_CONVERGE = "did-not-converge"
    OVER_BUDGET = "over-budget"


@dataclass(frozen=True)
class Verdict:
    """Result of judging one claim. Units are those of the numbers compared."""

    outcome: Outcome
    reason: Reason | None  # None unless the outcome is CANNOT_JUDGE
    measured: float | None  # estimate: a mean, an expected best of N, a difference, a ratio
    interval: tuple[float, float] | None  # confidence interval of `measured`
    level: float | None  # of the interval: 0.90, because both its ends are one-sided 5 % limits
    p_value: float | None  # of the test; None if the seeds have no spread
    effect: float | None  # paired comparisons: Cohen's d_z, mean over spread of the (log) differences
    n: int  # seeds used; 0 for an exact number
    sentence: str  # the numbers compared and the reason for the outcome
    enough: int | None = None  # of an underpowered one: seeds that would probably decide, if not too many

    def __post_init__(self) -> None:
        if (self.reason is not None) != (self.outcome is Outcome.CANNOT_JUDGE):
            raise ValueError(
                f"a verdict has a reason if and only if it is 'cannot judge': {self.outcome}, {self.reason}"
            )
        if (self.interval is None) != (self.level is None):
            raise ValueError("give both an interval and its level, or neither")


def cannot_judge(reason: Reason, sentence: str, n: int = 0) -> Verdict:
    """Return the verdict "cannot judge"."""
    return Verdict(Outcome.CANNOT_JUDGE, reason, None, None, None, None, None, n, sentence)
