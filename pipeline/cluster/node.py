"""A Ray node on this machine, as child processes of ours: how it starts, who may use it, how it ends.

`repro node` runs one in the foreground; `start_here` runs one for this machine behind the terminal. By itself a
node listens on this machine alone. Asked to end (SIGTERM: a preemption, a scale-down, a batch system's time limit)
it lets the training on it leave its checkpoints, and then ends what it started, and nothing else.

cluster/ under REPRO_HOME, of a head:
  token        what lets a person or a machine in (Ray's token authentication), for its owner alone
  node.json    how to reach the head that runs now
  node.log     what a head said that runs behind the terminal
  start.lock   held by whoever starts one, and by one that ends because nobody needs it
  head.lock    held by the head that runs
  wanted       touched whenever somebody asks for the cluster

A folder of the node's own, on its machine, named by REPRO_NODE to all that runs there:
  leaving      there once the node was asked to end
  training/    a file for each process that trains on it, named by its process id
  ray/         Ray's own files and logs
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.cluster import launches
from pipeline.cluster import ports as sockets
from pipeline.cluster.local_head import ClusterAddress, absolute_folders, find_local_cluster, ray_environment
from pipeline.cluster.ports import GCS_PORT, PortTakenError, choose_ports
from pipeline.cluster.processes import DRAIN_POLL_SECONDS, NODE_VARIABLE, prctl, training_pids
from pipeline.cluster.token import check_token_file, cluster_folder, ensure_token_file, token_path
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.common.paths import ROOT, home

READY_SECONDS = 120.0  # for Ray to start; on a busy machine of two cores it takes 10

ENDING_SECONDS = (5.0, 3.0, 5.0)  # for Ray to end itself, for SIGTERM, for SIGKILL

LOG_FLUSH_SECONDS = 1.0  # for what has trained to tell how it ended

TREE_SECONDS = 1.0  # between looks at which processes descend from us

AUDIT_SECONDS = 30.0  # between looks at what listens

SUPERVISED_SECONDS = 60.0

OBJECT_STORE = 256 * 2**20  # bytes; tasks and their results are small, images never pass through it

MAX_BASE_LENGTH = 20  # characters: a socket's path has 107, of which Ray's own folders take 68

RAY_COMMAND = "import sys; sys.path.append(sys.argv.pop(1)); from ray.scripts.scripts import main; main()"

START_HOOK = "pipeline.cluster.node.on_ray_start"


def run_node(
    *,
    head: bool,
    address: str | None,
    listen: str,
    cpus: int | None,
    gpus: int | None,
    grace: float,
    until_idle: float | None,
) -> int:
    """Run a node of a cluster until it is asked to end; the exit code, 1 where Ray ended by itself.

    `head` begins a cluster, `address` ("HOST:6379") joins one. `listen` is the address of this machine it listens
    on, `cpus` and `gpus` what it offers (None: all there are). Training that is asked to stop has `grace` seconds
    for it. A head that nobody needs for `until_idle` seconds ends itself.
    """
    alone = sockets.is_loopback(listen)
    token = check_arguments(head, address, listen, alone)
    with contextlib.ExitStack() as stack:
        if head:
            stack.enter_context(hold_head_lock())
        asked = stack.enter_context(count_stop_signals())
        place = Path(tempfile.mkdtemp(prefix="repro-node-", dir=node_base_folder()))
        node = RayNode(place, token, alone)
        code = 1
        try:
            cluster = node.start(address, listen, cpus, gpus, asked)
            if cluster is None:  # asked to end before it began
                code = 0
            else:
                if head:
                    write_cluster_file(cluster)
                print_addresses(node, cluster, address, alone)
                code = node.watch(asked, until_idle if head else None)
                if head:
                    remove_cluster_file()
                if code == 0:
                    node.drain(grace, asked)
        except UserError as error:
            if str(place) not in str(error):
                shutil.rmtree(place, ignore_errors=True)
            raise
        finally:
            if head:
                remove_cluster_file()
            left = node.end()
        if left:
            print_line(f"these processes could not be ended: {left}")
            code = 1
        if code == 0:
            shutil.rmtree(place, ignore_errors=True)
            print_line("the node has ended")
        return code


def print_line(text: str) -> None:
    """A line on standard output, at once."""
    print(text, flush=True)


def check_arguments(head: bool, address: str | None, listen: str, alone: bool) -> Path:
    """The token to use; UserError where the words do not go together, or the place to join is not there."""
    if head == bool(address):
        raise UserError("give --head to begin a cluster, or --address HOST:6379 to join one, not both")
    if not alone:
        check_local_address(listen)
    if not address:
        running = find_local_cluster()
        if running:
            raise UserError(
                f"this home's cluster runs already: {running.dashboard} (process {running.pid}); use it, or end it"
                f" with: kill {running.pid}"
            )
        return ensure_token_file()
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not (host and port.isdigit()):
        raise UserError(f"--address {address}: give the head's address and port, as in 10.0.0.1:{GCS_PORT}")
    try:
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            mine = connection.getsockname()[0]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"no head answers at {address} ({reason.lower()}); start one there with: repro node --head --listen"
            " ADDRESS_OF_THAT_MACHINE"
        ) from None
    if alone and not sockets.is_loopback(mine):
        raise UserError(
            f"a node that joins {address} is talked to by other machines: say on which address of this one, for"
            f" example --listen {mine}"
        )
    return check_token_file(token_path())


def check_local_address(listen: str) -> None:
    """Refuse what is no address of this machine."""
    try:
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        with socket.socket(family) as one:
            one.bind((listen, 0))
    except OSError:
        raise UserError(
            f"--listen {listen}: no address of this machine; give one of its own, or 127.0.0.1"
        ) from None


@contextmanager
def hold_head_lock() -> Iterator[None]:
    """Within: no other head of this home runs, on whatever machine."""
    with explain_write_errors(home()):
        cluster_folder().mkdir(parents=True, exist_ok=True)
    lock = FileLock(cluster_folder() / "head.lock")
    try:
        lock.acquire(timeout=sum(ENDING_SECONDS) + 2)  # one that is ending gets the time for it
    except Timeout:
        raise UserError(
            f"another head of the home {home()} runs, and does not answer here; end it where it was started, or"
            " name another home by REPRO_HOME"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def count_stop_signals() -> Iterator[Callable[[], int]]:
    """Within: how often SIGTERM, Ctrl-C or the end of the terminal asked us to end. They interrupt nothing."""
    came: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in numbers}
    try:
        yield lambda: len(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def node_base_folder() -> Path:
    """Where the node's own folder is made: Ray puts sockets into it, of which a path may not be long."""
    usual = tempfile.gettempdir()
    return Path(usual if len(usual) <= MAX_BASE_LENGTH else "/tmp")


