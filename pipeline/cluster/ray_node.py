"""Ray's processes of one node, as child processes of `repro node`: start, supervision and shutdown."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster import launches, ports
from pipeline.cluster.autoscale import AUTOSCALED_VARIABLE, AutoscaledKind
from pipeline.cluster.local_head import ClusterAddress, absolute_folders, idle_shutdown, ray_environment
from pipeline.cluster.processes import DRAIN_POLL_SECONDS, NODE_VARIABLE, is_alive, prctl, training_pids
from pipeline.cluster.state_file import own_report_age
from pipeline.cluster.token import CLUSTER_VARIABLE, COPY_TOKEN, cluster_name
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.common.words import plural

READY_SECONDS = 240.0  # limit for Ray's start; it takes 10 s on two cores, and minutes where they are busy

ENDING_SECONDS = (5.0, 3.0, 5.0)  # limits for Ray's own shutdown, after SIGTERM, and after SIGKILL

LOG_FLUSH_SECONDS = 1.0  # for the supervisor to log the end of the last trainings

TREE_SECONDS = 1.0  # interval of listing the descendant processes

AUDIT_SECONDS = 30.0  # interval of listing the listening sockets

SLOW_START = "timed out during startup"  # in Ray's log where a node registers later than Ray's own limit of 30 s

SUPERVISED_SECONDS = 60.0  # age of state.json after which no supervisor needs the node

OBJECT_STORE = 256 * 2**20  # bytes; tasks and results are small, images never pass through the object store

# Ray's processes and the trainings ignore SIGINT, which a batch system may send to all processes of a node.
RAY_COMMAND = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path.append(sys.argv.pop(1));"
    " from ray.scripts.scripts import main; main()"
)

START_HOOK = "pipeline.cluster.ray_node.on_ray_start"

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # options of prctl(2)


def print_line(text: str) -> None:
    """Print a line on standard output and flush it."""
    print(text, flush=True)


def on_ray_start(params: Any, head: bool) -> None:
    """Adjust Ray's start parameters; called by Ray through RAY_START_HOOK."""
    params.ray_client_server_port = None  # do not start the Ray Client server, which nothing here uses
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # Ray shuts down when `repro node` dies, for whatever reason


class SlowStartError(Exception):
    """Ray's processes took longer to start than Ray allows."""


