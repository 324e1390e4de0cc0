"""A cluster of its own for the tests: a home, Ray nodes, launches of small real runs, and what happens to them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster import launches
from pipeline.cluster.launches import Launch, LaunchTerms
from pipeline.cluster.local_head import ray_environment
from pipeline.common.paths import ROOT
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import NO_DATA_FOLDER, smoke_run, smoke_task

PATIENCE = 120.0  # seconds that anything may take on a busy machine


class Place:
    """One home and the processes that were started for it; `end` ends these and no others."""

    def __init__(self, home: Path, monkeypatch: Any) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        self.env |= {
            "REPRO_HOME": str(home),
            "REPRO_DATA": str(NO_DATA_FOLDER.resolve()),
            "REPRO_CHECKPOINT_SECONDS": "0.5",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        home.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("REPRO_HOME", str(home))

    def repro(self, *words: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """A command in a process of its own; what it says goes to a file."""
        file = self.home / f"{words[0]}-{len(self.processes)}.out"
        with file.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *map(str, words)],
                env=self.env | dict(env or {}),
                cwd=self.home,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process.said = file  # type: ignore[attr-defined]
        self.processes.append(process)
        return process

    def head(self, cpus: int = 2) -> subprocess.Popen[bytes]:
        """The first node; returns once it takes jobs."""
        node = self.repro("node", "--head", "--cpus", cpus, "--grace", 30)
        until(lambda: (self.home / "cluster" / "node.json").is_file() or node.poll() is not None, "the head is up")
        assert node.poll() is None, said(node)
        return node

    def gcs(self) -> str:
        """Where the head listens for other nodes."""
        return str(json.loads((self.home / "cluster" / "node.json").read_text(encoding="utf-8"))["gcs"])

    def launch(self, tasks: Sequence[Task], **terms: Any) -> Launch:
        """A launch of these tasks, written down; nobody carries it out yet."""
        return launches.create_launch("a test", ROOT, LaunchTerms(**({"devices": 1} | terms)), tuple(tasks))

    def carry(self, *given: Launch) -> subprocess.Popen[bytes]:
        """What a job does: hand launches to the supervisor and follow them."""
        inside = ray_environment(self.home / "cluster" / "token") | {
            "RAY_ADDRESS": self.gcs(),
            "REPRO_INSIDE": "1",
        }
        return self.repro("carry", *(one.id for one in given), env=inside)

    def end(self) -> None:
        """SIGTERM to all that was started here, then SIGKILL to what is left of it."""
        with suppress(OSError, ValueError):  # a head behind the terminal, which a command has started
            about = json.loads((self.home / "cluster" / "node.json").read_text(encoding="utf-8"))
            behind = psutil.Process(about["pid"])
            behind.terminate()
            behind.wait(40)
        trees = [tree(process.pid) for process in self.processes]
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)
        for one in {one for each in trees for one in each}:
            with suppress(psutil.Error):
                one.kill()


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


def said(process: Any) -> str:
    """What a process of `Place.repro` has printed."""
    return str(process.said.read_text(encoding="utf-8", errors="replace"))


def until(true: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> float:
    """Wait for it; seconds that it took."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def small(seed: int = 0, steps: int = 200) -> Task:
    """A run of seconds, of the launch's home."""
    run = smoke_run(seed=seed, changes={"train.steps": steps, "train.eval_every": 50, "train.log_every": 10})
    return smoke_task(Path(os.environ["REPRO_HOME"]) / "runs", run)


def step_of(task: Task) -> int:
    """The update that a run has reached, as it says itself."""
    return int(RunFolder(task.folder).read_progress().get("step", 0))


def log_of(task: Task) -> str:
    """A run's log."""
    with suppress(OSError):
        return RunFolder(task.folder).log_file.read_text(encoding="utf-8")
    return ""


def trainer_of(task: Task) -> int:
    """The process that trains a run (of several, the first rank)."""
    return int(RunFolder(task.folder).read_progress()["pid"])
