"""Records read without MLflow's client are those that the client reads, after any change on the server."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient

from pipeline.common.paths import runs_folder
from pipeline.track import mlflow_reader as reading
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_reader import (
    RECORD_TAG,
    SENT_TAG,
    RecordCache,
    are_active_runs,
    find_experiment,
    read_tracked_runs,
    redact,
    server_key,
)
from pipeline.track.mlflow_writer import Tracker
from tests.support.mlflow_servers import Server

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own
HOUR = 3_600_000  # milliseconds


@pytest.fixture
def home(tmp_path, monkeypatch, empty_database):
    """Folder with an empty home and an empty MLflow database."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        monkeypatch.delenv(name)
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    monkeypatch.setattr(reading, "FIRST_PAGE_SIZE", 2)
    monkeypatch.setattr(reading, "PAGE_SIZE", 4)
    return tmp_path


@pytest.fixture
def client(home):
    """MLflow client on the database file."""
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")


@pytest.fixture
def server(home, client) -> Iterator[Server]:
    """MLflow server on the same database."""
    made = Server(home / "mlflow.db", client._tracking_client.store)
    yield made
    made.close()


@pytest.fixture
def ended(home, client):
    """Function that adds ended runs: ended(range(5)) adds five, in order of their ends; returns their run ids."""

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
    """Return the identities by run id, as MLflow's client reads them."""
    found = Tracker(f"sqlite:///{home / 'mlflow.db'}").search_ended()
    return {row.run_id: row.record["identity"] for row in found}


def seen(uri) -> dict[str, str]:
    found = read_tracked_runs(uri)
    assert found is not None
    assert len({row.run_id for row in found}) == len(found)  # each once
    return {row.run_id: row.record["identity"] for row in found}


def runs_read(server) -> int:
    """Return the number of searches for runs since the last call."""
    count = server.asked.count("runs/search")
    server.asked.clear()
    return count


# A database file


def test_a_database_file_gives_the_runs_that_mlflow_finds(home, client, ended):
    ended(range(7))
    ended(range(2), paper="vgg", status="FAILED")
    running = client.create_run(client.get_experiment_by_name("vgg").experiment_id, tags={RECORD_TAG: "{}"})
    client.delete_run(ended([9])[0])
    ended(range(3), paper="alexnet")
    client.delete_experiment(client.get_experiment_by_name("alexnet").experiment_id)
    found = seen(f"sqlite:///{home / 'mlflow.db'}")
    assert found == by_client(home)
    assert sorted(found.values()) == [*(f"resnet-{n}" for n in range(7)), "vgg-0", "vgg-1"]
    assert running.info.run_id not in found  # has a record but has not ended


def test_runs_whose_files_are_all_sent_are_marked(home, client, ended, server):
    whole, lacking = ended(range(2))
    client.delete_tag(lacking, SENT_TAG)
    for uri in (f"sqlite:///{home / 'mlflow.db'}", server.uri):
        assert {row.run_id: row.sent for row in read_tracked_runs(uri)} == {whole: True, lacking: False}


def test_a_missing_file_has_no_records_and_is_not_created(tmp_path):
    assert read_tracked_runs(f"sqlite:///{tmp_path / 'none.db'}") == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_a_file_that_is_not_an_mlflow_database_is_left_to_the_client(tmp_path, content):
    (tmp_path / "x.db").write_bytes(content)
    assert read_tracked_runs(f"sqlite:///{tmp_path / 'x.db'}") is None


@pytest.mark.parametrize("uri", ["postgresql://h/d", "databricks", "sqlite:///x.db?timeout=9", "file:///x"])
def test_other_stores_are_left_to_the_client(uri):
    assert read_tracked_runs(uri) is None


def test_servers_with_unsupported_settings_are_left_to_the_client(home, server, ended, monkeypatch):
    ended(range(2))
    for name in ("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE"):
        with monkeypatch.context() as inner:
            inner.setenv(name, "false")
            assert read_tracked_runs(server.uri) is None
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/nowhere.pem")
    assert len(Tracker(server.uri).ended()) == 2


def test_active_runs_are_those_that_exist_and_are_not_deleted(home, client, ended, server):
    kept, deleted = ended(range(2))
    client.delete_run(deleted)
    for uri in (f"sqlite:///{home / 'mlflow.db'}", server.uri):
        assert are_active_runs(uri, [kept])
        assert not are_active_runs(uri, [kept, deleted])
        assert not are_active_runs(uri, ["0" * 32])


