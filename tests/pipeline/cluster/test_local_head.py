"""The head of this machine: its environment, how commands find it, and its start in the background."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from pipeline.cluster import local_head, token
from pipeline.cluster.local_head import ClusterAddress
from pipeline.cluster.processes import is_alive
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from tests.support.clusters import ENDING, cluster_files, wait_until


def test_the_environment_has_the_path_of_the_token_but_not_the_token(cluster_home):
    variables = local_head.ray_environment(token.ensure_token_file())
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(cluster_files(cluster_home) / "token")
    assert variables["RAY_AUTH_TOKEN"] == ""  # a token of another cluster would take precedence over the file
    assert token.ensure_token_file().read_text() not in variables.values()
    assert not {key for key in local_head.ray_environment(None) if "AUTH" in key}
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in local_head.ray_environment(None, loopback=False)


# --- finding the head ---------------------------------------------------------------------------------------


def test_a_head_that_lives_and_responds_is_found(write_node_file, dashboard, cluster_home):
    write_node_file()
    assert local_head.find_local_cluster() == ClusterAddress(
        "127.0.0.1:1", dashboard, str(cluster_files(cluster_home) / "token"), os.getpid()
    )


def test_the_token_is_not_sent_to_a_proxy(write_node_file, monkeypatch):
    write_node_file()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert local_head.find_local_cluster()


def test_without_node_json_there_is_no_cluster(cluster_home):
    assert local_head.find_local_cluster() is None


def test_a_reused_pid_is_not_the_head(write_node_file):
    write_node_file(began=psutil.Process().create_time() - 60)
    assert local_head.find_local_cluster() is None


def test_a_head_of_another_machine_is_not_local(write_node_file):
    write_node_file(host="another")
    assert local_head.find_local_cluster() is None


def test_a_dead_head_is_not_found(write_node_file):
    child = subprocess.Popen(["true"])
    began = psutil.Process(child.pid).create_time()
    time.sleep(0.1)
    write_node_file(pid=child.pid, began=began)  # a zombie
    assert local_head.find_local_cluster() is None
    child.wait()
    assert local_head.find_local_cluster() is None


def test_a_head_that_does_not_respond_or_has_another_token_is_not_found(write_node_file, cluster_home):
    write_node_file(dashboard="http://127.0.0.1:9")
    assert local_head.find_local_cluster() is None
    write_node_file()
    (cluster_home / "other").write_text("0" * 64)
    write_node_file(token_file=str(cluster_home / "other"))
    assert local_head.find_local_cluster() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"pid": 1}', "\x00"])
def test_a_damaged_node_json_is_ignored(cluster_home, text):
    (token.cluster_folder() / "node.json").write_text(text)
    assert local_head.find_local_cluster() is None


def test_node_json_has_the_address_the_host_and_the_start_time(write_node_file):
    write_node_file()
    content = json.loads((token.cluster_folder() / "node.json").read_text())
    assert list(content) == ["gcs", "dashboard", "token_file", "pid", "host", "began", "settings"]
    assert [*content][:4] == [field.name for field in dataclasses.fields(ClusterAddress)]


def test_a_command_with_other_settings_than_the_running_head_is_told(write_node_file, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracker")
    monkeypatch.delenv("REPRO_SHARDS", raising=False)
    write_node_file()
    assert "secret" not in (token.cluster_folder() / "node.json").read_text()
    told = []
    assert local_head.ensure_local_cluster(report=told.append).pid == os.getpid()
    assert told == []
    monkeypatch.setenv("REPRO_SHARDS", "/shards")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    local_head.ensure_local_cluster(report=told.append)
    assert told == [
        "The Ray cluster that runs already was started with REPRO_SHARDS unset and MLFLOW_TRACKING_URI"
        f" http://***@tracker, and keeps that; for the present settings end it first: kill {os.getpid()}"
    ]


# --- start and idle shutdown --------------------------------------------------------------------------------


def test_a_head_shuts_down_unless_a_command_uses_the_cluster(cluster_home):
    (token.cluster_folder() / "node.json").touch()
    (token.cluster_folder() / "wanted").touch()
    assert not local_head.idle_shutdown(60.0)  # used a moment ago
    os.utime(token.cluster_folder() / "wanted", (0, 0))
    with FileLock(token.cluster_folder() / "start.lock"):
        assert not local_head.idle_shutdown(60.0)  # a command is about to use it
    assert (token.cluster_folder() / "node.json").exists()
    assert local_head.idle_shutdown(60.0)
    assert not (token.cluster_folder() / "node.json").exists()


@pytest.mark.parametrize(("change", "remain"), [({}, False), ({"pid": 1}, True), ({"host": "another"}, True)])
def test_a_head_that_was_replaced_leaves_the_files_of_the_other(write_node_file, change, remain):
    write_node_file(**change)
    (token.cluster_folder() / "state.json").touch()
    local_head.remove_cluster_file()
    assert (token.cluster_folder() / "node.json").exists() is remain
    assert (token.cluster_folder() / "state.json").exists() is remain


def test_a_failed_start_reports_the_reason(cluster_home):
    token.ensure_token_file().chmod(0o644)
    reported = []
    with pytest.raises(
        UserError, match=r"cannot start a Ray cluster on this machine: .*other users of this machine can read"
    ):
        local_head.ensure_local_cluster(report=reported.append)
    assert reported == ["Starting a Ray cluster on this machine."]


@pytest.mark.slow
def test_two_commands_at_once_start_one_cluster_that_outlives_them_and_ends_when_idle(tmp_path):
    code = (
        "import json, dataclasses; from pipeline.cluster import local_head; local_head.IDLE_SECONDS = 4.0\n"
        "cluster = local_head.ensure_local_cluster(report=lambda text: None)\n"
        "print(json.dumps(dataclasses.asdict(cluster)))"
    )
    environment = os.environ | {"REPRO_HOME": str(tmp_path)}
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = {command.communicate(timeout=ENDING)[0] for command in commands}
    assert len(outputs) == 1
    cluster = ClusterAddress(**json.loads(outputs.pop()))
    head = psutil.Process(cluster.pid)
    assert os.getsid(cluster.pid) == cluster.pid  # a session of its own: closing the terminal does not end it
    bearer = {"Authorization": f"Bearer {Path(cluster.token_file).read_text()}"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/version", headers=bearer)
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 200
    tree = [head, *head.children(recursive=True)]
    wait_until(lambda: not [process for process in tree if is_alive(process)], "all processes have ended")
    assert "Idle for 4 s; shutting down." in (cluster_files(tmp_path) / "node.log").read_text()
    assert not (cluster_files(tmp_path) / "node.json").exists()


def write_head(name, gcs, host="another-machine", age=0.0):
    """Write node.json of a head, with its token and its last heartbeat."""
    folder = token.clusters_folder() / name
    folder.mkdir()
    (folder / "node.json").write_text(json.dumps({"gcs": gcs, "host": host}))
    (folder / "heartbeat").touch()
    for file in folder.iterdir():
        os.utime(file, (time.time() - age,) * 2)
    return folder / "token"


def test_a_node_that_joins_uses_the_token_of_the_head_with_that_address(cluster_home, monkeypatch):
    write_head("slurm-5", "10.0.0.1:6379", age=1000.0)  # an earlier job had the same address
    seven = write_head("slurm-7", "10.0.0.1:6379")
    eight = write_head("slurm-8", "10.0.0.1:6380")
    nine = write_head("slurm-9", "10.0.0.9:6379", host="head")
    write_head("slurm-10", "127.0.0.1:6379")  # another machine's loopback
    own = write_head("mine", "127.0.0.1:6379", host=socket.gethostname())
    assert local_head.head_token("10.0.0.1", 6379) == seven
    assert local_head.head_token("10.0.0.1", 6380) == eight
    assert local_head.head_token("head", 6379) == nine
    assert local_head.head_token("127.0.0.1", 6379) == own
    assert local_head.head_token("10.0.0.2", 6379) == token.cluster_folder() / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/secret/token")
    assert local_head.head_token("10.0.0.1", 6379) == Path("/secret/token")
