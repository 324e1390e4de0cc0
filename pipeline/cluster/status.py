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
from pipeline.cluster.launch import resume_step
from pipeline.common.errors import UserError
from pipeline.common.paths import home, runs_folder
from pipeline.track.record import FINISHED
from pipeline.track.run_folder import RunFolder

STALE_SECONDS = 15.0  # seconds after which the supervisor's last word is no longer believed

HEARTBEAT_LIMIT = 15.0  # and a run's own last word

ENDED_SHOWN = 3  # launches that are over

MIN_IDENTITY_DIGITS = 4  # digits of an identity that name a run

MAX_LISTED_RUNS = 5  # runs that a text may mean

STAMP = len("2026-11-23 18:52:04")

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
    """A run or step, as a launch's file has it."""

    identity: str
    experiment: str
    scale: str
    variant: str
    seed: int
    steps: int  # 0 for work that has none
    batch_size: int
    needs: tuple[str, ...]

    @property
    def title(self) -> str:
        """'resnet-20 seed 0'."""
        return f"{self.variant} seed {self.seed}"

    @property
    def of(self) -> str:
        """'resnet/cifar10_depth@laptop'."""
        return f"{self.experiment}@{self.scale}"


@dataclass(frozen=True)
class LaunchOutline:
    """A launch, as its file has it; without checking every recipe again, of which there may be ten thousand."""

    id: str
    words: str
    by: str
    created: str
    code: str
    terms: Mapping[str, Any]
    runs: tuple[LaunchedRun, ...]


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    identity: str
    title: str
    of: str  # experiment@scale
    state: RunStatusName
    why: str = ""
    step: int = 0
    steps: int = 0
    images_per_second: float = 0.0
    seconds_left: float | None = None
    node: str = ""
    attempt: int = 1
    since: str = ""


@dataclass(frozen=True)
class LaunchStatus:
    """How a launch stands."""

    id: str
    words: str
    by: str
    created: str
    over: bool
    counts: Mapping[str, int]  # of its runs, by state
    devices: int  # of each run
    spent: float  # device hours
    budget: float | None
    max_concurrent: int | None = None


@dataclass(frozen=True)
class ClusterStatus:
    """All there is to see."""

    time: float
    home: str
    heard: float | None  # seconds since the supervisor's last word; None: never
    alive: bool  # that word is to be believed
    cluster: bool  # a cluster of this home runs on this machine
    dashboard: str
    devices: Mapping[str, Any]
    trouble: str
    launches: list[LaunchStatus]  # unfinished ones, then the newest of the others
    earlier: int  # launches not listed
    runs: list[RunStatus]  # of the unfinished launches
    damaged: list[str] = field(default_factory=list)  # launches whose files cannot be read, a sentence each

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ClusterStatus":
        """From `to_dict`'s."""
        summaries = [LaunchStatus(**one) for one in raw["launches"]]
        return cls(**{**raw, "launches": summaries, "runs": [RunStatus(**one) for one in raw["runs"]]})


