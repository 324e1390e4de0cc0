"""A real node of Ray: who gets in, what listens, how it ends; and the files that say how it is reached."""

import contextlib
import http.client
import http.server
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from pipeline.cluster import launches, local_head, node, ports, token
from pipeline.cluster import ports as sockets
from pipeline.cluster.local_head import ClusterAddress
from pipeline.cluster.processes import node_is_draining, register_training, training_pids
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT

SERVE = """
import json, sys
from pipeline.mistakes import UserError
from pipeline.schedule import node
usual = {"head": True, "address": None, "listen": "127.0.0.1"}
usual |= {"cpus": 1, "gpus": 0, "grace": 20.0, "until_idle": None}
try:
    sys.exit(node.serve(**{**usual, **json.loads(sys.argv[1])}))
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of the test's own."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "REPRO_NODE", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    token.cluster_folder().mkdir()
    return tmp_path


# --- the token ---------------------------------------------------------------------------------------------


def test_the_token_is_made_once_and_is_long(home):
    path = token.ensure_token_file()
    text = path.read_text()
    assert path == home / "cluster" / "token"
    assert len(bytes.fromhex(text)) == 32
    assert token.ensure_token_file().read_text() == text
    assert [file.name for file in path.parent.iterdir()] == ["token"]  # nothing half-written beside it


def test_the_token_is_its_owners_alone_from_its_first_moment(home, monkeypatch):
    seen = []
    open_file = os.fdopen

    def looked_at(number, *words):
        seen.append((oct(os.fstat(number).st_mode & 0o777), os.fstat(number).st_size))
        return open_file(number, *words)

    monkeypatch.setattr(os, "fdopen", looked_at)
    before = os.umask(0)  # the most generous user
    try:
        path = token.ensure_token_file()
    finally:
        os.umask(before)
    assert seen == [("0o600", 0)]
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_many_at_once_get_the_same_token(home):
    with ThreadPoolExecutor(16) as pool:
        made = {path.read_text() for path in pool.map(lambda _: token.ensure_token_file(), range(64))}
    assert len(made) == 1
    assert len(next(iter(made))) == 64


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666, 0o660])
def test_a_token_that_others_can_read_is_refused_in_a_sentence_without_it(home, mode):
    path = token.ensure_token_file()
    path.chmod(mode)
    with pytest.raises(UserError, match="other users of this machine can read the cluster's token") as refused:
        token.ensure_token_file()
    assert str(path) in str(refused.value)
    assert "chmod 600" in str(refused.value)
    assert path.read_text() not in str(refused.value)
    path.chmod(0o600)
    assert token.ensure_token_file() == path


def test_an_empty_token_is_refused(home):
    token.ensure_token_file().write_text("\n")
    with pytest.raises(UserError, match="there is no token in it"):
        token.ensure_token_file()


def test_a_token_named_in_the_environment_is_used(home, monkeypatch):
    path = home / "elsewhere"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(UserError, match=r"cannot be read from .*elsewhere: no such file"):
        token.check_token_file(token.token_path())
    assert token.ensure_token_file() == path
    assert not (token.cluster_folder() / "token").exists()


def test_the_environment_names_the_token_and_holds_none(home):
    words = local_head.ray_environment(token.ensure_token_file())
    assert words["RAY_AUTH_MODE"] == "token"
    assert words["RAY_AUTH_TOKEN_PATH"] == str(home / "cluster" / "token")
    assert words["RAY_AUTH_TOKEN"] == ""  # one of another cluster would come before the file
    assert token.ensure_token_file().read_text() not in words.values()
    assert not {key for key in local_head.ray_environment(None) if "AUTH" in key}
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in local_head.ray_environment(None, loopback=False)


# --- how a head is found -----------------------------------------------------------------------------------


@pytest.fixture
def dashboard(home):
    """What answers as a dashboard does: 401 without the home's token."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            said = self.headers.get("Authorization")
            self.send_response(200 if said == f"Bearer {(home / 'cluster/token').read_text()}" else 401)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def written(home, dashboard):
    """A head that is this very process, written down, with `changes` to what node.json says."""

    def write(**changes):
        node.write_cluster_file(
            ClusterAddress("127.0.0.1:1", dashboard, str(token.ensure_token_file()), os.getpid())
        )
        path = token.cluster_folder() / "node.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


