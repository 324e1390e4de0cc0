"""Verdicts: judge one claim from numbers. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Integral, Real
from typing import Literal, TypeGuard

from pipeline.judge.statistics import (
    LEVEL,
    MAX_SUGGESTED_SEEDS,
    MIN_SEEDS,
    ROUNDING,
    IntervalTest,
    average,
    interval_test,
    statistic_sigmas,
)


class Outcome(StrEnum):
    """Result of judging a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    BETTER = "better than claimed"
    ERRATUM = "erratum"
    TREND = "trend supported"
    NO_TREND = "trend not supported"
    CANNOT_JUDGE = "cannot judge"


class Reason(StrEnum):
    """Reason why a claim cannot be judged."""

    NOT_RUN = "not-run"
    NO_DATA = "no-data"
    NO_LABELS = "no-labels"
    UNDERPOWERED = "underpowered"
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

    def __post_init__(self) -> None:
        if (self.reason is not None) != (self.outcome is Outcome.CANNOT_JUDGE):
            raise ValueError(
                f"a verdict has a reason if and only if it is 'cannot judge': {self.outcome}, {self.reason}"
            )
        if (self.interval is None) != (self.level is None):
            raise ValueError("give both an interval and its level, or neither")


def judge_exact(
    measured: object,
    *,
    claimed: object,
    margin: float = 0.0,
    corrected: object = None,
    op: Literal["=", "<", ">", "<=", ">="] = "=",
    found: str = "We measure",
) -> Verdict:
    """Judge an exact number, shape or setting, without statistics.

    `margin` is inclusive, in the unit of the number. Anything but a number must be equal; a list equals a tuple of
    the same elements. `corrected` is the value that the source should have printed, if it is wrong. With an `op`
    other than "=" the claim is that the measured number is below or above the claimed one. `found` is the start of
    the sentence, before the measured value.

    Raises ValueError for a margin below zero, a NaN, and an `op` that does not fit the values.
    """
    _require_margin(margin)
    if op == "=" and corrected is not None and _matches(claimed, corrected, margin=0.0):
        raise ValueError(f"the correction {_show(corrected)} equals the claimed value; leave it out")
    as_claimed = _matches(measured, claimed, margin=margin) if op == "=" else _compares(measured, op, claimed)
    # The measured value has more digits than a correction and must agree to the digits of the correction.
    shown = _half_digit(corrected, whole=bool(margin)) if _is_number(corrected) else 0.0
    loose = min(margin, shown) if margin else shown
    as_corrected = corrected is not None and _matches(measured, corrected, margin=loose)
    within = f" ± {_show(margin)}" if margin else ""
    side = {"=": "", "<": "less than ", ">": "more than ", "<=": "at most ", ">=": "at least "}[op]
    ours, claim = f"{found} {_show_measured(measured)}", f"the claimed {side}{_show(claimed)}{within}"
    if as_claimed:
        outcome, sentence = Outcome.REPRODUCED, f"{ours}, which agrees with {claim}"
        if as_corrected:
            sentence += f" and also with the correction {_show(corrected)}, so it shows no erratum"
        elif corrected is not None:
            sentence += f", so the declared correction {_show(corrected)} is wrong"
    elif as_corrected:
        outcome = Outcome.ERRATUM
        sentence = f"{ours}, which agrees with the correction {_show(corrected)} and not with {claim}"
    else:
        outcome, sentence = Outcome.NOT_REPRODUCED, f"{ours}, which does not agree with {claim}"
        if corrected is not None:
            sentence += f" or with the correction {_show(corrected)}"
    number = float(measured) if _is_number(measured) else None
    return Verdict(outcome, None, number, None, None, None, None, 0, sentence + ".")


def judge_metric(
    values: Mapping[int, float], *, claimed: float, margin: float, statistic: str = "mean"
) -> Verdict:
    """Test whether an error rate over seeds is equivalent to the published one.

    `values` (by seed), `claimed` and `margin` are in percent; lower is better. `statistic` is "mean", or "best of
    N" such as "best of 5": a paper's best of N runs is compared with the expected best of N of our runs.

    Raises ValueError for no values, an unknown statistic, or a margin that is not above zero.
    """
    _require_number("claimed", claimed)
    _require_margin(margin, above_zero=True)
    k = statistic_sigmas(statistic)
    numbers = list(values.values())
    unfit = _unfit(values, n=len(values), estimate=lambda: None if k else average(numbers))
    if unfit:
        return unfit
    test = interval_test(numbers, low=claimed - margin, high=claimed + margin, k=k)
    return _conclude(
        test,
        what=_describe_estimate(statistic, "error", values),
        region=f"{_show(claimed)} ± {_show(margin)} %",
        unit=" %",
        below=Outcome.BETTER,
    )


