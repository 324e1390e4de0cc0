"""Records read without MLflow's client: the same as with it, whatever was added, changed or deleted between."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from pipeline.common.paths import runs_folder
from pipeline.track import mlflow_reader as reading
from pipeline.track.mlflow_reader import RECORD_TAG, SENT_TAG, RecordCache, read_tracked_runs, redact, server_key
from pipeline.track.mlflow_writer import Tracker, TrackingError
from tests.support.mlflow_servers import Server, empty_database

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
HOUR = 3_600_000  # milliseconds


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return empty_database(tmp_path_factory.mktemp("mlflow") / "empty.db")


@pytest.fixture
def home(tmp_path, monkeypatch, empty):
    """A home of its own, with a fresh database beside it."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        monkeypatch.delenv(name)
    (tmp_path / "mlflow.db").write_bytes(empty)
    monkeypatch.setattr(reading, "FIRST_PAGE_SIZE", 2)
    monkeypatch.setattr(reading, "PAGE_SIZE", 4)
    return tmp_path


@pytest.fixture
def client(home):
    """Straight to the database."""
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture
def server(home, client) -> Iterator[Server]:
    """MLflow over HTTP, on that database."""
    made = Server(home / "mlflow.db", client._tracking_client.store)
    yield made
    made.close()


@pytest.fixture
def ended(home, client):
    """End runs: ended(range(5)) makes five, the last one last."""

    def end(numbers, *, paper="resnet", status="FINISHED", at=1_700_000_000_000, **more) -> list[str]:
        found = client.get_experiment_by_name(paper)
        place = found.experiment_id if found else client.create_experiment(paper)
        made = [(uuid.uuid4().hex, number) for number in numbers]
        tags = [(RECORD_TAG, json.dumps({"identity": f"{paper}-{n}", **more}), name) for name, n in made]
        with contextlib.closing(sqlite3.connect(home / "mlflow.db")) as base, base:  # a tenth of the client's time
            base.executemany(
                "INSERT INTO runs (run_uuid, name, user_id, status, start_time, end_time, lifecycle_stage,"
                " artifact_uri, experiment_id, source_type)"
                " VALUES (?, 'x', '', ?, ?, ?, 'active', '', ?, 'LOCAL')",
                [(name, status, at + n, at + 1000 * n, int(place)) for name, n in made],
            )
            base.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)
            base.executemany(f"INSERT INTO tags VALUES ('{SENT_TAG}', 'all', ?)", [(name,) for name, _ in made])
        return [name for name, _ in made]

    return end


def by_client(home) -> dict[str, str]:
    """Run id -> identity, by MLflow's own search."""
    found = Tracker(f"sqlite:///{home / 'mlflow.db'}").searched()
    return {row.run_id: row.record["identity"] for row in found}


def seen(uri) -> dict[str, str]:
    found = read_tracked_runs(uri)
    assert found is not None
    assert len({row.run_id for row in found}) == len(found)  # each once
    return {row.run_id: row.record["identity"] for row in found}


def runs_read(server) -> int:
    """How many times runs were asked for, since the last call."""
    count = server.asked.count("runs/search")
    server.asked.clear()
    return count


# A database file


def test_a_file_is_read_as_mlflow_reads_it(home, client, ended):
    ended(range(7))
    ended(range(2), paper="vgg", status="FAILED")
    running = client.create_run(client.get_experiment_by_name("vgg").experiment_id, tags={RECORD_TAG: "{}"})
    client.delete_run(ended([9])[0])
    ended(range(3), paper="alexnet")
    client.delete_experiment(client.get_experiment_by_name("alexnet").experiment_id)
    found = seen(f"sqlite:///{home / 'mlflow.db'}")
    assert found == by_client(home)
    assert sorted(found.values()) == [*(f"resnet-{n}" for n in range(7)), "vgg-0", "vgg-1"]
    assert running.info.run_id not in found  # its record is there, its end is not


def test_whether_all_files_are_there_is_known(home, client, ended, server):
    whole, lacking = ended(range(2))
    client.delete_tag(lacking, SENT_TAG)
    for uri in (f"sqlite:///{home / 'mlflow.db'}", server.uri):
        assert {row.run_id: row.sent for row in read_tracked_runs(uri)} == {whole: True, lacking: False}


def test_no_file_has_no_records_and_is_not_made(tmp_path):
    assert read_tracked_runs(f"sqlite:///{tmp_path / 'none.db'}") == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_file_that_is_not_mlflow_s_is_left_to_its_client(tmp_path, content):
    (tmp_path / "x.db").write_bytes(content)
    assert read_tracked_runs(f"sqlite:///{tmp_path / 'x.db'}") is None


