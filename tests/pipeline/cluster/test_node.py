"""`repro node` with a real Ray: arguments, authentication, listening sockets and shutdown."""

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from pipeline.cluster import head_lock, node, ports, token
from pipeline.cluster.local_head import ClusterAddress
from pipeline.cluster.ports import ListeningSocket, listening_sockets
from pipeline.cluster.processes import is_alive, training_pids
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from tests.support.clusters import CLUSTER_VARIABLES, ENDING, cluster_files, wait_until

RUN_NODE = """
import json, sys
from pipeline.cluster import node
from pipeline.common.errors import UserError
arguments = {"head": True, "address": None, "listen": "127.0.0.1"}
arguments |= {"cpus": 1, "gpus": 0, "grace": 20.0, "until_idle": None}
try:
    sys.exit(node.run_node(**{**arguments, **json.loads(sys.argv[1])}))
except UserError as error:
    sys.exit(f"error: {error}")
"""


# --- invalid arguments --------------------------------------------------------------------------------------


def refusal(**changes):
    """Return the message of the UserError that run_node raises."""
    arguments = {"head": True, "address": None, "listen": "127.0.0.1"}
    arguments |= {"cpus": 1, "gpus": 0, "grace": 1.0, "until_idle": None}
    with pytest.raises(UserError) as error:
        node.run_node(**arguments | changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_node_is_a_head_or_joins_one(cluster_home):
    expected = "use either --head, to start a cluster, or --address HOST:6379, to join one"
    assert refusal(address="127.0.0.1:1") == expected
    assert refusal(head=False) == expected


@pytest.mark.parametrize("address", ["10.0.0.1", ":6379", "10.0.0.1:x", "10.0.0.1:"])
def test_an_address_has_host_and_port(cluster_home, address):
    assert f"--address {address}: must be the head's HOST:PORT" in refusal(head=False, address=address)


def test_an_address_without_a_head_is_refused(cluster_home):
    port = ports.free_port()
    message = refusal(head=False, address=f"127.0.0.1:{port}")
    assert message.startswith(f"no head responds at 127.0.0.1:{port} (connection refused)")


def test_a_node_that_joins_another_machine_needs_an_address_to_listen_on(cluster_home, monkeypatch):
    class Connection(contextlib.nullcontext):
        def __enter__(self):
            return self

        def getsockname(self):
            return ("10.0.0.7", 51234)

    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: Connection())
    assert "for example --listen 10.0.0.7" in refusal(head=False, address="10.0.0.1:6379")


def test_a_node_that_joins_needs_the_heads_token_and_creates_none(cluster_home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        message = refusal(head=False, address=f"127.0.0.1:{server.getsockname()[1]}")
    assert "cannot read the cluster token" in message
    assert "copy cluster/NAME/token from the head's REPRO_HOME" in message
    assert list(token.cluster_folder().iterdir()) == []


def test_listen_refuses_an_address_of_another_machine(cluster_home):
    message = refusal(listen="192.0.2.200")  # RFC 5737: reserved for documentation
    assert message == "--listen 192.0.2.200: not an address of this machine; use one of its own, or 127.0.0.1"


def test_a_second_head_of_a_home_is_refused(write_node_file, dashboard):
    write_node_file()
    assert refusal() == (
        f"a cluster of this REPRO_HOME already runs at {dashboard} (process {os.getpid()}); use it, stop it with:"
        f" kill {os.getpid()}, or set REPRO_CLUSTER to another name for a second one"
    )


def test_a_second_head_is_refused_while_the_first_does_not_respond(cluster_home, monkeypatch):
    monkeypatch.setattr(head_lock, "HEAD_END_SECONDS", 0.1)
    with FileLock(token.cluster_folder() / "head.lock"):
        expected = f"another head of the cluster {token.cluster_name()!r} of REPRO_HOME {cluster_home} runs"
        assert refusal().startswith(expected)


# --- one head from start to shutdown ------------------------------------------------------------------------


@contextlib.contextmanager
def running_node(home, **arguments):
    """Run `repro node` in a process of its own within the block; at the end, kill it and its descendants."""
    for name in CLUSTER_VARIABLES:
        assert name not in os.environ
    cluster_files(home).mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"REPRO_HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "of another"}
    with (home / "output").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_NODE, json.dumps(arguments)],
            cwd=home,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for descendant in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        psutil.wait_procs(descendants, timeout=10)


def output(home):
    """Return the output of the node."""
    return (home / "output").read_text()


def wait_until_ready(process, home):
    """Wait until the node has printed its sockets."""
    last = "No socket is reachable"
    wait_until(lambda: last in output(home) or process.poll() is not None, "the node is ready")
    assert process.poll() is None, output(home)


def read_address(home):
    """Return the cluster of node.json."""
    raw = json.loads((cluster_files(home) / "node.json").read_text())
    return ClusterAddress(raw["gcs"], raw["dashboard"], raw["token_file"], raw["pid"])


def folder_of(process):
    """Return the node's temporary folder, from the environment of its Ray process."""
    [ray] = [child for child in psutil.Process(process.pid).children() if "start" in child.cmdline()]
    return Path(ray.environ()["REPRO_NODE"])