def test_a_head_that_lives_and_answers_is_found(written, dashboard, home):
    written()
    assert local_head.find_local_cluster() == ClusterAddress(
        "127.0.0.1:1", dashboard, str(home / "cluster/token"), os.getpid()
    )


def test_the_token_goes_through_no_proxy(written, monkeypatch):
    written()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert local_head.find_local_cluster()


def test_no_head_no_cluster(home):
    assert local_head.find_local_cluster() is None


def test_a_process_that_got_the_number_of_a_head_that_died_is_not_believed(written):
    written(began=psutil.Process().create_time() - 60)
    assert local_head.find_local_cluster() is None


def test_a_head_of_another_machine_is_not_here(written):
    written(host="another")
    assert local_head.find_local_cluster() is None


def test_a_head_that_died_is_not_here(written):
    child = subprocess.Popen(["true"])
    began = psutil.Process(child.pid).create_time()
    time.sleep(0.1)
    written(pid=child.pid, began=began)  # dead, and not buried
    assert local_head.find_local_cluster() is None
    child.wait()
    assert local_head.find_local_cluster() is None


def test_a_head_that_does_not_answer_or_not_to_us_is_not_used(written, home):
    written(dashboard="http://127.0.0.1:9")
    assert local_head.find_local_cluster() is None
    written()
    (home / "other").write_text("0" * 64)
    written(token_file=str(home / "other"))
    assert local_head.find_local_cluster() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"pid": 1}', "\x00"])
def test_a_damaged_node_json_is_no_head(home, text):
    (token.cluster_folder() / "node.json").write_text(text)
    assert local_head.find_local_cluster() is None


# --- of processes that train -------------------------------------------------------------------------------


@pytest.fixture
def place(home, monkeypatch):
    """A node's own folder."""
    path = home / "node"
    path.mkdir()
    monkeypatch.setenv("REPRO_NODE", str(path))
    monkeypatch.setattr(node, "looked", (-1.0, False))
    return path


def test_outside_a_node_nothing_leaves_and_nothing_is_registered(home):
    assert not node_is_draining()
    with register_training():
        assert list(home.rglob("training")) == []


def test_the_wish_to_end_is_seen_within_a_quarter_of_a_second(place):
    assert not node_is_draining()
    (place / "leaving").touch()
    before = time.monotonic()
    while not node_is_draining():
        time.sleep(0.01)
    assert time.monotonic() - before < 0.4
    assert node_is_draining()


def test_asking_often_looks_seldom(place, monkeypatch):
    looks = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: (looks.append(path), exists(path))[1])
    before = time.monotonic()
    for _ in range(20_000):
        node_is_draining()
    assert len(looks) <= 2 + (time.monotonic() - before) / 0.25


def test_who_trains_is_registered_while_it_does(place):
    assert training_pids(place) == []
    with register_training():
        assert training_pids(place) == [os.getpid()]
    assert training_pids(place) == []
    with pytest.raises(RuntimeError), register_training():
        raise RuntimeError
    assert training_pids(place) == []


def test_a_training_that_was_killed_does_not_count_nor_one_with_its_number(place):
    code = "import time; from pipeline.schedule.node import training_here\nwith training_here(): time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_for(lambda: training_pids(place) == [child.pid])
    child.kill()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert training_pids(place) == []
    child.wait()
    assert training_pids(place) == []
    (place / "training" / str(os.getpid())).write_text(repr(psutil.Process().create_time() - 60))
    assert training_pids(place) == []