@pytest.mark.parametrize("uri", ["sqlite:////nonexistent/mlflow.db", "http://127.0.0.1:9", "postgresql://h/d"])
def test_a_run_on_an_unreadable_store_does_not_count_as_active(home, uri):
    assert not are_active_runs(uri, ["0" * 32])


def test_an_experiment_is_found_by_name_unless_it_is_deleted(home, client, server):
    place = client.create_experiment("leaderboard")
    client.delete_experiment(client.create_experiment("deleted"))
    for uri in (f"sqlite:///{home / 'mlflow.db'}", server.uri):
        assert find_experiment(uri, "leaderboard") == place
        assert find_experiment(uri, "deleted") is None
        assert find_experiment(uri, "it's missing") is None


@pytest.mark.parametrize("uri", ["sqlite:////nonexistent/mlflow.db", "http://127.0.0.1:9", "postgresql://h/d"])
def test_no_experiment_is_found_on_an_unreadable_store(home, uri):
    assert find_experiment(uri, "leaderboard") is None


# A server


def test_a_server_gives_the_runs_that_mlflow_finds(home, client, ended, server):
    assert seen(server.uri) == {}
    ended(range(6))
    ended(range(4), paper="vgg", status="FAILED")
    assert seen(server.uri) == by_client(home)
    assert len(seen(server.uri)) == 10
    assert len(Tracker(server.uri).search_ended()) == 10


def test_cached_runs_are_not_requested_again(home, ended, server):
    ended(range(15))
    seen(server.uri)
    assert runs_read(server) == 6  # four pages of 4, one for runs that ended since, one to compare the number
    assert len(seen(server.uri)) == 15
    assert runs_read(server) == 2  # the last that ended, and the number


def test_runs_that_ended_since_are_found_by_short_pages(home, ended, server):
    ended(range(10))
    seen(server.uri)
    ended([10, 11])
    runs_read(server)
    assert seen(server.uri) == by_client(home)
    assert runs_read(server) == 3  # two pages, and the number


def test_runs_that_end_in_the_same_millisecond_are_all_found(home, ended, server):
    ended([1] * 3)
    seen(server.uri)
    ended([1] * 6)
    assert len(seen(server.uri)) == 9


def test_a_run_ended_by_a_machine_with_a_slow_clock_is_found(home, ended, server):
    ended(range(10))
    seen(server.uri)
    ended([5], at=1_700_000_000_000 - HOUR)
    assert seen(server.uri) == by_client(home)


@pytest.mark.parametrize("number", [0, 5, 9])
def test_a_deleted_run_is_dropped_without_reading_all_and_a_restored_one_is_found(
    home, client, ended, server, number
):
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


def test_one_deleted_and_one_added_run_are_both_found(home, client, ended, server):
    runs = ended(range(10))
    seen(server.uri)
    client.delete_run(runs[3])
    ended([10])
    assert seen(server.uri) == by_client(home)


def test_permanently_deleted_runs_are_dropped(home, client, ended, server):
    """`mlflow gc` deletes permanently."""
    runs = ended(range(10))
    seen(server.uri)
    for run_id in runs[4:7]:
        client.delete_run(run_id)
        client._tracking_client.store._hard_delete_run(run_id)
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 7


def test_runs_of_a_deleted_experiment_are_dropped_until_it_is_restored(home, client, ended, server):
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


def test_a_run_that_ended_again_has_its_new_record(home, client, ended, server):
    runs = ended(range(10))
    seen(server.uri)
    client.set_tag(runs[2], RECORD_TAG, json.dumps({"identity": "resnet-2", "seconds": 9}))
    client.set_terminated(runs[2], "FINISHED", 1_700_000_100_000)
    [again] = [row for row in read_tracked_runs(server.uri) if row.run_id == runs[2]]
    assert again.record["seconds"] == 9


def test_another_database_at_the_same_address_is_noticed(home, client, ended, server, empty_database):
    """It has the same number of runs."""
    ended(range(5))
    before = seen(server.uri)
    (home / "other").mkdir()
    (home / "other" / "mlflow.db").write_bytes(empty_database)
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


