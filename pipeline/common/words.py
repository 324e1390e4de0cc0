"""Numbers, durations and errors as text."""


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
