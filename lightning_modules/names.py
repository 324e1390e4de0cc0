"""What to say about a wrong name, in one place."""

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[str]) -> str:
    """'; did you mean X?', or where nothing is near '; known: …': the end of a sentence about a wrong name."""
    names = sorted(known)
    close = difflib.get_close_matches(str(word), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names) or 'none'}"