def test_runs_that_end_between_two_requests_are_found(home, ended, server):
    ended(range(5))
    seen(server.uri)
    late = iter(range(5, 7))

    def meanwhile(path):
        if path == "runs/search" and (number := next(late, None)):
            ended([number])

    server.fault = meanwhile
    assert seen(server.uri) == by_client(home)
    assert len(by_client(home)) == 7


# The cache file


def cache_path() -> Path:
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
def test_a_damaged_or_foreign_cache_file_counts_as_empty(home, ended, server, damage):
    ended(range(4))
    expected = seen(server.uri)
    cache_path().write_text(damage(cache_path().read_text()))
    assert seen(server.uri) == expected
    runs_read(server)
    assert seen(server.uri) == expected
    assert runs_read(server) == 2  # repaired


def test_each_server_has_its_own_cache_file_without_a_password(home, ended, server):
    ended(range(2))
    seen(server.uri)
    seen(server.uri.replace("//", "//me:secret@"))  # the same server
    assert "secret" not in cache_path().read_text()
    assert json.loads(cache_path().read_text())["server"] == server.uri


def test_without_a_writable_home_runs_are_read_without_a_cache(home, ended, server):
    ended(range(2))
    Path(os.environ["REPRO_HOME"]).write_text("a file, where a folder should be")
    assert len(seen(server.uri)) == 2
    assert RecordCache(server_key(server.uri)).read() == {}


# Login and errors


@pytest.mark.parametrize(
    ("env", "sent"),
    [
        ({}, None),
        ({"USERNAME": "me", "PASSWORD": "secret"}, "Basic bWU6c2VjcmV0"),
        ({"TOKEN": "secret"}, "Bearer secret"),
    ],
)
def test_login_is_that_of_mlflow_s_client(home, server, monkeypatch, env, sent):
    for name, value in env.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    headers, app = [], server.app

    def listen(environ, start_response):
        headers.append(environ.get("HTTP_AUTHORIZATION"))
        return app(environ, start_response)

    server.app = listen
    read_tracked_runs(server.uri)
    own = set(headers)
    headers.clear()
    Tracker(server.uri).search_ended()
    assert own == set(headers) == {sent}


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_refused_requests_are_left_to_the_client(home, server, status):
    server.fault = lambda path: status
    assert read_tracked_runs(server.uri) is None


def test_an_unexpected_answer_is_left_to_the_client(home, server):
    server.app = lambda environ, start: (start("200 OK", [("Content-Type", "text/html")]), [b"<html>hello"])[1]
    assert read_tracked_runs(server.uri) is None
    with pytest.raises(TrackingError, match="not in a valid JSON format"):
        Tracker(server.uri).ended()


@pytest.mark.parametrize(
    ("text", "redacted"),
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
def test_redact_removes_passwords_of_addresses(text, redacted):
    assert redact(text) == redacted


def test_redact_removes_passwords_of_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert redact("with hunter2 and t0ken") == "with *** and ***"


def test_server_key_ignores_user_and_query():
    assert server_key("https://me:p@ss@h:1/x/?token=y") == server_key("https://h:1/x") == "https://h:1/x"
    assert server_key("https://h:1/x") != server_key("https://h:2/x")


def test_reading_imports_neither_mlflow_nor_torch(home, ended, server):
    ended(range(2))
    for uri in (f"sqlite:///{home / 'mlflow.db'}", server.uri):
        code = (
            "import sys; from pipeline.track.mlflow_writer import Tracker;"
            " print(len(Tracker(sys.argv[1]).ended()),"
            " *({'mlflow', 'torch', 'sqlalchemy', 'pandas'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2"]


def test_a_request_times_out(home, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.3")
    server.fault = lambda path: "hangs"
    timeouts, post = [], requests.Session.post
    monkeypatch.setattr(
        requests.Session, "post", lambda *args, **more: (timeouts.append(more["timeout"]), post(*args, **more))[1]
    )
    with pytest.raises(TrackingError, match="nothing answers there"):
        Tracker(server.uri).ended()
    assert timeouts == [0.3]


def test_view_types_have_the_names_that_are_sent(home, client, ended):
    assert ViewType.to_string(ViewType.DELETED_ONLY).upper() == "DELETED_ONLY"
    assert ViewType.to_string(ViewType.ACTIVE_ONLY).upper() == "ACTIVE_ONLY"
