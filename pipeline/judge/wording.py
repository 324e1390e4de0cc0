"""Numbers, seeds and lists as text, and checks of numbers, for the sentences of verdicts. Pure."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TypeGuard


def is_real(value: object) -> TypeGuard[Real]:
    """Return True for numbers, but not for True and False."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_number(name: str, value: float) -> None:
    """Raise ValueError if a number is not finite."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")


def require_margin(margin: float, *, above_zero: bool = False) -> None:
    """Raise ValueError for a margin that is not finite, below zero or, with `above_zero`, zero."""
    if not math.isfinite(margin) or margin < 0 or (above_zero and margin == 0):
        wanted = "> 0" if above_zero else ">= 0"
        raise ValueError(f"margin must be a finite number {wanted}, not {margin}")


def rounded(value: float) -> str:
    """Return a measured number to four significant digits, without an exponent if possible."""
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        return f"{value:.3g}"
    decimals = max(0, 3 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def show_value(value: object) -> str:
    """Return a declared value as text: not rounded, with thousands separators."""
    if is_real(value):
        return f"{int(value):,}" if isinstance(value, Integral) else f"{float(value) + 0.0:,.15g}"  # no "-0"
    return str(tuple(value)) if isinstance(value, list | tuple) else repr(value)


def name_seeds(seeds: Iterable[int]) -> str:
    """Return "seed 1", "seeds 1, 2 and 3"."""
    names = [str(seed) for seed in sorted(seeds)]
    return f"seed{'s' if len(names) > 1 else ''} {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
