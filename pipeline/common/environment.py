"""Numbers read from environment variables, the number of CPUs, and the user's name."""

import getpass
import math
import os

from pipeline.common.errors import UserError


def env_number(variable: str, default: float, *, unit: str = "", below: float = math.inf) -> float:
    """Return the number in an environment variable, `default` if it is not set.

    `unit` ("seconds") is used in the error message. Raises UserError unless 0 <= number < `below`.
    """
    text = os.environ.get(variable)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < below:
        expected = f"a number of {unit} >= 0" if unit else "a number >= 0"
        limit = f" and < {below:g}" if below < math.inf else ""
        raise UserError(f"{variable} is {text!r}: must be {expected}{limit}")
    return number


def env_integer(variable: str, default: int, *, minimum: int = 0) -> int:
    """Return the integer in an environment variable, `default` if it is not set.

    Raises UserError unless it is written in decimal digits and is at least `minimum`.
    """
    text = os.environ.get(variable)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < minimum:
        raise UserError(f"{variable} is {text!r}: must be an integer >= {minimum}")
    return int(text)


def user_name() -> str:
    """Return the user's name; "uid 1000" for a user id without a name, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return f"uid {os.getuid()}"


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
