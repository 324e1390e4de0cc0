"""Fixtures of the tests of reading: a small set in shards."""

import shutil

import pytest

from pipeline.data import store
from pipeline.data.shards import ShardSet, open_shards
from tests.support.image_sets import prepare_random_set
from tests.support.shard_sets import TEST, TRAIN


@pytest.fixture(autouse=True)
def _plain_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read without a shard cache, and without pauses before retries."""
    monkeypatch.setattr(store, "RETRY_PAUSES", ())
    monkeypatch.delenv("REPRO_SHARD_CACHE_GB", raising=False)


@pytest.fixture(scope="session")
def prepared_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A set of 3 classes in shards of 4 samples; tests must not change it. A module may define another."""
    folder = tmp_path_factory.mktemp("prepared")
    return prepare_random_set(folder, classes=3, train=TRAIN // 3, test=TEST // 3, samples=4)


@pytest.fixture
def shards(prepared_set: ShardSet, tmp_path) -> ShardSet:
    """A copy of `prepared_set`, for a test to damage."""
    shutil.copytree(prepared_set.store.local, tmp_path / "shards")
    return open_shards(tmp_path / "shards")
