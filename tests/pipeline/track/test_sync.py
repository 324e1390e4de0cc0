"""Synchronisation of run folders with the tracking server: which are read, and which errors end a round."""

import json
import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.common.locks import file_lock
from pipeline.track import sync as module
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.run_folder import RunFolder
from pipeline.track.sync import BackgroundSync, local_records, summarise_errors, sync_all
from tests.support.mlflow_servers import HANGS, Server
from tests.support.smoke_runs import smoke_run, stop_after, train_in

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own


@pytest.fixture(scope="module")
def trained(finished_run):
    """A finished run's files."""
    return {file.name: file.read_bytes() for file in finished_run(0).iterdir() if file.is_file()}


@pytest.fixture
def place(home, trained):
    """Function that puts a finished run into the home: place("a"), place("b", damaged={"run.json": b"{"})."""

    def put(identity, *, damaged=None, **other) -> Path:
        path = home / "runs" / identity
        path.mkdir(parents=True, exist_ok=True)
        for name, content in trained.items():
            if name in ("run.json", "result.json"):
                content = json.dumps(json.loads(content) | {"identity": identity} | other).encode()
            (path / name).write_bytes((damaged or {}).get(name, content))
        return path

    return put


def tracked_identities() -> list[str]:
    return sorted(record.identity for record in Tracker().records())


class Stub:
    """Tracker that records the folders it is given."""

    def __init__(self, wrong=None):
        self.given, self.wrong = [], wrong

    def sync(self, folder):
        self.given.append(folder.path.name)
        if self.wrong:
            raise self.wrong
        return True


# Which folders are read


def test_a_folder_that_is_created_later_is_sent_once_it_exists(home, place):
    syncing = BackgroundSync()
    syncing.watch(home / "runs" / "a")
    syncing.sync()
    assert (syncing.trouble, tracked_identities()) == ("", [])
    (home / "runs" / "a").mkdir(parents=True)  # as while its process starts
    syncing.sync()
    assert (syncing.trouble, tracked_identities()) == ("", [])
    place("a")
    syncing.sync()
    assert (syncing.trouble, tracked_identities()) == ("", ["a"])


def test_a_completely_sent_folder_is_not_read_again(home, place):
    syncing = BackgroundSync()
    syncing._tracker = Stub()
    for name in ("a", "b"):
        syncing.watch(place(name))
    syncing.sync()
    syncing.watch(place("c"))
    syncing.sync()
    syncing.sync()
    assert syncing._tracker.given == ["a", "b", "c"]


def test_a_resumed_run_is_sent_to_its_end(home):
    path, syncing, run = home / "runs" / "x", BackgroundSync(), smoke_run()
    syncing.watch(path)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")

    def states():
        syncing.sync()
        assert syncing.trouble == ""
        papers = [found.experiment_id for found in client.search_experiments()]
        runs = client.search_runs(papers, "tags.`repro.seed` = '0'")
        return [(run.info.run_id, run.info.status) for run in runs]

    train_in(path, run, stop=stop_after(5))
    [(first, status)] = states()
    assert status == "KILLED"
    assert states() == [(first, "KILLED")]
    train_in(path, run)
    assert states() == [(first, "FINISHED")]


def test_ten_thousand_missing_folders_are_not_checked_one_by_one(home, place, monkeypatch):
    syncing = BackgroundSync()
    syncing._tracker = Stub()
    for number in range(10_000):
        syncing.watch(home / "runs" / f"waiting-{number}")
    there = [place(f"waiting-{number}").name for number in (5, 7000)]
    asked, is_file = [], Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path) or is_file(path))
    syncing.sync()
    assert sorted(syncing._tracker.given) == sorted(there)
    assert len(asked) == 2


def test_a_folder_without_new_content_causes_no_request_and_no_write(home):
    path, tracker = home / "runs" / "x", Tracker()
    train_in(path, smoke_run(), stop=stop_after(5))
    assert tracker.sync(RunFolder(path)) is False
    written = (path / "tracked.json").stat().st_mtime_ns, (path / "tracked.json").stat().st_ino
    del tracker.__dict__["client"]
    tracker.__dict__["client"] = None  # every request fails
    assert tracker.sync(RunFolder(path)) is False
    assert ((path / "tracked.json").stat().st_mtime_ns, (path / "tracked.json").stat().st_ino) == written


