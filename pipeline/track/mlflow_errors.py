"""Errors of MLflow as sentences for the user, without passwords."""

import errno
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from pipeline.common.errors import UserError
from pipeline.common.words import first_line
from pipeline.track.mlflow_reader import redact

# Error codes about one run or request. With any other error the server cannot be used at all.
REQUEST_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

LOGIN_ERRORS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


class TrackingError(UserError):
    """The tracking server cannot be used."""


class RefusedError(UserError):
    """The tracking server works but refuses one request."""


@contextmanager
def explain_mlflow_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions within the block into one sentence that names the server.

    Raises RefusedError where the server refuses one request, TrackingError where it cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:  # the exceptions of requests are OSErrors
        is_mlflow = not str(error).startswith("API request")  # else the answer of a proxy in front of MLflow
        if is_mlflow and not store_remedy(str(error), uri) and getattr(error, "error_code", "") in REQUEST_ERRORS:
            raise RefusedError(
                f"the tracking server {redact(uri)} refuses: {redact(first_line(error, 200))}"
            ) from error
        raise tracking_error(uri, error) from error


def tracking_error(uri: str, error: Exception) -> TrackingError:
    """Return the error that says that a server cannot be used, and why."""
    return TrackingError(f"the tracking server {redact(uri)} cannot be used: {error_summary(error, uri)}")


def error_summary(error: BaseException, uri: str = "") -> str:
    """Return in one line why a server cannot be used; common causes get a clearer sentence than MLflow's."""
    from requests import ConnectionError, Timeout

    if remedy := store_remedy(str(error), uri):
        return remedy

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | Timeout):
            return "nothing answers there; start it, or unset MLFLOW_TRACKING_URI to track on this machine"
        if isinstance(cause, PermissionError) and cause.errno == errno.EPERM:  # not EACCES: the folder is ours
            return (
                f"the file system of {Path(cause.filename or '.').parent} does not let MLflow set permissions"
                " (chmod); set REPRO_HOME to a folder on another file system, or MLFLOW_TRACKING_URI to a server"
            )
        cause = cause.__cause__ or cause.__context__
    text = redact(first_line(error, 200))
    if "Invalid Host" in text:
        return "it does not accept this host name; start it with --allowed-hosts and the name"
    if getattr(error, "error_code", "") in LOGIN_ERRORS:
        return "it refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a known one"
    if getattr(error, "error_code", "") == "PERMISSION_DENIED":
        return (
            "this user may not do this; ask the server's administrator for permission to edit the experiment, or"
            " set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a user who has it"
        )
    return text


def store_remedy(text: str, uri: str) -> str:
    """Return what to do about a store that MLflow refuses, given its message or log; "" for any other error.

    MLflow no longer opens its older folders, and only databases of its own version.
    """
    if "migrate-filestore" in text or "filesystem tracking backend" in text:
        folder = Path(unquote(uri.removeprefix("file://"))).absolute()
        target = f"sqlite:///{folder.parent / 'mlflow.db'}"
        return (
            f"MLflow no longer uses folders like {folder}; copy it to a database with: mlflow migrate-filestore"
            f" --source {shlex.quote(str(folder))} --target {shlex.quote(target)}, then set"
            f" MLFLOW_TRACKING_URI={shlex.quote(target)}"
        )
    found = re.search(r"out-of-date database schema \(found version (\w+)", text)
    unknown = re.search(r"Can't locate revision identified by '(\w+)'", text)
    if unknown or (found and not is_known_revision(found[1])):
        return (
            "it is a database of a newer MLflow than the one installed; install that with: pip install --upgrade"
            " mlflow"
        )
    if found:
        return (
            "it is a database of an older MLflow; make a backup, then upgrade it with: mlflow db upgrade"
            f" {shlex.quote(redact(uri))}"
        )
    return ""


def is_known_revision(revision: str) -> bool:
    """Return True if the installed MLflow has this version of its database's schema."""
    import mlflow

    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    return any(migrations.glob(f"{revision}*.py"))
