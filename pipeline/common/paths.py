"""Folders and addresses: where runs, checkpoints, data, reports and tracked metrics are stored."""

import os
from pathlib import Path

from pipeline.common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def home() -> Path:
    """Return REPRO_HOME, by default the checkout of this code; for an installed package the current folder."""
    folder = env_folder("REPRO_HOME")
    if folder:
        return folder
    return ROOT if (ROOT / "pyproject.toml").is_file() else Path.cwd()


def env_folder(variable: str) -> Path | None:
    """Return the absolute path in an environment variable, None if it is not set or empty.

    Raises UserError if the path cannot be resolved.
    """
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # an unknown user in ~user; a loop of symbolic links
        raise UserError(f"{variable} is {text!r}: not the path of a folder: {str(error).lower()}") from None


def runs_folder() -> Path:
    """Return the folder of all run folders. A run folder has a journal, checkpoints and a result."""
    return home() / "runs"


def data_folder() -> Path:
    """Return REPRO_DATA, or `data` in the home folder: downloads, and data sets as class folders."""
    return env_folder("REPRO_DATA") or home() / "data"


def report_folder() -> Path:
    """Return the folder of figures and pages made from the tracked runs."""
    return home() / "report"


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the address of an SQLite file in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