# Errors of one folder


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("run.json", b'{"identity": "b", "exper', "cannot be read"),
        ("run.json", b"[]", "cannot be read"),
        ("run.json", b"{}", "no identity"),
        ("run.json", b"\xff\xfe", "cannot be read"),
        ("journal.jsonl", b"not a report\n", "cannot be read"),
        ("journal.jsonl", b'{"step": 3}\n', "a line of the journal is not a report"),
        ("result.json", b"{", "is not a run's record"),
    ],
)
def test_a_damaged_folder_is_reported_and_the_others_are_sent(home, place, file, content, says):
    syncing = BackgroundSync()
    for name in ("a", "b", "c"):
        syncing.watch(place(name, damaged={file: content} if name == "b" else None))
    syncing.sync()
    assert tracked_identities() == ["a", "c"]
    assert str(home / "runs" / "b") in syncing.trouble
    assert says in syncing.trouble
    assert "\n" not in syncing.trouble
    place("b")  # repaired
    syncing.sync()
    assert (tracked_identities(), syncing.trouble) == (["a", "b", "c"], "")


def test_a_refused_run_does_not_stop_the_others(home, place):
    syncing = BackgroundSync()
    for name in ("a", "b", "c"):
        other = {"experiment": "x" * 600 + "/y"} if name == "b" else {}  # MLflow refuses this name
        syncing.watch(place(name, **other))
    syncing.sync()
    assert tracked_identities() == ["a", "c"]
    assert "refuses: " in syncing.trouble
    assert "name" in syncing.trouble


def test_summary_of_errors_is_the_first_and_the_number_of_others():
    assert summarise_errors([]) == ""
    assert summarise_errors(["one"]) == "one"
    assert summarise_errors(["one", "two", "three"]) == "one (and 2 more errors)"


def test_a_folder_of_a_derived_run_is_sent(home, place):
    syncing = BackgroundSync()
    syncing.watch(place("s", recipe={"kind": "ensemble", "members": ["a", "b"]}))
    syncing.sync()
    assert (syncing.trouble, tracked_identities()) == ("", ["s"])


# Errors of the server


def test_an_unreachable_server_is_tried_once_per_round(home, place):
    syncing = BackgroundSync()
    syncing._tracker = Stub(TrackingError("the tracking server x cannot be used: nothing answers there"))
    for number in range(5):
        syncing.watch(place(str(number)))
    syncing.sync()
    assert syncing._tracker.given == ["0"]
    assert syncing.trouble.endswith("nothing answers there")
    syncing._tracker.wrong = None
    syncing.sync()
    assert sorted(syncing._tracker.given[1:]) == ["0", "1", "2", "3", "4"]
    assert syncing.trouble == ""


def test_the_thread_continues_after_any_error(home, place, monkeypatch):
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.01)
    syncing = BackgroundSync()
    syncing._tracker = Stub(RuntimeError("a bug"))
    syncing.watch(place("a"))
    with syncing:
        until(lambda: len(syncing._tracker.given) > 1)
        assert syncing.trouble == "tracking failed: RuntimeError: a bug"
        syncing._tracker.wrong = None
        until(lambda: syncing.trouble == "")


def test_errors_contain_no_passwords(home, place, monkeypatch):
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.01)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    said = "postgresql://me:pa@ss@host/db and hunter2 and http://host/?token=abc"
    for error in (RuntimeError(said), OSError(said)):  # of a round, and of one folder
        syncing = BackgroundSync()
        syncing._tracker = Stub(error)
        syncing.watch(place("a"))
        with syncing:
            until(lambda syncing=syncing: syncing.trouble)
        assert syncing.trouble.endswith("postgresql://***@host/db and *** and http://host/?token=***")


def test_the_thread_ends_after_the_folder_being_sent(home, place, monkeypatch):
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.01)
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Stub):
        def sync(self, folder):
            entered.set()
            go_on.wait(10)
            return super().sync(folder)

    syncing = BackgroundSync()
    syncing._tracker = Slow()
    for number in range(5):
        syncing.watch(place(str(number)))
    with syncing:
        assert entered.wait(10)
        threading.Timer(0.1, go_on.set).start()
    assert syncing._tracker.given == ["0"]
    syncing.sync()  # the caller's last call sends the rest
    assert syncing._tracker.given == ["0", "1", "2", "3", "4"]


