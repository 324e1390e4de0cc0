"""Whether this container's node of the cluster is up: its raylet lives and, on the head, the directory answers.

The node is the container's first process, or the one whose number is given. Exit code 0, or 1 and a sentence.
"""

import socket
import sys
import urllib.request

import psutil

DASHBOARD_PORT = 8265
QUESTION = "/api/gcs_healthz"  # answered without a token


def trouble(node: int) -> str:
    """What is wrong with the node of this process; "" if it is well."""
    try:
        names = {child.name() for child in psutil.Process(node).children(recursive=True)}
    except psutil.NoSuchProcess:
        return f"there is no process {node}"
    if "raylet" not in names:
        return "Ray has not begun, or has ended"
    if "gcs_server" not in names:  # no head
        return ""
    host = socket.gethostbyname(socket.gethostname())  # where the others reach it; loopback only where all do
    try:
        with urllib.request.urlopen(f"http://{host}:{DASHBOARD_PORT}{QUESTION}", timeout=5) as answer:
            return "" if answer.status == 200 else f"the head answers {answer.status}"
    except OSError as error:
        return f"the head does not answer: {error}"


if __name__ == "__main__":
    said = trouble(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    sys.exit(said or 0)
