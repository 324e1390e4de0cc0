"""What the tests of prepared sets share."""

import shutil

import pytest

from pipeline.data.shards import ShardSet, open_shards


@pytest.fixture
def shards(made, tmp_path) -> ShardSet:
    """A copy of the module's own set `made`, for a test to damage."""
    shutil.copytree(made.store.local, tmp_path / "shards")
    return open_shards(tmp_path / "shards")
