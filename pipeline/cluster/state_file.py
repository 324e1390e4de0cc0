"""cluster/state.json under REPRO_HOME: the supervisor's report on devices and runs, written every second."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cluster.token import cluster_folder
from pipeline.common.files import write_atomically

STALE_SECONDS = 15.0  # age after which a report no longer shows that the supervisor is alive


def state_file() -> Path:
    """Return the path of the report."""
    return cluster_folder() / "state.json"


def write_supervisor_state(state: Mapping[str, Any]) -> None:
    """Write a report, with the current time."""
    write_atomically(state_file(), json.dumps({"time": time.time(), **state}))


def read_supervisor_state() -> dict[str, Any]:
    """Return the last report; {} if there is none or it is damaged."""
    try:
        state = json.loads(state_file().read_text(encoding="utf-8"))
        return state if isinstance(state, dict) else {}
    except (OSError, ValueError):
        return {}


def supervisor_is_alive() -> bool:
    """Return whether a supervisor runs, on this machine or on another one that shares REPRO_HOME."""
    written: float = read_supervisor_state().get("time", -STALE_SECONDS)
    return time.time() - written <= STALE_SECONDS
