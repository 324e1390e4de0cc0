"""Records of both plain networks of the declaration."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.declare.experiment import Experiment
from pipeline.track.record import Record
from tests.support.ledgers import DEEP, PLAIN


@pytest.fixture
def both(seed_records: Callable[..., list[Record]]) -> Callable[..., list[Record]]:
    """Return five records each of plain-20 and plain-32, at paper scale by default."""

    def runs(experiment: Experiment, **other: Any) -> list[Record]:
        return [
            *seed_records(experiment, "plain-20", PLAIN, **other),
            *seed_records(experiment, "plain-32", DEEP, **other),
        ]

    return runs
