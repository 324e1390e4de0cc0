"""Suggestions for error messages about unknown names."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return the end of an error message: "; did you mean 'X'?", or `otherwise` if no name is close.

    The default of `otherwise` lists all names: "; known: A, B".
    """
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names) or 'none'}" if otherwise is None else otherwise
