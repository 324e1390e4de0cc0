"""A cluster for tests: a REPRO_HOME, Ray nodes as processes, and launches of small smoke runs."""

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
import pytest

from pipeline.cluster import launches
from pipeline.cluster.launches import Launch, LaunchTerms
from pipeline.cluster.local_head import ray_environment
from pipeline.cluster.token import cluster_name
from pipeline.common.paths import ROOT
from pipeline.plan.task import Task
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import NO_DATA_FOLDER, smoke_run, smoke_task

TIMEOUT = 300.0  # limit of `wait_until` in seconds, on a busy machine
ENDING = 600.0  # limit for the end of a process in seconds, such as a command that follows a launch
CLUSTER_VARIABLES = ("REPRO_CLUSTER", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "REPRO_NODE", "RAY_ADDRESS")


def cluster_files(home: Path) -> Path:
    """Return the folder under a REPRO_HOME with the files of the cluster that the tests start."""
    return home / "cluster" / cluster_name()


class ClusterHome:
    """A REPRO_HOME and the processes started for it; `end` ends these and no others."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []
        self.outputs: dict[int, Path] = {}  # by pid
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

    def repro(self, *argv: object, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a `repro` command; its output goes to a file."""
        file = self.home / f"{argv[0]}-{len(self.processes)}.out"
        with file.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *map(str, argv)],
                env=self.env | dict(env or {}),
                cwd=self.home,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.outputs[process.pid] = file
        self.processes.append(process)
        return process

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """Return the output of a process of `repro`."""
        return self.outputs[process.pid].read_text(encoding="utf-8", errors="replace")

    def head(self, cpus: int = 2, *options: object) -> subprocess.Popen[bytes]:
        """Start a head, with more options of `repro node`, and return it once it accepts jobs."""
        node = self.repro("node", "--head", "--cpus", cpus, "--grace", 30, *options)
        node_file = cluster_files(self.home) / "node.json"
        wait_until(lambda: node_file.is_file() or node.poll() is not None, "the head is ready")
        assert node.poll() is None, self.output(node)
        return node

    def gcs(self) -> str:
        """Return the address that other nodes join."""
        return str(json.loads((cluster_files(self.home) / "node.json").read_text(encoding="utf-8"))["gcs"])

    def launch(self, tasks: Sequence[Task], **terms: Any) -> Launch:
        """Create a launch of these tasks, without running it."""
        return launches.create_launch("a test", ROOT, LaunchTerms(**({"devices": 1} | terms)), tuple(tasks))

    def run(self, *selected: Launch) -> subprocess.Popen[bytes]:
        """Start the command of a cluster job: pass launches to the supervisor and follow them."""
        env = ray_environment(cluster_files(self.home) / "token") | {
            "RAY_ADDRESS": self.gcs(),
            "REPRO_INSIDE": "1",
        }
        return self.repro("carry", *(launch.id for launch in selected), env=env)

    def end(self) -> None:
        """Send SIGTERM to all processes of the cluster, and SIGKILL to those that remain."""
        with suppress(OSError, ValueError, psutil.NoSuchProcess):  # a background head, started by a command
            content = json.loads((cluster_files(self.home) / "node.json").read_text(encoding="utf-8"))
            background_head = psutil.Process(content["pid"])
            background_head.terminate()
            background_head.wait(40)
        trees = [process_tree(process.pid) for process in self.processes]
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(40)
        for member in {member for tree in trees for member in tree}:
            with suppress(psutil.Error):
                member.kill()


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], Any], description: str, *, seconds: float = TIMEOUT) -> float:
    """Wait for a condition and return the seconds it took; AssertionError after `seconds`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds:g} s: {description}")
        time.sleep(0.05)
    return time.monotonic() - start


def small_task(seed: int = 0, steps: int = 200) -> Task:
    """Return a task that trains for some seconds, with its run folder under REPRO_HOME."""
    run = smoke_run(seed=seed, changes={"train.steps": steps, "train.eval_every": 50, "train.log_every": 10})
    return smoke_task(Path(os.environ["REPRO_HOME"]) / "runs", run)


def current_step(task: Task) -> int:
    """Return the step of a run's last progress report."""
    return int(RunFolder(task.folder).read_progress().get("step", 0))


def run_log(task: Task) -> str:
    """Return a run's log."""
    with suppress(OSError):
        return RunFolder(task.folder).log_file.read_text(encoding="utf-8")
    return ""


def training_pid(task: Task) -> int:
    """Return the pid of the process that trains a run, the first rank of several."""
    return int(RunFolder(task.folder).read_progress()["pid"])
