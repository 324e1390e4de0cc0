"""The processes of docker/compose.yaml on this machine, without containers: PostgreSQL, an S3 server, MLflow with
its login, Ray's head and a worker. Commands and variables are the compose file's own, but for addresses and ports,
which are free ones of 127.0.0.1. moto's server takes the place of the S3 gateway.
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

from tests.support.composed import COMPOSE, ROOT, services, variables

LOOPBACK = "127.0.0.1"
START, END = 120.0, 30.0  # seconds, on a busy machine


def postgres_program(name: str) -> str | None:
    """initdb or postgres: of the path, else the newest where Debian keeps them."""
    kept = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return shutil.which(name) or (str(kept[-1]) if kept else None)


def missing() -> str:
    """Why the stack cannot be started here, "" if it can."""
    lacking = [name for name in ("initdb", "postgres") if not postgres_program(name)]
    return f"{' and '.join(lacking)} of PostgreSQL not found; on Debian: apt install postgresql" if lacking else ""


def other_user() -> str:
    """Whom root lets PostgreSQL run as: its own user where there is one."""
    known = {one.pw_name for one in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def free_port() -> int:
    with socket.socket() as one:
        one.bind((LOOPBACK, 0))
        return one.getsockname()[1]


@dataclass
class Stack:
    """What runs, and how to reach it."""

    folder: Path  # logs; the home is in it
    values: dict[str, str]  # the .env file's: passwords
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    seen: set[psutil.Process] = field(default_factory=set)  # all that ever ran for the stack

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
        """A word of the compose file, with this machine's addresses in the place of the containers'."""
        places = {
            "http://s3:7070": self.s3,
            "http://mlflow:5000": self.mlflow,
            "mlflow:5000,localhost:5000,127.0.0.1:5000": f"{LOOPBACK}:{self.ports['mlflow']}",
            "--host=0.0.0.0": f"--host={LOOPBACK}",
            "--port=5000": f"--port={self.ports['mlflow']}",
            "/opt/repro/": f"{ROOT}/",
        }
        text = str(value)
        for there, here in places.items():
            text = text.replace(there, here)
        return text

    def environment(self, service: str, **more: str) -> dict[str, str]:
        """A service's variables, on top of the few of ours that any program needs."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        kept["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in the image
        theirs = {name: self.local(value) for name, value in self.services[service]["environment"].items()}
        if "PGHOST" in theirs:
            theirs |= {"PGHOST": LOOPBACK, "PGPORT": str(self.ports["db"])}
        return kept | {"OMP_NUM_THREADS": "1"} | theirs | more

    def start(
        self, name: str, words: Sequence[str], environment: Mapping[str, str], user: str | None = None
    ) -> None:
        """Start a process in a session of its own; what it says goes into folder/NAME.log."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                words,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                cwd="/" if user else self.folder,
            )

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Until it is ready; an error with its last words if it ends or takes too long."""
        deadline = time.monotonic() + START
        while not ready():
            code = self.processes[name].poll()
            if code is not None or time.monotonic() > deadline:
                why = "is not ready" if code is None else f"ended with {code}"
                raise RuntimeError(f"{name} {why}:\n{self.said(name)[-2000:]}")
            time.sleep(0.2)
        self.look()

    def look(self) -> set[psutil.Process]:
        """The processes of the stack that are alive, children included."""
        for process in self.processes.values():
            with suppress(psutil.NoSuchProcess):
                one = psutil.Process(process.pid)
                self.seen |= {one, *one.children(recursive=True)}
        return {one for one in self.seen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE}

    def end(self, name: str) -> int:
        """Ask a process to end as `docker stop` does, and bury it; its exit code."""
        process = self.processes.pop(name)
        with suppress(psutil.NoSuchProcess):
            self.seen |= set(psutil.Process(process.pid).children(recursive=True))
        process.terminate()
        try:
            return process.wait(END)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def repro(self, *words: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run one of our commands with a node's variables, as `docker compose exec head repro ...` does."""
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words],
            env=self.node_environment(home),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def node_environment(self, home: Path | None = None) -> dict[str, str]:
        return self.environment("head", REPRO_HOME=str(home or self.home), PYTHONPATH=str(ROOT))

    def node(self, name: str, *words: str) -> None:
        """Start a node of the cluster with one processor."""
        command = [sys.executable, "-m", "pipeline.cli", "node", *words, "--cpus", "1", "--grace", "20"]
        self.start(name, command, self.node_environment())


