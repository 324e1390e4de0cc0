"""Errors that a user can fix: one sentence, shown without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WRITE_HINT = "make room, mend the folder, or name another by REPRO_HOME, and start the same command again"


class UserError(ValueError):
    """A user's mistake: one sentence with what is wrong, where, and what to do. Shown without a traceback."""


@contextmanager
def explain_write_errors(folder: Path, what_to_do: str = WRITE_HINT) -> Iterator[None]:
    """Turn an operating system's refusal to write into `folder` into a sentence."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        raise UserError(f"cannot write to {folder}: {reason}; {what_to_do}") from error
