"""The Ray head of this machine: its address in node.json, and its start in the background."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import Timeout

from pipeline.cluster.head_lock import heartbeat_file
from pipeline.cluster.ports import host_addresses, is_loopback
from pipeline.cluster.processes import DRAIN_POLL_SECONDS, is_same_process
from pipeline.cluster.token import cluster_folder, clusters_folder, token_path
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import file_system_time, write_atomically
from pipeline.common.locks import file_lock
from pipeline.common.network import NO_STATISTICS
from pipeline.common.paths import ROOT, home
from pipeline.track.mlflow_reader import redact

START_SECONDS = 300.0  # limit for the start of a background head, more than for that of Ray

HEAD_VARIABLES = ("REPRO_SHARDS", "MLFLOW_TRACKING_URI")  # a head's runs use those with which it was started

IDLE_SECONDS = 600.0  # idle time after which a background head shuts down


@dataclass(frozen=True)
class ClusterAddress:
    """The addresses of a running cluster."""

    gcs: str  # "127.0.0.1:6379", for ray.init
    dashboard: str  # "http://127.0.0.1:8265", for the web pages and the job API
    token_file: str  # "" for a cluster without authentication
    pid: int = 0  # of the head's `repro node` process on this machine; 0: another machine


def ray_environment(token: Path | None, *, loopback: bool = True) -> dict[str, str]:
    """Return the environment variables of Ray's processes and clients.

    `loopback`: the cluster listens on 127.0.0.1 only. Ray would otherwise replace that by this machine's address
    in the local network.
    """
    variables = {
        **NO_STATISTICS,
        "RAY_BACKEND_LOG_LEVEL": "warning",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; the old one warns in every process
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # also limits how soon Ray Train detects a dead rank
    }
    if loopback:
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if token is not None:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_TOKEN": ""}
    return variables


def write_cluster_file(cluster: ClusterAddress) -> None:
    """Write the head's address, and its settings, to node.json."""
    content = asdict(cluster) | {"host": socket.gethostname(), "began": psutil.Process().create_time()}
    content["settings"] = head_settings()
    write_atomically(cluster_folder() / "node.json", json.dumps(content, indent=1))


def head_settings() -> dict[str, str]:
    """Return the HEAD_VARIABLES of this process, without passwords; "" for one that is not set."""
    return {name: redact(os.environ.get(name, "")) for name in HEAD_VARIABLES}


def kept_settings(cluster: ClusterAddress) -> str:
    """Return in one sentence which settings of a running head differ from those of this process, or ""."""
    try:
        settings = json.loads((cluster_folder() / "node.json").read_text(encoding="utf-8"))["settings"]
        own = head_settings()
        kept = [f"{name} {settings[name] or 'unset'}" for name in HEAD_VARIABLES if settings[name] != own[name]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not kept:
        return ""
    return (
        f"The Ray cluster that runs already was started with {' and '.join(kept)}, and keeps that; for the present"
        f" settings end it first: kill {cluster.pid}"
    )


def remove_cluster_file() -> None:
    """Remove node.json, and the state file of the supervisor that ended with the head.

    The files of another head, which has replaced this process's head, remain.
    """
    try:
        raw = json.loads((cluster_folder() / "node.json").read_text(encoding="utf-8"))
        if (raw["host"], raw["pid"]) != (socket.gethostname(), os.getpid()):
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    for name in ("node.json", "state.json"):
        (cluster_folder() / name).unlink(missing_ok=True)


def find_local_cluster() -> ClusterAddress | None:
    """Return the cluster of this REPRO_HOME if its head runs on this machine and responds."""
    try:
        raw = json.loads((cluster_folder() / "node.json").read_text(encoding="utf-8"))
        host, began = raw.pop("host"), raw.pop("began")
        raw.pop("settings", None)
        cluster = ClusterAddress(**raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if host != socket.gethostname() or not is_same_process(cluster.pid, began):
        return None
    return cluster if responds(cluster) else None


def head_token(host: str, port: int) -> Path:
    """Return the token file for the head at an address: RAY_AUTH_TOKEN_PATH, or that of its cluster in REPRO_HOME.

    Of clusters that had this address one after the other, the one whose head was alive last. Without a match, the
    token of this process's own cluster.
    """
    if os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return token_path()
    wanted, found = {*host_addresses(host)}, {}
    for path in clusters_folder().glob("*/node.json"):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            head, _, head_port = raw["gcs"].rpartition(":")
            is_here = raw["host"] == socket.gethostname()
            alive = max(file.stat().st_mtime for file in (path, heartbeat_file(path.parent)) if file.exists())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        addresses = {one for one in host_addresses(head.strip("[]")) if is_here or not is_loopback(one)}
        if head_port == str(port) and (raw["host"] == host or addresses & wanted):
            found[alive] = path.parent / "token"
    return found[max(found)] if found else token_path()


def responds(cluster: ClusterAddress) -> bool:
    """Return whether the cluster's dashboard responds and accepts the token."""
    request = urllib.request.Request(f"{cluster.dashboard}/api/version")
    if cluster.token_file:
        try:
            token = Path(cluster.token_file).read_text(encoding="utf-8").strip()
        except OSError:
            return False
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not see the token
    try:
        with opener.open(request, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def ensure_local_cluster(*, report: Callable[[str], None]) -> ClusterAddress:
    """Return this machine's cluster; start one in the background if none runs. It shuts down when idle."""
    with explain_write_errors(home()):
        cluster_folder().mkdir(parents=True, exist_ok=True)
        (cluster_folder() / "wanted").touch()
    with file_lock(cluster_folder() / "start.lock"):
        (cluster_folder() / "wanted").touch()
        running = find_local_cluster()
        if running:
            if kept := kept_settings(running):
                report(kept)
            return running
        report("Starting a Ray cluster on this machine.")
        return start_head()


background_heads: list[subprocess.Popen[bytes]] = []  # keeps the handles of heads, which outlive this process


def start_head() -> ClusterAddress:
    """Start a head in a session of its own and wait until it is ready; UserError where it does not start."""
    log = cluster_folder() / "node.log"
    command = [sys.executable, "-m", "pipeline.cli", "node", "--head", "--until-idle", str(IDLE_SECONDS)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,  # so that `-m pipeline.cli` finds this code
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
    timed_out = process.poll() is None
    if timed_out:
        process.terminate()
        process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = f"not ready after {START_SECONDS:.0f} s" if timed_out else (lines or ["no output"])[-1]
    raise UserError(f"cannot start a Ray cluster on this machine: {reason} (log: {log})")


def absolute_folders() -> dict[str, str]:
    """Return REPRO_HOME and REPRO_DATA as absolute paths, for a process with another working directory."""
    folders = {"REPRO_HOME": str(home())}
    if os.environ.get("REPRO_DATA"):
        folders["REPRO_DATA"] = str(Path(os.environ["REPRO_DATA"]).expanduser().absolute())
    return folders


def idle_shutdown(idle_seconds: float) -> bool:
    """Remove node.json and return True, unless a command used the cluster within `idle_seconds` or is about to."""
    try:
        with file_lock(cluster_folder() / "start.lock", timeout=0):
            try:
                wanted = (cluster_folder() / "wanted").stat().st_mtime
                if file_system_time(cluster_folder()) - wanted < idle_seconds:
                    return False
            except OSError:
                pass
            remove_cluster_file()
            return True
    except Timeout:
        return False
