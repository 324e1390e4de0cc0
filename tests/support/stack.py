"""The services of docker/compose.yaml as processes of this machine, without containers.

PostgreSQL, an S3 server, MLflow with basic authentication, and Ray's head and worker. Commands and variables are
those of the compose file, except addresses and ports: free ports of 127.0.0.1. moto replaces the S3 gateway.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster.ports import LOOPBACK, free_port
from pipeline.cluster.processes import is_alive
from tests.support.composed import COMPOSE, ROOT, services, variables

START_SECONDS, END_SECONDS = 120.0, 30.0  # limits, on a busy machine


def postgres_program(name: str) -> str | None:
    """Return the path of initdb or postgres: on PATH, else the newest version in Debian's folder."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return shutil.which(name) or (str(installed[-1]) if installed else None)


def missing_programs() -> str:
    """Return why the stack cannot start on this machine, "" if it can."""
    missing = [name for name in ("initdb", "postgres") if not postgres_program(name)]
    return f"{' and '.join(missing)} of PostgreSQL not found; on Debian: apt install postgresql" if missing else ""


def postgres_user() -> str:
    """Return the user for PostgreSQL when the tests run as root: postgres if it exists, else nobody."""
    known = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@dataclass
class Stack:
    """Running processes and their addresses."""

    folder: Path  # contains the logs and REPRO_HOME
    values: dict[str, str]  # variables of the .env file: passwords
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    seen: set[psutil.Process] = field(default_factory=set)  # every process of the stack, ended ones included

    @property
    def services(self) -> dict[str, Any]:
        return services(self.values)

    @property
    def mlflow(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['mlflow']}"

    @property
    def s3(self) -> str:
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def local(self, value: object) -> str:
        """Return a value of the compose file with addresses of this machine instead of the containers'."""
        addresses = {
            "http://s3:7070": self.s3,
            "http://mlflow:5000": self.mlflow,
            "mlflow:5000,localhost:5000,127.0.0.1:5000": f"{LOOPBACK}:{self.ports['mlflow']}",
            "--host=0.0.0.0": f"--host={LOOPBACK}",
            "--port=5000": f"--port={self.ports['mlflow']}",
            "/opt/repro/": f"{ROOT}/",
        }
        text = str(value)
        for container_address, local_address in addresses.items():
            text = text.replace(container_address, local_address)
        return text

    def environment(self, service: str, **more: str) -> dict[str, str]:
        """Return the variables of a service, with the few of this process that any program needs."""
        base = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        base["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in the image
        own = {name: self.local(value) for name, value in self.services[service]["environment"].items()}
        if "PGHOST" in own:
            own |= {"PGHOST": LOOPBACK, "PGPORT": str(self.ports["db"])}
        return base | {"OMP_NUM_THREADS": "1"} | own | more

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], user: str | None = None
    ) -> None:
        """Start a process in a session of its own; its output goes to folder/NAME.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                argv,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                cwd="/" if user else self.folder,
            )

    def output(self, name: str) -> str:
        """Return the output of a process."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a process is ready; RuntimeError with the end of its output if it ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            code = self.processes[name].poll()
            if code is not None or time.monotonic() > deadline:
                why = "is not ready" if code is None else f"ended with {code}"
                raise RuntimeError(f"{name} {why}:\n{self.output(name)[-2000:]}")
            time.sleep(0.2)
        self.alive()

    def alive(self) -> set[psutil.Process]:
        """Return the live processes of the stack, children included."""
        for process in self.processes.values():
            with suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                self.seen |= {root, *root.children(recursive=True)}
        return {process for process in self.seen if is_alive(process)}

    def end(self, name: str) -> int:
        """Stop a process as `docker stop` does; return its exit code."""
        process = self.processes.pop(name)
        with suppress(psutil.NoSuchProcess):
            self.seen |= set(psutil.Process(process.pid).children(recursive=True))
        # PostgreSQL waits at SIGTERM for its clients; its image is stopped by SIGINT.
        process.send_signal(signal.SIGINT if name == "db" else signal.SIGTERM)
        try:
            return process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def repro(self, *argv: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a `repro` command with a node's variables, as `docker compose exec head repro ...` does."""
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *argv],
            env=self.node_environment(home),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def node_environment(self, home: Path | None = None) -> dict[str, str]:
        """Return the variables of a node."""
        return self.environment("head", REPRO_HOME=str(home or self.home), PYTHONPATH=str(ROOT))

    def node(self, name: str, *options: str) -> None:
        """Start a cluster node with one CPU."""
        command = [sys.executable, "-m", "pipeline.cli", "node", *options, "--cpus", "1", "--grace", "20"]
        self.start(name, command, self.node_environment())


