"""Test claims about trained networks against the values of seeds. Pure.

The outcomes are those of a run of the printed recipe at paper scale; `rules.py` weakens them for all other runs.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from pipeline.judge.statistics import (
    LEVEL,
    MAX_SUGGESTED_SEEDS,
    MIN_SEEDS,
    IntervalTest,
    average,
    interval_test,
    statistic_sigmas,
)
from pipeline.judge.verdict import Outcome, Reason, Verdict, cannot_judge
from pipeline.judge.wording import listed, name_seeds, require_margin, require_number, rounded, show_value

ClaimedNumber = Literal["error", "score", "ratio"]  # kind of a claimed number


def judge_metric(
    values: Mapping[int, float],
    *,
    claimed: float,
    margin: float,
    statistic: str = "mean",
    measure: ClaimedNumber = "error",
) -> Verdict:
    """Test whether an error rate, a score or a ratio over seeds is equivalent to the published one.

    Error rates, `values` by seed, `claimed` and `margin`, are in percent; lower is better. Scores, such as a mean
    average precision, are in percent, too; higher is better. Ratios (of compression) have no unit; higher is
    better. `statistic` is "mean", or for errors "best of N" such as "best of 5": a paper's best of N runs is
    compared with the expected best of N of our runs.

    Raises ValueError for no values, an unknown statistic, or a margin that is not above zero.
    """
    require_number("claimed", claimed)
    require_margin(margin, above_zero=True)
    k = statistic_sigmas(statistic)
    numbers = list(values.values())
    unfit = _unfit(values, n=len(values), estimate=lambda: None if k else average(numbers))
    if unfit:
        return unfit
    test = interval_test(numbers, low=claimed - margin, high=claimed + margin, k=k)
    unit = "" if measure == "ratio" else " %"
    is_error = measure == "error"
    return _place_verdict(
        test,
        what=_describe_estimate(statistic, measure, values),
        region=f"{show_value(claimed)} ± {show_value(margin)}{unit}",
        unit=unit,
        below=Outcome.BETTER if is_error else Outcome.NOT_REPRODUCED,
        above=Outcome.NOT_REPRODUCED if is_error else Outcome.BETTER,
    )


def judge_bound(
    values: Mapping[int, float], *, op: Literal["<", ">"], bound: float, statistic: str = "mean"
) -> Verdict:
    """Test whether a metric over seeds is below or above a bound, in the unit of the values.

    `statistic` as in `judge_metric`.
    """
    require_number("bound", bound)
    if op not in ("<", ">"):
        raise ValueError(f"unknown op {op!r} for a bound; use '<' or '>'")
    k = statistic_sigmas(statistic)
    numbers = list(values.values())
    unfit = _unfit(values, n=len(values), estimate=lambda: None if k else average(numbers))
    if unfit:
        return unfit
    if op == "<":
        test, region = interval_test(numbers, high=bound, k=k), f"less than {show_value(bound)}"
    else:
        test, region = interval_test(numbers, low=bound, k=k), f"more than {show_value(bound)}"
    return _place_verdict(test, what=_describe_estimate(statistic, "value", values), region=region)


def judge_ordering(
    lhs: Mapping[int, float],
    rhs: Mapping[int, float],
    *,
    op: Literal["<", ">", "<=", "~"],
    margin: float = 0.0,
    names: tuple[str, str] = ("left", "right"),
) -> Verdict:
    """Test the mean difference lhs - rhs, paired by seed; `margin` in the unit of the values.

    ">": lhs exceeds rhs by more than the margin. "<": lhs is below rhs by more than the margin.
    "<=": lhs does not exceed rhs by the margin or more (non-inferiority). "~": equal within the margin.
    `names` are the sides' names in the sentence.
    """
    if op not in ("<", ">", "<=", "~"):
        raise ValueError(f"unknown op {op!r} for an ordering; use '<', '>', '<=' or '~'")
    require_margin(margin, above_zero=op in ("<=", "~"))
    low, high, region = {
        ">": (margin, math.inf, f"more than {show_value(margin)}"),
        "<": (-math.inf, -margin, f"less than {show_value(-margin)}"),
        "<=": (-math.inf, margin, f"less than {show_value(margin)}"),
        "~": (-margin, margin, f"0 ± {show_value(margin)}"),
    }[op]
    what = f"{names[0]} minus {names[1]}"
    return _judge_differences(lhs, rhs, operator.sub, what, low=low, high=high, region=region)


def judge_gain(
    lhs: Mapping[int, float],
    rhs: Mapping[int, float],
    *,
    claimed: float,
    margin: float,
    names: tuple[str, str] = ("left", "right"),
) -> Verdict:
    """Test whether the mean of rhs - lhs, paired by seed, is equivalent to the claimed gain of lhs over rhs.

    `claimed` and `margin` in the unit of the values. A larger gain lies outside the margin as a smaller one does.
    `names` are the sides' names in the sentence.
    """
    require_number("claimed", claimed)
    require_margin(margin, above_zero=True)
    region = f"{show_value(claimed)} ± {show_value(margin)}"
    what, low, high = f"{names[1]} minus {names[0]}", claimed - margin, claimed + margin
    return _judge_differences(lhs, rhs, lambda a, b: b - a, what, low=low, high=high, region=region)


def _judge_differences(
    lhs: Mapping[int, float],
    rhs: Mapping[int, float],
    difference: Callable[[float, float], float],
    what: str,
    *,
    low: float,
    high: float,
    region: str,
) -> Verdict:
    """Test whether the mean of difference(lhs, rhs), paired by seed, lies in low..high.

    `what` describes the difference in the sentence, and `region` what is claimed.
    """
    pairs, unpaired = _paired(lhs, rhs)

    def differences() -> list[float]:
        return [difference(a, b) for a, b in pairs]

    unfit = _unfit(lhs, rhs, n=len(pairs), estimate=lambda: average(differences()), unpaired=unpaired)
    if unfit:
        return unfit
    test = interval_test(differences(), low=low, high=high, scale=max(abs(x) for pair in pairs for x in pair))
    subject = f"The mean of {what} over {len(pairs)} paired seeds"
    return _place_verdict(test, what=subject, region=region, effect=test.mean_over_spread, unpaired=unpaired)


def judge_ratio(
    lhs: Mapping[int, float],
    rhs: Mapping[int, float],
    *,
    claimed: float,
    margin: float = 0.0,
    op: Literal["=", "<", ">"] = "=",
) -> Verdict:
    """Test whether the ratio lhs / rhs, paired by seed, is equivalent to the claimed one, below or above it.

    "=": equal within the margin. "<" and ">": one-sided, without a margin. The test is on the logarithms. The
    estimate is the geometric mean of the ratios; the interval is that of the mean logarithm, exponentiated.
    """
    low, high, region = _claimed_ratios(claimed, margin, op)
    pairs, unpaired = _paired(lhs, rhs)
    is_finite = all(map(math.isfinite, [*lhs.values(), *rhs.values()]))
    # An error counted on few images can be 0; a metric such as a log-likelihood can be negative.
    undefined = [seed for seed in sorted(lhs.keys() & rhs.keys()) if min(lhs[seed], rhs[seed]) <= 0]
    if undefined and is_finite:
        sentence = f"The ratio is undefined: a measured value is not above 0 at {name_seeds(undefined)}."
        return cannot_judge(Reason.UNDERPOWERED, sentence, len(pairs))

    def logs() -> list[float]:
        return [math.log(a) - math.log(b) for a, b in pairs]

    unfit = _unfit(lhs, rhs, n=len(pairs), estimate=lambda: math.exp(average(logs())), unpaired=unpaired)
    if unfit:
        return unfit
    scale = max(1.0, *(abs(math.log(x)) for pair in pairs for x in pair))
    test = interval_test(logs(), low=low, high=high, scale=scale)
    effect = test.mean_over_spread
    test = replace(test, estimate=math.exp(test.estimate), low=math.exp(test.low), high=math.exp(test.high))
    what = f"The mean ratio of left to right over {len(pairs)} paired seeds"
    return _place_verdict(test, what=what, region=region, effect=effect, unpaired=unpaired)


def _claimed_ratios(claimed: float, margin: float, op: Literal["=", "<", ">"]) -> tuple[float, float, str]:
    """Return the logarithms between which a claimed ratio lies, and the words for the range."""
    require_number("claimed", claimed)
    require_margin(margin, above_zero=op == "=")
    if claimed - margin <= 0:
        raise ValueError(
            f"the claimed ratio {show_value(claimed)} minus its margin {show_value(margin)} must be above zero"
        )
    match op:
        case "=":
            region = f"{show_value(claimed)} ± {show_value(margin)}"
            return math.log(claimed - margin), math.log(claimed + margin), region
        case "<":
            return -math.inf, math.log(claimed), f"less than {show_value(claimed)}"
        case ">":
            return math.log(claimed), math.inf, f"more than {show_value(claimed)}"
    raise ValueError(f"unknown op {op!r} for a ratio; use '=', '<' or '>'")


def _place_verdict(
    test: IntervalTest,
    *,
    what: str,
    region: str,
    unit: str = "",
    effect: float | None = None,
    unpaired: str = "",
    below: Outcome = Outcome.NOT_REPRODUCED,
    above: Outcome = Outcome.NOT_REPRODUCED,
) -> Verdict:
    """Return the verdict of a test; `below` and `above` are the outcomes beside the claimed range."""
    result = f"{what} is {rounded(test.estimate)}{unit}"
    if test.p_value is None:
        result += ", the same at every seed"
        measured = "this value"
    else:
        result += f" (90 % interval {rounded(test.low)} to {rounded(test.high)}{unit})"
        measured = "the interval"
    reason = None
    more = ""
    if test.place == "across":
        outcome, reason = Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED
        seeds = f"about {test.enough} seeds" if test.enough else f"not even {MAX_SUGGESTED_SEEDS} seeds"
        place, more = "partly outside", f"; with this spread {seeds} would probably be enough"
    elif test.place == "inside":
        outcome, place = Outcome.REPRODUCED, "inside"
    else:
        outcome, place = (below if test.place == "below" else above), test.place
    sentence = f"{result}. Claimed is {region}: {measured} is {place} the claimed range{more}{unpaired}."
    return Verdict(
        outcome,
        reason,
        test.estimate,
        (test.low, test.high),
        LEVEL,
        test.p_value,
        effect,
        test.n,
        sentence,
        test.enough,
    )


def _unfit(
    *sides: Mapping[int, float], n: int, estimate: Callable[[], float | None], unpaired: str = ""
) -> Verdict | None:
    """Return "cannot judge" for values that allow no test: too few, or not finite. None for all others.

    `n` is the number of values or pairs. A run that diverged counts even if its seed has no pair.
    """
    names = [""] if len(sides) == 1 else [" on the left", " on the right"]
    for name, values in zip(names, sides, strict=True):
        if not values:
            raise ValueError(f"no values to judge{name}; give at least one seed")
    bad = [
        f"seed {seed}{name} gave {value}"
        for name, values in zip(names, sides, strict=True)
        for seed, value in sorted(values.items())
        if not math.isfinite(value)
    ]
    if bad:
        sentence = f"Every seed counts, and {listed(bad)}, so no estimate can be compared with the claim."
        return cannot_judge(Reason.DID_NOT_CONVERGE, sentence, n)
    if n >= MIN_SEEDS:
        return None
    found = {0: "No seed has", 1: "Only 1 seed has"}.get(n, f"Only {n} seeds have")
    sentence = f"{found} values to compare, and fewer than {MIN_SEEDS} do not show the spread"
    verdict = cannot_judge(Reason.UNDERPOWERED, f"{sentence}{unpaired}.", n)
    return replace(verdict, measured=estimate() if n else None)


def _paired(lhs: Mapping[int, float], rhs: Mapping[int, float]) -> tuple[list[tuple[float, float]], str]:
    """Return the values of the common seeds, and a remark for the sentence on the seeds without a pair, or ""."""
    pairs = [(lhs[seed], rhs[seed]) for seed in sorted(lhs.keys() & rhs.keys())]
    single = [
        f"{name_seeds(seeds)} only on the {side}"
        for side, seeds in (("left", lhs.keys() - rhs.keys()), ("right", rhs.keys() - lhs.keys()))
        if seeds
    ]
    return pairs, f" (not paired: {listed(single)})" if single else ""


def _describe_estimate(statistic: str, noun: str, values: Mapping[int, float]) -> str:
    """Return the subject of the sentence: the estimate and the number of seeds."""
    if statistic == "mean":
        return f"The mean {noun} of {len(values)} seeds"
    return f"The expected {noun} of the {statistic} runs, estimated from {len(values)} seeds,"
