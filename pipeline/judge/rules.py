"""Rules that turn the result of a test into the outcome that the runs allow. Pure.

what ran                                        inside the margin    outside
paper scale, paper's data, printed recipe       reproduced           not reproduced, better than claimed
the same, with a material choice                reproduced           cannot judge: recipe-unspecified
with a material departure                       reached              cannot judge: recipe-departs
a smaller scale or other data: relations        trend supported      trend not supported
a smaller scale or other data: numbers          cannot judge: not-run
generated images                                cannot judge: not-run
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.judge.verdict import Outcome, Reason, Verdict, cannot_judge


def conclude(
    verdict: Verdict,
    *,
    number: bool,
    full: bool,
    where: str = "",
    choices: Sequence[str] = (),
    departures: Sequence[str] = (),
) -> Verdict:
    """Return the verdict that the runs behind a test allow.

    `verdict` is that of the test, as if the runs were the paper's. `number`: the claim is a number, not an
    ordering. `full`: the runs are of paper scale on the paper's data; if not, `where` says what they are, such as
    "at laptop scale on digits". `choices` and `departures` are the material ones that concern the claim. A test
    without a result (underpowered, did not converge) stays as it is.
    """
    if number and not full:
        return number_below_paper_scale(where, verdict.n)
    if verdict.outcome is Outcome.CANNOT_JUDGE:
        return verdict
    inside = verdict.outcome is Outcome.REPRODUCED
    if not full:
        return as_trend(verdict, inside, where)
    if departures:
        return with_departures(verdict, inside, departures)
    return with_choices(verdict, inside, choices) if choices else verdict


def number_below_paper_scale(where: str, n: int) -> Verdict:
    """Return "cannot judge" for a claimed number and runs that are not of paper scale or on other data."""
    return cannot_judge(
        Reason.NOT_RUN, f"Not run at paper scale; runs {where} cannot be compared with the paper's number.", n
    )


def on_generated_images(scale: str, data: str, n: int) -> Verdict:
    """Return "cannot judge" for runs on generated images, which no paper makes a statement about."""
    return cannot_judge(
        Reason.NOT_RUN,
        f"Not run on real images: runs at {scale} scale on {data}, which is generated, show only that everything"
        " runs.",
        n,
    )


def as_trend(verdict: Verdict, inside: bool, where: str) -> Verdict:
    """Return a trend: the most that runs of a smaller scale, or on other data, can show."""
    result = "supports" if inside else "does not support"
    sentence = f"{verdict.sentence} Runs {where} can show a trend only, and this {result} it."
    return replace(verdict, outcome=Outcome.TREND if inside else Outcome.NO_TREND, sentence=sentence)


def with_departures(verdict: Verdict, inside: bool, departures: Sequence[str]) -> Verdict:
    """Return the verdict of runs whose recipe has material departures."""
    sentence = f"{verdict.sentence} The recipe departs from the paper's: {sentences(departures)}"
    if inside:
        return replace(verdict, outcome=Outcome.REACHED, sentence=sentence)
    sentence += " The paper's own recipe may give another result."
    return replace(verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.RECIPE_DEPARTS, sentence=sentence)


def with_choices(verdict: Verdict, inside: bool, choices: Sequence[str]) -> Verdict:
    """Return the verdict of runs whose recipe has material choices where the source is silent."""
    sentence = f"{verdict.sentence} Chosen where the source is silent: {sentences(choices)}"
    if inside:
        return replace(verdict, sentence=sentence)
    sentence += " Another choice may give another result."
    return replace(verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.RECIPE_UNSPECIFIED, sentence=sentence)


def sentences(texts: Sequence[str]) -> str:
    """Return texts with a full stop each: ["Pixels are scaled", "No flips."] -> "Pixels are scaled. No flips."."""
    return " ".join(f"{text.rstrip('.')}." for text in texts)
