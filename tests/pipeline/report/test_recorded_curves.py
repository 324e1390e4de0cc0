"""Test results/curves.json: what is kept of curves, and where they are read from."""

import json
from dataclasses import replace

import pytest

from pipeline.common.errors import UserError
from pipeline.report.recorded_curves import RECORDED_POINTS, RecordedCurves, read_recorded, thinned

METRIC = "test/top1_error_pct"


@pytest.fixture
def record(experiment, seed_records):
    """Return a finished run."""
    return seed_records(experiment, "plain-20", [9.4])[0]


def nothing(record, metric):
    return []


def reader(curve):
    return lambda record, metric: curve if metric == METRIC else []


def test_curves_come_back_from_the_file(record, tmp_path):
    curves = RecordedCurves(reader([(40, 90.1234), (80, 26.58203125)]), {})
    assert curves.curve(record, METRIC) == [(40, 90.123), (80, 26.582)]
    assert curves.curve(record, "train/loss") == []
    path = tmp_path / "curves.json"
    path.write_text(curves.text([record.identity]), encoding="utf-8")
    recorded = read_recorded(path)
    assert recorded == {record.identity: {METRIC: [(40, 90.123), (80, 26.582)]}}
    again = RecordedCurves(nothing, recorded)
    assert again.curve(record, METRIC) == [(40, 90.123), (80, 26.582)]
    assert again.text([record.identity]) == path.read_text(encoding="utf-8")


def test_runs_elsewhere_are_not_looked_for_here(record):
    curves = RecordedCurves(reader([(1, 99.0)]), {record.identity: {METRIC: [(1, 50.0)]}}, {record.identity})
    assert curves.curve(record, METRIC) == [(1, 50.0)]


def test_a_run_of_this_machine_replaces_what_is_recorded(record):
    curves = RecordedCurves(reader([(1, 99.0)]), {record.identity: {METRIC: [(1, 50.0)]}})
    assert curves.curve(record, METRIC) == [(1, 99.0)]


def test_only_the_runs_that_are_reported_are_kept(record):
    other = replace(record, identity="f" * 16)
    curves = RecordedCurves(reader([(1, 99.0)]), {})
    for one in (record, other):
        curves.curve(one, METRIC)
    assert json.loads(curves.text([other.identity])) == {other.identity: {METRIC: [[1, 99.0]]}}
    assert curves.text([]) == ""


def test_long_curves_are_thinned_to_means(record):
    curve = [(step, float(step % 2)) for step in range(1, 2 * RECORDED_POINTS + 1)]
    found = thinned(curve)
    assert len(found) == RECORDED_POINTS
    assert found[0] == (2, 0.5)  # the mean of steps 1 and 2, at the last of them
    assert found[-1] == (2 * RECORDED_POINTS, 0.5)


@pytest.mark.parametrize("text", ['{"a": 1}', "[1]", '{"a": {"b": [1]}}', '{"a": {"b": [["x", 1]]}}', "{"])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "curves.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"curves\.json holds no curves .*; restore it from Git, or delete it"):
        read_recorded(path)


def test_without_a_file_nothing_is_recorded(tmp_path):
    assert read_recorded(tmp_path / "curves.json") == {}
