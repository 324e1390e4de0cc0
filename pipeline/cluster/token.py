"""The folder of a cluster, and the token file that authenticates its clients and nodes."""

import contextlib
import os
import re
import secrets
import socket
import stat
from pathlib import Path

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.locks import file_lock
from pipeline.common.paths import home

CLUSTER_VARIABLE = "REPRO_CLUSTER"

COPY_TOKEN = "copy cluster/NAME/token from the head's REPRO_HOME to that path with mode 0600"


def cluster_name() -> str:
    """Return the name of this process's cluster: REPRO_CLUSTER, else its Slurm job, else this machine's name.

    A home folder has a folder for each name, so clusters that share it do not disturb each other. A Slurm job that
    was requeued gets a new name: what its earlier head left behind belongs to another cluster. Raises UserError
    for a name that is not the name of a folder.
    """
    named = os.environ.get(CLUSTER_VARIABLE)
    if named:
        if not re.fullmatch(r"\w[\w.-]*", named):
            raise UserError(
                f"{CLUSTER_VARIABLE} is {named!r}: must be the name of a folder, with letters, digits, '_', '-'"
                " and '.' only"
            )
        return named
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT") or "0"
    name = (f"slurm-{job}" + ("" if restarts == "0" else f"-{restarts}")) if job else socket.gethostname()
    return re.sub(r"[^\w.-]", "_", name)


def clusters_folder() -> Path:
    """Return the folder under REPRO_HOME with a folder for each cluster."""
    return home() / "cluster"


def cluster_folder() -> Path:
    """Return the folder of this process's cluster; node.py lists its files."""
    return clusters_folder() / cluster_name()


def token_path() -> Path:
    """Return RAY_AUTH_TOKEN_PATH if set, else the path of the token in the cluster folder."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser().absolute() if named else cluster_folder() / "token"


def ensure_token_file() -> Path:
    """Return the path of the token file; create it with mode 0600 if it does not exist.

    Raises UserError where the file is not usable, as `check_token_file`.
    """
    path = token_path()
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with file_lock(path.with_name(f".{path.name}.lock")):  # of several processes, one creates it
                if not path.exists():
                    create_token_file(path)
    return check_token_file(path)


def create_token_file(path: Path) -> None:
    """Write a new token; UserError where the file system gives others access to it. The caller holds a lock."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        if is_exposed(temporary.stat()):
            raise UserError(
                f"the file system of {path.parent} has no permissions, so others could read the cluster token"
                " there; set RAY_AUTH_TOKEN_PATH, on all machines of the cluster, to a file on another file system"
            )
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def is_exposed(status: os.stat_result) -> bool:
    """Return whether users other than the owner can access a token file."""
    # A mounted Kubernetes secret belongs to root and is readable by the group of the process.
    forbidden = 0o077 if status.st_uid == os.getuid() else 0o007
    return bool(stat.S_IMODE(status.st_mode) & forbidden)


def check_token_file(path: Path) -> Path:
    """Return `path` if it holds a token that only its owner can read; raise UserError otherwise."""
    try:
        status = path.stat()
        empty = not path.read_text(encoding="utf-8").strip()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(
            f"cannot read the cluster token {path}: {reason}; {COPY_TOKEN}, or set RAY_AUTH_TOKEN_PATH to a copy"
        ) from None
    if is_exposed(status):
        raise UserError(
            f"other users of this machine can read the cluster token {path}, which lets them run any command on"
            f" the cluster; delete the file to get a new token, or run: chmod 600 {path}"
        )
    if empty:
        raise UserError(f"the cluster token {path} is empty; delete the file, and the head creates a new one")
    return path
