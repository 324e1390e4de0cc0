"""MLflow servers: its application over HTTP in this process, with faults, or `mlflow server`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

LOST, GONE, HANGS = "lost", "gone", "hangs"  # executed but not answered; not executed; not answered for a minute


def create_database(path: Path) -> None:
    """Create an empty MLflow database."""
    from pipeline.track.mlflow_writer import Tracker, silence_mlflow

    silence_mlflow()
    assert Tracker(f"sqlite:///{path}").client


class Server:
    """MLflow's application, as `mlflow server` runs it, on a free port, with one database file."""

    def __init__(self, database: Path, store: Any = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow 3.17 imports what its libraries call deprecated
            from mlflow.server import app, auth, handlers  # noqa: F401 - auth is what its search imports
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        artifacts = database.parent / "artifacts"
        artifacts.mkdir(exist_ok=True)
        self.handlers = handlers
        handlers._tracking_store = store or SqlAlchemyStore(f"sqlite:///{database}", artifacts.as_uri())
        self.app = app
        self.fault: Callable[[str], Any] = lambda path: None  # path -> LOST, GONE, HANGS or an HTTP status
        self.asked: list[str] = []  # paths: "runs/search"
        self.released = threading.Event()
        self.port = 0
        self.start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        from werkzeug.serving import WSGIRequestHandler, make_server

        quiet = type("Quiet", (WSGIRequestHandler,), {"log": lambda *_: None})
        self.listening = make_server("127.0.0.1", self.port, self, threaded=True, request_handler=quiet)
        self.listening.daemon_threads = True
        self.port = self.listening.port
        self.thread = threading.Thread(target=self.listening.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Stop listening: connections are refused."""
        self.listening.shutdown()
        self.thread.join()
        self.listening.server_close()

    def close(self) -> None:
        self.released.set()
        self.stop()
        self.handlers._tracking_store = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"].partition("/mlflow/")[2]
        self.asked.append(path)
        fault = self.fault(path)
        if fault == HANGS:
            self.released.wait(60)
        if fault in (GONE, HANGS):
            self.hang_up(environ)
        if isinstance(fault, int):
            start_response(f"{fault} Refused", [("Content-Type", "text/plain")])
            return [b"You are not authenticated."]
        answer = self.app(environ, start_response)
        if fault == LOST:
            list(answer)
            self.hang_up(environ)
        return answer

    def hang_up(self, environ: dict[str, Any]) -> None:
        """Close a connection without an answer."""
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


@contextlib.contextmanager
def process(database: Path, port: int, *more: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `mlflow server` with one worker and no jobs (two processes, 0.5 GB); kill it at the end."""
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", f"sqlite:///{database}", "--workers", "1"]
    words += ["--artifacts-destination", str(database.parent / "artifacts"), *more]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    with (database.parent / "server.log").open("ab") as log:
        server = subprocess.Popen(
            words, env=plain | quiet | settings, stdout=log, stderr=log, start_new_session=True
        )
    try:
        until_up(port, server)
        yield server
    finally:
        kill(server)


def kill(server: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def until_up(port: int, server: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        time.sleep(0.1)
    raise TimeoutError(f"the server did not come up (its exit code: {server.poll()})")


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def train_on(path: Path, steps: int) -> None:
    """Train under the run's lock, then write which tracking modules are imported to the file `loaded`.

    Called in a worker process. Test modules import MLflow themselves, so the function is here.
    """
    from tests.support.smoke_runs import smoke_run, train_in

    changes = {"train.steps": steps, "train.lr_drops.at": [steps - 1], "train.log_every": 2}
    path.mkdir(parents=True, exist_ok=True)
    with FileLock(path / "lock"):
        train_in(path, smoke_run(changes=changes))
    (path / "loaded").write_text(
        " ".join({"mlflow", "pipeline.track.mlflow_writer", "requests"} & set(sys.modules))
    )
