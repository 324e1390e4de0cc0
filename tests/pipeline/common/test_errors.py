"""Errors that a user can fix."""

import errno
import os
from pathlib import Path

import pytest

from pipeline.common.errors import WRITE_HINT, UserError, explain_write_errors

FOLDER = Path("/disk/repro")


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_a_write_error_says_where_why_and_what_to_do():
    with pytest.raises(UserError) as caught, explain_write_errors(FOLDER):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value) == f"cannot write to {FOLDER}: no space left on device; {WRITE_HINT}"
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("Quota used up"), "quota used up"), (PermissionError(), "permissionerror")]
)
def test_an_error_without_a_system_message_has_a_reason_too(error, reason):
    with pytest.raises(UserError) as caught, explain_write_errors(FOLDER, "use another folder"):
        raise error
    assert str(caught.value) == f"cannot write to {FOLDER}: {reason}; use another folder"


def test_other_errors_pass():
    with pytest.raises(KeyError), explain_write_errors(FOLDER):
        raise KeyError


def test_without_an_error_nothing_happens():
    with explain_write_errors(FOLDER):
        pass
