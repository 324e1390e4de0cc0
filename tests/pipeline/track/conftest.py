"""The home and the MLflow database of the tests of this folder."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: bytes) -> Path:
    """Home folder with an empty MLflow database."""
    monkeypatch.setenv("REPRO_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    return tmp_path


@pytest.fixture
def client(home: Path) -> MlflowClient:
    """MLflow's client on that database."""
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
