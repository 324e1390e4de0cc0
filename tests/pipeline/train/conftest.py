"""Fixtures of the tests of training: a sharded data set and its run, finished runs, and two ranks."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.declare.load import load_experiment
from pipeline.plan.expand import Run, plan_runs
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from tests.support.rank_processes import Ranks
from tests.support.sharded_runs import SHARDED_EXPERIMENT, prepare_data_folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the set 'photographs' in shards; see `prepare_data_folder`."""
    return prepare_data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def sharded_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that declares `sharded_run`."""
    file = tmp_path_factory.mktemp("experiment") / "photographs.yaml"
    file.write_text(SHARDED_EXPERIMENT, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def sharded_run(sharded_experiment: Path) -> Run:
    """A run of 9 steps on the set in `data_root`."""
    run = plan_runs(load_experiment(str(sharded_experiment)), scale="paper", variants=["resnet-18"])[0]
    assert isinstance(run, Run)
    return run


@pytest.fixture(scope="session")
def uninterrupted(finished_run: Callable[[int], Path]) -> tuple[Record | None, Path]:
    """Record and folder of an uninterrupted smoke run."""
    path = finished_run(0)
    return RunFolder(path).result(), path


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Two rank processes."""
    ranks = Ranks(tmp_path_factory.mktemp("two_ranks"), 2)
    yield ranks
    ranks.close()