def write_cluster_file(cluster: ClusterAddress) -> None:
    """Say in the home how to reach the head."""
    about = asdict(cluster) | {"host": socket.gethostname(), "began": psutil.Process().create_time()}
    write_atomically(cluster_folder() / "node.json", json.dumps(about, indent=1))


def remove_cluster_file() -> None:
    """Nobody should look for this head any more."""
    for name in ("node.json", "state.json"):  # and what its supervisor said last is of the past
        (cluster_folder() / name).unlink(missing_ok=True)


def print_addresses(node: "RayNode", cluster: ClusterAddress, address: str | None, alone: bool) -> None:
    """Say how to reach the node, and what listens where."""
    if address:
        print_line(f"joined the cluster at {address}")
    else:
        print_line(f"the cluster is ready: dashboard and job API at {cluster.dashboard}")
        print_line(f"what lets people and machines in: the token in {cluster.token_file}")
        if not alone:
            print_line(f"another machine joins with: repro node --address {cluster.gcs} --listen ITS_OWN_ADDRESS")
            print_line("  (with a copy of the token, mode 0600, named there by RAY_AUTH_TOKEN_PATH)")
    for line in sockets.audit_lines(sockets.listening_sockets([process.pid for process in node.descendants()])):
        print_line(line)
    if not alone:
        print_line(
            "Ray opens some on every network, whatever it is told; all but its measurements ask for the token, but"
        )
        print_line(
            "what goes over them is not encrypted: keep them from strangers by a firewall or a network of your own"
        )


