"""`repro ui`: MLflow's web pages, opened at the leaderboard."""

import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from contextlib import suppress
from typing import Annotated

import typer

from pipeline.cli.terminal import out
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.track.mlflow_reader import find_experiment, server_key
from pipeline.track.mlflow_views import OVERVIEW, VERDICTS, view_address

CONNECT_SECONDS = 0.2  # between two attempts to connect to a server that starts


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000) -> None:
    """Serve the MLflow UI on this machine and open the leaderboard. Ctrl-C stops it."""
    from pipeline.common.paths import home, tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        out.print(f"MLflow UI of the tracking server: {server_key(uri)}", markup=False, soft_wrap=True)
        open_in_browser(print_views(server_key(uri), uri) or server_key(uri))
        return
    with socket.socket() as probe, suppress(ConnectionError):
        probe.connect(("127.0.0.1", port))
        raise UserError(f"port {port} is in use; choose another: repro ui --port {port % 65535 + 1}")
    with explain_write_errors(home()):
        home().mkdir(parents=True, exist_ok=True)
    server_address = f"http://127.0.0.1:{port}"
    out.print(f"MLflow UI: [bold]{server_address}[/] (starts in a few seconds; Ctrl-C stops it)")
    address = print_views(server_address, uri) or server_address
    if not address.startswith(f"{server_address}/"):
        out.print("No leaderboard yet. Finished runs create it: [bold]repro run EXPERIMENT --scale laptop[/]")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", uri, "--workers", "1"]
    command += ["--default-artifact-root", (home() / "mlartifacts").as_uri()]
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}", "--uvicorn-opts", "--log-level warning"]
    quiet = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }  # jobs: seven more processes
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends the server too
        signal.signal(number, signal.default_int_handler)
    with subprocess.Popen(command, env=os.environ | quiet, start_new_session=True) as server:
        try:
            wait_for(port, server)
            open_in_browser(address)
            raise typer.Exit(server.wait())
        except KeyboardInterrupt:
            os.killpg(server.pid, signal.SIGTERM)


def print_views(server: str, uri: str) -> str | None:
    """Print the addresses of leaderboard and verdicts; return the leaderboard's, None if there is none yet."""
    place = find_experiment(uri, OVERVIEW)
    if place is None:
        return None
    address = view_address(server, place)
    out.print(f"leaderboard: {address}", markup=False, soft_wrap=True)
    out.print(f"verdicts:    {view_address(server, place, VERDICTS)}", markup=False, soft_wrap=True)
    return address


def open_in_browser(address: str) -> None:
    """Open an address if a person sees the output: on a terminal, on a machine with a display."""
    has_display = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if out.is_terminal and has_display:
        webbrowser.open(address)


def wait_for(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Wait until a server accepts connections, or has ended."""
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(CONNECT_SECONDS)
