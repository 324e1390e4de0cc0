"""state.json of each cluster: its supervisor's report on devices, launches and runs, written every second."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cluster.token import cluster_folder, clusters_folder
from pipeline.common.files import file_system_time, write_atomically

STALE_SECONDS = 15.0  # age after which a report no longer shows that the supervisor is alive

STATE_ORDER = ("running", "waiting")  # of two reports on a run, the one whose state comes first counts


def state_file() -> Path:
    """Return the path of the report of this process's cluster."""
    return cluster_folder() / "state.json"


def write_supervisor_state(state: Mapping[str, Any]) -> None:
    """Write a report, with the current time."""
    write_atomically(state_file(), json.dumps({"time": time.time(), **state}))


def read_report(path: Path) -> dict[str, Any]:
    """Return a report; {} if there is none or it is damaged."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return state if isinstance(state, dict) and isinstance(state.get("time"), int | float) else {}
    except (OSError, ValueError):
        return {}


def read_reports() -> dict[str, dict[str, Any]]:
    """Return the last report of each cluster by its name, that of this process's cluster first.

    Each has its "age" in seconds by the clock of the file system, since its supervisor may run on another machine.
    """
    own, now = state_file(), file_system_time(clusters_folder())
    reports = {}
    for path in sorted(clusters_folder().glob("*/state.json"), key=lambda path: (path != own, path)):
        with suppress(OSError):  # removed by its head at this moment
            age = max(0.0, now - path.stat().st_mtime)
            if report := read_report(path):
                reports[path.parent.name] = report | {"age": age}
    return reports


def own_report_age() -> float | None:
    """Return the seconds since the last report of this process's cluster; None if there is none."""
    try:
        return file_system_time(clusters_folder()) - state_file().stat().st_mtime
    except OSError:
        return None


def live_reports() -> dict[str, dict[str, Any]]:
    """Return the reports of the supervisors that run, as `read_reports`."""
    return {name: report for name, report in read_reports().items() if report["age"] <= STALE_SECONDS}


def read_supervisor_state() -> dict[str, Any]:
    """Return the reports of all clusters as one; the last report if no supervisor runs, {} if there is none."""
    reports = list(read_reports().values())
    live = [report for report in reports if report["age"] <= STALE_SECONDS]
    if not live:
        return min(reports, key=lambda report: float(report["age"]), default={})
    return merge_reports(live) if len(live) > 1 else live[0]


def merge_reports(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return several reports as one: the devices of all clusters of the first one's kind, and the runs of all."""
    runs: dict[str, dict[str, Any]] = {}
    for report in reports:
        for identity, run in (report.get("runs") or {}).items():
            if identity not in runs or state_rank(run) < state_rank(runs[identity]):
                runs[identity] = run
    devices = [report["devices"] for report in reports if report.get("devices")]
    alike = [one for one in devices if one["kind"] == devices[0]["kind"]]
    counted = [name for name in ("all", "free", "requested") if any(name in one for one in alike)]
    counts = {name: sum(one.get(name, 0) for one in alike) for name in counted}
    return {
        **reports[0],
        "time": max(report["time"] for report in reports),
        "age": min(report["age"] for report in reports),
        "devices": alike[0] | counts if alike else {},
        "runs": runs,
        "launches": [launch for report in reports for launch in report.get("launches", [])],
        "trouble": next((report["trouble"] for report in reports if report.get("trouble")), ""),
    }


def state_rank(run: Mapping[str, Any]) -> int:
    """Return the position of a run's state in STATE_ORDER."""
    state = run.get("state")
    return STATE_ORDER.index(state) if state in STATE_ORDER else len(STATE_ORDER)


def supervisor_is_alive() -> bool:
    """Return whether the supervisor of this process's cluster runs."""
    return cluster_folder().name in live_reports()


def launches_elsewhere() -> frozenset[str]:
    """Return the ids of the launches that running supervisors of other clusters have open."""
    own = cluster_folder().name
    return frozenset(
        launch for name, report in live_reports().items() if name != own for launch in report.get("launches", [])
    )