def judge_bound(
    values: Mapping[int, float], *, op: Literal["<", ">"], bound: float, statistic: str = "mean"
) -> Verdict:
    """Test whether a metric over seeds is below or above a bound, in the unit of the values.

    `statistic` as in `judge_metric`.
    """
    _require_number("bound", bound)
    if op not in ("<", ">"):
        raise ValueError(f"unknown op {op!r} for a bound; use '<' or '>'")
    k = statistic_sigmas(statistic)
    numbers = list(values.values())
    unfit = _unfit(values, n=len(values), estimate=lambda: None if k else average(numbers))
    if unfit:
        return unfit
    if op == "<":
        test, region = interval_test(numbers, high=bound, k=k), f"less than {_show(bound)}"
    else:
        test, region = interval_test(numbers, low=bound, k=k), f"more than {_show(bound)}"
    return _conclude(test, what=_describe_estimate(statistic, "value", values), region=region)


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
    _require_margin(margin, above_zero=op in ("<=", "~"))
    pairs, unpaired = _paired(lhs, rhs)

    def differences() -> list[float]:
        return [a - b for a, b in pairs]

    unfit = _unfit(lhs, rhs, n=len(pairs), estimate=lambda: average(differences()), unpaired=unpaired)
    if unfit:
        return unfit
    low, high, region = {
        ">": (margin, math.inf, f"more than {_show(margin)}"),
        "<": (-math.inf, -margin, f"less than {_show(-margin)}"),
        "<=": (-math.inf, margin, f"less than {_show(margin)}"),
        "~": (-margin, margin, f"0 ± {_show(margin)}"),
    }[op]
    test = interval_test(differences(), low=low, high=high, scale=max(abs(x) for pair in pairs for x in pair))
    what = f"The mean of {names[0]} minus {names[1]} over {len(pairs)} paired seeds"
    return _conclude(test, what=what, region=region, effect=test.mean_over_spread, unpaired=unpaired)


def judge_ratio(lhs: Mapping[int, float], rhs: Mapping[int, float], *, claimed: float, margin: float) -> Verdict:
    """Test whether the ratio lhs / rhs, paired by seed, is equivalent to the claimed one.

    The test is on the logarithms. The estimate is the geometric mean of the ratios; the interval is that of the
    mean logarithm, exponentiated.
    """
    _require_number("claimed", claimed)
    _require_margin(margin, above_zero=True)
    if claimed - margin <= 0:
        raise ValueError(f"the claimed ratio {_show(claimed)} minus its margin {_show(margin)} must be above zero")
    for side, values in (("left", lhs), ("right", rhs)):
        negative = [seed for seed, value in values.items() if value < 0]
        if negative:
            raise ValueError(f"a ratio needs positive values; the {side} side is negative at {_seeds(negative)}")
    pairs, unpaired = _paired(lhs, rhs)
    zero = [seed for seed in sorted(lhs.keys() & rhs.keys()) if 0 in (lhs[seed], rhs[seed])]
    if zero and all(map(math.isfinite, [*lhs.values(), *rhs.values()])):  # an error counted on few images can be 0
        sentence = f"The ratio is undefined: a measured value is 0 at {_seeds(zero)}."
        return cannot_judge(Reason.UNDERPOWERED, sentence, len(pairs))

    def logs() -> list[float]:
        return [math.log(a) - math.log(b) for a, b in pairs]

    unfit = _unfit(lhs, rhs, n=len(pairs), estimate=lambda: math.exp(average(logs())), unpaired=unpaired)
    if unfit:
        return unfit
    scale = max(1.0, *(abs(math.log(x)) for pair in pairs for x in pair))
    test = interval_test(logs(), low=math.log(claimed - margin), high=math.log(claimed + margin), scale=scale)
    effect = test.mean_over_spread
    test = replace(test, estimate=math.exp(test.estimate), low=math.exp(test.low), high=math.exp(test.high))
    what = f"The mean ratio of left to right over {len(pairs)} paired seeds"
    region = f"{_show(claimed)} ± {_show(margin)}"
    return _conclude(test, what=what, region=region, effect=effect, unpaired=unpaired)


def as_trend(verdict: Verdict, where: str) -> Verdict:
    """Weaken a verdict to a trend, for runs that differ from the paper's.

    `where` is the difference: "at laptop scale on digits".
    """
    trend = {
        Outcome.REPRODUCED: Outcome.TREND,
        Outcome.BETTER: Outcome.TREND,
        Outcome.NOT_REPRODUCED: Outcome.NO_TREND,
    }.get(verdict.outcome)
    if trend is None:
        return verdict
    result = "supports" if trend is Outcome.TREND else "does not support"
    sentence = f"{verdict.sentence} Runs {where} can show a trend only, and this {result} it."
    return replace(verdict, outcome=trend, sentence=sentence)