@pytest.mark.parametrize("uri", ["postgresql://h/d", "databricks", "sqlite:///x.db?timeout=9", "file:///x"])
def test_other_stores_are_left_to_mlflow_s_client(uri):
    assert read_tracked_runs(uri) is None


def test_where_more_is_set_than_is_understood_here_mlflow_s_client_is_asked(home, server, ended, monkeypatch):
    ended(range(2))
    for name in ("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE"):
        with monkeypatch.context() as inner:
            inner.setenv(name, "false")
            assert read_tracked_runs(server.uri) is None
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nowhere.pem")
    assert len(Tracker(server.uri).ended()) == 2


# A server


def test_a_server_s_records_are_those_that_mlflow_finds(home, client, ended, server):
    assert seen(server.uri) == {}
    ended(range(6))
    ended(range(4), paper="vgg", status="FAILED")
    assert seen(server.uri) == by_client(home)
    assert len(seen(server.uri)) == 10
    assert len(Tracker(server.uri).searched()) == 10


def test_what_was_seen_is_not_asked_for_again(home, ended, server):
    ended(range(15))
    seen(server.uri)
    assert runs_read(server) == 6  # four pages of 4, one to see that none ended since, and whether they are all
    assert len(seen(server.uri)) == 15
    assert runs_read(server) == 2  # the last that ended, and whether they are all


def test_what_ended_since_is_found_by_a_short_page(home, ended, server):
    ended(range(10))
    seen(server.uri)
    ended([10, 11])
    runs_read(server)
    assert seen(server.uri) == by_client(home)
    assert runs_read(server) == 3  # two pages, and whether they are all


def test_runs_that_end_in_the_same_millisecond_are_all_found(home, ended, server):
    ended([1] * 3)
    seen(server.uri)
    ended([1] * 6)
    assert len(seen(server.uri)) == 9


def test_a_run_ended_by_a_machine_whose_clock_is_slow_is_found(home, ended, server):
    ended(range(10))
    seen(server.uri)
    ended([5], at=1_700_000_000_000 - HOUR)
    assert seen(server.uri) == by_client(home)


@pytest.mark.parametrize("number", [0, 5, 9])
def test_a_deleted_run_is_gone_without_reading_all_and_a_restored_one_is_back(home, client, ended, server, number):
    runs = ended(range(10))
    seen(server.uri)
    client.delete_run(runs[number])
    runs_read(server)
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 9
    assert runs_read(server) == 4
    client.restore_run(runs[number])
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 10


def test_one_deleted_and_one_added_are_both_noticed(home, client, ended, server):
    runs = ended(range(10))
    seen(server.uri)
    client.delete_run(runs[3])
    ended([10])
    assert seen(server.uri) == by_client(home)


def test_runs_removed_for_good_are_gone(home, client, ended, server):
    """As `mlflow gc` does it."""
    runs = ended(range(10))
    seen(server.uri)
    for run_id in runs[4:7]:
        client.delete_run(run_id)
        client._tracking_client.store._hard_delete_run(run_id)
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 7


def test_a_deleted_experiment_s_runs_are_gone_and_back_when_it_is_restored(home, client, ended, server):
    ended(range(4))
    ended(range(3), paper="vgg")
    seen(server.uri)
    number = client.get_experiment_by_name("vgg").experiment_id
    client.delete_experiment(number)
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 4
    client.restore_experiment(number)
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 7


def test_a_run_that_was_trained_and_ended_again_has_its_new_record(home, client, ended, server):
    runs = ended(range(10))
    seen(server.uri)
    client.set_tag(runs[2], RECORD_TAG, json.dumps({"identity": "resnet-2", "seconds": 9}))
    client.set_terminated(runs[2], "FINISHED", 1_700_000_100_000)
    [again] = [row for row in read_tracked_runs(server.uri) if row.run_id == runs[2]]
    assert again.record["seconds"] == 9


def test_another_database_behind_the_same_address_is_noticed(home, client, ended, server, empty):
    """With as many runs as before."""
    ended(range(5))
    before = seen(server.uri)
    (home / "other").mkdir()
    (home / "other" / "mlflow.db").write_bytes(empty)
    other, port = Server(home / "other" / "mlflow.db"), server.port
    other.stop()
    server.stop()
    other.port = port
    other.start()
    try:
        direct = MlflowClient(f"sqlite:///{home / 'other' / 'mlflow.db'}")
        place = direct.create_experiment("resnet")
        for number in range(5):
            run = direct.create_run(place, tags={RECORD_TAG: json.dumps({"identity": f"new-{number}"})})
            direct.set_terminated(run.info.run_id)
        found = seen(other.uri)
    finally:
        other.stop()
        server.start()
    assert sorted(found.values()) == sorted(f"new-{number}" for number in range(5))
    assert not found.keys() & before.keys()


