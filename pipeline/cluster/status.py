"""Read the status of launches and runs from the files under REPRO_HOME."""

import difflib
import heapq
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.cluster import launches
from pipeline.cluster.state_file import STALE_SECONDS, read_supervisor_state
from pipeline.common.errors import UserError
from pipeline.common.files import file_system_time
from pipeline.common.paths import home, runs_folder
from pipeline.plan.expand import run_title
from pipeline.track.record import FINISHED
from pipeline.track.run_folder import RunFolder

HEARTBEAT_LIMIT = 15.0  # seconds; age of progress.json after which a run without a supervisor no longer trains

ENDED_SHOWN = 3  # newest ended launches shown

MIN_IDENTITY_DIGITS = 4  # leading digits of an identity that select a run

MAX_LISTED_RUNS = 5  # runs listed for an ambiguous name

STAMP = len("2026-11-23 18:52:04")  # length of the time at the start of a log line

RunStatusName = Literal[
    "finished",
    "did not converge",
    "training",
    "waiting",
    "not begun",
    "stopped",
    "failed",
    "cancelled",
    "over-budget",
]

RUN_STATUS_NAMES: tuple[RunStatusName, ...] = get_args(RunStatusName)

NEEDS_ATTENTION: tuple[RunStatusName, ...] = ("failed", "did not converge", "over-budget", "cancelled", "stopped")


@dataclass(frozen=True)
class LaunchedRun:
    """A run or derived run of a launch file."""

    identity: str
    experiment: str
    scale: str
    variant: str
    seed: int
    steps: int  # optimizer steps, 0 for a derived run
    batch_size: int
    needs: tuple[str, ...]

    @property
    def title(self) -> str:
        """'resnet-20 seed 0'."""
        return run_title(self.variant, self.seed)

    @property
    def of(self) -> str:
        """'resnet/cifar10_depth@laptop'."""
        return f"{self.experiment}@{self.scale}"


@dataclass(frozen=True)
class LaunchOutline:
    """A launch file without its recipes: parsing ten thousand recipes would take too long."""

    id: str
    words: str
    by: str
    created: str
    code: str
    terms: Mapping[str, Any]
    runs: tuple[LaunchedRun, ...]


@dataclass(frozen=True)
class RunStatus:
    """The status of a run. The fields are keys of `repro status --json`."""

    identity: str
    title: str
    of: str  # experiment@scale
    state: RunStatusName
    why: str = ""  # reason or details
    step: int = 0
    steps: int = 0
    images_per_second: float = 0.0
    seconds_left: float | None = None
    node: str = ""  # host name
    attempt: int = 1
    since: str = ""  # start of the attempt: UTC, ISO 8601


@dataclass(frozen=True)
class LaunchStatus:
    """The status of a launch. The fields are keys of `repro status --json`."""

    id: str
    words: str  # title
    by: str  # user@host
    created: str  # UTC, ISO 8601
    over: bool
    counts: Mapping[str, int]  # runs by state
    devices: int  # per run
    spent: float  # device hours
    budget: float | None  # device hours
    max_concurrent: int | None = None
    runs_per_device: int = 1


@dataclass(frozen=True)
class ClusterStatus:
    """The status of the cluster, its launches and runs. The fields are the keys of `repro status --json`."""

    time: float  # Unix time
    home: str  # REPRO_HOME
    heard: float | None  # seconds since the supervisor's last report; None: no report
    alive: bool  # that report is recent
    cluster: bool  # a cluster of this REPRO_HOME runs on this machine
    dashboard: str  # URL
    devices: Mapping[
        str, Any
    ]  # {"all", "free", "kind"}, "requested" with an autoscaler; {} without a live supervisor
    trouble: str  # errors of the supervisor
    launches: list[LaunchStatus]  # unfinished ones, then the newest of the others
    earlier: int  # number of launches that are not listed
    runs: list[RunStatus]  # of the unfinished launches
    damaged: list[str] = field(default_factory=list)  # a message for each unreadable launch file

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ClusterStatus":
        """Return the status that `to_dict` described."""
        statuses = [LaunchStatus(**launch) for launch in raw["launches"]]
        return cls(**{**raw, "launches": statuses, "runs": [RunStatus(**run) for run in raw["runs"]]})


