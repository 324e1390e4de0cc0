"""A node's decisions: is it needed, and which sockets are new? (With real processes: test_node.py.)"""

import socket
from types import SimpleNamespace

import psutil
import pytest

from pipeline.cluster import launches, ray_node, token
from pipeline.cluster.processes import register_training
from pipeline.common.errors import UserError
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


def fake_starts(node, monkeypatch, *logs):
    """Replace `ray start`: the n-th ends at once with the n-th log, the last one succeeds."""
    started = []

    def run_ray(log, *arguments):
        started.append(arguments)
        text = logs[len(started) - 1] if len(started) <= len(logs) else ""
        node.log.write_text(text)
        ready = node.folder / "ray" / "ray_current_cluster"
        ready.parent.mkdir(exist_ok=True)
        ready.write_text("" if text else "127.0.0.1:6379")
        return SimpleNamespace(poll=lambda: 1 if text else None, pid=0, terminate=lambda: None)

    monkeypatch.setattr(node, "run_ray", run_ray)
    return started


SLOW = "Exception: The current node timed out during startup. This could happen because some of the raylet failed"


def test_a_start_that_was_too_slow_for_ray_is_tried_again(node, monkeypatch, capsys):
    started = fake_starts(node, monkeypatch, SLOW, SLOW)
    assert node.start(None, "127.0.0.1", 1, 0, lambda: 0)
    assert len(started) == 3
    assert capsys.readouterr().out.count("Ray did not start within its own limit of 30 s; starting it again.") == 2


def test_a_start_is_not_tried_for_ever(node, monkeypatch):
    monkeypatch.setattr(ray_node, "READY_SECONDS", 0.0)
    monkeypatch.setattr(node, "run_ray", lambda log, *arguments: SimpleNamespace(poll=lambda: None, pid=0))
    with pytest.raises(UserError, match=r"Ray was not ready after 0 s \(log: "):
        node.start(None, "127.0.0.1", 1, 0, lambda: 0)


def test_another_error_of_ray_is_reported_at_once(node, monkeypatch):
    started = fake_starts(node, monkeypatch, "ValueError: no such resource")
    with pytest.raises(UserError, match="Ray did not start: ValueError: no such resource"):
        node.start(None, "127.0.0.1", 1, 0, lambda: 0)
    assert len(started) == 1


def test_a_head_that_was_replaced_ends(node, monkeypatch, capsys):
    monkeypatch.setattr(node, "dead_processes", lambda: "")
    assert node.watch(lambda: 0, None, lambda: True) == 1
    assert "has replaced it; this node ends" in capsys.readouterr().out
