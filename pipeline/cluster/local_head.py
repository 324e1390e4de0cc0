"""The Ray head of this machine, started in the background."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pipeline.cluster.processes import DRAIN_POLL_SECONDS, is_same_process
from pipeline.cluster.token import cluster_folder
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.paths import ROOT, home

START_SECONDS = 60.0  # for a head behind the terminal

IDLE_SECONDS = 600.0  # after which a head behind the terminal ends by itself


@dataclass(frozen=True)
class ClusterAddress:
    """How to reach a running cluster."""

    gcs: str  # "127.0.0.1:6379", for ray.init
    dashboard: str  # "http://127.0.0.1:8265", its pages and job API
    token_file: str  # "" where none is needed
    pid: int = 0  # of our node process on this machine; 0: elsewhere


def ray_environment(token: Path | None, *, loopback: bool = True) -> dict[str, str]:
    """What Ray's processes and clients need to find in their environment. `loopback`: of a cluster that listens on
    this machine alone, where Ray would otherwise take 127.0.0.1 for the address in the nearest network.
    """
    words = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "warning",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what comes next in Ray; the old way warns in every process
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # seconds; it also throttles how soon a death is noticed
    }
    if loopback:
        words["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token is not None:
        words |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": ""}
    return words


def find_local_cluster() -> ClusterAddress | None:
    """This home's cluster, if its head lives on this machine and answers."""
    try:
        raw = json.loads((cluster_folder() / "node.json").read_text(encoding="utf-8"))
        host, began = raw.pop("host"), raw.pop("began")
        cluster = ClusterAddress(**raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if host != socket.gethostname() or not is_same_process(cluster.pid, began):
        return None
    return cluster if responds(cluster) else None


def responds(cluster: ClusterAddress) -> bool:
    """Whether its dashboard lets us in."""
    request = urllib.request.Request(f"{cluster.dashboard}/api/version")
    if cluster.token_file:
        try:
            token = Path(cluster.token_file).read_text(encoding="utf-8").strip()
        except OSError:
            return False
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the token is for no proxy
    try:
        with directly.open(request, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def ensure_local_cluster(*, tell: Callable[[str], None]) -> ClusterAddress:
    """This machine's cluster, started behind the terminal if there is none; it ends itself when idle."""
    with explain_write_errors(home()):
        cluster_folder().mkdir(parents=True, exist_ok=True)
        (cluster_folder() / "wanted").touch()
    with FileLock(cluster_folder() / "start.lock"):
        (cluster_folder() / "wanted").touch()
        running = find_local_cluster()
        if running:
            return running
        tell("starting a Ray cluster on this machine")
        return start_head()


background_heads: list[subprocess.Popen[bytes]] = []  # heads started by this process; kept, since they outlive it


def start_head() -> ClusterAddress:
    """A new head in a session of its own, once it can be used."""
    log = cluster_folder() / "node.log"
    command = [sys.executable, "-m", "pipeline.cli", "node", "--head", "--until-idle", str(IDLE_SECONDS)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,  # where this code is
            env=os.environ | absolute_folders(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    background_heads.append(process)
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        cluster = find_local_cluster()
        if cluster and cluster.pid == process.pid:
            return cluster
        time.sleep(DRAIN_POLL_SECONDS)
    late = process.poll() is None
    if late:
        process.terminate()
        process.wait()
    said = [
        line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    why = f"it was not ready within {START_SECONDS:.0f} s" if late else (said or ["it said nothing"])[-1]
    raise UserError(f"no Ray cluster could be started on this machine: {why} (all that was said is in {log})")


def absolute_folders() -> dict[str, str]:
    """Our folders by their whole path, for a process that begins in another folder."""
    places = {"REPRO_HOME": str(home())}
    if os.environ.get("REPRO_DATA"):
        places["REPRO_DATA"] = str(Path(os.environ["REPRO_DATA"]).expanduser().absolute())
    return places