def cannot_judge(reason: Reason, sentence: str, n: int = 0) -> Verdict:
    """Return the verdict "cannot judge"."""
    return Verdict(Outcome.CANNOT_JUDGE, reason, None, None, None, None, None, n, sentence)


def _conclude(
    test: IntervalTest,
    *,
    what: str,
    region: str,
    unit: str = "",
    effect: float | None = None,
    unpaired: str = "",
    below: Outcome = Outcome.NOT_REPRODUCED,
) -> Verdict:
    """Return the verdict of a test; `below` is the outcome of an interval below the claimed range."""
    result = f"{what} is {_rounded(test.estimate)}{unit}"
    if test.p_value is None:
        result += ", the same at every seed"
        measured = "this value"
    else:
        result += f" (90 % interval {_rounded(test.low)} to {_rounded(test.high)}{unit})"
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
        outcome, place = (below if test.place == "below" else Outcome.NOT_REPRODUCED), test.place
    sentence = f"{result}. Claimed is {region}: {measured} is {place} the claimed range{more}{unpaired}."
    return Verdict(
        outcome, reason, test.estimate, (test.low, test.high), LEVEL, test.p_value, effect, test.n, sentence
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
        sentence = f"Every seed counts, and {_listed(bad)}, so no estimate can be compared with the claim."
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
        f"{_seeds(seeds)} only on the {side}"
        for side, seeds in (("left", lhs.keys() - rhs.keys()), ("right", rhs.keys() - lhs.keys()))
        if seeds
    ]
    return pairs, f" (not paired: {_listed(single)})" if single else ""


def _require_number(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")


def _require_margin(margin: float, *, above_zero: bool = False) -> None:
    if not math.isfinite(margin) or margin < 0 or (above_zero and margin == 0):
        wanted = "> 0" if above_zero else ">= 0"
        raise ValueError(f"margin must be a finite number {wanted}, not {margin}")


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _matches(left: object, right: object, *, margin: float) -> bool:
    """Return True for numbers within the margin, sequences of equal elements, and any other equal values."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(
            _matches(a, b, margin=0.0) for a, b in zip(left, right, strict=True)
        )
    if not (_is_number(left) and _is_number(right)):
        return left == right and isinstance(left, bool) == isinstance(right, bool)
    if isinstance(left, Integral) and isinstance(right, Integral):
        return abs(int(left) - int(right)) <= margin
    a, b = float(left), float(right)
    if math.isnan(a) or math.isnan(b):
        raise ValueError("NaN cannot be compared; claimed and measured values must be numbers")
    # 8.8 is within 0.05 of 8.75, though not in binary
    return a == b or abs(a - b) <= margin + ROUNDING * max(abs(a), abs(b))


def _compares(left: object, op: str, right: object) -> bool:
    """Return the result of comparing two numbers with `op`."""
    if not (_is_number(left) and _is_number(right)):
        raise ValueError(f"{op!r} compares numbers, not {_show(left)} and {_show(right)}")
    a, b = float(left), float(right)
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[op]


def _half_digit(value: object, *, whole: bool) -> float:
    """Return half of a number's last printed digit: 0.05 for 8.7.

    A whole number is exact, unless `whole`: then its last digit other than zero counts.
    """
    text = _show(value)
    if "." in text and "e" not in text:
        return 0.5 * 10.0 ** -len(text.partition(".")[2])
    zeros = len(text) - len(text.replace(",", "").rstrip("0")) - text.count(",")
    return 0.5 * 10.0**zeros if whole else 0.0


def _show_measured(value: object) -> str:
    """Return a measured value as text; a number that is not whole to six significant digits."""
    if _is_number(value) and not isinstance(value, Integral) and not float(value).is_integer():
        return f"{float(value):,.6g}"
    return _show(value)


def _describe_estimate(statistic: str, noun: str, values: Mapping[int, float]) -> str:
    """Return the subject of the sentence: the estimate and the number of seeds."""
    if statistic == "mean":
        return f"The mean {noun} of {len(values)} seeds"
    return f"The expected {noun} of the {statistic} runs, estimated from {len(values)} seeds,"


def _rounded(value: float) -> str:
    """Return a measured number to four significant digits, without an exponent if possible."""
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        return f"{value:.3g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _show(value: object) -> str:
    """Return a declared value as text: not rounded, with thousands separators."""
    if _is_number(value):
        return f"{int(value):,}" if isinstance(value, Integral) else f"{float(value) + 0.0:,.15g}"  # no "-0"
    return str(tuple(value)) if isinstance(value, list | tuple) else repr(value)


def _seeds(seeds: Iterable[int]) -> str:
    names = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' if len(names) > 1 else ''} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
