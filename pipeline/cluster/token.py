"""The token that Ray asks for, and its file."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.paths import home


def cluster_folder() -> Path:
    """What a head keeps under REPRO_HOME."""
    return home() / "cluster"


def token_path() -> Path:
    """Where the token is: RAY_AUTH_TOKEN_PATH, else in the cluster's folder."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser().absolute() if named else cluster_folder() / "token"


def ensure_token_file() -> Path:
    """The token's file, made if it is not there, readable by its owner alone from its first moment."""
    path = token_path()
    if not path.exists():
        with explain_write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        number = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another process was faster; both use its token
            os.link(beside, path)  # not a rename: that would replace it
        beside.unlink()
    return check_token_file(path)


def check_token_file(path: Path) -> Path:
    """A token's file, if nobody else can read it and there is a token in it."""
    try:
        about = path.stat()
        empty = not path.read_text(encoding="utf-8").strip()
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(
            f"the cluster's token cannot be read from {path}: {reason}; copy the head's there (it is cluster/token"
            " in its REPRO_HOME, mode 0600), or name a copy by RAY_AUTH_TOKEN_PATH"
        ) from None
    loose = 0o077 if about.st_uid == os.getuid() else 0o007  # a mounted secret may be root's, and its group's
    if stat.S_IMODE(about.st_mode) & loose:
        raise UserError(
            f"{path}: other users of this machine can read the cluster's token, with which anything can be run on"
            f" it; make it yours alone (chmod 600 {path}), and better make a new one by deleting it first"
        )
    if empty:
        raise UserError(f"{path}: there is no token in it; delete it, and the head will make a new one")
    return path
