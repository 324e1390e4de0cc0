"""Verdicts: the judgement of one claim from numbers. Pure."""

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
    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    BETTER = "better than claimed"
    ERRATUM = "erratum"
    TREND = "trend supported"
    NO_TREND = "trend not supported"
    CANNOT_JUDGE = "cannot judge"


class Reason(StrEnum):
    """Why a claim cannot be judged."""

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
    """The judgement of one claim. Units are those of the numbers judged."""

    outcome: Outcome
    reason: Reason | None  # with CANNOT_JUDGE, and only then
    measured: float | None  # the estimate compared: a mean, an expected best of N, a difference, a ratio
    interval: tuple[float, float] | None  # confidence interval of `measured`
    level: float | None  # of the interval: 0.90, because both its ends are one-sided 5 % limits
    p_value: float | None  # of the test that would show the claim; None where the seeds have no spread
    effect: float | None  # paired comparisons: Cohen's d_z, mean over spread of the (log) differences
    n: int  # seeds used; 0 where the number needs no training
    sentence: str  # what was compared with what, and why this outcome

    def __post_init__(self) -> None:
        if (self.reason is not None) != (self.outcome is Outcome.CANNOT_JUDGE):
            raise ValueError(f"a reason goes with 'cannot judge' and only with it: {self.outcome}, {self.reason}")
        if (self.interval is None) != (self.level is None):
            raise ValueError("an interval and its level go together: give both or neither")


def judge_exact(
    measured: object,
    *,
    claimed: object,
    margin: float = 0.0,
    corrected: object = None,
    op: Literal["=", "<", ">", "<=", ">="] = "=",
    found: str = "We measure",
) -> Verdict:
    """Judge a number (or a shape, a setting, None) that needs no statistics.

    `margin` is inclusive, in the unit of the number; anything but a number must be equal, a list being equal
    to a tuple. `corrected` is what somebody says the source should have printed (None: nobody does). With another
    `op` than "=" the claim is that the measured number is below or above the claimed one. `found` begins the
    sentence: who says the measured value.
    """
    _require_margin(margin)
    if op == "=" and corrected is not None and _matches(claimed, corrected, margin=0.0):
        raise ValueError(f"the correction {_show(corrected)} is the claimed value itself; leave it out")
    as_claimed = _matches(measured, claimed, margin=margin) if op == "=" else _compares(measured, op, claimed)
    # What is measured has more digits than a correction: it agrees to the digits that the correction shows.
    shown = _half_digit(corrected, whole=bool(margin)) if _is_number(corrected) else 0.0
    loose = min(margin, shown) if margin else shown
    as_corrected = corrected is not None and _matches(measured, corrected, margin=loose)
    within = f" ± {_show(margin)}" if margin else ""
    side = {"=": "", "<": "less than ", ">": "more than ", "<=": "at most ", ">=": "at least "}[op]
    ours, theirs = f"{found} {_shown(measured)}", f"the claimed {side}{_show(claimed)}{within}"
    if as_claimed:
        outcome, sentence = Outcome.REPRODUCED, f"{ours}, which agrees with {theirs}"
        if as_corrected:
            sentence += f" but also with {_show(corrected)}, so no erratum is shown"
        elif corrected is not None:
            sentence += f", so the erratum declared ({_show(corrected)}) was itself wrong"
    elif as_corrected:
        outcome = Outcome.ERRATUM
        sentence = f"{ours}, which agrees with the correction {_show(corrected)} and not with {theirs}"
    else:
        outcome, sentence = Outcome.NOT_REPRODUCED, f"{ours}, which does not agree with {theirs}"
        if corrected is not None:
            sentence += f", nor with the correction {_show(corrected)}"
    number = float(measured) if _is_number(measured) else None
    return Verdict(outcome, None, number, None, None, None, None, 0, sentence + ".")


