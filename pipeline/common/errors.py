"""Errors that a user can fix. The command line prints them without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WRITE_HINT = "free some space, fix the folder, or set REPRO_HOME to another one, and run the same command again"


class UserError(ValueError):
    """An error that the user can fix. Its message says what is wrong, where, and what to do."""


@contextmanager
def explain_write_errors(folder: Path, what_to_do: str = WRITE_HINT) -> Iterator[None]:
    """Turn an OSError within the block into a UserError: "cannot write to FOLDER: REASON; WHAT_TO_DO"."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        raise UserError(f"cannot write to {folder}: {reason}; {what_to_do}") from error
