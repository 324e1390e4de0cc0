"""Where things are kept: tracked runs, checkpoints, data and reports, all under one folder."""

import os
from pathlib import Path

from pipeline.plan import ROOT


def home() -> Path:
    """REPRO_HOME; else the checkout the code runs from; else, for an installed package, the current folder."""
    named = os.environ.get("REPRO_HOME")
    if named:
        return Path(named).expanduser().resolve()
    return ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()


def runs_folder() -> Path:
    """One folder a run: journal, checkpoints, result."""
    return home() / "runs"


def data_folder() -> Path:
    """REPRO_DATA, else `data`: downloads, and data sets as class folders."""
    named = os.environ.get("REPRO_DATA")
    return Path(named).expanduser().resolve() if named else home() / "data"


def report_folder() -> Path:
    """Figures and pages made from the tracked runs."""
    return home() / "report"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI; else an SQLite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