def request_status(url, token="", body=None):
    """Return the HTTP status of a request."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data=body and json.dumps(body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def job_status_without_token(port):
    """Return the HTTP status of a job submitted to a port without the token; 0 where the port is not HTTP."""
    try:
        return request_status(f"http://127.0.0.1:{port}/api/job_agent/jobs/", body={"entrypoint": "true"})
    except (OSError, http.client.HTTPException):
        return 0


# A job that trains, with a child process that ignores SIGTERM in a session of its own.
TRAINING = """
import os, pathlib, signal, subprocess, sys, time
from pipeline.cluster.processes import node_is_draining, register_training
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
(folder / "stubborn").write_text(str(child.pid))
with register_training():
    while not node_is_draining():
        time.sleep(0.05)
    (folder / "detected").write_text(str(time.time()))
    time.sleep(2)
    (folder / "checkpoint").write_text(str(time.time()))
"""


@dataclass
class HeadTrace:
    """Observations of one head from its start to its end. Times are Unix times."""

    cluster: ClusterAddress
    token: str
    node_folder: Path
    ready_output: str
    tree: set[psutil.Process] = field(default_factory=set)
    sockets: list[ListeningSocket] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)  # of HTTP requests
    commands: str = ""  # command lines of all processes
    files: str = ""  # output, node.json and logs
    signalled: float = 0.0  # SIGTERM
    detected: float = 0.0  # the training detects that the node shuts down
    checkpoint: float = 0.0
    ended: float = 0.0
    code: int | None = None
    survivors: list[str] = field(default_factory=list)
    unrelated_alive: list[bool] = field(default_factory=list)
    cluster_files: list[str] = field(default_factory=list)
    output: str = ""


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Start a head and a job that trains on it, and send SIGTERM to the head."""
    home = tmp_path_factory.mktemp("head")
    (home / "raylet").symlink_to(shutil.which("sleep"))  # a process named like one of another Ray cluster
    unrelated = [subprocess.Popen(["sleep", "600"]), subprocess.Popen([home / "raylet", "600"])]
    try:
        with running_node(home) as process:
            wait_until_ready(process, home)
            cluster = read_address(home)
            token = Path(cluster.token_file).read_text()
            trace = HeadTrace(cluster, token, folder_of(process), output(home))
            jobs = f"{cluster.dashboard}/api/jobs/"
            (home / "training.py").write_text(TRAINING)
            job = {"entrypoint": f"exec {sys.executable} {home}/training.py {home}"}
            trace.statuses["no token"] = request_status(jobs, body=job)
            trace.statuses["wrong token"] = request_status(jobs, secrets.token_hex(32), body=job)
            trace.statuses["dashboard, no token"] = request_status(f"{cluster.dashboard}/api/version")
            trace.statuses["token"] = request_status(jobs, token, body=job)
            wait_until(lambda: training_pids(trace.node_folder), "the job trains")
            trace.tree = set(psutil.Process(process.pid).children(recursive=True))
            trace.sockets = listening_sockets([process.pid, *(member.pid for member in trace.tree)])
            for listening in trace.sockets:
                trace.statuses[f"job at {listening.port}"] = job_status_without_token(listening.port)
            for member in [psutil.Process(process.pid), *trace.tree]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    trace.commands += " ".join(member.cmdline()) + "\n"
            trace.files = output(home) + (cluster_files(home) / "node.json").read_text()
            trace.files += "".join(path.read_text(errors="replace") for path in trace.node_folder.glob("*.log"))
            trace.signalled = time.time()
            process.send_signal(signal.SIGTERM)
            trace.code = process.wait(ENDING)
            trace.ended = time.time()
            stubborn = int((home / "stubborn").read_text())
            assert stubborn in {member.pid for member in trace.tree}
            trace.survivors = [str(member) for member in trace.tree if is_alive(member)]
            trace.unrelated_alive = [popen.poll() is None for popen in unrelated]
            trace.cluster_files = sorted(path.name for path in cluster_files(home).iterdir())
            trace.detected, trace.checkpoint = (
                float((home / name).read_text()) for name in ("detected", "checkpoint")
            )
            trace.output = output(home)
            yield trace
    finally:
        for popen in unrelated:
            popen.kill()
            popen.wait()


def test_every_socket_of_a_head_is_on_loopback(trace):
    assert {listening.address for listening in trace.sockets} == {"127.0.0.1"}
    assert {"gcs_server", "raylet"} <= {listening.process for listening in trace.sockets}
    known = {listening.port for listening in trace.sockets}
    assert int(trace.cluster.dashboard.rpartition(":")[2]) in known
    assert int(trace.cluster.gcs.rpartition(":")[2]) in known


def test_the_ray_client_server_does_not_run(trace):
    assert "ray.util.client.server" not in trace.commands


def test_a_head_prints_its_addresses(trace):
    assert f"The cluster is ready. Dashboard and job API: {trace.cluster.dashboard}\n" in trace.ready_output
    assert trace.ready_output.endswith("No socket is reachable from other machines.\n")


