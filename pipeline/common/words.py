"""Numbers, durations, errors and paths as text."""

import os
from collections.abc import Sequence


def plural(number: float, noun: str) -> str:
    """Return a count with its noun: '1 run', '2,000 runs', '2.5 hours'."""
    text = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{text} {noun}" if number == 1 else f"{text} {noun}s"


def duration(seconds: float) -> str:
    """Return a rounded duration with its unit: '40 s', '12 min', '3.4 h', '1,240 h'."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "1 s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 359_000 else f"{seconds / 3600:,.0f} h"


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of an error's message, at most `limit` characters."""
    return (str(error).strip() or repr(error)).splitlines()[0][:limit]


def printable(path: str) -> str:
    """Return a path on one line; bytes that are not printable text become U+FFFD."""
    text = os.fsencode(path).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def some_of(items: Sequence[str], limit: int = 3) -> str:
    """Return the first items and the number of the others: "a, b, c and 12 more"."""
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more:,} more" if more > 0 else "")
