"""Health check of a cluster node: its raylet runs and, on the head, GCS responds.

The node is process 1, or the process whose pid is given. Exit code 0, or 1 with a message.
"""

import contextlib
import sys
import urllib.request

import psutil

HEALTH_PATH = "/api/gcs_healthz"  # needs no token


def dashboard_address(processes: list[psutil.Process]) -> str:
    """Return HOST:PORT of the dashboard among these processes, from its command line; "" if there is none."""
    for process in processes:
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if any(word.endswith("dashboard/dashboard.py") for word in command):
            options = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
            host = options["--host"]
            return f"[{host}]:{options['--port']}" if ":" in host else f"{host}:{options['--port']}"
    return ""


def node_problem(pid: int) -> str:
    """Return what is wrong with the node of process `pid`; "" if it is healthy."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return f"no process {pid}"
    names = set()
    for child in children:
        with contextlib.suppress(psutil.Error):  # it has just ended
            names.add(child.name())
    if "raylet" not in names:
        return "Ray has not started, or has ended"
    if "gcs_server" not in names:  # a worker node
        return ""
    address = dashboard_address(children)  # its port is another one than 8265 if that was in use
    if not address:
        return "the head's dashboard does not run"
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{address}{HEALTH_PATH}", timeout=5) as response:
            return "" if response.status == 200 else f"the head responds with status {response.status}"
    except OSError as error:
        return f"the head does not respond: {error}"


if __name__ == "__main__":
    sys.exit(node_problem(int(sys.argv[1]) if len(sys.argv) > 1 else 1) or 0)
