"""Count the work of a function, where a measured time would depend on the machine."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def count_calls(function: Callable[..., Any], *args: Any) -> int:
    """Return how many functions `function(*args)` calls, those of Python and those written in C."""
    calls = 0

    def profile(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    earlier = sys.getprofile()
    sys.setprofile(profile)
    try:
        function(*args)
    finally:
        sys.setprofile(earlier)
    return calls
