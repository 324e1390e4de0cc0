"""Expect an error and check its message."""

from collections.abc import Callable

import pytest

from pipeline.data.images import DataError


def error_message(call: Callable[[], object], *texts: str, kind: type[Exception] = DataError) -> str:
    """Call `call`, expect a one-line error of `kind` that contains all `texts`, and return its message."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for text in texts:
        assert text in message, message
    assert "\n" not in message
    return message
