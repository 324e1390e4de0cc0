"""What the environment says: where runs, checkpoints, data and reports are kept, and a few numbers."""

import math
import os
from pathlib import Path

from pipeline.mistakes import UserError
from pipeline.plan import ROOT


def home() -> Path:
    """REPRO_HOME; else the checkout the code runs from; else, for an installed package, the current folder."""
    named = os.environ.get("REPRO_HOME")
    if named:
        return folder_named("REPRO_HOME", named)
    return ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()


def folder_named(variable: str, said: str) -> Path:
    """The folder that a variable names; UserError where there can be none."""
    try:
        return Path(said).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # ~nobody; links that lead to each other
        raise UserError(f"{variable} is {said!r}, which names no folder: {str(error).lower()}") from None


def number_named(variable: str, otherwise: float) -> float:
    """The number from 0 on that a variable says, `otherwise` if it is not set; UserError where it says none."""
    said = os.environ.get(variable)
    if said is None:
        return otherwise
    try:
        number = float(said)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{variable} is {said!r}; a number from 0 on is needed")
    return number


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs_folder() -> Path:
    """One folder a run: journal, checkpoints, result."""
    return home() / "runs"


def data_folder() -> Path:
    """REPRO_DATA, else `data`: downloads, and data sets as class folders."""
    named = os.environ.get("REPRO_DATA")
    return folder_named("REPRO_DATA", named) if named else home() / "data"


def report_folder() -> Path:
    """Figures and pages made from the tracked runs."""
    return home() / "report"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI; else an SQLite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
