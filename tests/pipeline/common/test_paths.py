"""Folders of the project, and the environment variables that set them."""

from pathlib import Path

import pytest

from pipeline.common import paths
from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, home, report_folder, runs_folder, tracking_uri


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    """No variable of the project is set."""
    for name in ("REPRO_HOME", "REPRO_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_all_folders_are_below_repro_home(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    assert runs_folder() == tmp_path / "runs"
    assert data_folder() == tmp_path / "data"
    assert report_folder() == tmp_path / "report"
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_relative_home_and_a_tilde_become_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPRO_HOME", "here")
    assert home() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REPRO_HOME", "~/there")
    assert home() == tmp_path / "there"


def test_repro_data_sets_the_data_folder_only(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "disk"))
    assert data_folder() == tmp_path / "disk"
    assert runs_folder() == tmp_path / "home" / "runs"


def test_mlflow_tracking_uri_sets_the_tracking_uri(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


@pytest.mark.parametrize("name", ["REPRO_HOME", "REPRO_DATA", "MLFLOW_TRACKING_URI"])
def test_an_empty_variable_counts_as_not_set(monkeypatch, name):
    before = tracking_uri(), data_folder()
    monkeypatch.setenv(name, "")
    assert (tracking_uri(), data_folder()) == before


def test_the_default_home_is_the_checkout_or_for_an_installed_package_the_current_folder(monkeypatch, tmp_path):
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "checkout")
    assert home() == Path.cwd()
    (tmp_path / "checkout/pyproject.toml").touch()
    assert home() == tmp_path / "checkout"


@pytest.mark.parametrize(("variable", "folder"), [("REPRO_HOME", home), ("REPRO_DATA", data_folder)])
def test_a_folder_of_an_unknown_user_is_an_error(monkeypatch, variable, folder):
    monkeypatch.setenv(variable, "~nobody-of-that-name/x")
    with pytest.raises(UserError, match=f"^{variable} is '~nobody-of-that-name/x': not the path of a folder: "):
        folder()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        (" mlflow.example:80/base ", "http://mlflow.example:80/base"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("https://mlflow.example", "https://mlflow.example"),
        ("sqlite:////data/x:1.db", "sqlite:////data/x:1.db"),
        ("./mlruns", "./mlruns"),
        ("databricks", "databricks"),
    ],
)
def test_a_host_and_port_is_the_address_of_a_server(monkeypatch, text, expected):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", text)
    assert tracking_uri() == expected


@pytest.mark.parametrize(("name", "part"), [("why?", "'?'"), ("a%25b", "'%25'"), ("a%3Fb", "'%3F'")])
def test_a_home_whose_name_means_another_in_an_address_is_refused(monkeypatch, tmp_path, name, part):
    """The database would be created in another folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / name))
    with pytest.raises(UserError, match="choose another folder, or set MLFLOW_TRACKING_URI") as caught:
        tracking_uri()
    assert part in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"
