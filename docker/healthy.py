"""Health check of a cluster node: its raylet runs and, on the head, GCS responds.

The node is process 1, or the process whose pid is given. Exit code 0, or 1 with a message.
"""

import socket
import sys
import urllib.request

import psutil

DASHBOARD_PORT = 8265
HEALTH_PATH = "/api/gcs_healthz"  # needs no token


def node_problem(pid: int) -> str:
    """Return what is wrong with the node of process `pid`; "" if it is healthy."""
    try:
        names = {child.name() for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return f"no process {pid}"
    if "raylet" not in names:
        return "Ray has not started, or has ended"
    if "gcs_server" not in names:  # a worker node
        return ""
    host = socket.gethostbyname(socket.gethostname())  # the address that other nodes use
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{host}:{DASHBOARD_PORT}{HEALTH_PATH}", timeout=5) as response:
            return "" if response.status == 200 else f"the head responds with status {response.status}"
    except OSError as error:
        return f"the head does not respond: {error}"


if __name__ == "__main__":
    sys.exit(node_problem(int(sys.argv[1]) if len(sys.argv) > 1 else 1) or 0)