def judge_metric(
    values: Mapping[int, float], *, claimed: float, margin: float, statistic: str = "mean"
) -> Verdict:
    """Judge an error rate over seeds: is it equivalent to the published one?

    `values`, `claimed` and `margin` are in percent; lower is better. `statistic` is "mean" or "best of N"
    (such as "best of 5"): a paper's best of N runs is compared with the best to expect of N runs of ours.
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
    """Judge "below" or "above" a bound, in the unit of the values. `statistic` as in `judge_metric`."""
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
    """Judge the difference lhs - rhs, paired by seed; `margin` in the unit of the values, `names` for words.

    ">" lhs exceeds rhs by more than the margin; "<" lhs is below rhs by more than the margin;
    "<=" lhs is not larger than rhs by the margin or more (non-inferiority); "~" equal within the margin.
    """
    if op not in ("<", ">", "<=", "~"):
        raise ValueError(f"unknown op {op!r} for an ordering; use '<', '>', '<=' or '~'")
    _require_margin(margin, above_zero=op in ("<=", "~"))
    pairs, left_out = _paired(lhs, rhs)

    def differences() -> list[float]:
        return [a - b for a, b in pairs]

    unfit = _unfit(lhs, rhs, n=len(pairs), estimate=lambda: average(differences()), aside=left_out)
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
    return _conclude(test, what=what, region=region, effect=test.mean_over_spread, aside=left_out)


def judge_ratio(lhs: Mapping[int, float], rhs: Mapping[int, float], *, claimed: float, margin: float) -> Verdict:
    """Judge the ratio lhs / rhs, paired by seed: TOST of the logarithms, reported back as a ratio.

    The estimate is the geometric mean of the ratios, its interval that of their logarithms, exponentiated.
    """
    _require_number("claimed", claimed)
    _require_margin(margin, above_zero=True)
    if claimed - margin <= 0:
        raise ValueError(f"a ratio is positive: claimed {_show(claimed)} less its margin {_show(margin)} is not")
    for side, values in (("left", lhs), ("right", rhs)):
        wrong = [seed for seed, value in values.items() if value < 0]
        if wrong:
            raise ValueError(f"a ratio needs positive values: the {side} side has none at {_seeds(wrong)}")
    pairs, left_out = _paired(lhs, rhs)
    zero = [seed for seed in sorted(lhs.keys() & rhs.keys()) if 0 in (lhs[seed], rhs[seed])]
    if zero and all(map(math.isfinite, [*lhs.values(), *rhs.values()])):  # an error counted on few images can be 0
        sentence = f"A value of 0 was measured at {_seeds(zero)}, and no ratio can be formed with it."
        return cannot_judge(Reason.UNDERPOWERED, sentence, len(pairs))

    def logs() -> list[float]:
        return [math.log(a) - math.log(b) for a, b in pairs]

    unfit = _unfit(lhs, rhs, n=len(pairs), estimate=lambda: math.exp(average(logs())), aside=left_out)
    if unfit:
        return unfit
    scale = max(1.0, *(abs(math.log(x)) for pair in pairs for x in pair))
    test = interval_test(logs(), low=math.log(claimed - margin), high=math.log(claimed + margin), scale=scale)
    effect = test.mean_over_spread
    test = replace(test, estimate=math.exp(test.estimate), low=math.exp(test.low), high=math.exp(test.high))
    what = f"The mean ratio of left to right over {len(pairs)} paired seeds"
    region = f"{_show(claimed)} ± {_show(margin)}"
    return _conclude(test, what=what, region=region, effect=effect, aside=left_out)


def as_trend(verdict: Verdict, where: str) -> Verdict:
    """The most that a run other than the paper's own may say; `where` it differs: "at laptop scale on digits"."""
    trend = {
        Outcome.REPRODUCED: Outcome.TREND,
        Outcome.BETTER: Outcome.TREND,
        Outcome.NOT_REPRODUCED: Outcome.NO_TREND,
    }.get(verdict.outcome)
    if trend is None:
        return verdict
    verb = "supports" if trend is Outcome.TREND else "speaks against"
    said = verdict.sentence.removesuffix(".")
    sentence = f"{said}; {where}, this {verb} the trend only."
    return replace(verdict, outcome=trend, sentence=sentence)


def cannot_judge(reason: Reason, sentence: str, n: int = 0) -> Verdict:
    """The verdict on a claim that no numbers, or not these, can settle."""
    return Verdict(Outcome.CANNOT_JUDGE, reason, None, None, None, None, None, n, sentence)


def _conclude(
    test: IntervalTest,
    *,
    what: str,
    region: str,
    unit: str = "",
    effect: float | None = None,
    aside: str = "",
    below: Outcome = Outcome.NOT_REPRODUCED,
) -> Verdict:
    """Turn a test into a verdict with its sentence; `below` is what an interval below the region means."""
    result = f"{what} is {_rounded(test.estimate)}{unit}"
    if test.p_value is None:
        result += ", the same at every seed"
        inside, outside = "it lies there", "it does not lie there"
    else:
        result += f" (90 % interval {_rounded(test.low)} to {_rounded(test.high)}{unit})"
        inside, outside = "the whole interval lies there", f"the whole interval lies {test.place} that"
    reason = None
    if test.place == "inside":
        outcome, why = Outcome.REPRODUCED, inside
    elif test.place == "across":
        outcome, reason = Outcome.CANNOT_JUDGE, Reason.UNDERPOWERED
        more = f"about {test.enough} seeds" if test.enough else f"not even {MAX_SUGGESTED_SEEDS} seeds"
        why = f"the interval lies partly elsewhere; with this spread {more} would probably be enough"
    else:
        outcome = below if test.place == "below" else Outcome.NOT_REPRODUCED
        why = outside
    sentence = f"{result}; claimed is {region}, and {why}{aside}."
    return Verdict(
        outcome, reason, test.estimate, (test.low, test.high), LEVEL, test.p_value, effect, test.n, sentence
    )


