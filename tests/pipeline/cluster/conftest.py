"""Fixtures of a REPRO_HOME with a cluster folder, and of a head that runs in it."""

import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import processes, token
from pipeline.cluster.local_head import ClusterAddress, write_cluster_file
from tests.support.clusters import CLUSTER_VARIABLES

SLOW_TEST_SECONDS = 1800  # limit for a slow test: real Ray on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_SECONDS))


@pytest.fixture
def cluster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """REPRO_HOME with an empty cluster folder; no variable of another cluster is set."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    for name in CLUSTER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    token.cluster_folder().mkdir(parents=True)
    return tmp_path


@pytest.fixture
def node_folder(cluster_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of a node, named by REPRO_NODE."""
    path = cluster_home / "node"
    path.mkdir()
    monkeypatch.setenv("REPRO_NODE", str(path))
    monkeypatch.setattr(processes, "last_drain_check", (-1.0, False))
    return path


@pytest.fixture
def dashboard(cluster_home: Path) -> Iterator[str]:
    """The URL of a server that, like Ray's dashboard, responds with 401 to requests without the token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            expected = f"Bearer {token.token_path().read_text()}"
            self.send_response(200 if self.headers.get("Authorization") == expected else 401)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def write_node_file(cluster_home: Path, dashboard: str) -> Callable[..., None]:
    """Write node.json for a head that is this process, with `changes` to its content."""

    def write(**changes: Any) -> None:
        write_cluster_file(ClusterAddress("127.0.0.1:1", dashboard, str(token.ensure_token_file()), os.getpid()))
        path = token.cluster_folder() / "node.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write
