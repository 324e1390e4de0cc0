"""Settings of all tests: a clean environment, and the time budget of `make test`."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clean_environment import clean_environment
from tests.support.file_order import sort_longest_first

# At import, before any test module, worker process or server: Lightning, Ray, MLflow, fsspec, OpenMP and rich read
# the environment when they are imported.
clean_environment(os.environ)

STARTED = pytest.StashKey[float]()


@pytest.fixture(scope="session", autouse=True)
def _no_values_in_the_checkout() -> Iterator[None]:
    """Keep the cache of measured values out of the checkout: only a test with a REPRO_HOME has one."""
    from pipeline.analyse import value_cache

    in_home = value_cache.value_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            value_cache, "value_folder", lambda: in_home() if "REPRO_HOME" in os.environ else Path(os.devnull)
        )
        yield


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
        from tests.support.claim_counts import claims_table

        terminalreporter.write_line(claims_table())
        minutes, seconds = divmod(round(time.monotonic() - config.stash[STARTED]), 60)
        terminalreporter.write_line(f"tests: {minutes} min {seconds} s of {budget:g} min budget")