def on_ray_start(params: Any, head: bool) -> None:
    """What Ray's command calls as it starts a node (RAY_START_HOOK)."""
    params.ray_client_server_port = None  # Ray Client: a door nobody uses here
    prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: whatever ends `repro node`, asks Ray to end


class RayNode:
    """Ray's processes of one node: `ray start`, what it started, and so on down."""

    def __init__(self, place: Path, token: Path, alone: bool) -> None:
        self.place, self.token, self.alone = place, token, alone
        self.log = place / "ray.log"
        self.root: subprocess.Popen[bytes] | None = None
        self.draining: subprocess.Popen[bytes] | None = None
        self.vital: dict[str, psutil.Process] = {}
        self.seen: set[psutil.Process] = set()
        self.others = set(psutil.Process().children(recursive=True))  # not ours to end
        self.environment: dict[str, str] = {}
        self.reported_sockets: set[sockets.ListeningSocket] = set()  # told of: open to other machines
        self.gcs = ""  # as Ray here spells it
        (place / "training").mkdir()
        prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans among Ray's processes stay our descendants

    # Starting

    def start(
        self, address: str | None, listen: str, cpus: int | None, gpus: int | None, asked: Callable[[], int]
    ) -> ClusterAddress | None:
        """Begin or join a cluster; None where we were asked to end meanwhile."""
        self.environment = os.environ | absolute_folders() | ray_environment(self.token, loopback=self.alone)
        self.environment |= {NODE_VARIABLE: str(self.place), "RAY_START_HOOK": START_HOOK, "PYTHONUNBUFFERED": "1"}
        self.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # let_go has waited already
        self.environment.pop("RAY_ADDRESS", None)
        own = str(Path(sys.executable).parent)  # of jobs that come from elsewhere, and say "python"
        self.environment["PATH"] = os.pathsep.join(filter(None, [own, self.environment.get("PATH")]))
        words = [
            f"--temp-dir={self.place / 'ray'}",
            f"--object-store-memory={OBJECT_STORE}",
            "--dashboard-agent-listen-port=0",
            "--disable-usage-stats",
            *([f"--num-cpus={cpus}"] if cpus is not None else []),
            *([f"--num-gpus={gpus}"] if gpus is not None else []),
        ]
        if self.alone:
            words += ["--min-worker-port=0", "--max-worker-port=0"]
        elif listen not in ("0.0.0.0", "::"):
            words.append(f"--node-ip-address={listen}")
        if address:
            return self.try_start([*words, f"--address={self.spelled(address)}"], asked)
        for again in (False, True):
            gcs, dashboard = choose_ports(listen, self.alone, again)
            place = ["--head", f"--port={gcs}", "--include-dashboard=true"]
            place += [f"--dashboard-host={listen}", f"--dashboard-port={dashboard}"]
            try:
                return self.try_start([*words, *place], asked)
            except PortTakenError:
                continue  # by a program that was faster than we
        raise UserError(
            "the ports of a cluster are taken by other programs as soon as they are found free; try again"
        )

    def spelled(self, address: str) -> str:
        """An address as Ray's joining nodes understand it."""
        if not self.alone:
            return address
        # Ray takes "127.0.0.1" and "localhost" for this machine's address in the nearest network, on which a head
        # that listens on this machine alone does not answer; the name in capitals it looks up.
        self.environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")  # with it, Ray joins no cluster at all
        return f"LOCALHOST:{address.rpartition(':')[2]}"

    def try_start(self, words: list[str], asked: Callable[[], int]) -> ClusterAddress | None:
        """One attempt."""
        self.root = self.run(self.log.name, "start", "--block", *words)
        there, deadline = self.place / "ray" / "ray_current_cluster", time.monotonic() + READY_SECONDS
        while not there.exists() or not there.read_text(encoding="utf-8"):
            if asked():
                return None
            if self.root.poll() is not None:
                self.end()
                raise self.failure()
            if time.monotonic() > deadline:
                raise UserError(f"Ray was not ready within {READY_SECONDS:.0f} s; what it said is in {self.log}")
            time.sleep(DRAIN_POLL_SECONDS)
        self.vital = {one.name(): one for one in self.descendants() if one.name() in ("raylet", "gcs_server")}
        self.gcs = there.read_text(encoding="utf-8").strip()
        return ClusterAddress(self.gcs, self.dashboard(), str(self.token), os.getpid())

    def run(self, log: str, *words: str) -> "subprocess.Popen[bytes]":
        """Ray's own command, with our code at hand for its hook, and what it says in a file."""
        with (self.place / log).open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", RAY_COMMAND, str(ROOT), *words],
                cwd=self.place,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us, not for Ray
            )

    def dashboard(self) -> str:
        """The dashboard's address, as Ray said it when it began; "" on a node that joined."""
        said = re.search(r"RAY_API_SERVER_ADDRESS='(http://[^']+)'", self.log.read_text(errors="replace"))
        return said[1] if said else ""

    def failure(self) -> Exception:
        """Why Ray did not start."""
        said = self.log.read_text(encoding="utf-8", errors="replace")
        (self.place / "ray" / "ray_current_cluster").unlink(missing_ok=True)
        if re.search(r"already occupied|ddress already in use", said) and self.alone:
            return PortTakenError()
        if re.search(r"nauthenticated|InvalidAuthToken|uthentication", said):
            return UserError(
                f"the cluster does not accept the token in {self.token}; copy the head's there (cluster/token in"
                " its REPRO_HOME, mode 0600), or name a copy by RAY_AUTH_TOKEN_PATH"
            )
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return UserError(f"Ray did not start: {(lines or ['it said nothing'])[-1]} (all it said is in {self.log})")

    # Living

    def descendants(self) -> list[psutil.Process]:
        """The processes of the node that are alive; whoever has died is buried."""
        ours = {one.pid for one in (self.root, self.draining) if one and one.poll() is None}
        children = set(psutil.Process().children(recursive=True)) - self.others
        for one in children:
            with contextlib.suppress(psutil.Error, ChildProcessError):
                if one.pid not in ours and one.status() == psutil.STATUS_ZOMBIE and one.ppid() == os.getpid():
                    os.waitpid(one.pid, os.WNOHANG)
        self.seen = {one for one in self.seen | children if is_alive(one)}
        return sorted(self.seen, key=lambda one: one.pid)

    def dead_process(self) -> str:
        """The parts of Ray that have ended by themselves; "" while all are well."""
        gone = [name for name, one in self.vital.items() if not is_alive(one)]
        if self.root is None or self.root.poll() is not None:
            gone.append("ray start")
        return ", ".join(gone)

    def watch(self, asked: Callable[[], int], until_idle: float | None) -> int:
        """Until the node should end: 0 if it was asked to or nobody needs it, 1 if Ray has ended by itself."""
        looked = busy = audited = time.monotonic()
        while not asked():
            time.sleep(DRAIN_POLL_SECONDS)
            dead, now = self.dead_process(), time.monotonic()
            if dead:
                logs = self.place / "ray" / "session_latest" / "logs"
                print_line(f"Ray has ended by itself ({dead}), and with it this node; what it said is in {logs}")
                return 1
            if now - looked < TREE_SECONDS:
                continue
            looked, alive = now, self.descendants()
            if self.alone and now - audited >= AUDIT_SECONDS:
                audited = now
                for door in self.new_reachable_sockets(alive):
                    print_line(
                        f"other machines can reach what runs here: {door.what} at {sockets.format_endpoint(door)}"
                    )
            if until_idle is not None:
                if self.is_needed():
                    busy = now
                elif now - busy >= until_idle and idle_shutdown(until_idle):
                    print_line(f"nobody has needed this cluster for {until_idle:.0f} s")
                    return 0
        return 0

    def new_reachable_sockets(self, alive: Sequence[psutil.Process]) -> list[sockets.ListeningSocket]:
        """What these processes have opened to other machines since they were last looked at."""
        outside = sockets.reachable_sockets(sockets.listening_sockets(one.pid for one in alive))
        found = [one for one in outside if one not in self.reported_sockets]
        self.reported_sockets |= set(found)
        return found

    def is_needed(self) -> bool:
        """Whether a launch has not ended and somebody sees to that, or something trains here."""
        names = (path.stem for path in launches.launches_folder().glob("*.json"))
        heard = cluster_folder() / "state.json"  # the supervisor writes it every second, while there is one
        seen_to = heard.exists() and time.time() - heard.stat().st_mtime < SUPERVISED_SECONDS
        return (seen_to and any(not launches.is_over(name) for name in names)) or bool(training_pids(self.place))

    # Ending

    def drain(self, grace: float, asked: Callable[[], int]) -> None:
        """Ask what trains here to stop, and wait for its checkpoints: `grace` seconds, or until asked again."""
        (self.place / "leaving").touch()
        if not training_pids(self.place):
            return
        self.report_drain(grace)
        print_line(
            f"asked to end: {len(training_pids(self.place))} trainings have {grace:.0f} s to leave their checkpoints"
        )
        times, deadline = asked(), time.monotonic() + grace
        while training_pids(self.place):
            if time.monotonic() > deadline or asked() > times:
                left = len(training_pids(self.place))
                print_line(f"waiting no longer for {left} trainings; each resumes from its last checkpoint")
                return
            self.descendants()
            time.sleep(DRAIN_POLL_SECONDS)
        time.sleep(LOG_FLUSH_SECONDS)

    def report_drain(self, grace: float) -> None:
        """Tell the cluster to give this node nothing new; if that fails, what comes is stopped by the flag."""
        ids = [path.name.rpartition("_")[2] for path in self.place.glob("ray/session_latest/metrics_agent_port_*")]
        if not ids:
            return
        words = [
            "--address",
            self.gcs,
            "--node-id",
            ids[0],
            "--deadline-remaining-seconds",
            str(max(1, round(grace))),
        ]
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "asked to end"]
        self.draining = self.run("drain.log", "drain-node", *words, *why)

    def end(self) -> str:
        """End all processes of the node, gently first; names and numbers of any that are left."""
        if self.root and self.root.poll() is None:
            self.root.terminate()
        for seconds, signalled in zip(ENDING_SECONDS, (None, signal.SIGTERM, signal.SIGKILL), strict=True):
            alive, deadline = self.descendants(), time.monotonic() + seconds
            for one in alive if signalled else ():
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signalled)
            while alive and time.monotonic() < deadline:
                time.sleep(0.1)
                alive = self.descendants()
            if not alive:
                break
        return ", ".join(f"{one.name()} ({one.pid})" for one in alive)


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs, and is no other process that got its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def idle_shutdown(until_idle: float) -> bool:
    """Take leave of the home, unless somebody has asked for the cluster just now or is about to."""
    try:
        with FileLock(cluster_folder() / "start.lock", timeout=0):
            with contextlib.suppress(OSError):
                if time.time() - (cluster_folder() / "wanted").stat().st_mtime < until_idle:
                    return False
            remove_cluster_file()
            return True
    except Timeout:
        return False