def wait_for(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


# --- what is refused ---------------------------------------------------------------------------------------


def refused(**words):
    usual = {"head": True, "address": None, "listen": "127.0.0.1"}
    usual |= {"cpus": 1, "gpus": 0, "grace": 1.0, "until_idle": None}
    with pytest.raises(UserError) as error:
        node.run_node(**usual | words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_node_is_a_head_or_joins_one(home):
    assert refused(address="127.0.0.1:1").startswith("give --head to begin a cluster, or --address")
    assert refused(head=False).startswith("give --head to begin a cluster, or --address")


@pytest.mark.parametrize("address", ["10.0.0.1", ":6379", "10.0.0.1:x", "10.0.0.1:"])
def test_an_address_has_host_and_port(home, address):
    assert f"--address {address}: give the head's address and port" in refused(head=False, address=address)


def test_a_head_that_is_not_there_is_named(home):
    port = ports.free_port()
    said = refused(head=False, address=f"127.0.0.1:{port}")
    assert said.startswith(f"no head answers at 127.0.0.1:{port} (connection refused)")


def test_to_join_another_machine_one_must_say_where_to_listen(home, monkeypatch):
    class Connection(contextlib.nullcontext):
        def __enter__(self):
            return self

        def getsockname(self):
            return ("10.0.0.7", 51234)

    monkeypatch.setattr(socket, "create_connection", lambda *words, **more: Connection())
    assert "for example --listen 10.0.0.7" in refused(head=False, address="10.0.0.1:6379")


def test_to_join_one_needs_the_heads_token_and_none_is_made(home):
    with socket.create_server(("127.0.0.1", 0)) as server:
        said = refused(head=False, address=f"127.0.0.1:{server.getsockname()[1]}")
    assert "the cluster's token cannot be read" in said
    assert "copy the head's there" in said
    assert list(token.cluster_folder().iterdir()) == []


def test_an_address_of_another_machine_cannot_be_listened_on(home):
    said = refused(listen="192.0.2.200")  # RFC 5737: nobody's
    assert said == "--listen 192.0.2.200: no address of this machine; give one of its own, or 127.0.0.1"


def test_a_second_head_of_a_home_is_refused(written, dashboard):
    written()
    assert refused() == (
        f"this home's cluster runs already: {dashboard} (process {os.getpid()}); use it, or end it with:"
        f" kill {os.getpid()}"
    )


def test_a_head_that_cannot_be_reached_is_not_doubled(home, monkeypatch):
    monkeypatch.setattr(node, "ENDING_SECONDS", (-2.0, 0.0, 0.1))
    with FileLock(token.cluster_folder() / "head.lock"):
        assert refused().startswith(f"another head of the home {home} runs")


def test_taken_ports_are_avoided_on_this_machine_and_named_beyond_it(home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        taken = first.getsockname()[1], second.getsockname()[1]
        monkeypatch.setattr(node, "GCS_PORT", taken[0])
        monkeypatch.setattr(node, "DASHBOARD_PORT", taken[1])
        gcs, pages = ports.choose_ports("127.0.0.1", alone=True, again=False)
        assert gcs == 0
        assert pages not in (0, *taken)
        with pytest.raises(UserError, match=f"port {taken[0]} of 127.0.0.1, .*, is taken"):
            ports.choose_ports("127.0.0.1", alone=False, again=False)
    assert ports.choose_ports("127.0.0.1", alone=True, again=False) == taken
    assert ports.choose_ports("127.0.0.1", alone=False, again=False) == taken


# --- idleness ----------------------------------------------------------------------------------------------


def test_a_head_takes_leave_unless_somebody_wants_it(home):
    (token.cluster_folder() / "node.json").touch()
    (token.cluster_folder() / "wanted").touch()
    assert not node.idle_shutdown(60.0)  # wanted a moment ago
    os.utime(token.cluster_folder() / "wanted", (0, 0))
    with FileLock(token.cluster_folder() / "start.lock"):
        assert not node.idle_shutdown(60.0)  # somebody is about to
    assert (token.cluster_folder() / "node.json").exists()
    assert node.idle_shutdown(60.0)
    assert not (token.cluster_folder() / "node.json").exists()


def test_a_launch_that_has_not_ended_and_a_training_are_needs(home, place, monkeypatch):
    monkeypatch.setattr(node, "prctl", lambda *words: None)
    one = node.RayNode(place, token.ensure_token_file(), alone=True)
    assert not one.is_needed()
    with register_training():
        assert one.is_needed()
    launches.launches_folder().mkdir()
    (launches.launches_folder() / "20260101.json").touch()
    assert not one.is_needed()  # nobody sees to it: it may be damaged, or wait for repro resume
    (home / "cluster" / "state.json").touch()  # as a supervisor does every second
    assert one.is_needed()
    launches.mark_ended("20260101")
    assert not one.is_needed()


# --- what its processes open later -------------------------------------------------------------------------


def test_a_door_opened_to_other_machines_is_told_once(home, place, monkeypatch):
    monkeypatch.setattr(node, "prctl", lambda *words: None)
    one, alive = node.RayNode(place, token.ensure_token_file(), alone=True), [psutil.Process()]
    with socket.create_server(("127.0.0.1", 0)):
        assert one.new_reachable_sockets(alive) == []
        with socket.create_server(("0.0.0.0", 0)) as server:
            assert [door.port for door in one.new_reachable_sockets(alive)] == [server.getsockname()[1]]
            assert one.new_reachable_sockets(alive) == []


# --- the life of a head ------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(home, **words):
    """`repro node` in a process of its own; ended with all that is below it, whatever happens."""
    for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "REPRO_NODE", "RAY_ADDRESS"):
        assert name not in os.environ
    (home / "cluster").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"REPRO_HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_AUTH_TOKEN": "of another"}
    with (home / "said").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(words)],
            cwd=home,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        process.wait()
        for one in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(below, timeout=10)


