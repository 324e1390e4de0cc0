"""Logged models: the messages that are silenced while one is saved."""

import logging
import warnings

import pytest

from pipeline.track.mlflow_models import quietly


@pytest.fixture
def loggers(monkeypatch):
    """The loggers of MLflow and torch, at levels of their own."""
    found = [logging.getLogger(name) for name in ("mlflow", "torch")]
    for logger, level in zip(found, (logging.DEBUG, logging.WARNING), strict=True):
        monkeypatch.setattr(logger, "level", level)
    return found


@pytest.mark.parametrize("error", [None, ValueError])
def test_levels_are_those_of_before_after_the_block(loggers, error):
    try:
        with quietly():
            assert [logger.level for logger in loggers] == [logging.ERROR, logging.ERROR]
            warnings.warn("ignored", stacklevel=1)
            if error:
                raise error
    except ValueError:
        pass
    assert [logger.level for logger in loggers] == [logging.DEBUG, logging.WARNING]
