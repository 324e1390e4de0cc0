"""Shared stores: PostgreSQL, and MLflow's server with login on it, from `repro run` to models, views and notes.

The runs are trained once, by `repro run` with the database; then they are sent to the server as well.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import URL

from pipeline.track.mlflow_registry import JUDGED_ALIAS
from pipeline.track.mlflow_views import KIND_TAG, MODEL_TRAINING, OVERVIEW_VIEWS, VIEW_TAG, VIEWS
from tests.support.mlflow_servers import free_port, process, until_up
from tests.support.stack import database, missing_programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing_programs()), reason=missing_programs()),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow 3.17's own
]
ROOT = Path(__file__).parents[3]
EXPERIMENT, VARIANT, SEEDS = "resnet/cifar10_depth", "resnet-20", 2
MODEL = "resnet-cifar10_depth-resnet-20"
THEIRS = {f"{VIEW_TAG}theirs": '{"name": "mine", "createdAt": 1, "state": "deflate;"}', "team": "vision"}


class Store:
    """A store and the variables that a command needs for it."""

    def __init__(self, home: Path, uri: str, **login: str) -> None:
        self.home, self.uri, self.login = home, uri, login
        self.theirs = ""  # id of the MLflow experiment that was there before

    def environment(self, home: Path | None = None) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        own = {"REPRO_HOME": str(home or self.home), "PYTHONPATH": str(ROOT), "REPRO_LOG_MODELS": "1"}
        return plain | own | {"MLFLOW_TRACKING_URI": self.uri} | self.login

    def repro(self, *words: str, home: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *words],
            env=self.environment(home) | more,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def run(self) -> str:
        """Create someone's MLflow experiment with the name of ours, then `repro run`; return its output."""
        is_server = self.uri.startswith("http")
        place = None if is_server else (self.home / "theirs").as_uri()
        self.theirs = self.client().create_experiment("resnet", place, THEIRS)
        words = ("run", EXPERIMENT, "--scale", "smoke", "--variant", VARIANT, "--seeds", str(SEEDS))
        done = self.repro(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def client(self) -> MlflowClient:
        os.environ.update(self.login)
        return MlflowClient(self.uri)


@pytest.fixture(scope="module", autouse=True)
def _login_removed():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, "")
            patch.delenv(name)
        yield
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            os.environ.pop(name, None)