def test_a_hanging_server_is_waited_for_once_for_all_folders(home, place, monkeypatch):
    """Requests time out after one second; MLflow retries once."""
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server = Server(home / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.fault = lambda path: HANGS
    try:
        syncing = BackgroundSync()
        for number in range(20):
            syncing.watch(place(str(number)))
        with syncing:
            until(lambda: server.asked)
        syncing.sync()
        assert len(server.asked) <= 2
        assert "nothing answers there" in syncing.trouble
    finally:
        server.close()


# All folders of this machine


def test_completely_sent_folders_are_not_opened(home, place, monkeypatch):
    for name in ("a", "b"):
        place(name)
    records, trouble = sync_all(Tracker())
    assert (sorted(record.identity for record in records), trouble) == (["a", "b"], "")
    place("c")
    looked = []
    monkeypatch.setattr(Tracker, "sync", lambda self, folder: looked.append(folder.path.name))
    monkeypatch.setattr(Tracker, "client", None)  # nor is MLflow's client used
    records, trouble = sync_all(Tracker())
    assert looked == ["c"]
    assert sorted(record.identity for record in records) == ["a", "b"]


def test_an_interrupted_run_is_sent_once(home, place, monkeypatch):
    folder = RunFolder(place("a"))
    folder.result_file.unlink()
    sync_all(Tracker())
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "client", None)  # MLflow's client, whose import takes seconds, is not used
        assert sync_all(Tracker()) == ([], "")
    with folder.journal_file.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"time": 1.0, "step": 13, "metrics": {"train/loss": 0.5}}) + "\n")
    sync_all(Tracker())
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    [run_id] = [json.loads((folder.path / "tracked.json").read_text())["run_id"]]
    assert max(point.step for point in client.get_metric_history(run_id, "train/loss")) == 13


def test_runs_that_another_process_trains_are_left_to_it(home, place, monkeypatch):
    training, ended, stopped = (RunFolder(place(name)) for name in "abc")
    for folder in (training, stopped):
        folder.result_file.unlink()
    looked = []
    monkeypatch.setattr(Tracker, "sync", lambda self, folder: looked.append(folder.path.name))
    with file_lock(training.lock_file), file_lock(ended.lock_file):
        sync_all(Tracker())
    assert looked == ["b", "c"]  # the last model of an ended run may still be being exported


def test_a_run_with_missing_files_is_sent_again(home, place, monkeypatch):
    path = place("a")
    monkeypatch.setattr(
        MlflowClient, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError("the disk is full"))
    )
    with pytest.raises(TrackingError, match="the disk is full"):
        sync_all(Tracker())
    assert tracked_identities() == ["a"]  # its numbers are there
    monkeypatch.undo()
    monkeypatch.setenv("REPRO_HOME", str(home))
    sync_all(Tracker())
    assert json.loads((path / "tracked.json").read_text())["done"] is True
    [run] = Tracker().ended()
    assert run.sent
    files = MlflowClient(f"sqlite:///{home / 'mlflow.db'}").list_artifacts(run.run_id)
    assert {file.path for file in files} == {"network.safetensors", "journal.jsonl"}


def test_errors_of_a_folder_are_returned_with_the_records(home, place):
    place("a")
    place("b", damaged={"run.json": b"{"})
    records, trouble = sync_all(Tracker())
    assert [record.identity for record in records] == ["a"]
    assert str(home / "runs" / "b") in trouble


def test_local_records_are_read_except_known_ones(home, place):
    assert local_records() == []
    for name in ("a", "b", "c"):
        place(name)
    (home / "runs" / "c" / "result.json").unlink()
    assert [record.identity for record in local_records()] == ["a", "b"]
    place("a", damaged={"result.json": b"{"})  # is not opened
    assert [record.identity for record in local_records(known={"a"})] == ["b"]


def test_local_records_are_those_of_ended_runs(home, experiment, record):
    assert local_records() == []
    records = [record(experiment, "plain-20", seed, 9.5) for seed in (0, 1)]
    for made in records:
        folder = RunFolder(home / "runs" / made.identity)
        folder.create({})
        folder.finish(made)
    RunFolder(home / "runs" / "unfinished").create({})
    assert sorted(local_records(), key=lambda found: found.seed) == records


def until(holds, seconds=20.0):
    """Wait until `holds()` is true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