def said(home):
    return (home / "said").read_text()


def ready(process, home, word="nothing listens beyond"):
    """Wait until the node says what listens."""
    wait_for(lambda: word in said(home) or process.poll() is not None, 60)
    assert process.poll() is None, said(home)


def cluster_of(home):
    raw = json.loads((home / "cluster" / "node.json").read_text())
    return ClusterAddress(raw["gcs"], raw["dashboard"], raw["token_file"], raw["pid"])


def place_of(process):
    """The node's own folder, as what runs there is told it."""
    [ray] = [one for one in psutil.Process(process.pid).children() if "start" in one.cmdline()]
    return Path(ray.environ()["REPRO_NODE"])


def answer(url, token="", body=None):
    """The status of a request, and what came."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, data=body and json.dumps(body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as got:
            return got.status, json.loads(got.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}


def run_at(port):
    """The status that a stranger's job gets at a door; 0 from one that speaks no HTTP."""
    try:
        return answer(f"http://127.0.0.1:{port}/api/job_agent/jobs/", body={"entrypoint": "true"})[0]
    except (OSError, http.client.HTTPException):
        return 0


# A job that trains, and leaves behind it what no signal but one can end, in a session of its own.
TRAINING = """
import os, pathlib, signal, subprocess, sys, time
from pipeline.schedule.node import leaving, training_here
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
where = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
(where / "stubborn").write_text(str(child.pid))
with training_here():
    while not leaving():
        time.sleep(0.05)
    (where / "saw").write_text(str(time.time()))
    time.sleep(2)
    (where / "checkpoint").write_text(str(time.time()))
"""


@dataclass
class Life:
    """What was seen of a head from its beginning to its end."""

    cluster: ClusterAddress
    token: str
    tree: set[psutil.Process] = field(default_factory=set)
    doors: list[sockets.ListeningSocket] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    commands: str = ""
    written: str = ""
    ready: str = ""
    asked: float = 0.0
    ended: float = 0.0
    code: int | None = None
    saw: float = 0.0
    checkpoint: float = 0.0
    survivors: list[str] = field(default_factory=list)
    innocents: list[bool] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    said: str = ""
    place: Path = Path()


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """A head, a job that trains on it, and SIGTERM."""
    home = tmp_path_factory.mktemp("life")
    (home / "raylet").symlink_to(shutil.which("sleep"))  # one by name, as another cluster's would be
    innocents = [subprocess.Popen(["sleep", "600"]), subprocess.Popen([home / "raylet", "600"])]
    try:
        with serving(home) as process:
            ready(process, home)
            cluster = cluster_of(home)
            token = Path(cluster.token_file).read_text()
            life = Life(cluster, token, ready=said(home), place=place_of(process))
            jobs = f"{cluster.dashboard}/api/jobs/"
            (home / "training.py").write_text(TRAINING)
            job = {"entrypoint": f"exec {sys.executable} {home}/training.py {home}"}
            life.statuses["without"], _ = answer(jobs, body=job)
            life.statuses["wrong"], _ = answer(jobs, secrets.token_hex(32), body=job)
            life.statuses["pages without"], _ = answer(f"{cluster.dashboard}/api/version")
            life.statuses["with"], _ = answer(jobs, token, body=job)
            wait_for(lambda: training_pids(life.place), 60)
            life.tree = set(psutil.Process(process.pid).children(recursive=True))
            life.doors = sockets.listening_sockets([process.pid, *(one.pid for one in life.tree)])
            for door in life.doors:
                life.statuses[f"job at {door.port}"] = run_at(door.port)
            for one in [psutil.Process(process.pid), *life.tree]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    life.commands += " ".join(one.cmdline()) + "\n"
            life.written = said(home) + (home / "cluster" / "node.json").read_text()
            life.written += "".join(path.read_text(errors="replace") for path in life.place.glob("*.log"))
            life.asked = time.time()
            process.send_signal(signal.SIGTERM)
            life.code = process.wait(60)
            life.ended = time.time()
            stubborn = int((home / "stubborn").read_text())
            assert stubborn in {one.pid for one in life.tree}
            life.survivors = [str(one) for one in life.tree if node.is_alive(one)]
            life.innocents = [one.poll() is None for one in innocents]
            life.left = sorted(path.name for path in (home / "cluster").iterdir())
            life.saw, life.checkpoint = (float((home / name).read_text()) for name in ("saw", "checkpoint"))
            life.said = said(home)
            yield life
    finally:
        for one in innocents:
            one.kill()
            one.wait()


