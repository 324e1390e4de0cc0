"""Faults of a tracking server: training never waits, and nothing is sent twice.

Quick: MLflow's own application over HTTP in this process, with faults between its requests. Slow: `mlflow server`
itself, killed and started again after 0, 20 and 60 seconds, or never; and one that asks for a password.
"""

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from pipeline.common.errors import UserError
from pipeline.declare.load import load_experiment
from pipeline.report.publish import make_report
from pipeline.track import sync as module
from pipeline.track.folder_content import CURVE_POINTS
from pipeline.track.mlflow_errors import RefusedError, TrackingError
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import BackgroundSync, sync_all
from tests.support.mlflow_servers import (
    GONE,
    HANGS,
    LOST,
    Server,
    free_port,
    kill,
    process,
    train_on,
)
from tests.support.smoke_runs import FORKSERVER, journal_metrics

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
STEPS = 160


@pytest.fixture(scope="module")
def trained(finished_run):
    """Files of a finished run: name -> bytes."""
    return {file.name: file.read_bytes() for file in finished_run(0).iterdir() if file.is_file()}


@pytest.fixture
def home(tmp_path, monkeypatch, empty_database):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server(home, monkeypatch):
    made = Server(home.parent / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")  # up to a second before MLflow's own retry
    yield made
    made.close()


@pytest.fixture
def client(home):
    """MLflow client on the database file."""
    return MlflowClient(f"sqlite:///{home.parent / 'mlflow.db'}")


def placed(home, trained, identity="a", **other) -> RunFolder:
    path = home / "runs" / identity
    path.mkdir(parents=True)
    for name, content in trained.items():
        if name in ("run.json", "result.json"):
            content = json.dumps(json.loads(content) | {"identity": identity} | other).encode()
        (path / name).write_bytes(content)
    return RunFolder(path)


def runs_of(client, view=ViewType.ACTIVE_ONLY):
    """Return all runs in MLflow: (parents, children)."""
    papers = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    rows = client.search_runs(papers, run_view_type=view)
    return [row for row in rows if "mlflow.parentRunId" not in row.data.tags], [
        row for row in rows if "mlflow.parentRunId" in row.data.tags
    ]


def assert_whole(client, path) -> str:
    """Assert that MLflow has the curves of a finished run's journal once and in order; return the run id."""
    _, [child] = runs_of(client)
    assert child.info.status == "FINISHED"
    entries, steps = journal_metrics(path), int(child.data.params["train.steps"])
    for metric in {name for _, found in entries for name in found}:
        points = client.get_metric_history(child.info.run_id, metric)
        sent = thinned([(step, found[metric]) for step, found in entries if metric in found], steps)
        last = RunFolder(path).result().metrics.get(metric)
        if not metric.startswith("train/") and last is not None:
            sent.append((steps, last))
        assert [(point.step, point.value) for point in points] == sent
        assert [point.timestamp for point in points] == sorted(point.timestamp for point in points)
    return child.info.run_id


def thinned(points, steps):
    """The points that MLflow gets: each at least steps / CURVE_POINTS after the one before, and the last."""
    kept = points[:1]
    for point in points[1:]:
        kept += [point] if point[0] - kept[-1][0] >= steps / CURVE_POINTS else []
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def until(holds, seconds=300.0):
    """Wait until `holds()` is true; the limit is for a busy machine."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.1)


@contextlib.contextmanager
def training(path: Path, steps: int):
    """Train in another process, which ends with the block, also with one that fails; yield the process."""
    worker = FORKSERVER.Process(target=train_on, args=(path, steps))
    worker.start()
    try:
        yield worker
    finally:
        worker.kill()
        worker.join()


def seconds_per_step(path: Path, start: float, end: float) -> list[float]:
    """Return the seconds per optimizer step between two times, from the journal."""
    times = [(entry["time"], entry["step"]) for entry, _ in RunFolder(path).journal()]
    pairs = list(itertools.pairwise(times))
    return [(b - a) / (n - m) for (a, m), (b, n) in pairs if start <= a and b <= end]


# While it trains


def test_training_continues_during_an_outage_and_everything_arrives_once_in_order(
    home, server, client, monkeypatch
):
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.05)
    path, syncing = home / "runs" / "x", BackgroundSync()
    syncing.watch(path)
    with training(path, STEPS) as worker, syncing:
        until(lambda: runs_of(client)[1] and runs_of(client)[1][0].data.metrics)
        assert runs_of(client)[1][0].info.status == "RUNNING"
        server.stop()
        before = len(journal_metrics(path))
        until(lambda: "nothing answers" in syncing.trouble)
        until(lambda: len(journal_metrics(path)) > before + 5)  # training continues
        server.start()
        until(lambda: syncing.trouble == "")
        server.fault = lambda path: LOST  # requests are executed but not answered
        until(lambda: "nothing answers" in syncing.trouble)
        server.fault = lambda path: GONE
        worker.join(300)
        assert worker.exitcode == 0
    assert RunFolder(path).result().status == "finished"
    syncing.sync()
    assert "nothing answers" in syncing.trouble
    server.fault = lambda path: None
    syncing.sync()
    assert syncing.trouble == ""
    assert_whole(client, path)
    assert (path / "loaded").read_text() == ""  # the training process imports nothing of tracking


def test_a_run_whose_process_is_killed_is_killed_then_running_with_one_run_id(home, server, client):
    path, tracker = home / "runs" / "x", Tracker()
    folder = RunFolder(path)
    with training(path, 100_000):
        until(lambda: len(journal_metrics(path)) > 3)
        tracker.sync(folder)
        [child] = runs_of(client)[1]
        assert child.info.status == "RUNNING"
    Tracker().sync(folder)
    assert [(run.info.run_id, run.info.status) for run in runs_of(client)[1]] == [(child.info.run_id, "KILLED")]

    with training(path, 100_000):
        until(folder.is_training)
        Tracker().sync(folder)
        states = [(run.info.run_id, run.info.status) for run in runs_of(client)[1]]
        assert states == [(child.info.run_id, "RUNNING")]
    sync_all(Tracker())  # as any later command does
    assert [(run.info.run_id, run.info.status) for run in runs_of(client)[1]] == [(child.info.run_id, "KILLED")]


# Lost answers


@pytest.mark.parametrize(
    "request_",
    [
        ("experiments/create", 1),
        ("runs/create", 1),  # the parent
        ("runs/create", 2),  # the child
        ("runs/log-batch", 1),  # its parameters
        ("runs/log-inputs", 1),
        ("runs/log-batch", 2),  # its journal_metrics
        ("runs/log-batch", 3),  # its record
        ("runs/update", 1),
        ("runs/set-tag", 1),
    ],
)
def test_a_server_that_dies_before_it_answers_has_everything_once(home, server, client, trained, request_):
    """The request is executed, also by MLflow's retry; then nothing is, until the server is back.

    A server that dies before it executes a request is tested in test_mlflow_writer.
    """
    path, number = request_
    folder, seen = placed(home, trained), []

    def dies(asked):
        seen.append(asked)
        return LOST if seen.count(path) >= number else None

    server.fault = dies
    with pytest.raises(TrackingError, match="nothing answers there"):
        Tracker().sync(folder)
    server.fault = lambda asked: None
    (folder.path / "tracked.json").unlink(missing_ok=True)
    assert Tracker().sync(folder)
    parents, _ = runs_of(client)
    assert len(parents) == 1
    assert_whole(client, folder.path)
    assert Tracker().records()[0].identity == "a"


def test_a_request_that_mlflow_retries_creates_no_second_run(home, server, client, trained):
    folder, first = placed(home, trained), iter([LOST])
    server.fault = lambda path: next(first, None) if path == "runs/create" else None
    assert Tracker().sync(folder)
    assert server.asked.count("runs/create") == 3  # the parent twice
    assert [len(rows) for rows in runs_of(client)] == [1, 1]
    assert_whole(client, folder.path)


def test_a_damaged_state_file_sends_nothing_twice(home, server, client, trained):
    folder = placed(home, trained)
    Tracker().sync(folder)
    name = assert_whole(client, folder.path)
    for damage in ("", "[]", "{", '{"server": "elsewhere"}', json.dumps({"server": server.uri, "offset": "x"})):
        (folder.path / "tracked.json").write_text(damage)
        assert Tracker().sync(folder)
        assert assert_whole(client, folder.path) == name


def test_a_run_deleted_in_mlflow_while_it_trains_is_created_again(home, server, client, trained):
    folder = placed(home, trained)
    record = folder.result_file.read_bytes()
    folder.result_file.unlink()
    Tracker().sync(folder)
    [child] = runs_of(client)[1]
    client.delete_run(child.info.run_id)
    folder.result_file.write_bytes(record)
    assert Tracker().sync(folder)
    assert assert_whole(client, folder.path) != child.info.run_id


# Concurrent commands


def at_once(*calls):
    """Call these at the same time; return the UserErrors that they raise."""
    errors = []

    def run(call):
        try:
            call()
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def together(monkeypatch, tracker, barrier, name):
    """Make the first call of the client's method `name` wait at a barrier."""
    real, first = getattr(tracker.client, name), iter([True])

    def waits(*words, **more):
        if next(first, False):
            barrier.wait(20)
        return real(*words, **more)

    monkeypatch.setattr(tracker.client, name, waits)


@pytest.mark.parametrize("name", ["create_experiment", "create_run"])
def test_commands_that_create_the_parent_at_the_same_time_keep_one(
    home, server, client, trained, monkeypatch, name
):
    """Each finds no parent before any creates one; a lock on one machine cannot prevent that."""
    count = 3
    if name == "create_run":
        client.create_experiment("resnet", (home / "artifacts").as_uri())
    folders = [placed(home, trained, f"run-{number}") for number in range(count)]
    barrier, trackers = threading.Barrier(count), [Tracker() for _ in range(count)]
    for tracker in trackers:
        together(monkeypatch, tracker, barrier, name)
    assert at_once(*(lambda t=t, f=f: t.sync(f) for t, f in zip(trackers, folders, strict=True))) == []
    [parent], children = runs_of(client)
    assert len(children) == count
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert {child.info.status for child in children} == {"FINISHED"}
    assert len(client.search_experiments(filter_string="name = 'resnet'")) == 1


def test_a_run_sent_from_two_homes_at_the_same_time_is_one_run(home, server, client, trained, monkeypatch):
    """Two machines that share only the server trained the same run."""
    Tracker().parent_run("resnet/cifar10_depth", "smoke")
    folders = [placed(home / one, trained, "a") for one in ("first", "second")]
    barrier, trackers = threading.Barrier(2), [Tracker(), Tracker()]
    for tracker in trackers:
        together(monkeypatch, tracker, barrier, "create_run")
    at_once(*(lambda t=t, f=f: t.sync(f) for t, f in zip(trackers, folders, strict=True)))  # one may be refused,
    for tracker, folder in zip(trackers, folders, strict=True):
        assert tracker.sync(folder)  # and is sent in the next round
    assert_whole(client, folders[0].path)


def test_children_of_a_second_parent_move_to_the_first(home, server, client, trained):
    """Two parents can remain if the clocks of two machines differ."""
    tracker = Tracker()
    tracker.sync(placed(home, trained, "a"))
    [first], [child] = runs_of(client)
    tags = {key: value for key, value in first.data.tags.items() if key.startswith("repro.")}
    second = client.create_run(first.info.experiment_id, tags=tags, start_time=first.info.start_time + 1)
    client.set_tag(child.info.run_id, "mlflow.parentRunId", second.info.run_id)
    tracker.sync(placed(home, trained, "b"))
    [left], children = runs_of(client)
    assert left.info.run_id == first.info.run_id
    assert [child.data.tags["mlflow.parentRunId"] for child in children] == [first.info.run_id] * 2


SEND_ALL = """
import sys, time
from pathlib import Path
from pipeline.common.paths import runs_folder
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.sync import BackgroundSync
assert Tracker().client
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.005)
syncing = BackgroundSync()
for path in sorted(runs_folder().iterdir()):
    syncing.watch(path)
while syncing._left:
    syncing.sync()
    assert not syncing.trouble, syncing.trouble
"""


@pytest.mark.parametrize("name", ["search_runs", "create_run", "log_batch"])
def test_two_homes_that_share_the_folder_send_its_run_once(home, server, client, trained, monkeypatch, name):
    """The second command starts during each kind of request of the first one."""
    folder, other = placed(home, trained), home.parent / "other"
    other.symlink_to(home)
    trackers, entered = [Tracker(), Tracker()], threading.Event()
    real = getattr(trackers[0].client, name)

    def slow(*words, **more):
        entered.set()
        time.sleep(0.1)
        return real(*words, **more)

    monkeypatch.setattr(trackers[0].client, name, slow)
    second = RunFolder(other / "runs" / "a")
    assert at_once(lambda: trackers[0].sync(folder), lambda: entered.wait(20) and trackers[1].sync(second)) == []
    assert trackers[1].sync(second)
    assert [len(rows) for rows in runs_of(client, ViewType.ALL)] == [1, 1]
    assert server.asked.count("runs/create") == 2
    assert_whole(client, folder.path)


@pytest.mark.slow
def test_two_processes_of_two_homes_that_share_the_folder_send_each_run_once(home, server, client, trained):
    folders = [placed(home, trained, f"run-{number}") for number in range(4)]
    other = home.parent / "other"
    other.mkdir()
    (other / "runs").symlink_to(home / "runs")
    flags = [home.parent / name for name in ("ready-1", "ready-2", "go")]
    senders = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SEND_ALL, str(ready), str(flags[2])],
            env=os.environ | {"REPRO_HOME": str(place), "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for ready, place in zip(flags, (home, other), strict=False)
    ]
    try:
        until(lambda: all(ready.exists() for ready in flags[:2]), 90)
        flags[2].touch()
        assert [sender.wait(60) for sender in senders] == [0, 0]
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()
    parents, children = runs_of(client, ViewType.ALL)
    assert (len(parents), len(children)) == (1, 4)
    for child in children:
        points = client.get_metric_history(child.info.run_id, "train/loss")
        assert [point.step for point in points] == [step for step, _ in journal_metrics(folders[0].path)]
    assert server.asked.count("runs/create") == 5