def test_the_job_api_accepts_requests_with_the_token_only(trace):
    names = ("no token", "wrong token", "dashboard, no token", "token")
    assert [trace.statuses[name] for name in names] == [401, 403, 401, 200]


def test_no_socket_accepts_a_job_without_the_token(trace):
    """The agents, which take jobs from the dashboard, included. 405: a metrics page, which accepts no POST."""
    statuses = [trace.statuses[f"job at {listening.port}"] for listening in trace.sockets]
    assert len(statuses) >= 8
    assert set(statuses) <= {0, 401, 405}
    assert statuses.count(401) >= 3  # dashboard, its agent, the runtime environment agent


def test_the_token_is_in_no_command_line_and_no_log(trace):
    assert len(trace.token) == 64
    assert str(trace.node_folder) in trace.commands  # the command lines were read
    assert trace.cluster.token_file in trace.files
    assert trace.token not in trace.commands + trace.files + trace.output


def test_on_sigterm_a_head_waits_for_the_checkpoint_of_a_training(trace):
    assert trace.code == 0
    assert trace.signalled <= trace.detected
    assert trace.detected + 2 <= trace.checkpoint <= trace.ended  # the job sleeps for 2 s before its checkpoint
    assert "Shutting down: waiting up to 20 s for the checkpoints of 1 run.\n" in trace.output
    assert "No longer waiting" not in trace.output
    assert trace.output.endswith("The node has ended.\n")


def test_a_node_leaves_no_process_and_no_folder(trace):
    assert trace.survivors == []  # the child that ignores SIGTERM in a session of its own included
    assert not trace.node_folder.exists()
    assert "node.json" not in trace.cluster_files


def test_a_node_ends_no_other_process(trace):
    assert trace.unrelated_alive == [True, True]


# --- slow: several nodes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running_head(tmp_path_factory):
    """A running head: its process and its REPRO_HOME."""
    home = tmp_path_factory.mktemp("running")
    with running_node(home) as process:
        wait_until_ready(process, home)
        yield process, home


@pytest.mark.slow
def test_a_node_with_another_token_cannot_join(running_head, tmp_path):
    _, home = running_head
    cluster_files(tmp_path).mkdir(parents=True)
    (cluster_files(tmp_path) / "token").write_text("0" * 64)
    (cluster_files(tmp_path) / "token").chmod(0o600)
    with running_node(tmp_path, head=False, address=read_address(home).gcs) as process:
        assert process.wait(ENDING) == 1
    assert output(tmp_path) == (
        f"error: the cluster does not accept the token in {cluster_files(tmp_path)}/token; copy cluster/NAME/token"
        " from the head's REPRO_HOME to that path with mode 0600, or set RAY_AUTH_TOKEN_PATH to a copy\n"
    )


@pytest.mark.slow
def test_a_node_joins_on_loopback_and_ends_without_the_head(running_head, tmp_path):
    head, home = running_head
    cluster_files(tmp_path).mkdir(parents=True)
    shutil.copy2(cluster_files(home) / "token", cluster_files(tmp_path))
    with running_node(tmp_path, head=False, address=read_address(home).gcs) as process:
        wait_until_ready(process, tmp_path)
        tree = psutil.Process(process.pid).children(recursive=True)
        sockets = listening_sockets(member.pid for member in tree)
        assert {listening.address for listening in sockets} == {"127.0.0.1"}
        assert not (cluster_files(tmp_path) / "node.json").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(ENDING) == 0
    assert [member for member in tree if is_alive(member)] == []
    cluster = read_address(home)
    assert head.poll() is None
    assert request_status(f"{cluster.dashboard}/api/version", Path(cluster.token_file).read_text()) == 200


@pytest.mark.slow
def test_a_second_head_uses_other_ports(running_head, tmp_path):
    head, home = running_head
    with running_node(tmp_path) as process:
        wait_until_ready(process, tmp_path)
        first, second = read_address(home), read_address(tmp_path)
        assert first.gcs != second.gcs
        assert first.dashboard != second.dashboard
        process.terminate()
        assert process.wait(ENDING) == 0
    assert head.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_node_ends_when_a_part_of_ray_dies(tmp_path, part):
    with running_node(tmp_path) as process:
        wait_until_ready(process, tmp_path)
        folder = folder_of(process)
        tree = psutil.Process(process.pid).children(recursive=True)
        [killed] = [member for member in tree if member.name() == part]
        killed.kill()
        assert process.wait(ENDING) == 1
    try:
        pattern = r"^Ray ended unexpectedly \((.*)\); this node ends too\. Logs: (.*)$"
        [(parts, logs)] = re.findall(pattern, output(tmp_path), re.MULTILINE)
        assert part in parts
        assert logs == f"{folder}/ray/session_latest/logs"
        assert list(Path(logs).iterdir())
        assert [member for member in tree if is_alive(member)] == []
        assert not (cluster_files(tmp_path) / "node.json").exists()
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_killing_the_command_ends_ray(tmp_path):
    with running_node(tmp_path) as process:
        wait_until_ready(process, tmp_path)
        folder = folder_of(process)
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        wait_until(lambda: not [member for member in tree if is_alive(member)], "Ray has ended")
    shutil.rmtree(folder)
