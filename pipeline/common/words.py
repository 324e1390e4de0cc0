"""How numbers are said."""


def plural(number: float, noun: str) -> str:
    """'1 run', '2,000 runs', '2.5 hours'."""
    said = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{said} {noun}" if number == 1 else f"{said} {noun}s"


def duration(seconds: float) -> str:
    """'40 s', '12 min', '3.4 h', '1,240 h'."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 1 or not seconds else "1 s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 359_000 else f"{seconds / 3600:,.0f} h"


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of an error's message, at most `limit` characters."""
    return (str(error).strip() or repr(error)).splitlines()[0][:limit]
