"""`repro ui`: MLflow's web pages, opened at the leaderboard."""

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.terminal import out
from pipeline.common.errors import UserError, explain_write_errors

CONNECT_SECONDS = 0.2  # between two attempts to connect to a server that starts


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000) -> None:
    """Serve the MLflow UI on this machine and open the leaderboard. Ctrl-C stops it."""
    from pipeline.common.paths import home, tracking_uri
    from pipeline.track.mlflow_reader import server_key

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        print_unwrapped(f"MLflow runs at {server_key(uri)}, the tracking server in MLFLOW_TRACKING_URI.")
        open_in_browser(print_views(server_key(uri), uri) or server_key(uri))
        return
    with socket.socket() as probe, suppress(ConnectionError):
        probe.connect(("127.0.0.1", port))
        raise UserError(f"port {port} is in use; choose another: repro ui --port {port % 65535 + 1}")
    log_file = home() / "mlflow-server.log"
    with explain_write_errors(home()):
        home().mkdir(parents=True, exist_ok=True)
    server_address = f"http://127.0.0.1:{port}"
    address = print_views(server_address, uri)
    if not address:
        out.print("No leaderboard yet. Finished runs create it: [bold]repro run EXPERIMENT --scale laptop[/]")
    print_unwrapped(f"Starting MLflow at {server_address}; this takes about ten seconds. Ctrl-C stops it.")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--default-artifact-root", (home() / "mlartifacts").as_uri()]
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}", "--uvicorn-opts", "--log-level warning"]
    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri,  # not an argument: other users can list those, and it may hold a password
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs: seven more processes
        "PYTHONWARNINGS": "ignore",
    }
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends the server too
        signal.signal(number, signal.default_int_handler)
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            command, env=os.environ | settings, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        ) as server,
    ):
        try:
            if wait_for(port, server):
                print_unwrapped("MLflow is ready.")
                open_in_browser(address or server_address)
            code = server.wait()
        except KeyboardInterrupt:
            print_unwrapped("MLflow is stopped.")
            return
        finally:  # also where nobody reads our output any more
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
    raise UserError(server_failure(log_file, uri, code))


def server_failure(log_file: Path, uri: str, code: int) -> str:
    """Return in one sentence why MLflow's server ended, from its log."""
    from pipeline.track.mlflow_errors import store_remedy
    from pipeline.track.mlflow_reader import redact

    text = log_file.read_text(encoding="utf-8", errors="replace")
    if remedy := store_remedy(text, uri):
        return f"MLflow cannot open {redact(uri)}: {remedy}"
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
    return f"MLflow's server ended with exit code {code}: {redact(last)[:300]} (its log: {log_file})"


def print_views(server: str, uri: str) -> str | None:
    """Print the addresses of leaderboard and verdicts; return the leaderboard's, None if there is none yet.

    Raises TrackingError for a store that MLflow cannot open, and for a server that is away or refuses the user.
    """
    from pipeline.track.mlflow_reader import find_experiment
    from pipeline.track.mlflow_views import OVERVIEW, VERDICTS, view_address

    place = find_experiment(uri, OVERVIEW)
    if place is None and (not uri.startswith("sqlite:///") or "?" in uri):
        from pipeline.track.mlflow_writer import Tracker  # reads any store, and takes seconds to import

        place = Tracker(uri).find_experiment(OVERVIEW)
    if place is None:
        return None
    address = view_address(server, place)
    print_unwrapped(f"leaderboard  {address}")
    print_unwrapped(
        "             networks ranked by error, with the papers' numbers; a name leads to the runs of its seeds"
    )
    print_unwrapped(f"verdicts     {view_address(server, place, VERDICTS)}")
    print_unwrapped("             which published numbers were reproduced")
    return address


def print_unwrapped(line: str) -> None:
    """Print a line; addresses are not wrapped."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def open_in_browser(address: str) -> None:
    """Open an address if a person sees the output: on a terminal, on a machine with a display."""
    has_display = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if out.is_terminal and has_display:
        webbrowser.open(address)


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> bool:
    """Wait until a server accepts connections, and return True; False if it has ended."""
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(CONNECT_SECONDS)
    return False
