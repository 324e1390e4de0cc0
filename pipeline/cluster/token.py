"""The token file that authenticates clients and nodes of a Ray cluster."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.paths import home

COPY_TOKEN = "copy cluster/token from the head's REPRO_HOME to that path with mode 0600"


def cluster_folder() -> Path:
    """Return the folder under REPRO_HOME that holds the files of a head; node.py lists them."""
    return home() / "cluster"


def token_path() -> Path:
    """Return RAY_AUTH_TOKEN_PATH if set, else the path of the token in the cluster folder."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser().absolute() if named else cluster_folder() / "token"


def ensure_token_file() -> Path:
    """Return the path of the token file; create it with mode 0600 if it does not exist.

    Raises UserError where the file is not usable, as `check_token_file`.
    """
    path = token_path()
    if not path.exists():
        with explain_write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process created it first; both use that token
            os.link(temporary, path)  # a rename would replace it
        temporary.unlink()
    return check_token_file(path)


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
    # A mounted Kubernetes secret belongs to root and is readable by the group of the process.
    forbidden = 0o077 if status.st_uid == os.getuid() else 0o007
    if stat.S_IMODE(status.st_mode) & forbidden:
        raise UserError(
            f"other users of this machine can read the cluster token {path}, which lets them run any command on"
            f" the cluster; delete the file to get a new token, or run: chmod 600 {path}"
        )
    if empty:
        raise UserError(f"the cluster token {path} is empty; delete the file, and the head creates a new one")
    return path