def answers(url: str) -> bool:
    with suppress(OSError):
        return urllib.request.urlopen(url, timeout=5).status == 200
    return False


def connects(port: int) -> bool:
    with suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
        return True
    return False


@contextmanager
def stack() -> Iterator[Stack]:
    """Everything but Ray, running; ended at the end, with whatever was started within."""
    folder = Path(tempfile.mkdtemp(prefix="stack-"))  # not pytest's, which other users may not enter
    values = {name: secrets.token_urlsafe(16) for name in variables(COMPOSE.read_text(encoding="utf-8"))}
    made = Stack(folder, values, {name: free_port() for name in ("db", "s3", "mlflow")})
    with ExitStack() as after:
        after.callback(shutil.rmtree, folder, ignore_errors=True)
        after.callback(end_all, made)
        database(made)
        made.start(
            "s3", [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(made.ports["s3"])], os.environ
        )
        made.wait("s3", lambda: connects(made.ports["s3"]))
        buckets = made.services["buckets"]
        words = [sys.executable, made.local(buckets["entrypoint"][1]), *buckets["command"]]
        made.start("buckets", words, made.environment("buckets"))
        if made.processes.pop("buckets").wait(START):
            raise RuntimeError(made.said("buckets"))
        mlflow = made.services["mlflow"]
        assert mlflow["entrypoint"][-1] == "mlflow"
        words = [sys.executable, "-m", "mlflow", *map(made.local, mlflow["command"])]
        made.start("mlflow", words, made.environment("mlflow"))
        made.wait("mlflow", lambda: answers(f"{made.mlflow}/health"))
        yield made


def database(made: Stack) -> None:
    """PostgreSQL as its image sets it up: a user with a password, its database, nothing without a password."""
    about = made.services["db"]["environment"]
    user = other_user() if os.geteuid() == 0 else None  # it refuses to be root
    data = Path(tempfile.mkdtemp(prefix="data-", dir=made.folder))
    password = made.folder / "password"
    password.write_text(about["POSTGRES_PASSWORD"], encoding="utf-8")
    if user:
        made.folder.chmod(0o711)
        for path in (data, password):
            shutil.chown(path, user)
    plain = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    words = [
        "-D",
        str(data),
        "-U",
        about["POSTGRES_USER"],
        f"--pwfile={password}",
        "-A",
        "scram-sha-256",
        "-E",
        "UTF8",
        "-N",
    ]
    made.start("initdb", [str(postgres_program("initdb")), *words], plain, user)
    if made.processes.pop("initdb").wait(START):
        raise RuntimeError(made.said("initdb"))
    password.unlink()
    here = [
        "-c",
        f"listen_addresses={LOOPBACK}",
        "-c",
        f"port={made.ports['db']}",
        "-c",
        "unix_socket_directories=",
    ]
    made.start("db", [str(postgres_program("postgres")), "-D", str(data), *here, "-c", "fsync=off"], plain, user)
    made.wait("db", lambda: connects(made.ports["db"]))
    import psycopg

    login = {"host": LOOPBACK, "port": made.ports["db"], "user": about["POSTGRES_USER"]}
    with psycopg.connect(**login, password=about["POSTGRES_PASSWORD"], dbname="postgres", autocommit=True) as one:
        one.execute(f"CREATE DATABASE {about['POSTGRES_DB']}")


def end_all(made: Stack) -> None:
    """End what still runs, last started first; an error if a process outlives it."""
    for name in reversed([*made.processes]):
        made.end(name)
    _, left = psutil.wait_procs(made.look(), timeout=END)
    for one in left:
        one.kill()
    if left:
        raise RuntimeError(f"these outlived the end of the stack: {[one.cmdline()[:4] for one in left]}")
