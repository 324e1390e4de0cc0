"""Test rows of runs and the cost of an experiment's runs."""

from dataclasses import replace

import pytest

from pipeline.report.document.runs import cost_rows, run_row
from tests.support.ledgers import DEEP, PLAIN


@pytest.fixture
def records(experiment, seed_records):
    return [*seed_records(experiment, "plain-20", PLAIN), *seed_records(experiment, "plain-32", DEEP)]


def test_a_run_s_row_names_changes_hardware_and_costs(experiment, record):
    changed = record(
        experiment, "plain-20", 0, 9.5, changes={"train.lr": 0.05}, world=2, costs={"train/seconds": 7}
    )
    row = run_row(changed, is_counted=False, address="")
    assert (row.label, row.hardware) == ("train.lr=0.05", "one core (2 devices, 1 thread, fp32)")
    assert ("train/seconds", "7") in row.metrics


def test_cost_is_that_of_the_finished_runs(experiment, records):
    """Ten runs of 60 s, one of them on two devices and one that did not converge: 11 x 60 s of device time."""
    records[0], records[1] = replace(records[0], world=2), replace(records[1], status="not converged")
    rows = {row["scale"]: row for row in cost_rows(experiment, records, {})}
    assert (rows["paper"]["finished"], rows["paper"]["device time"]) == ("10", "11 min")
    assert (rows["paper"]["time per run"], rows["paper"]["hardware"]) == ("1 min", "one core")
    assert rows["laptop"]["finished"] == ""
    assert [row["scale"] for row in cost_rows(experiment, records, {}, ["paper"])] == ["paper"]
