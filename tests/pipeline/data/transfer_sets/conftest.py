"""Fixtures: small archives in the layout of the published ones."""

from pathlib import Path

import pytest

from pipeline.data.prepare.transfer_stand_in import make_transfer_stand_in
from pipeline.declare.transfer import TRANSFER_SETS


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a stand-in of each set: two images of each of ten classes, and VOC's of each part."""
    root = tmp_path_factory.mktemp("data")
    for name in TRANSFER_SETS:
        make_transfer_stand_in(name, root / f"{name}-standin", images=2, side=32)
    return root
