"""Settings of all tests: a clean environment, and the time budget of `make test`."""

import os
import time
from typing import Any

import pytest

from tests.support.clean_environment import clean_environment
from tests.support.file_order import sort_longest_first

# At import, before any test module, worker process or server: Lightning, Ray, MLflow, fsspec, OpenMP and rich read
# the environment when they are imported.
clean_environment(os.environ)

STARTED = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--time-budget", type=float, metavar="MINUTES", help="print the time taken beside this budget"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    sort_longest_first(items)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    budget = config.getoption("--time-budget")
    if budget is not None:
        minutes, seconds = divmod(round(time.monotonic() - config.stash[STARTED]), 60)
        terminalreporter.write_line(f"tests: {minutes} min {seconds} s of {budget:g} min budget")
