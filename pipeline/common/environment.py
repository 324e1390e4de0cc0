"""Numbers read from the environment and from the machine."""

import math
import os

from pipeline.common.errors import UserError


def env_number(variable: str, otherwise: float) -> float:
    """The number from 0 on that a variable says, `otherwise` if it is not set; UserError where it says none."""
    said = os.environ.get(variable)
    if said is None:
        return otherwise
    try:
        number = float(said)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{variable} is {said!r}; a number from 0 on is needed")
    return number


def available_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
