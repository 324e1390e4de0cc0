"""Prepare class folders into a store for tests, compare the files, and talk to a local S3 server."""

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.images import DataError
from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.shard_manifest import ShardManifest
from pipeline.data.store import Store

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


def prepare_folder(source: Path, out: Store, **options: Any) -> ShardManifest:
    """Prepare the class folders in `source`, four samples per shard by default."""
    return prepare_shards(source_from_folders(source), out, **({"samples": 4} | options))


def assert_prepare_refused(text: str, source: Path, out: Store, **options: Any) -> str:
    """Expect a one-line DataError with `text` from prepare_folder, and return its message."""
    with pytest.raises(DataError, match=re.escape(text)) as caught:
        prepare_folder(source, out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_sums(folder: object) -> dict[str, str]:
    """Return relative path -> sha256 of every file below a folder or a local store, hidden ones too."""
    root = Path(str(folder))
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def copy_folder(source: Path, folder: Path) -> Path:
    """Copy a folder for a test to change, and return the copy."""
    return Path(shutil.copytree(source, folder))


def configure_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str, tmp_path: Path) -> None:
    """Set the AWS variables to a local server, and the temporary folder to `tmp_path`."""
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def s3_objects(client: Any) -> dict[str, bytes]:
    """Return key -> content of every object in the bucket `shop`."""
    found = client.list_objects_v2(Bucket="shop").get("Contents", [])
    return {entry["Key"]: client.get_object(Bucket="shop", Key=entry["Key"])["Body"].read() for entry in found}
