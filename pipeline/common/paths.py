"""Folders of the project: where runs, checkpoints, data and reports are kept."""

import os
from pathlib import Path

from pipeline.common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def home() -> Path:
    """REPRO_HOME; else the checkout the code runs from; else, for an installed package, the current folder."""
    named = os.environ.get("REPRO_HOME")
    if named:
        return env_folder("REPRO_HOME", named)
    return ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()


def env_folder(variable: str, said: str) -> Path:
    """The folder that a variable names; UserError where there can be none."""
    try:
        return Path(said).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # ~nobody; links that lead to each other
        raise UserError(f"{variable} is {said!r}, which names no folder: {str(error).lower()}") from None


def runs_folder() -> Path:
    """One folder a run: journal, checkpoints, result."""
    return home() / "runs"


def data_folder() -> Path:
    """REPRO_DATA, else `data`: downloads, and data sets as class folders."""
    named = os.environ.get("REPRO_DATA")
    return env_folder("REPRO_DATA", named) if named else home() / "data"


def report_folder() -> Path:
    """Figures and pages made from the tracked runs."""
    return home() / "report"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI; else an SQLite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