# Servers that refuse, and passwords


UNKNOWN_USER = "it refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a known one"
NOT_PERMITTED = (
    "this user may not do this; ask the server's administrator for permission to edit the experiment, or set"
    " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who has it"
)


@pytest.mark.parametrize(("status", "reason"), [(401, UNKNOWN_USER), (403, NOT_PERMITTED)])
@pytest.mark.parametrize("job", ["sync", "ended"])
def test_a_refused_login_is_an_error_that_names_the_variables(
    home, server, trained, monkeypatch, status, reason, job
):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-hunter2")
    folder = placed(home, trained)
    server.fault = lambda path: status
    with pytest.raises(TrackingError) as caught:
        Tracker().sync(folder) if job == "sync" else Tracker().ended()
    said = str(caught.value)
    assert said == f"the tracking server {server.uri} cannot be used: {reason}"
    assert not (folder.path / "tracked.json").exists()


def read_only(path):
    """Answer as a server with login does to a user who may read only."""
    return None if path.endswith(("search", "get", "get-by-name")) else 403


def test_a_user_who_may_read_only_is_told_so_and_the_run_is_kept_and_sent_later(home, server, client, trained):
    folder = placed(home, trained)
    server.fault = read_only
    syncing = BackgroundSync()
    syncing.watch(folder.path)
    syncing.sync()
    assert syncing.trouble == f"the tracking server {server.uri} cannot be used: {NOT_PERMITTED}"
    assert (folder.result_file.is_file(), (folder.path / "tracked.json").exists()) == (True, False)
    server.fault = lambda path: None
    syncing.sync()
    assert syncing.trouble == ""
    assert len(runs_of(client)[1]) == 1