class StatusReader:
    """Reads the status from REPRO_HOME; caches launch files and results, for a caller that reads every second."""

    def __init__(self) -> None:
        self._outlines: dict[str, LaunchOutline] = {}
        self._ended: dict[str, tuple[RunStatusName, str]] = {}  # identity -> state and details from the result
        self.damaged: dict[str, str] = {}  # launch id -> error, of the launches read last

    def outline(self, launch_id: str) -> LaunchOutline:
        """Return a launch by its id; UserError for an unreadable file."""
        if launch_id not in self._outlines:
            path = launches.launch_file(launch_id)
            with launches.explain_read_errors(path):
                raw = json.loads(path.read_text(encoding="utf-8"))
                runs = tuple(parse_launched_run(task) for task in raw["tasks"])
                datetime.fromisoformat(raw["created"])
                terms = {"devices": raw["terms"]["devices"], **raw["terms"]}
                self._outlines[launch_id] = LaunchOutline(
                    raw["id"], raw["words"], raw["by"], raw["created"], raw["code"], terms, runs
                )
        return self._outlines[launch_id]

    def outlines(self, launch_ids: Iterable[str]) -> list[LaunchOutline]:
        """Return the readable ones of these launches; the others are in `damaged` afterwards."""
        found, self.damaged = [], {}
        for launch_id in launch_ids:
            try:
                found.append(self.outline(launch_id))
            except UserError as error:
                self.damaged[launch_id] = str(error)
        return found

    def all(self) -> list[LaunchOutline]:
        """Return all readable launches, oldest first."""
        return self.outlines(launches.launch_ids())

    def unfinished(self) -> list[LaunchOutline]:
        """Return the readable launches that have not ended, oldest first."""
        return self.outlines(launch_id for launch_id in launches.launch_ids() if not launches.is_over(launch_id))

    def status(self) -> ClusterStatus:
        """Return the status of the cluster, its launches and runs."""
        from pipeline.cluster import local_head

        state = read_supervisor_state()
        heard = float(state["age"]) if state else None
        alive = heard is not None and heard <= STALE_SECONDS
        now = file_system_time(home())
        cluster = local_head.find_local_cluster()
        launch_ids = launches.launch_ids()
        over = [launch_id for launch_id in launch_ids if launches.is_over(launch_id)]
        unfinished = [launch_id for launch_id in launch_ids if launch_id not in set(over)]
        newest = over[-ENDED_SHOWN:]
        readable = {outline.id for outline in self.outlines([*unfinished, *newest])}
        runs: dict[str, RunStatus] = {}
        statuses = [self._launch_status(n, state, runs, now, alive=alive) for n in unfinished if n in readable]
        ended = [self._launch_status(n, state, {}, now, alive=alive) for n in newest if n in readable]
        return ClusterStatus(
            time=time.time(),
            home=str(home()),
            heard=heard,
            alive=alive,
            cluster=cluster is not None,
            dashboard=str(state.get("dashboard") or (cluster.dashboard if cluster else "")),
            devices=dict(state.get("devices") or {}) if alive else {},
            trouble=str(state.get("trouble") or "") if alive else "",
            launches=statuses + ended,
            earlier=len(over) - len(newest),
            runs=list(runs.values()),
            damaged=list(self.damaged.values()),
        )

    def _launch_status(
        self,
        launch_id: str,
        state: Mapping[str, Any],
        runs: dict[str, RunStatus],
        now: float,
        *,
        alive: bool,
    ) -> LaunchStatus:
        """Return a launch's status, and add the status of its runs to `runs`."""
        outline = self.outline(launch_id)
        reported = state.get("runs") or {} if alive else {}
        statuses = [
            self.run_status(run, reported.get(run.identity) or {}, now, alive=alive) for run in outline.runs
        ]
        for status in statuses:
            runs.setdefault(status.identity, status)
        return LaunchStatus(
            id=outline.id,
            words=outline.words,
            by=outline.by,
            created=outline.created,
            over=launches.is_over(launch_id),
            counts=dict(Counter(status.state for status in statuses)),
            devices=outline.terms["devices"],
            spent=launches.hours_used(launch_id),
            budget=outline.terms.get("max_device_hours"),
            max_concurrent=outline.terms.get("max_concurrent"),
            runs_per_device=outline.terms.get("runs_per_device", 1),
        )

    def run_status(self, run: LaunchedRun, report: Mapping[str, Any], now: float, *, alive: bool) -> RunStatus:
        """Return a run's status; `report`: its entry in the report of a live supervisor."""
        status = RunStatus(run.identity, run.title, run.of, "waiting" if alive else "not begun", steps=run.steps)
        if run.identity not in self._ended:
            folder = runs_folder() / run.identity
            try:
                files = set(os.listdir(folder))  # noqa: PTH208 - faster than iterdir for thousands of folders
            except OSError:
                files = set()
            if "result.json" not in files:
                return self._unfinished_status(status, run, files, report, now, alive=alive)
            self._ended[run.identity] = result_status(folder)
        state, why = self._ended[run.identity]
        return replace(status, state=state, why=why, step=run.steps)

    def _unfinished_status(
        self,
        status: RunStatus,
        run: LaunchedRun,
        files: set[str],
        report: Mapping[str, Any],
        now: float,
        *,
        alive: bool,
    ) -> RunStatus:
        """Return the status of a run without a result; `files`: the names in its folder."""
        folder = RunFolder(runs_folder() / run.identity)
        running = report.get("state") == "running"
        progress = folder.read_progress() if "progress.json" in files else {}
        if not alive and progress:  # `repro run` may train it, without a supervisor
            with suppress(OSError):
                running = now - (folder.path / "progress.json").stat().st_mtime <= HEARTBEAT_LIMIT
        left = folder.unfinished() if "left.json" in files and not running else {}
        checkpoint = folder.last_step() if "checkpoints" in files and not running else 0
        step = int(progress.get("step", 0)) if running else checkpoint
        status = replace(
            status, step=step, attempt=int(report.get("attempt") or 1), why=str(report.get("why") or "")
        )
        if running:
            speed = float(progress.get("images_per_second") or 0.0)
            seconds = (run.steps - step) * run.batch_size / speed if speed > 0 else None
            return replace(
                status,
                state="training",
                images_per_second=speed,
                seconds_left=seconds,
                node=str(report.get("node") or progress.get("host") or ""),
                since=str(report.get("since") or ""),
                why=f"stop requested: {folder.stop_reason()}" if "stop" in files else "",
            )
        if left:
            return replace(status, state=left["why"], why=left["text"])
        if report.get("state") in ("failed", "cancelled", "over-budget"):  # the folder will show it in a moment
            return replace(status, state=report["state"])
        if "stop" in files:
            return replace(status, why=f"stop requested: {folder.stop_reason()}")
        if step and not alive:
            return replace(status, state="stopped", why=f"at step {step:,} of {run.steps:,}")
        return status


