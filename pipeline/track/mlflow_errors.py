"""Errors of MLflow as sentences for the user, without passwords."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.common.errors import UserError
from pipeline.common.words import first_line
from pipeline.track.mlflow_reader import redact

# Error codes about one run or request. With any other error the server cannot be used at all.
REQUEST_ERRORS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

LOGIN_ERRORS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")


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
        if is_mlflow and getattr(error, "error_code", "") in REQUEST_ERRORS:
            raise RefusedError(
                f"the tracking server {redact(uri)} refuses: {redact(first_line(error, 200))}"
            ) from error
        raise tracking_error(uri, error) from error


def tracking_error(uri: str, error: Exception) -> TrackingError:
    """Return the error that says that a server cannot be used, and why."""
    return TrackingError(f"the tracking server {redact(uri)} cannot be used: {error_summary(error)}")


def error_summary(error: BaseException) -> str:
    """Return in one line why a server cannot be used; common causes get a clearer sentence than MLflow's."""
    from requests import ConnectionError, Timeout

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionError | Timeout):
            return "nothing answers there; start it, or unset MLFLOW_TRACKING_URI to track on this machine"
        cause = cause.__cause__ or cause.__context__
    text = redact(first_line(error, 200))
    if "Invalid Host" in text:
        return "it does not accept this host name; start it with --allowed-hosts and the name"
    if getattr(error, "error_code", "") in LOGIN_ERRORS:
        return "it refuses this user; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to a known one"
    return text