class RayNode:
    """The processes of one Ray node: `ray start` and all its descendants."""

    def __init__(self, folder: Path, token: Path, loopback_only: bool) -> None:
        self.folder, self.token, self.loopback_only = folder, token, loopback_only
        self.log = folder / "ray.log"
        self.root: subprocess.Popen[bytes] | None = None  # `ray start`
        self.draining: subprocess.Popen[bytes] | None = None  # `ray drain-node`
        self.vital: dict[str, psutil.Process] = {}  # the node cannot work without them
        self.seen: set[psutil.Process] = set()
        self.others = set(psutil.Process().children(recursive=True))  # children that belong to the caller
        self.environment: dict[str, str] = {}
        self.reported_sockets: set[ports.ListeningSocket] = set()
        self.gcs = ""  # address of GCS, as Ray writes it
        self.is_head = False
        (folder / "training").mkdir()
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans among Ray's processes stay descendants of this process

    # Start

    def start(
        self,
        address: str | None,
        listen: str,
        cpus: int | None,
        gpus: int | None,
        stop_signals: Callable[[], int],
        autoscaled: AutoscaledKind | None = None,
    ) -> ClusterAddress | None:
        """Start a cluster, or join the one at `address`; None if a stop signal arrives during the start."""
        ray_variables = ray_environment(self.token, loopback=self.loopback_only)
        node_variables = {NODE_VARIABLE: str(self.folder), CLUSTER_VARIABLE: cluster_name()}
        node_variables |= {"RAY_START_HOOK": START_HOOK, "PYTHONUNBUFFERED": "1"}
        self.environment = os.environ | absolute_folders() | ray_variables | node_variables
        self.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # `drain` has waited already
        self.environment.pop("RAY_ADDRESS", None)
        if autoscaled:  # the supervisor runs on this node
            self.environment[AUTOSCALED_VARIABLE] = autoscaled
        interpreter_folder = str(Path(sys.executable).parent)  # so that "python" in jobs is this interpreter
        path = filter(None, [interpreter_folder, self.environment.get("PATH")])
        self.environment["PATH"] = os.pathsep.join(path)
        options = [
            f"--temp-dir={self.folder / 'ray'}",
            f"--object-store-memory={OBJECT_STORE}",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
            '--resources={"TPU": 0}',  # no look-up of a TPU's type in the cloud's metadata
            *([f"--num-cpus={cpus}"] if cpus is not None else []),
            *([f"--num-gpus={gpus}"] if gpus is not None else []),
        ]
        if self.loopback_only:
            options += ["--min-worker-port=0", "--max-worker-port=0"]
        elif listen not in ("0.0.0.0", "::"):
            options.append(f"--node-ip-address={listen}")
        deadline = time.monotonic() + READY_SECONDS
        if address:
            return self.retry_start([*options, f"--address={self.ray_address(address)}"], stop_signals, deadline)
        self.is_head = True
        for retry in (False, True):
            gcs, dashboard = ports.choose_ports(listen, loopback_only=self.loopback_only, retry=retry)
            head = ["--head", f"--port={gcs}", "--include-dashboard=true"]
            head += ["--no-monitor"] if autoscaled else []  # the autoscaler outside replaces it
            head += [f"--dashboard-host={listen}", f"--dashboard-port={dashboard}"]
            try:
                cluster = self.retry_start([*options, *head], stop_signals, deadline)
            except ports.PortTakenError:
                continue
            for line in ports.moved_port_lines(gcs, dashboard) if cluster else []:
                print_line(line)
            return cluster
        raise UserError("other programs took the cluster's ports while it started; try again")

    def ray_address(self, address: str) -> str:
        """Return the address in a form that a joining Ray node accepts."""
        if not self.loopback_only:
            return address
        # Ray replaces "127.0.0.1" and "localhost" by this machine's address in the local network, on which a head
        # that listens on loopback does not respond. It resolves the name in capitals like any other host name.
        self.environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # with it, Ray refuses to join a cluster
        return f"LOCALHOST:{address.rpartition(':')[2]}"

    def retry_start(
        self, options: list[str], stop_signals: Callable[[], int], deadline: float
    ) -> ClusterAddress | None:
        """Run `ray start`, again where this machine was too busy for Ray's own limit; errors as `try_start`."""
        while True:
            try:
                return self.try_start(options, stop_signals, deadline)
            except SlowStartError:
                print_line("Ray did not start within its own limit of 30 s; starting it again.")

    def try_start(
        self, options: list[str], stop_signals: Callable[[], int], deadline: float
    ) -> ClusterAddress | None:
        """Run `ray start` once; SlowStartError, PortTakenError or UserError where it fails.

        `deadline`: of time.monotonic(), after which it has failed.
        """
        self.root = self.run_ray(self.log.name, "start", "--block", *options)
        ready_file = self.folder / "ray" / "ray_current_cluster"
        while not ready_file.exists() or not ready_file.read_text(encoding="utf-8"):
            if stop_signals():
                return None
            if self.root.poll() is not None:
                self.end()
                raise self.start_error()
            if time.monotonic() > deadline:
                raise UserError(f"Ray was not ready after {READY_SECONDS:.0f} s (log: {self.log})")
            time.sleep(DRAIN_POLL_SECONDS)
        vital = ("raylet", "gcs_server")
        self.vital = {process.name(): process for process in self.descendants() if process.name() in vital}
        self.gcs = ready_file.read_text(encoding="utf-8").strip()
        return ClusterAddress(self.gcs, self.dashboard(), str(self.token), os.getpid())

    def run_ray(self, log: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """Run the `ray` command with this code on its import path, for the start hook; log its output."""
        with (self.folder / log).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", RAY_COMMAND, str(ROOT), *arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal must not reach Ray
            )

    def dashboard(self) -> str:
        """Return the dashboard's URL from Ray's log; "" on a node that joined a cluster."""
        match = re.search(r"RAY_API_SERVER_ADDRESS='(http://[^']+)'", self.log.read_text(errors="replace"))
        return match[1] if match else ""

    def start_error(self) -> Exception:
        """Return why Ray did not start, from its log."""
        log = self.log.read_text(encoding="utf-8", errors="replace")
        (self.folder / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        if self.is_head and re.search(r"already occupied|ddress already in use", log):
            return ports.PortTakenError()
        if SLOW_START in log:
            return SlowStartError()
        if re.search(r"nauthenticated|InvalidAuthToken|uthentication", log):
            return UserError(
                f"the cluster does not accept the token in {self.token}; {COPY_TOKEN}, or set"
                " RAY_AUTH_TOKEN_PATH to a copy"
            )
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        return UserError(f"Ray did not start: {(lines or ['no output'])[-1]} (log: {self.log})")

    # Supervision

    def descendants(self) -> list[psutil.Process]:
        """Return the node's live processes; reap its zombies."""
        own = {popen.pid for popen in (self.root, self.draining) if popen and popen.poll() is None}
        children = set(psutil.Process().children(recursive=True)) - self.others
        for child in children:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if child.status() == psutil.STATUS_ZOMBIE and child.ppid() == os.getpid() and child.pid not in own:
                    os.waitpid(child.pid, os.WNOHANG)
        self.seen = {process for process in self.seen | children if is_alive(process)}
        return sorted(self.seen, key=lambda process: process.pid)

    def dead_processes(self) -> str:
        """Return the names of the vital Ray processes that have ended; "" if all run."""
        dead = [name for name, process in self.vital.items() if not is_alive(process)]
        if self.root is None or self.root.poll() is not None:
            dead.append("ray start")
        return ", ".join(dead)

    def watch(
        self, stop_signals: Callable[[], int], until_idle: float | None, is_replaced: Callable[[], bool]
    ) -> int:
        """Wait until the node should end.

        Return 0 on a stop signal or after `until_idle` idle seconds, 1 if Ray died or another head has replaced
        this one.
        """
        listed = busy = audited = time.monotonic()
        while not stop_signals():
            time.sleep(DRAIN_POLL_SECONDS)
            dead, now = self.dead_processes(), time.monotonic()
            if dead:
                logs = self.folder / "ray" / "session_latest" / "logs"
                print_line(f"Ray ended unexpectedly ({dead}); this node ends too. Logs: {logs}")
                return 1
            if is_replaced():
                print_line(
                    f"This head was cut off from REPRO_HOME, and another head of the cluster {cluster_name()!r}"
                    " has replaced it; this node ends."
                )
                return 1
            if now - listed < TREE_SECONDS:
                continue
            listed, alive = now, self.descendants()
            if self.loopback_only and now - audited >= AUDIT_SECONDS:
                audited = now
                for listening in self.new_reachable_sockets(alive):
                    endpoint = ports.format_endpoint(listening)
                    print_line(f"Warning: reachable from other machines: {listening.role} at {endpoint}")
            if until_idle is not None:
                if self.is_needed():
                    busy = now
                elif now - busy >= until_idle and idle_shutdown(until_idle):
                    print_line(f"Idle for {until_idle:.0f} s; shutting down.")
                    return 0
        return 0

    def new_reachable_sockets(self, processes: Sequence[psutil.Process]) -> list[ports.ListeningSocket]:
        """Return the sockets of these processes that other machines can reach, each only once."""
        reachable = ports.reachable_sockets(ports.listening_sockets(process.pid for process in processes))
        new = [listening for listening in reachable if listening not in self.reported_sockets]
        self.reported_sockets |= set(new)
        return new

    def is_needed(self) -> bool:
        """Return whether a supervisor runs an unfinished launch, or a process trains on this node."""
        if training_pids(self.folder):
            return True
        if all(map(launches.is_over, launches.launch_ids())):
            return False
        age = own_report_age()  # a live supervisor reports every second
        return age is not None and age < SUPERVISED_SECONDS

    # Shutdown

    def drain(self, grace: float, stop_signals: Callable[[], int]) -> None:
        """Stop the training on this node; wait for its checkpoints `grace` seconds, or until another signal."""
        (self.folder / "leaving").touch()
        if not training_pids(self.folder):
            return
        self.report_drain(grace)
        runs = plural(len(training_pids(self.folder)), "run")
        print_line(f"Shutting down: waiting up to {grace:.0f} s for the checkpoints of {runs}.")
        signals, deadline = stop_signals(), time.monotonic() + grace
        while training_pids(self.folder):
            if time.monotonic() > deadline or stop_signals() > signals:
                runs = plural(len(training_pids(self.folder)), "run")
                print_line(f"No longer waiting for {runs}; each resumes from its last checkpoint.")
                return
            self.descendants()
            time.sleep(DRAIN_POLL_SECONDS)
        time.sleep(LOG_FLUSH_SECONDS)

    def report_drain(self, grace: float) -> None:
        """Ask the cluster to schedule nothing new here; where that fails, the "leaving" file stops what starts."""
        port_files = self.folder.glob("ray/session_latest/metrics_agent_port_*")
        ids = [path.name.rpartition("_")[2] for path in port_files]
        if not ids:
            return
        node = ["--address", self.gcs, "--node-id", ids[0]]
        deadline = ["--deadline-remaining-seconds", str(max(1, round(grace)))]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "shutdown requested"]
        self.draining = self.run_ray("drain.log", "drain-node", *node, *deadline, *reason)

    def end(self) -> str:
        """End all processes of the node, with SIGKILL if needed; return the names and pids of any that remain."""
        if self.root and self.root.poll() is None:
            self.root.terminate()
        for seconds, number in zip(ENDING_SECONDS, (None, signal.SIGTERM, signal.SIGKILL), strict=True):
            alive, deadline = self.descendants(), time.monotonic() + seconds
            for process in alive if number else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            while alive and time.monotonic() < deadline:
                time.sleep(0.1)
                alive = self.descendants()
            if not alive:
                break
        return ", ".join(f"{process.name()} ({process.pid})" for process in alive)