class StatusReader:
    """Reads the home; remembers what never changes again, for one who looks every second."""

    def __init__(self) -> None:
        self._outlines: dict[str, LaunchOutline] = {}
        self._ended: dict[str, tuple[RunStatusName, str]] = {}  # identity -> what its result says
        self.damaged: dict[str, str] = {}  # launch -> why its file cannot be read, of those looked at last

    def names(self) -> list[str]:
        """Ids of all launches, first come first."""
        return sorted(path.stem for path in launches.launches_folder().glob("*.json"))

    def outline(self, name: str) -> LaunchOutline:
        """A launch by its id; UserError for one whose file cannot be read."""
        if name not in self._outlines:
            path = launches.launches_folder() / f"{name}.json"
            with launches.explain_read_errors(path):
                raw = json.loads(path.read_text(encoding="utf-8"))
                runs = tuple(parse_launched_run(task) for task in raw["tasks"])
                datetime.fromisoformat(raw["created"])
                terms = {"devices": raw["terms"]["devices"], **raw["terms"]}
                self._outlines[name] = LaunchOutline(
                    raw["id"], raw["words"], raw["by"], raw["created"], raw["code"], terms, runs
                )
        return self._outlines[name]

    def outlines(self, names: Iterable[str]) -> list[LaunchOutline]:
        """Those of these launches that can be read; `damaged` says which cannot, and why."""
        found, self.damaged = [], {}
        for name in names:
            try:
                found.append(self.outline(name))
            except UserError as error:
                self.damaged[name] = str(error)
        return found

    def all(self) -> list[LaunchOutline]:
        """All launches that can be read."""
        return self.outlines(self.names())

    def open(self) -> list[LaunchOutline]:
        """Those of them that are not over."""
        return self.outlines(name for name in self.names() if not launches.is_over(name))

    def status(self) -> ClusterStatus:
        """Everything, as it is now."""
        from pipeline.cluster import local_head

        now = time.time()
        said = read_supervisor_state()
        heard = max(0.0, now - said["time"]) if "time" in said else None
        alive = heard is not None and heard <= STALE_SECONDS
        cluster = local_head.find_local_cluster()
        names = self.names()
        over = [name for name in names if launches.is_over(name)]
        unfinished = [name for name in names if name not in set(over)]
        newest = over[-ENDED_SHOWN:]
        readable = {one.id for one in self.outlines([*unfinished, *newest])}
        seen: dict[str, RunStatus] = {}
        summaries = [self._summary(n, said, seen, now, alive=alive) for n in unfinished if n in readable]
        ended = [self._summary(n, said, {}, now, alive=alive) for n in newest if n in readable]
        return ClusterStatus(
            time=now,
            home=str(home()),
            heard=heard,
            alive=alive,
            cluster=cluster is not None,
            dashboard=str(said.get("dashboard") or (cluster.dashboard if cluster else "")),
            devices=dict(said.get("devices") or {}) if alive else {},
            trouble=str(said.get("trouble") or "") if alive else "",
            launches=summaries + ended,
            earlier=len(over) - len(newest),
            runs=list(seen.values()),
            damaged=list(self.damaged.values()),
        )

    def _summary(
        self, name: str, said: Mapping[str, Any], seen: dict[str, RunStatus], now: float, *, alive: bool
    ) -> LaunchStatus:
        one = self.outline(name)
        heard = said.get("runs") or {} if alive else {}
        states = [self.run_status(run, heard.get(run.identity) or {}, now, alive=alive) for run in one.runs]
        for run in states:
            seen.setdefault(run.identity, run)
        return LaunchStatus(
            id=one.id,
            words=one.words,
            by=one.by,
            created=one.created,
            over=launches.is_over(name),
            counts=dict(Counter(run.state for run in states)),
            devices=one.terms["devices"],
            spent=launches.hours_used(name),
            budget=one.terms.get("max_device_hours"),
            max_concurrent=one.terms.get("max_concurrent"),
        )

    def run_status(self, run: LaunchedRun, said: Mapping[str, Any], now: float, *, alive: bool) -> RunStatus:
        """How a run stands; `said` is what a supervisor that is alive says of it."""
        seen = RunStatus(run.identity, run.title, run.of, "waiting" if alive else "not begun", steps=run.steps)
        if run.identity not in self._ended:
            place = runs_folder() / run.identity
            try:
                files = set(os.listdir(place))  # noqa: PTH208 - names alone, of thousands of folders
            except OSError:
                files = set()
            if "result.json" not in files:
                return self._look_inside(seen, run, files, said, now, alive=alive)
            self._ended[run.identity] = result_status(place)
        state, why = self._ended[run.identity]
        return replace(seen, state=state, why=why, step=run.steps)

    def _look_inside(
        self,
        seen: RunStatus,
        run: LaunchedRun,
        files: set[str],
        said: Mapping[str, Any],
        now: float,
        *,
        alive: bool,
    ) -> RunStatus:
        """How a run stands that has no result, and these files."""
        folder = RunFolder(runs_folder() / run.identity)
        running = said.get("state") == "running"
        at = folder.read_progress() if "progress.json" in files else {}
        if not alive and at:  # trained without a supervisor, by `repro run`
            with suppress(OSError):
                running = now - (folder.path / "progress.json").stat().st_mtime <= HEARTBEAT_LIMIT
        left = folder.unfinished() if "left.json" in files and not running else {}
        step = int(at.get("step", 0)) if running else resume_step(folder) if "checkpoints" in files else 0
        seen = replace(seen, step=step, attempt=int(said.get("attempt") or 1), why=str(said.get("why") or ""))
        if running:
            speed = float(at.get("images_per_second") or 0.0)
            seconds = (run.steps - step) * run.batch_size / speed if speed > 0 else None
            why = f"asked to stop: {folder.stop_reason()}" if "stop" in files else ""
            node = str(said.get("node") or at.get("host") or "")
            since = str(said.get("since") or "")
            return replace(
                seen,
                state="training",
                images_per_second=speed,
                seconds_left=seconds,
                node=node,
                since=since,
                why=why,
            )
        if left:
            return replace(seen, state=left["why"], why=left["text"])
        if said.get("state") in ("failed", "cancelled", "over-budget"):  # its folder will say so in a moment
            return replace(seen, state=said["state"])
        if "stop" in files:
            return replace(seen, why=f"asked to stop: {folder.stop_reason()}")
        if step and not alive:
            return replace(seen, state="stopped", why=f"at step {step:,} of {run.steps:,}")
        return seen