@pytest.fixture(scope="module")
def postgres():
    with database() as running:
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def database_settings(postgres, name):
    """Return the variables of libpq for a new database of this name."""
    import psycopg

    settings = postgres.services["db"]["environment"]
    user, password = settings["POSTGRES_USER"], settings["POSTGRES_PASSWORD"]
    login = {"host": "127.0.0.1", "port": postgres.ports["db"], "user": user, "password": password}
    with psycopg.connect(**login, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return {f"PG{key.upper()}": str(value) for key, value in login.items()} | {"PGDATABASE": name}


@pytest.fixture(scope="module")
def direct(postgres, home):
    """PostgreSQL without a server of MLflow, after `repro run`."""
    login = database_settings(postgres, "direct")
    uri = URL.create(
        "postgresql+psycopg",
        login["PGUSER"],
        login["PGPASSWORD"],
        login["PGHOST"],
        int(login["PGPORT"]),
        login["PGDATABASE"],
    )
    store = Store(home, uri.render_as_string(hide_password=False))
    store.said = store.run()
    store.password = login["PGPASSWORD"]
    return store


@pytest.fixture(scope="module")
def with_login(postgres, home, direct):
    """MLflow's server with login, as docker/compose.yaml starts it, after the same `repro run`."""
    port = free_port()
    settings = database_settings(postgres, "served") | {
        "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "docker" / "mlflow-auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "repro",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "hunter2-hunter2",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test alone",
    }
    more = ("--app-name", "basic-auth", "--backend-store-uri", "postgresql+psycopg://")
    with process(home / "unused.db", port, *more, **settings):
        login = {"MLFLOW_TRACKING_USERNAME": "repro", "MLFLOW_TRACKING_PASSWORD": "hunter2-hunter2"}
        store = Store(home, f"http://127.0.0.1:{port}", **login)
        store.said = store.run()
        store.password = "hunter2-hunter2"
        yield store


@pytest.fixture(params=["direct", "with_login"])
def store(request):
    return request.getfixturevalue(request.param)


def runs(store, place):
    found = store.client().search_runs([store.client().get_experiment_by_name(place).experiment_id])
    return {run.info.run_name: run for run in found}


def test_runs_have_numbers_files_data_set_and_a_model(store):
    """The files of a database without a server are in the home, and not where the command was started."""
    client = store.client()
    for seed in range(SEEDS):
        run = runs(store, "resnet")[f"{VARIANT} seed {seed}"]
        assert (run.info.status, run.data.tags["repro.sent"]) == ("FINISHED", "all")
        assert run.data.metrics["test/images"] > 0
        assert [one.dataset.name for one in run.inputs.dataset_inputs] == ["noise"]
        names = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert {"journal.jsonl", "network.safetensors"} <= names
        [output] = run.outputs.model_outputs
        assert str(client.get_logged_model(output.model_id).status) == "READY"
    if store.uri.startswith("postgresql"):
        overview = client.get_experiment_by_name("leaderboard").artifact_location
        assert overview == (store.home / "mlartifacts" / "leaderboard").as_uri()
    assert not [path for path in (store.home / "mlruns").rglob("*") if path.is_file()]


def test_the_leaderboard_has_the_network_its_views_its_tables_and_a_note(store):
    found = runs(store, "leaderboard")
    assert sorted(found) == [VARIANT, "tables"]
    assert found[VARIANT].data.metrics["seeds"] == SEEDS
    assert "seed 1](#/experiments/" in found[VARIANT].data.tags["mlflow.note.content"]
    files = {file.path for file in store.client().list_artifacts(found["tables"].info.run_id)}
    assert {"top1_errors.json", "top5_errors.json"} <= files
    tags = store.client().get_experiment_by_name("leaderboard").tags
    assert tags[KIND_TAG] == MODEL_TRAINING
    assert {f"{VIEW_TAG}{view.key}" for view in OVERVIEW_VIEWS} <= tags.keys()
    assert tags["mlflow.note.content"].startswith("# Networks of all papers")


def test_the_paper_has_a_note_and_the_views_of_others_are_untouched(store):
    experiment = store.client().get_experiment_by_name("resnet")
    assert experiment.experiment_id == store.theirs
    assert {key: experiment.tags[key] for key in THEIRS} == THEIRS
    assert {f"{VIEW_TAG}{view.key}" for view in VIEWS} <= experiment.tags.keys()
    assert experiment.tags["mlflow.note.content"].startswith("# Deep Residual Learning")


def test_the_registered_model_loads_and_answers(store):
    version = store.client().get_model_version_by_alias(MODEL, JUDGED_ALIAS)
    assert (version.tags["repro.seed"], version.tags["repro.scale"]) == ("0", "smoke")
    mlflow.set_tracking_uri(store.uri)
    try:
        model = mlflow.pytorch.load_model(f"models:/{MODEL}@{JUDGED_ALIAS}")
    finally:
        mlflow.set_tracking_uri(None)
    assert model(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).shape == (3, 10)


def test_running_again_creates_nothing(store):
    def ids():
        client = store.client()
        places = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
        versions = [(one.name, one.version) for one in client.search_model_versions()]
        return {run.info.run_id for run in client.search_runs(places, "", ViewType.ALL)}, versions

    before = ids()
    for file in (store.home / "report").glob(".*.json"):
        file.unlink()  # else the report is known to be published
    words = ("run", EXPERIMENT, "--scale", "smoke", "--variant", VARIANT, "--seeds", str(SEEDS))
    assert store.repro(*words).returncode == 0
    assert ids() == before


def test_results_are_read_from_the_store_alone(store, tmp_path):
    done = store.repro("leaderboard", EXPERIMENT, "--json", home=tmp_path)
    [row] = [row for row in json.loads(done.stdout) if row["scale"] == "smoke"]
    assert (row["variant"], row["seeds"]) == (VARIANT, SEEDS)
    assert store.password not in done.stdout + done.stderr + store.said


def test_the_address_of_a_server_with_login_is_printed(with_login):
    place = with_login.client().get_experiment_by_name("leaderboard").experiment_id
    done = with_login.repro("ui")
    address = f"{with_login.uri}/#/experiments/{place}/runs?viewStateShareKey=repro-leaderboard"
    assert f"leaderboard  {address}" in done.stdout
    refused = with_login.repro("ui", MLFLOW_TRACKING_PASSWORD="wrong-wrong-wrong")
    assert (refused.returncode, "leaderboard" in refused.stdout) == (2, False)
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in " ".join(refused.stderr.split())


def test_the_pages_of_a_database_are_served_and_no_command_line_has_its_password(direct):
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port)],
        env=direct.environment(),
        cwd=direct.home,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "viewStateShareKey=repro-leaderboard" in server.stdout.readline()
        until_up(port, server, 300)
        started = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert len(started) > 1
        assert [one for one in started if direct.password in " ".join(one.cmdline())] == []
        client = MlflowClient(f"http://127.0.0.1:{port}")
        place = client.get_experiment_by_name("leaderboard").experiment_id
        assert sorted(run.info.run_name for run in client.search_runs([place])) == [VARIANT, "tables"]
    finally:
        server.send_signal(signal.SIGINT)
        rest = server.communicate(timeout=60)[0]
    assert direct.password not in rest
    assert rest.splitlines()[-1] == "MLflow is stopped."
