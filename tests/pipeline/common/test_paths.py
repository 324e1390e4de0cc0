"""Where things are kept, and how to say so."""

from pathlib import Path

import pytest

from pipeline.common import paths
from pipeline.common.environment import env_number
from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, home, report_folder, runs_folder, tracking_uri


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    for name in ("REPRO_HOME", "REPRO_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def test_everything_lies_below_repro_home(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    assert runs_folder() == tmp_path / "runs"
    assert data_folder() == tmp_path / "data"
    assert report_folder() == tmp_path / "report"
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_relative_home_and_a_tilde_become_whole_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPRO_HOME", "here")
    assert home() == tmp_path / "here"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REPRO_HOME", "~/there")
    assert home() == tmp_path / "there"


def test_data_may_lie_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REPRO_DATA", str(tmp_path / "disk"))
    assert data_folder() == tmp_path / "disk"
    assert runs_folder() == tmp_path / "home" / "runs"


def test_a_tracking_server_may_be_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


@pytest.mark.parametrize("name", ["REPRO_HOME", "MLFLOW_TRACKING_URI"])
def test_an_empty_variable_is_as_none(monkeypatch, name):
    said = tracking_uri()
    monkeypatch.setenv(name, "")
    assert tracking_uri() == said


def test_without_words_it_is_the_checkout_or_for_an_installed_package_the_current_folder(monkeypatch, tmp_path):
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "checkout")
    assert home() == Path.cwd()
    (tmp_path / "checkout/pyproject.toml").touch()
    assert home() == tmp_path / "checkout"


@pytest.mark.parametrize(("variable", "folder"), [("REPRO_HOME", home), ("REPRO_DATA", data_folder)])
def test_a_folder_of_nobody_is_a_mistake(monkeypatch, variable, folder):
    monkeypatch.setenv(variable, "~nobody-of-that-name/x")
    with pytest.raises(UserError, match=f"^{variable} is '~nobody-of-that-name/x', which names no folder: "):
        folder()


@pytest.mark.parametrize("said", ["abc", "", "-1", "nan", "inf"])
def test_a_number_that_is_none_is_a_mistake(monkeypatch, said):
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", said)
    with pytest.raises(UserError, match=f"^REPRO_CHECKPOINT_SECONDS is '{said}'; a number from 0 on is needed$"):
        env_number("REPRO_CHECKPOINT_SECONDS", 60)


def test_a_number_is_what_is_said_or_what_is_usual(monkeypatch):
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    assert env_number("REPRO_CHECKPOINT_SECONDS", 60) == 0
    monkeypatch.delenv("REPRO_CHECKPOINT_SECONDS")
    assert env_number("REPRO_CHECKPOINT_SECONDS", 60) == 60
