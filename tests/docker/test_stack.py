"""What compose.yaml starts, started here: from `repro launch` to runs that are tracked in PostgreSQL, with their
models in the S3 store, and read back by somebody who has nothing but the tracking server's address.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import psutil
import pytest

from pipeline.cluster import ports as sockets
from tests.support import stack as processes
from tests.support.composed import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(processes.missing()), reason=processes.missing()),
]
EXPERIMENT = "resnet/cifar10_depth"
RUNS = 6  # two networks with three seeds, at smoke scale
SYNCED = 60.0  # seconds in which what has ended is tracked


@pytest.fixture(scope="module")
def stack():
    with processes.stack() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(stack):
    """Ray's head and a worker, on one processor each."""
    stack.node("head", "--head")
    stack.wait("head", lambda: "the cluster is ready" in stack.said("head"))
    gcs = json.loads((stack.home / "cluster" / "node.json").read_text(encoding="utf-8"))["gcs"]
    stack.node("worker", "--address", gcs)
    stack.wait("worker", lambda: "joined the cluster" in stack.said("worker"))
    return stack


@pytest.fixture(scope="module")
def launched(cluster):
    done = cluster.repro("launch", EXPERIMENT, "--scale", "smoke")
    cluster.look()
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def objects(stack, bucket):
    """The names of a bucket's objects."""
    keys = {name: stack.environment("mlflow")[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    store = boto3.client(
        "s3",
        endpoint_url=stack.s3,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    return [one["Key"] for one in store.list_objects_v2(Bucket=bucket).get("Contents", [])]


def rows_of(stack, question):
    """What the database of MLflow answers."""
    import psycopg

    login = {"host": "127.0.0.1", "port": stack.ports["db"], "user": "mlflow", "dbname": "mlflow"}
    with psycopg.connect(**login, password=stack.values["POSTGRES_PASSWORD"]) as one:
        return one.execute(question).fetchall()


def test_mlflow_lets_nobody_in_without_a_password(stack):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{stack.mlflow}/api/2.0/mlflow/experiments/search?max_results=1", timeout=30)


def test_the_buckets_are_made_once_and_found_the_next_time(stack):
    words = [sys.executable, ROOT / "docker" / "buckets.py", *stack.services["buckets"]["command"]]
    again = subprocess.run(
        words, env=stack.environment("buckets"), capture_output=True, text=True, timeout=60, check=True
    )
    assert again.stdout.splitlines() == ["bucket artifacts was there", "bucket shards was there"]


def test_what_is_launched_is_trained_tracked_and_its_models_kept(launched, cluster):
    deadline = time.monotonic() + SYNCED
    ended = "SELECT count(*) FROM runs WHERE status = 'FINISHED' AND name LIKE '% seed %'"
    while rows_of(cluster, ended) != [(RUNS,)]:
        assert time.monotonic() < deadline, (rows_of(cluster, "SELECT name, status FROM runs"), launched.stdout)
        time.sleep(1)
    kept = [name for name in objects(cluster, "artifacts") if name.endswith("network.safetensors")]
    assert len(kept) == RUNS


def test_who_has_only_the_tracking_servers_address_reads_the_results(launched, cluster, tmp_path):
    board = cluster.repro("leaderboard", EXPERIMENT, "--json", home=tmp_path)
    rows = [row for row in json.loads(board.stdout) if row["scale"] == "smoke"]
    assert sorted((row["variant"], row["seeds"]) for row in rows) == [("plain-20", 3), ("resnet-20", 3)]
    verdicts = json.loads(cluster.repro("verify", EXPERIMENT, "--json", home=tmp_path).stdout)
    assert verdicts
    assert not [path for path in tmp_path.glob("runs/*") if path.is_dir()]  # not by its own runs


def test_what_is_launched_again_is_finished_already(launched, cluster):
    again = cluster.repro("launch", EXPERIMENT, "--scale", "smoke")
    assert again.returncode == 0
    assert "nothing left to do" in again.stdout


def test_a_node_that_runs_is_healthy(cluster):
    """By what the image asks; the worker's own answer, since the head's port may be another here."""
    words = [sys.executable, str(ROOT / "docker" / "healthy.py"), str(cluster.processes["worker"].pid)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_listens_beyond_this_machine(launched, cluster):
    open_doors = sockets.listening_sockets(one.pid for one in cluster.look())
    assert len(open_doors) > 5  # the database, the store, MLflow, Ray
    assert sockets.reachable_sockets(open_doors) == []


def test_no_secret_is_in_a_command_line_or_a_log(launched, cluster):
    secrets = [*cluster.values.values(), (cluster.home / "cluster" / "token").read_text(encoding="utf-8").strip()]
    assert all(len(secret) > 15 for secret in secrets)
    lines = []
    for one in cluster.look():
        try:
            lines.append(" ".join(one.cmdline()))
        except psutil.Error:
            continue
    logs = [path.read_text(encoding="utf-8", errors="replace") for path in cluster.folder.glob("*.log")]
    logs += [path.read_text(encoding="utf-8", errors="replace") for path in cluster.home.rglob("log.txt")]
    said = [*lines, *logs, launched.stdout, launched.stderr]
    assert len(lines) > 10
    assert [text[:200] for text in said if any(secret in text for secret in secrets)] == []


def test_all_of_it_ends_when_asked_to(cluster):
    """Last: nodes first, as `docker compose down` does; that nothing outlives the stack, its end looks after."""
    cluster.look()
    for name in ("worker", "head"):
        assert cluster.end(name) == 0
        assert "the node has ended" in cluster.said(name)
    assert not (cluster.home / "cluster" / "node.json").exists()
