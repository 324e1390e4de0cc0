"""Compare exact numbers, shapes and settings with the claimed ones, without statistics. Pure."""

import math
from numbers import Integral
from typing import Literal

from pipeline.judge.statistics import ROUNDING
from pipeline.judge.verdict import Outcome, Verdict
from pipeline.judge.wording import is_real, require_margin, show_value


def judge_exact(
    measured: object,
    *,
    claimed: object,
    margin: float = 0.0,
    corrected: object = None,
    op: Literal["=", "<", ">", "<=", ">="] = "=",
    recipe: bool = False,
    found: str = "We measure",
) -> Verdict:
    """Judge an exact number, shape or, with `recipe`, a setting of the recipe.

    `margin` is inclusive, in the unit of the number. Anything but a number must be equal; a list equals a tuple of
    the same elements. `corrected` is the value that the source should have printed, if it is wrong. With an `op`
    other than "=" the claim is that the measured number is below or above the claimed one. `found` is the start of
    the sentence, before the measured value.

    Raises ValueError for a margin below zero, a NaN, and an `op` that does not fit the values.
    """
    require_margin(margin)
    if op == "=" and corrected is not None and _matches(claimed, corrected, margin=0.0):
        raise ValueError(f"the correction {show_value(corrected)} equals the claimed value; leave it out")
    as_claimed = _matches(measured, claimed, margin=margin) if op == "=" else _compares(measured, op, claimed)
    # The measured value has more digits than a correction and must agree to the digits of the correction.
    shown = _half_digit(corrected, whole=bool(margin)) if is_real(corrected) else 0.0
    loose = min(margin, shown) if margin else shown
    as_corrected = corrected is not None and _matches(measured, corrected, margin=loose)
    agrees, differs = (Outcome.FOLLOWED, Outcome.DEPARTS) if recipe else (Outcome.CONFIRMED, Outcome.NOT_CONFIRMED)
    within = f" ± {show_value(margin)}" if margin else ""
    side = {"=": "", "<": "less than ", ">": "more than ", "<=": "at most ", ">=": "at least "}[op]
    ours, claim = f"{found} {_show_measured(measured)}", f"the claimed {side}{show_value(claimed)}{within}"
    if as_claimed:
        outcome, sentence = agrees, f"{ours}, which agrees with {claim}"
        if as_corrected:
            sentence += f" and also with the correction {show_value(corrected)}, so it shows no erratum"
        elif corrected is not None:
            sentence += f", so the declared correction {show_value(corrected)} is wrong"
    elif as_corrected:
        outcome = Outcome.ERRATUM
        sentence = f"{ours}, which agrees with the correction {show_value(corrected)} and not with {claim}"
    else:
        outcome, sentence = differs, f"{ours}, which does not agree with {claim}"
        if corrected is not None:
            sentence += f" or with the correction {show_value(corrected)}"
    number = float(measured) if is_real(measured) else None
    return Verdict(outcome, None, number, None, None, None, None, 0, sentence + ".")


def _matches(left: object, right: object, *, margin: float) -> bool:
    """Return True for numbers within the margin, sequences of equal elements, and any other equal values."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(
            _matches(a, b, margin=0.0) for a, b in zip(left, right, strict=True)
        )
    if not (is_real(left) and is_real(right)):
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
    if not (is_real(left) and is_real(right)):
        raise ValueError(f"{op!r} compares numbers, not {show_value(left)} and {show_value(right)}")
    a, b = float(left), float(right)
    return {"<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[op]


def _half_digit(value: object, *, whole: bool) -> float:
    """Return half of a number's last printed digit: 0.05 for 8.7.

    A whole number is exact, unless `whole`: then its last digit other than zero counts.
    """
    text = show_value(value)
    if "." in text and "e" not in text:
        return 0.5 * 10.0 ** -len(text.partition(".")[2])
    zeros = len(text) - len(text.replace(",", "").rstrip("0")) - text.count(",")
    return 0.5 * 10.0**zeros if whole else 0.0


def _show_measured(value: object) -> str:
    """Return a measured value as text; a number that is not whole to six significant digits."""
    if is_real(value) and not isinstance(value, Integral) and not float(value).is_integer():
        return f"{float(value):,.6g}"
    return show_value(value)
