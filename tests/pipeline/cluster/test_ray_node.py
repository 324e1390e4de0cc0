"""A node's decisions: is it needed, and which sockets are new? (With real processes: test_node.py.)"""

import socket

import psutil
import pytest

from pipeline.cluster import launches, ray_node, token
from pipeline.cluster.processes import register_training
from tests.support.clusters import cluster_files


@pytest.fixture
def node(node_folder, monkeypatch):
    """A RayNode on loopback that has not started Ray."""
    monkeypatch.setattr(ray_node, "prctl", lambda *args: None)
    return ray_node.RayNode(node_folder, token.ensure_token_file(), loopback_only=True)


def test_a_supervised_launch_and_a_training_process_need_the_node(cluster_home, node):
    assert not node.is_needed()
    with register_training():
        assert node.is_needed()
    launches.launches_folder().mkdir()
    (launches.launches_folder() / "20260101.json").touch()
    assert not node.is_needed()  # no supervisor: the launch may be damaged, or wait for repro resume
    (cluster_files(cluster_home) / "state.json").touch()  # as a supervisor does every second
    assert node.is_needed()
    launches.mark_ended("20260101")
    assert not node.is_needed()


def test_a_socket_reachable_from_other_machines_is_reported_once(node):
    alive = [psutil.Process()]
    with socket.create_server(("127.0.0.1", 0)):
        assert node.new_reachable_sockets(alive) == []
        with socket.create_server(("0.0.0.0", 0)) as server:
            ports = [listening.port for listening in node.new_reachable_sockets(alive)]
            assert ports == [server.getsockname()[1]]
            assert node.new_reachable_sockets(alive) == []


def test_ray_client_is_switched_off_when_ray_starts(monkeypatch):
    calls = []
    monkeypatch.setattr(ray_node, "prctl", lambda *args: calls.append(args))

    class Params:
        ray_client_server_port = 10001

    params = Params()
    ray_node.on_ray_start(params, head=True)
    assert params.ray_client_server_port is None
    assert calls == [(1, 15)]  # PR_SET_PDEATHSIG, SIGTERM
