"""Suggestions for error messages about unknown names."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str]) -> str:
    """Return the end of an error message: "; did you mean 'X'?", or "; known: A, B" if no name is close."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"