def test_a_report_that_may_not_be_published_is_written_and_published_later(home, server, client, trained):
    placed(home, trained)
    records, _ = sync_all(Tracker())
    experiment = load_experiment("resnet/cifar10_depth")
    server.fault = read_only
    made = make_report(experiment, "smoke", records, Tracker())
    assert (made.published, made.page.is_file(), len(made.rows)) == (False, True, 1)
    assert made.trouble == (
        "the leaderboard in MLflow is not up to date: the tracking server"
        f" {server.uri} cannot be used: {NOT_PERMITTED}"
    )
    assert client.get_experiment_by_name("leaderboard") is None
    server.fault = lambda path: None
    again = make_report(experiment, "smoke", records, Tracker())
    assert (again.published, again.trouble) == (True, "")
    assert client.get_experiment_by_name("leaderboard") is not None


def test_a_password_is_never_written_or_printed(home, server, client, trained, monkeypatch, capfd, caplog):
    caplog.set_level(0)
    folder = placed(home, trained)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//me:hunter2@"))
    syncing = BackgroundSync()
    syncing.watch(folder.path)
    syncing.sync()
    assert syncing.trouble == ""
    records, trouble = sync_all(Tracker())
    assert (len(records), trouble) == (1, "")
    for fault in (GONE, HANGS, 401, 404, 500):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        server.fault = lambda path, fault=fault: fault
        unsent = placed(home, trained, f"b-{fault}")
        for ask in (Tracker().ended, lambda unsent=unsent: Tracker().sync(unsent)):
            with pytest.raises((TrackingError, RefusedError)) as caught:
                ask()
            assert "hunter2" not in str(caught.value)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")  # MLflow would print the address of an ended run with its password
    assert "hunter2" not in caplog.text
    for file in [file for file in home.parent.rglob("*") if file.is_file()]:
        assert b"hunter2" not in file.read_bytes(), file


