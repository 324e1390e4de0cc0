"""The services of compose.yaml on this machine: a launch, its tracking in PostgreSQL and S3, its results."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import psutil
import pytest

from pipeline.cluster.ports import listening_sockets, reachable_sockets
from tests.support import stack as processes
from tests.support.composed import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(processes.missing_programs()), reason=processes.missing_programs()),
]
EXPERIMENT = "resnet/cifar10_depth"
RUNS = 6  # two networks with three seeds, at smoke scale
SYNC_SECONDS = 60.0  # limit until ended runs are tracked


@pytest.fixture(scope="module")
def stack():
    """All services except Ray's nodes."""
    with processes.stack() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(stack):
    """The services with Ray's head and a worker, on one CPU each."""
    stack.node("head", "--head")
    stack.wait("head", lambda: "The cluster is ready" in stack.output("head"))
    gcs = json.loads(((stack.home / "cluster" / "compose") / "node.json").read_text(encoding="utf-8"))["gcs"]
    stack.node("worker", "--address", gcs)
    stack.wait("worker", lambda: "Joined the cluster" in stack.output("worker"))
    return stack


@pytest.fixture(scope="module")
def launched(cluster):
    """The ended launch of the experiment at smoke scale."""
    done = cluster.repro("launch", EXPERIMENT, "--scale", "smoke")
    cluster.alive()
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def objects(stack, bucket):
    """Return the names of a bucket's objects."""
    keys = {name: stack.environment("mlflow")[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    store = boto3.client(
        "s3",
        endpoint_url=stack.s3,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    return [entry["Key"] for entry in store.list_objects_v2(Bucket=bucket).get("Contents", [])]


def query(stack, sql):
    """Return the rows of a query to MLflow's database."""
    import psycopg

    login = {"host": "127.0.0.1", "port": stack.ports["db"], "user": "mlflow", "dbname": "mlflow"}
    with psycopg.connect(**login, password=stack.values["POSTGRES_PASSWORD"]) as connection:
        return connection.execute(sql).fetchall()


def test_mlflow_requires_a_password(stack):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{stack.mlflow}/api/2.0/mlflow/experiments/search?max_results=1", timeout=30)


def test_existing_buckets_are_not_created_again(stack):
    argv = [sys.executable, ROOT / "docker" / "buckets.py", *stack.services["buckets"]["command"]]
    again = subprocess.run(
        argv, env=stack.environment("buckets"), capture_output=True, text=True, timeout=60, check=True
    )
    assert again.stdout.splitlines() == ["bucket artifacts exists", "bucket shards exists"]


def test_launched_runs_are_trained_tracked_and_their_networks_stored(launched, cluster):
    deadline = time.monotonic() + SYNC_SECONDS
    ended = "SELECT count(*) FROM runs WHERE status = 'FINISHED' AND name LIKE '% seed %'"
    while query(cluster, ended) != [(RUNS,)]:
        assert time.monotonic() < deadline, (query(cluster, "SELECT name, status FROM runs"), launched.stdout)
        time.sleep(1)
    kept = [name for name in objects(cluster, "artifacts") if name.endswith("network.safetensors")]
    assert len(kept) == RUNS


def test_results_are_read_from_the_tracking_server_alone(launched, cluster, tmp_path):
    board = cluster.repro("leaderboard", EXPERIMENT, "--json", home=tmp_path)
    rows = [row for row in json.loads(board.stdout) if row["scale"] == "smoke"]
    assert sorted((row["variant"], row["seeds"]) for row in rows) == [("plain-20", 3), ("resnet-20", 3)]
    verdicts = json.loads(cluster.repro("verify", EXPERIMENT, "--json", home=tmp_path).stdout)
    assert verdicts
    assert not [path for path in tmp_path.glob("runs/*") if path.is_dir()]  # no local runs


def test_launching_again_finds_all_runs_finished(launched, cluster):
    again = cluster.repro("launch", EXPERIMENT, "--scale", "smoke")
    assert again.returncode == 0
    assert "Nothing left to do" in again.stdout


def test_a_running_node_is_healthy(cluster):
    """With the health check of the image, on the worker: the head may use another port on this machine."""
    argv = [sys.executable, str(ROOT / "docker" / "healthy.py"), str(cluster.processes["worker"].pid)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_socket_is_reachable_from_other_machines(launched, cluster):
    sockets = listening_sockets(process.pid for process in cluster.alive())
    assert len(sockets) > 5  # PostgreSQL, S3, MLflow, Ray
    assert reachable_sockets(sockets) == []


def test_no_secret_is_in_a_command_line_or_a_log(launched, cluster):
    secrets = [
        *cluster.values.values(),
        ((cluster.home / "cluster" / "compose") / "token").read_text(encoding="utf-8").strip(),
    ]
    assert all(len(secret) > 15 for secret in secrets)
    lines = []
    for process in cluster.alive():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in cluster.folder.glob("*.log")]
    logs += [path.read_text(encoding="utf-8", errors="replace") for path in cluster.home.rglob("log.txt")]
    texts = [*lines, *logs, launched.stdout, launched.stderr]
    assert len(lines) > 10
    assert [text[:200] for text in texts if any(secret in text for secret in secrets)] == []


def test_the_nodes_stop_on_sigterm(cluster):
    """The last test: stop the nodes, as `docker compose down` does. `end_all` checks that no process remains."""
    cluster.alive()
    for name in ("worker", "head"):
        assert cluster.end(name) == 0
        assert "The node has ended." in cluster.output(name)
    assert not ((cluster.home / "cluster" / "compose") / "node.json").exists()
