"""Fixtures of the tests of preparing: class folders, a target, an ImageNet stand-in and an S3 server."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.prepare.stand_in import make_stand_in
from pipeline.data.store import Store
from tests.support.image_sets import write_class_folders
from tests.support.preparing import configure_s3


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 2 x 5 training and 2 x 3 test images; tests must not change them."""
    return write_class_folders(tmp_path_factory.mktemp("source") / "animals", classes=2, train=5, test=3)


@pytest.fixture
def out(tmp_path: Path) -> Store:
    """A folder for shards that does not exist yet."""
    return Store(str(tmp_path / "shards"))


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archives of a stand-in with 4 classes, 3 training and 2 test images each; tests must not change them."""
    folder = tmp_path_factory.mktemp("stand-in") / "standin"
    make_stand_in(folder, classes=4, train=3, test=2, side=32)
    return folder


@pytest.fixture
def archives(stand_in_folder: Path, tmp_path: Path) -> Path:
    """A copy of the stand-in's archives, for a test to damage."""
    return Path(shutil.copytree(stand_in_folder, tmp_path / "ilsvrc"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a local S3 server."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of a local S3 server with an empty bucket `shop`."""
    import boto3

    configure_s3(monkeypatch, s3_endpoint, tmp_path)
    client = boto3.client("s3")
    client.create_bucket(Bucket="shop")
    yield client
    for entry in client.list_objects_v2(Bucket="shop").get("Contents", []):
        client.delete_object(Bucket="shop", Key=entry["Key"])
    client.close()
