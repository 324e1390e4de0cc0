"""`repro ui`: the addresses it prints, and when it opens a browser."""

import signal
import socket
import subprocess
import threading
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from pipeline.cli import ui as module
from pipeline.track.mlflow_writer import Tracker

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow 3.17's own


@pytest.fixture
def opened(monkeypatch):
    """List that gets the addresses that are opened in a browser."""
    found: list[str] = []
    monkeypatch.setattr(module.webbrowser, "open", found.append)
    return found


@pytest.fixture
def served_settings():
    """Environment of the last command in `served`."""
    return {}


@pytest.fixture
def killed():
    """Process groups that `served` stopped, with the signal."""
    return []


@pytest.fixture
def served(monkeypatch, served_settings, killed):
    """Commands that were started instead of a server, which Ctrl-C stops once it is ready."""
    started, settings = [], served_settings

    class Running:
        pid = 4711

        def __init__(self, command, *, env, **_):
            started.append(command)
            settings.update(env)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def poll(self):
            return None

        def wait(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(module.subprocess, "Popen", Running)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module.os, "killpg", lambda *group: killed.append(group))
    monkeypatch.setattr(module, "wait_for", lambda *_: True)
    return started


@pytest.fixture
def ended(monkeypatch):
    """Function that lets the server write a log and end."""

    def end(text, code=1):
        class Ended:
            def __init__(self, command, *, stdout, **_):
                stdout.write(text.encode())
                stdout.flush()

            def __enter__(self):
                return self

            def __exit__(self, *_):
                return None

            def poll(self):
                return code

            wait = poll

        monkeypatch.setattr(module.subprocess, "Popen", Ended)
        monkeypatch.setattr(module.signal, "signal", lambda *_: None)

    return end


@pytest.fixture
def terminal(monkeypatch):
    """A terminal on a machine with a display."""
    monkeypatch.setattr(type(module.out), "is_terminal", True)
    monkeypatch.setenv("DISPLAY", ":0")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_address_of_the_leaderboard_is_printed(command, served, tmp_path, empty_database):
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    place = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}").experiment_id("leaderboard")
    port = free_port()
    code, out, _ = command("ui", "--port", port)
    start = f"http://127.0.0.1:{port}/#/experiments/{place}/runs?viewStateShareKey=repro"
    assert code == 0
    assert out.splitlines() == [
        f"leaderboard  {start}-leaderboard&workflowType=machine_learning",
        "             networks ranked by error, with the papers' numbers; a name leads to the runs of its seeds",
        f"verdicts     {start}-verdicts&workflowType=machine_learning",
        "             which published numbers were reproduced",
        f"Starting MLflow at http://127.0.0.1:{port}; this takes about ten seconds. Ctrl-C stops it.",
        "MLflow is ready.",
        "MLflow is stopped.",
    ]
    assert str(port) in served[0]


def test_ctrl_c_stops_the_server(command, served, killed):
    code, out, _ = command("ui", "--port", str(free_port()))
    assert (code, killed) == (0, [(4711, signal.SIGTERM)])
    assert out.endswith("MLflow is ready.\nMLflow is stopped.\n")


def test_the_server_does_not_outlive_a_command_whose_output_is_closed(served, killed, monkeypatch, tmp_path):
    def closed(line):
        if line == "MLflow is ready.":
            raise BrokenPipeError

    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    monkeypatch.setattr(module, "print_unwrapped", closed)
    with pytest.raises(BrokenPipeError):
        module.ui(free_port())
    assert killed == [(4711, signal.SIGTERM)]


def test_the_password_of_a_database_is_in_no_argument_and_not_printed(
    command, served, served_settings, monkeypatch
):
    """Other users of the machine can list the arguments of its processes."""
    uri = "postgresql+psycopg://me:hunter2-hunter2@127.0.0.1:9/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(Tracker, "find_experiment", lambda self, name: "7")
    code, out, err = command("ui", "--port", free_port())
    assert code == 0
    assert "hunter2" not in " ".join(served[0]) + out + err
    assert served_settings["MLFLOW_BACKEND_STORE_URI"] == uri


def test_without_a_leaderboard_the_command_that_creates_it_is_printed(command, served, tmp_path, empty_database):
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    _, out, _ = command("ui", "--port", free_port())
    assert "No leaderboard yet. Finished runs create it: repro run EXPERIMENT --scale laptop" in out


def test_without_a_database_the_server_is_started(command, served, tmp_path):
    assert command("ui", "--port", free_port())[0] == 0
    assert len(served) == 1
    assert not (tmp_path / "mlflow.db").exists()