def test_every_socket_of_a_head_is_on_loopback(life):
    assert {one.address for one in life.doors} == {"127.0.0.1"}
    assert {"gcs_server", "raylet"} <= {one.process for one in life.doors}
    assert int(life.cluster.dashboard.rpartition(":")[2]) in {one.port for one in life.doors}
    assert int(life.cluster.gcs.rpartition(":")[2]) in {one.port for one in life.doors}


def test_no_door_is_open_that_nobody_uses(life):
    assert "ray.util.client.server" not in life.commands


def test_a_head_says_where_it_listens(life):
    assert f"dashboard and job API at {life.cluster.dashboard}\n" in life.ready
    assert life.ready.endswith("nothing listens beyond this machine\n")


def test_the_job_api_lets_in_the_token_and_nobody_else(life):
    asked = {name: life.statuses[name] for name in ("without", "wrong", "pages without", "with")}
    assert asked == {"without": 401, "wrong": 403, "pages without": 401, "with": 200}


def test_no_door_lets_a_stranger_run_anything(life):
    """Of the agents too, which take jobs from the dashboard. 405: a page of measurements, which takes nothing."""
    answers = [life.statuses[f"job at {door.port}"] for door in life.doors]
    assert len(answers) >= 8
    assert set(answers) <= {0, 401, 405}
    assert answers.count(401) >= 3  # dashboard, its agent, the agent that prepares environments


def test_the_token_is_in_no_command_line_and_no_log(life):
    assert len(life.token) == 64
    assert str(life.place) in life.commands  # they were read
    assert life.cluster.token_file in life.written
    assert life.token not in life.commands + life.written + life.said


def test_sigterm_is_seen_by_what_trains_and_its_checkpoint_is_waited_for(life):
    assert life.code == 0
    assert 0 <= life.saw - life.asked < 1.5
    assert life.asked + 2 <= life.checkpoint <= life.ended
    assert "asked to end: 1 trainings have 20 s to leave their checkpoints\n" in life.said
    assert life.said.endswith("the node has ended\n")


def test_an_ended_node_leaves_no_process_and_no_folder(life):
    assert life.survivors == []  # also what ignored SIGTERM in a session of its own
    assert not life.place.exists()
    assert "node.json" not in life.left


def test_nobody_elses_process_is_touched(life):
    assert life.innocents == [True, True]


# --- slow: whole clusters ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A head that stays: its process and its home."""
    home = tmp_path_factory.mktemp("running")
    with serving(home) as process:
        ready(process, home)
        yield process, home