def parse_launched_run(task: Mapping[str, Any]) -> LaunchedRun:
    """A run or step of a launch's file."""
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


def read_supervisor_state() -> dict[str, Any]:
    """The supervisor's last word; {} if there is none."""
    try:
        said = json.loads((home() / "cluster" / "state.json").read_text(encoding="utf-8"))
        return said if isinstance(said, dict) else {}
    except (OSError, ValueError):
        return {}


def supervisor_is_alive() -> bool:
    """Whether a supervisor is at work, here or on another machine that shares the home."""
    return time.time() - read_supervisor_state().get("time", -STALE_SECONDS) <= STALE_SECONDS


def result_status(place: Path) -> tuple[RunStatusName, str]:
    """What the result of a run says; read without the checks of a Record, since there may be thousands."""
    try:
        raw = json.loads((place / "result.json").read_text(encoding="utf-8"))
        test = raw["metrics"].get("test/top1_error_pct")
        told = raw["ended"] if test is None else f"test error {test:.2f} %"
        return ("finished", told) if raw["status"] == FINISHED else ("did not converge", raw["ended"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # one run's trouble, not that of all
        return (
            "failed",
            f"{place / 'result.json'} is not a run's record; move its folder away, and launch it again",
        )


def find_run(text: str, outlines: Sequence[LaunchOutline]) -> LaunchedRun:
    """The run that `text` names: its identity's beginning, 'resnet-20 seed 0' or 'resnet-20/0'.

    Of runs that differ in nothing but their code or data, the last one launched. UserError for none, or several.
    """
    text = " ".join(text.split())
    found: dict[str, LaunchedRun] = {}
    for one in outlines:
        for run in one.runs:
            by_name = text in (run.title, f"{run.variant}/{run.seed}")
            if by_name or (len(text) >= MIN_IDENTITY_DIGITS and run.identity.startswith(text)):
                found.pop(run.identity, None)
                found[run.identity] = run
    newest = list({(run.of, run.title): run for run in found.values()}.values())
    if not newest:
        known = list(dict.fromkeys(f"{run.variant}/{run.seed}" for one in outlines for run in one.runs))
        near = difflib.get_close_matches(text, known, n=1) or known[:1]
        like = f"; runs are called as in {near[0]!r}" if near else ", and none at all"
        raise UserError(f"there is no launched run {text!r}{like}")
    if len(newest) > 1:
        listed = " or ".join(f"{run.identity[:8]} ({run.of}, {run.title})" for run in newest[:MAX_LISTED_RUNS])
        others = f" or one of {len(newest) - MAX_LISTED_RUNS:,} more" if len(newest) > MAX_LISTED_RUNS else ""
        raise UserError(f"{text!r} may be {listed}{others}; give the digits of the one that is meant")
    return newest[0]


def run_history(identity: str) -> list[str]:
    """What happened to a run and what it measured, in the order of time: a line each, beginning with the time."""
    folder = RunFolder(runs_folder() / identity)
    lines: list[str] = []
    with suppress(OSError):
        lines = folder.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    measured = []
    for entry, _ in folder.journal():
        stamp = datetime.fromtimestamp(entry["time"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        numbers = ", ".join(f"{name} {value:.6g}" for name, value in sorted(entry["metrics"].items()))
        measured.append(f"{stamp} step {entry['step']:,}: {numbers}")
    # of one second, what was measured comes first: a run that has just measured something ends, and not before
    return list(heapq.merge(measured, lines, key=lambda line: line[:STAMP]))


def run_outcome(identity: str) -> str:
    """How a run ended or why it was left, in a sentence; "" for one that goes on."""
    folder = RunFolder(runs_folder() / identity)
    if folder.result_file.is_file():
        state, told = result_status(folder.path)
        return f"{state}: {told}" if told else state
    left = folder.unfinished()
    return f"{left['why']}: {left['text']}" if left else ""