def parse_launched_run(task: Mapping[str, Any]) -> LaunchedRun:
    """Return a run or derived run from a task of a launch file."""
    run = task["run"]
    train = (run.get("recipe") or {}).get("train") or {}
    return LaunchedRun(
        task["identity"],
        run["experiment"],
        run["scale"],
        run["variant"],
        run["seed"],
        train.get("steps", 0),
        train.get("batch_size", 0),
        tuple(task.get("needs", ())),
    )


def result_status(folder: Path) -> tuple[RunStatusName, str]:
    """Return state and details of a run's result; without the checks of a Record, as there may be thousands."""
    try:
        raw = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        error = raw["metrics"].get("test/top1_error_pct")
        details = raw["ended"] if error is None else f"test error {error:.2f} %"
        return ("finished", details) if raw["status"] == FINISHED else ("did not converge", raw["ended"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (
            "failed",
            f"{folder / 'result.json'} is not a run's record; move its folder away and launch the run again",
        )


def find_run(name: str, outlines: Sequence[LaunchOutline]) -> LaunchedRun:
    """Return the run with a name: the first digits of its identity, 'resnet-20 seed 0' or 'resnet-20/0'.

    Of runs that differ only in code or data, the one launched last. UserError for no match, or several.
    """
    name = " ".join(name.split())
    found: dict[str, LaunchedRun] = {}
    for outline in outlines:
        for run in outline.runs:
            has_name = name in (run.title, f"{run.variant}/{run.seed}")
            if has_name or (len(name) >= MIN_IDENTITY_DIGITS and run.identity.startswith(name)):
                found.pop(run.identity, None)
                found[run.identity] = run
    newest = list({(run.of, run.title): run for run in found.values()}.values())
    if not newest:
        known = list(dict.fromkeys(f"{run.variant}/{run.seed}" for outline in outlines for run in outline.runs))
        similar = difflib.get_close_matches(name, known, n=1) or known[:1]
        hint = f"; use VARIANT/SEED, as in {similar[0]!r}" if similar else "; no runs have been launched"
        raise UserError(f"no launched run {name!r}{hint}")
    if len(newest) > 1:
        listed = " or ".join(f"{run.identity[:8]} ({run.of}, {run.title})" for run in newest[:MAX_LISTED_RUNS])
        others = f" or one of {len(newest) - MAX_LISTED_RUNS:,} more" if len(newest) > MAX_LISTED_RUNS else ""
        raise UserError(f"{name!r} is ambiguous: {listed}{others}; use the digits instead")
    return newest[0]


def run_history(identity: str) -> list[str]:
    """Return a run's log and measurements in order of time, one line each that begins with the time (UTC)."""
    folder = RunFolder(runs_folder() / identity)
    lines: list[str] = []
    with suppress(OSError):
        lines = folder.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    measured = []
    for entry, _ in folder.journal():
        stamp = datetime.fromtimestamp(entry["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        numbers = ", ".join(f"{name} {value:.6g}" for name, value in sorted(entry["metrics"].items()))
        measured.append(f"{stamp} step {entry['step']:,}: {numbers}")
    # Within the same second measurements come first: a run ends right after its last measurement.
    return list(heapq.merge(measured, lines, key=lambda line: line[:STAMP]))


def run_outcome(identity: str) -> str:
    """Return how a run ended or why it was left unfinished; "" for a run that continues."""
    folder = RunFolder(runs_folder() / identity)
    if folder.result_file.is_file():
        state, details = result_status(folder.path)
        return f"{state}: {details}" if details else state
    left = folder.unfinished()
    return f"{left['why']}: {left['text']}" if left else ""