def test_a_tracking_server_s_leaderboard_is_printed_without_the_password(command, monkeypatch, opened):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example:8443")
    monkeypatch.setattr("pipeline.track.mlflow_reader.find_experiment", lambda uri, name: "7")
    _, out, err = command("ui")
    assert (
        "leaderboard  https://mlflow.example:8443/#/experiments/7/runs?viewStateShareKey=repro-leaderboard" in out
    )
    assert "secret" not in out + err
    assert opened == []  # no terminal


def test_a_server_that_is_away_is_one_sentence(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    code, out, err = command("ui")
    assert (code, "leaderboard" in out) == (2, False)
    assert "http://127.0.0.1:9 cannot be used: nothing answers there" in " ".join(err.split())


def test_a_browser_is_opened_on_a_terminal_with_a_display_only(opened, terminal, monkeypatch):
    module.open_in_browser("http://x")
    assert opened == ["http://x"]
    monkeypatch.setattr(module.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    module.open_in_browser("http://y")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setattr(type(module.out), "is_terminal", False)
    module.open_in_browser("http://z")
    assert opened == ["http://x"]


def test_the_browser_waits_for_the_server(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.01)
    port, listening, ready = free_port(), socket.socket(), threading.Event()

    class Running:
        def poll(self):
            return None

    waiting = threading.Thread(target=lambda: (module.wait_for(port, Running()), ready.set()), daemon=True)
    waiting.start()
    assert not ready.wait(0.1)
    with listening:
        listening.bind(("127.0.0.1", port))
        listening.listen()
        assert ready.wait(5)


def test_a_server_that_ends_is_not_waited_for():
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
        assert module.wait_for(free_port(), ended) is False


def test_the_printed_view_is_one_that_mlflow_has(home_with_leaderboard: Path):
    client = MlflowClient(f"sqlite:///{home_with_leaderboard / 'mlflow.db'}")
    tags = client.get_experiment_by_name("leaderboard").tags
    assert {"mlflow.sharedViewState.repro-leaderboard", "mlflow.sharedViewState.repro-verdicts"} <= tags.keys()


@pytest.fixture
def home_with_leaderboard(tmp_path, monkeypatch, empty_database):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}").experiment_id("leaderboard")
    return tmp_path


def test_a_server_that_cannot_start_is_one_sentence_and_not_its_log(command, ended, tmp_path):
    ended("INFO: starting\nTraceback (most recent call last):\n  File x\nOSError: no space left on device\n")
    code, out, err = command("ui", "--port", free_port())
    assert (code, "Traceback" in out + err) == (2, False)
    said = " ".join(err.split())
    assert "MLflow's server ended with exit code 1: OSError: no space left on device (its log: " in said
    assert (tmp_path / "mlflow-server.log").is_file()


def test_a_folder_of_an_older_mlflow_gets_the_command_that_copies_it(command, monkeypatch, tmp_path):
    """MLflow 3.17 refuses its file store with an exception."""
    (tmp_path / "my runs").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "my runs"))
    code, _, err = command("ui", "--port", free_port())
    said = " ".join(err.split())
    assert (code, "Traceback" in err) == (2, False)
    target = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert f"mlflow migrate-filestore --source '{tmp_path / 'my runs'}' --target {target}" in said
    assert f"then set MLFLOW_TRACKING_URI={target}" in said


def test_a_database_of_another_version_gets_the_command_that_upgrades(command, ended, tmp_path):
    [*_, known] = sorted((Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions").glob("*.py"))
    revision = known.name.partition("_")[0]
    text = "mlflow.exceptions.MlflowException: Detected out-of-date database schema (found version {}, but"
    ended(text.format(revision))
    said = " ".join(command("ui", "--port", free_port())[2].split())
    assert f"make a backup, then upgrade it with: mlflow db upgrade sqlite:///{tmp_path / 'mlflow.db'}" in said
    ended(text.format("0123456789ab"))
    said = " ".join(command("ui", "--port", free_port())[2].split())
    assert (
        "database of a newer MLflow than the one installed; install that with: pip install --upgrade mlflow"
        in said
    )


def test_an_address_without_a_scheme_is_that_of_a_server(command, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "127.0.0.1:5000")
    asked = []
    monkeypatch.setattr("pipeline.track.mlflow_reader.find_experiment", lambda uri, name: asked.append(uri) or "7")
    assert "leaderboard  http://127.0.0.1:5000/#/experiments/7/runs" in command("ui")[1]
    assert asked == ["http://127.0.0.1:5000"]