def test_runs_that_end_while_it_is_asked_are_found(home, ended, server):
    ended(range(5))
    seen(server.uri)
    late = iter(range(5, 7))

    def meanwhile(path):
        if path == "runs/search" and (number := next(late, None)):
            ended([number])

    server.fault = meanwhile
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 7


# What is kept


def kept_file() -> Path:
    [file] = runs_folder().glob(".tracked-*.json")
    return file


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"format": 1', '"format": 0'),
        lambda text: text.replace("127.0.0.1", "127.0.0.2"),
        lambda text: json.dumps(json.loads(text) | {"runs": [["x", 3, True]]}),
        lambda text: json.dumps(json.loads(text) | {"runs": [["x", {"identity": "made-up"}, True]] * 4}),
    ],
)
def test_a_damaged_or_foreign_file_counts_as_none(home, ended, server, damage):
    ended(range(4))
    expected = seen(server.uri)
    kept_file().write_text(damage(kept_file().read_text()))
    assert seen(server.uri) == expected
    runs_read(server)
    assert seen(server.uri) == expected
    assert runs_read(server) == 2  # it is whole again


def test_each_server_has_a_file_of_its_own_without_any_password(home, ended, server):
    ended(range(2))
    seen(server.uri)
    seen(server.uri.replace("//", "//me:secret@"))  # the same server
    assert "secret" not in kept_file().read_text()
    assert json.loads(kept_file().read_text())["server"] == server.uri


def test_a_home_that_cannot_be_written_only_costs_time(home, ended, server):
    ended(range(2))
    Path(os.environ["REPRO_HOME"]).write_text("a file, where a folder should be")
    assert len(seen(server.uri)) == 2
    assert RecordCache(server_key(server.uri)).read() == {}


# Who asks, and what is said


@pytest.mark.parametrize(
    ("env", "sent"),
    [
        ({}, None),
        ({"USERNAME": "me", "PASSWORD": "secret"}, "Basic bWU6c2VjcmV0"),
        ({"TOKEN": "secret"}, "Bearer secret"),
    ],
)
def test_name_and_password_are_those_of_mlflow_s_client(home, server, monkeypatch, env, sent):
    for name, value in env.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    heard, app = [], server.app

    def listen(environ, start_response):
        heard.append(environ.get("HTTP_AUTHORIZATION"))
        return app(environ, start_response)

    server.app = listen
    read_tracked_runs(server.uri)
    mine = set(heard)
    heard.clear()
    Tracker(server.uri).searched()
    assert mine == set(heard) == {sent}


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_what_a_server_refuses_is_left_to_mlflow_s_client_to_explain(home, server, status):
    server.fault = lambda path: status
    assert read_tracked_runs(server.uri) is None


def test_a_page_of_something_else_is_left_to_mlflow_s_client(home, server):
    server.app = lambda environ, start: (start("200 OK", [("Content-Type", "text/html")]), [b"<html>hello"])[1]
    assert read_tracked_runs(server.uri) is None
    with pytest.raises(TrackingError, match="not in a valid JSON format"):
        Tracker(server.uri).ended()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://me:p@ss/w@host/x", "https://***@host/x"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://h/d?user=me&password=p%20w&x=1", "postgresql://h/d?user=me&password=***&x=1"),
        (
            "at http://u:p@h/api/2.0 came http://u:p@h no answer",
            "at http://***@h/api/2.0 came http://***@h no answer",
        ),
    ],
)
def test_an_address_is_shown_without_its_password(text, said):
    assert redact(text) == said


def test_a_password_in_the_environment_is_never_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert redact("with hunter2 and t0ken") == "with *** and ***"


def test_a_server_is_the_same_whoever_asks():
    assert server_key("https://me:p@ss@h:1/x/?token=y") == server_key("https://h:1/x") == "https://h:1/x"
    assert server_key("https://h:1/x") != server_key("https://h:2/x")


def test_reading_loads_neither_mlflow_nor_torch(home, ended, server):
    ended(range(2))
    for uri in (f"sqlite:///{home / 'mlflow.db'}", server.uri):
        code = (
            "import sys; from pipeline.tracking import Tracker; print(len(Tracker(sys.argv[1]).ended()),"
            " *({'mlflow', 'torch', 'sqlalchemy', 'pandas'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2"]


def test_a_server_that_does_not_answer_is_given_up(home, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.3")
    server.fault = lambda path: "hangs"
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="nothing answers there"):
        Tracker(server.uri).ended()
    assert time.monotonic() - begun < 5


def test_deleted_runs_are_what_mlflow_calls_deleted(home, client, ended):
    """That `ViewType` has the name that is sent."""
    assert ViewType.to_string(ViewType.DELETED_ONLY).upper() == "DELETED_ONLY"
    assert ViewType.to_string(ViewType.ACTIVE_ONLY).upper() == "ACTIVE_ONLY"