# `mlflow server` itself


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("away", "steps"), [(0, 600), (20, 1200), (60, 2400), (None, 300)])
def test_an_mlflow_server_killed_while_a_run_trains(home, client, monkeypatch, away, steps):
    """The server is killed, and started again after `away` seconds or after the training. Prints timings."""
    port, database = free_port(), home.parent / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.5)
    path, syncing = home / "runs" / "x", BackgroundSync()
    syncing.watch(path)
    with contextlib.ExitStack() as stack:
        with process(database, port) as server:
            worker = stack.enter_context(training(path, steps))
            with syncing:
                until(lambda: runs_of(client)[1] and runs_of(client)[1][0].data.metrics)
                until(lambda: len(journal_metrics(path)) > 40)
                gone = time.time()
                kill(server)
                until(lambda: "nothing answers" in syncing.trouble)
                if away is None:
                    worker.join(600)
                else:
                    time.sleep(away)
        back = time.time()
        with process(database, port), syncing_again(syncing):
            up = time.time()
            until(lambda: syncing.trouble == "")
            late = time.time() - up
            worker.join(600)
            assert worker.exitcode == 0
            syncing.sync()
            assert syncing.trouble == ""
    assert_whole(client, path)
    assert (path / "loaded").read_text() == ""
    with_it, without = seconds_per_step(path, 0, gone), seconds_per_step(path, gone, back)
    print(
        f"\naway {away} s: {1000 * statistics.median(with_it):.1f} ms a step before,"
        f" {1000 * statistics.median(without or with_it):.1f} ms while it was away ({up - gone:.0f} s);"
        f" all so far sent {late:.1f} s after it was back"
    )
    if len(without) > 3:  # a quarter of the steps: other work on the machine may slow the rest down
        assert statistics.quantiles(without, n=4)[0] < 1.5 * statistics.median(with_it)


class syncing_again:  # noqa: N801 - used as a function
    """A new thread for a BackgroundSync whose thread has ended."""

    def __init__(self, syncing):
        self.syncing = syncing
        syncing._over.clear()

    def __enter__(self):
        self.syncing.__enter__()

    def __exit__(self, *error):
        self.syncing.__exit__(*error)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_mlflow_server_with_login_accepts_the_password_and_refuses_others(home, trained, monkeypatch):
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    port = free_port()
    config = home.parent / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{home.parent / 'auth.db'}\n"
        "admin_username = admin\nadmin_password = hunter2-hunter2\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    settings = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test alone"}
    with process(home.parent / "mlflow.db", port, "--app-name", "basic-auth", **settings):
        folder = placed(home, trained)
        for password in (None, "wrong-wrong-wrong"):
            if password:
                monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
                monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            for ask in (Tracker().ended, lambda: Tracker().sync(folder)):
                with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_USERNAME and") as caught:
                    ask()
                assert "wrong-wrong" not in str(caught.value)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-hunter2")
        assert Tracker().sync(folder)
        assert [record.identity for record in Tracker().records()] == ["a"]
    assert b"hunter2" not in (folder.path / "tracked.json").read_bytes()
