"""Folders and addresses: where runs, checkpoints, data, reports and tracked metrics are stored."""

import os
import re
from pathlib import Path

from pipeline.common.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent

HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}(/\S*)?")

UNSAFE_IN_ADDRESS = re.compile(r"\?|%[0-9a-fA-F]{2}")  # the start of a query; an encoded character


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
    """Return MLFLOW_TRACKING_URI, or the address of an SQLite file in the home folder.

    A host and port without a scheme, as in 127.0.0.1:5000, gets http://; MLflow would take it for a folder. Raises
    UserError for a home folder whose path means another one in an address.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if uri:
        return f"http://{uri}" if HOST_AND_PORT.fullmatch(uri) else uri
    found = UNSAFE_IN_ADDRESS.search(str(home()))
    if found:
        raise UserError(
            f"REPRO_HOME is {str(home())!r}, but {found[0]!r} has another meaning in the address of MLflow's"
            " database; choose another folder, or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{home() / 'mlflow.db'}"