def responds(url: str) -> bool:
    """Return whether a URL responds with status 200."""
    with suppress(OSError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False


def accepts_connections(port: int) -> bool:
    """Return whether a process listens on a port of loopback."""
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


@contextmanager
def stack() -> Iterator[Stack]:
    """Start all services except Ray's nodes; at the end, stop them and everything started within the block."""
    folder = Path(tempfile.mkdtemp(prefix="stack-"))  # the user of PostgreSQL cannot enter pytest's folders
    values = {name: secrets.token_urlsafe(16) for name in variables(COMPOSE.read_text(encoding="utf-8"))}
    running = Stack(folder, values, {name: free_port() for name in ("db", "s3", "mlflow")})
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.callback(end_all, running)
        start_database(running)
        running.start(
            "s3", [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(running.ports["s3"])], os.environ
        )
        running.wait("s3", lambda: accepts_connections(running.ports["s3"]))
        buckets = running.services["buckets"]
        argv = [sys.executable, running.local(buckets["entrypoint"][1]), *buckets["command"]]
        running.start("buckets", argv, running.environment("buckets"))
        if running.processes.pop("buckets").wait(START_SECONDS):
            raise RuntimeError(running.output("buckets"))
        mlflow = running.services["mlflow"]
        assert mlflow["entrypoint"][-1] == "mlflow"
        argv = [sys.executable, "-m", "mlflow", *map(running.local, mlflow["command"])]
        running.start("mlflow", argv, running.environment("mlflow"))
        running.wait("mlflow", lambda: responds(f"{running.mlflow}/health"))
        yield running


@contextmanager
def database() -> Iterator[Stack]:
    """Start PostgreSQL alone, as in `stack`."""
    folder = Path(tempfile.mkdtemp(prefix="database-"))
    values = {name: secrets.token_urlsafe(16) for name in variables(COMPOSE.read_text(encoding="utf-8"))}
    running = Stack(folder, values, {"db": free_port(), "s3": 0, "mlflow": 0})
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        cleanup.callback(end_all, running)
        start_database(running)
        yield running


def start_database(running: Stack) -> None:
    """Start PostgreSQL as its image does: a user with a password, a database, and no access without password."""
    settings = running.services["db"]["environment"]
    user = postgres_user() if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    data = Path(tempfile.mkdtemp(prefix="data-", dir=running.folder))
    password = running.folder / "password"
    password.write_text(settings["POSTGRES_PASSWORD"], encoding="utf-8")
    if user:
        running.folder.chmod(0o711)
        for path in (data, password):
            shutil.chown(path, user)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    options = [
        "-D",
        str(data),
        "-U",
        settings["POSTGRES_USER"],
        f"--pwfile={password}",
        "-A",
        "scram-sha-256",
        "-E",
        "UTF8",
        "-N",
    ]
    running.start("initdb", [str(postgres_program("initdb")), *options], environment, user)
    if running.processes.pop("initdb").wait(START_SECONDS):
        raise RuntimeError(running.output("initdb"))
    password.unlink()
    server_options = [
        "-c",
        f"listen_addresses={LOOPBACK}",
        "-c",
        f"port={running.ports['db']}",
        "-c",
        "unix_socket_directories=",
    ]
    running.start(
        "db",
        [str(postgres_program("postgres")), "-D", str(data), *server_options, "-c", "fsync=off"],
        environment,
        user,
    )
    running.wait("db", lambda: accepts_connections(running.ports["db"]))
    import psycopg

    login = {"host": LOOPBACK, "port": running.ports["db"], "user": settings["POSTGRES_USER"]}
    with psycopg.connect(
        **login, password=settings["POSTGRES_PASSWORD"], dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(f"CREATE DATABASE {settings['POSTGRES_DB']}")


def end_all(running: Stack) -> None:
    """Stop all processes, the last started first; RuntimeError if a process remains."""
    for name in reversed([*running.processes]):
        running.end(name)
    _, left = psutil.wait_procs(running.alive(), timeout=END_SECONDS)
    for process in left:
        process.kill()
    if left:
        raise RuntimeError(
            f"processes that did not end with the stack: {[process.cmdline()[:4] for process in left]}"
        )