@pytest.mark.slow
def test_a_node_with_another_token_does_not_get_in(running, tmp_path):
    _, home = running
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "token").write_text("0" * 64)
    (tmp_path / "cluster" / "token").chmod(0o600)
    with serving(tmp_path, head=False, address=cluster_of(home).gcs) as process:
        assert process.wait(90) == 1
    assert said(tmp_path) == (
        f"error: the cluster does not accept the token in {tmp_path}/cluster/token; copy the head's there"
        " (cluster/token in its REPRO_HOME, mode 0600), or name a copy by RAY_AUTH_TOKEN_PATH\n"
    )


@pytest.mark.slow
def test_a_node_joins_on_loopback_and_leaves_the_head_alone(running, tmp_path):
    head, home = running
    (tmp_path / "cluster").mkdir()
    shutil.copy2(home / "cluster" / "token", tmp_path / "cluster")
    with serving(tmp_path, head=False, address=cluster_of(home).gcs) as process:
        ready(process, tmp_path)
        tree = psutil.Process(process.pid).children(recursive=True)
        assert {one.address for one in sockets.listening_sockets(one.pid for one in tree)} == {"127.0.0.1"}
        assert not (tmp_path / "cluster" / "node.json").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert [one for one in tree if node.is_alive(one)] == []
    cluster = cluster_of(home)
    assert head.poll() is None
    assert answer(f"{cluster.dashboard}/api/version", Path(cluster.token_file).read_text())[0] == 200


@pytest.mark.slow
def test_a_second_head_takes_other_ports(running, tmp_path):
    _, home = running
    with serving(tmp_path) as process:
        ready(process, tmp_path)
        first, second = cluster_of(home), cluster_of(tmp_path)
        assert first.gcs != second.gcs
        assert first.dashboard != second.dashboard
        process.terminate()
        assert process.wait(60) == 0
    assert running[0].poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("part", ["gcs_server", "raylet"])
def test_a_node_whose_ray_died_ends_with_a_sentence(tmp_path, part):
    with serving(tmp_path) as process:
        ready(process, tmp_path)
        place = place_of(process)
        tree = psutil.Process(process.pid).children(recursive=True)
        [killed] = [one for one in tree if one.name() == part]
        killed.kill()
        assert process.wait(60) == 1
    try:
        [parts] = re.findall(r"^Ray has ended by itself \((.*)\), and with it this node", said(tmp_path), re.M)
        assert part in parts
        assert f"what it said is in {place}/ray/session_latest/logs\n" in said(tmp_path)
        assert list((place / "ray" / "session_latest" / "logs").iterdir())
        assert [one for one in tree if node.is_alive(one)] == []
        assert not (tmp_path / "cluster" / "node.json").exists()
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
def test_whatever_ends_the_command_ends_ray(tmp_path):
    with serving(tmp_path) as process:
        ready(process, tmp_path)
        place = place_of(process)
        tree = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        wait_for(lambda: not [one for one in tree if node.is_alive(one)], 90)
    shutil.rmtree(place)


@pytest.mark.slow
def test_two_at_once_start_one_cluster_which_outlives_them_and_ends_when_idle(tmp_path):
    code = (
        "import json, dataclasses; from pipeline.schedule import node; node.IDLE_SECONDS = 4.0\n"
        "print(json.dumps(dataclasses.asdict(node.start_here(tell=lambda text: None))))"
    )
    environment = os.environ | {"REPRO_HOME": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    told = {one.communicate(timeout=120)[0] for one in both}
    assert len(told) == 1
    cluster = ClusterAddress(**json.loads(told.pop()))
    head = psutil.Process(cluster.pid)
    assert os.getsid(cluster.pid) == cluster.pid  # a session of its own: no terminal ends it
    assert answer(f"{cluster.dashboard}/api/version", Path(cluster.token_file).read_text())[0] == 200
    tree = [head, *head.children(recursive=True)]
    wait_for(lambda: not [one for one in tree if node.is_alive(one)], 60)
    assert "nobody has needed this cluster for 4 s" in (tmp_path / "cluster" / "node.log").read_text()
    assert not (tmp_path / "cluster" / "node.json").exists()


def test_why_no_cluster_could_be_started_is_said(home):
    token.ensure_token_file().chmod(0o644)
    told = []
    with pytest.raises(
        UserError, match=r"could be started on this machine: .*other users of this machine can read"
    ):
        local_head.ensure_local_cluster(tell=told.append)
    assert told == ["starting a Ray cluster on this machine"]
