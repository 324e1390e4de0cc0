"""Files that the test processes of one session make once and share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def once_per_session(factory: pytest.TempPathFactory, name: str, create: Callable[[Path], object]) -> Path:
    """Return a file or folder that `create(path)` has made, in whichever test process needed it first.

    Tests must not change it.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own below the session's
        root = root.parent
    path, partial = root / "shared" / name, root / "partial" / name
    for folder in (path.parent, partial.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(partial.with_name(f"{partial.name}.creating")):
        if not path.exists():
            create(partial)
            partial.rename(path)
    return path