def _unfit(
    *sides: Mapping[int, float], n: int, estimate: Callable[[], float | None], aside: str = ""
) -> Verdict | None:
    """The verdict on values that no test may be run on, if they are such.

    `n` is the number of values, or of pairs. A run that diverged counts, also where it has no partner.
    """
    names = [""] if len(sides) == 1 else [" on the left", " on the right"]
    for name, values in zip(names, sides, strict=True):
        if not values:
            raise ValueError(f"no values to judge{name}: give at least one seed's")
    bad = [
        f"seed {seed}{name} gave {value}"
        for name, values in zip(names, sides, strict=True)
        for seed, value in sorted(values.items())
        if not math.isfinite(value)
    ]
    if bad:
        sentence = f"Every run counts, and {_listed(bad)}, so there is no estimate to compare with the claim."
        return cannot_judge(Reason.DID_NOT_CONVERGE, sentence, n)
    if n >= MIN_SEEDS:
        return None
    found = {0: "No seed is", 1: "Only 1 seed is"}.get(n, f"Only {n} seeds are")
    sentence = f"{found} there to compare, and fewer than {MIN_SEEDS} say too little about the spread"
    verdict = cannot_judge(Reason.UNDERPOWERED, f"{sentence}{aside}.", n)
    return replace(verdict, measured=estimate() if n else None)


def _paired(lhs: Mapping[int, float], rhs: Mapping[int, float]) -> tuple[list[tuple[float, float]], str]:
    """The values of the seeds in common, and the end of a sentence that names the seeds left out."""
    pairs = [(lhs[seed], rhs[seed]) for seed in sorted(lhs.keys() & rhs.keys())]
    single = [
        f"{_seeds(seeds)} only on the {side}"
        for side, seeds in (("left", lhs.keys() - rhs.keys()), ("right", rhs.keys() - lhs.keys()))
        if seeds
    ]
    return pairs, f" (left out: {_listed(single)})" if single else ""


def _require_number(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")


def _require_margin(margin: float, *, above_zero: bool = False) -> None:
    if not math.isfinite(margin) or margin < 0 or (above_zero and margin == 0):
        wanted = "above zero" if above_zero else "zero or above"
        raise ValueError(f"this claim needs a finite margin {wanted}, not {margin}")


def _is_number(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _matches(ours: object, theirs: object, *, margin: float) -> bool:
    """Numbers agree within the margin, sequences if all their elements are equal, anything else if equal."""
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(
            _matches(a, b, margin=0.0) for a, b in zip(ours, theirs, strict=True)
        )
    if not (_is_number(ours) and _is_number(theirs)):
        return ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)
    if isinstance(ours, Integral) and isinstance(theirs, Integral):
        return abs(int(ours) - int(theirs)) <= margin
    a, b = float(ours), float(theirs)
    if math.isnan(a) or math.isnan(b):
        raise ValueError("NaN agrees with nothing: it can be neither claimed nor measured exactly")
    # 8.8 is within 0.05 of 8.75, though not in binary
    return a == b or abs(a - b) <= margin + ROUNDING * max(abs(a), abs(b))


def _compares(ours: object, op: str, theirs: object) -> bool:
    """Whether one number lies where `op` says of the other."""
    if not (_is_number(ours) and _is_number(theirs)):
        raise ValueError(f"{op!r} compares numbers, not {_show(ours)} and {_show(theirs)}")
    a, b = float(ours), float(theirs)
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[op]


def _half_digit(value: object, *, whole: bool) -> float:
    """Half of the last digit that a number shows: 0.05 of 8.7. A whole number is exact, or if `whole` shows its
    digits up to the last that is not zero."""
    text = _show(value)
    if "." in text and "e" not in text:
        return 0.5 * 10.0 ** -len(text.partition(".")[2])
    zeros = len(text) - len(text.replace(",", "").rstrip("0")) - text.count(",")
    return 0.5 * 10.0**zeros if whole else 0.0


def _shown(value: object) -> str:
    """A measured value: a ratio to six digits, anything else whole."""
    if _is_number(value) and not isinstance(value, Integral) and not float(value).is_integer():
        return f"{float(value):,.6g}"
    return _show(value)


def _describe_estimate(statistic: str, noun: str, values: Mapping[int, float]) -> str:
    """What an estimate is of, in words."""
    if statistic == "mean":
        return f"The mean {noun} of {len(values)} seeds"
    return f"The {noun} to expect of the {statistic} runs, estimated from {len(values)} seeds,"


def _rounded(value: float) -> str:
    """A measured number to four significant digits, without powers of ten where they can be avoided."""
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        return f"{value:.3g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _show(value: object) -> str:
    """A declared value as declared: nothing rounded, thousands marked."""
    if _is_number(value):
        return f"{int(value):,}" if isinstance(value, Integral) else f"{float(value) + 0.0:,.15g}"  # no "-0"
    return str(tuple(value)) if isinstance(value, list | tuple) else repr(value)


def _seeds(seeds: Iterable[int]) -> str:
    names = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' if len(names) > 1 else ''} {_listed(names)}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
