"""Stop signals."""

import pytest

from pipeline.schedule import stop
from pipeline.schedule.stop import StopSignal
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def clock(monkeypatch):
    """A list whose only item is the time of `time.monotonic()`."""
    now = [0.0]
    monkeypatch.setattr(stop.time, "monotonic", lambda: now[0])
    return now


def test_a_stop_request_is_read_four_times_a_second_at_most(tmp_path, clock):
    folder = RunFolder(tmp_path / "run")
    signal = StopSignal(folder, lambda: False)
    assert not signal()
    folder.request_stop("cancelled")
    clock[0] = 0.24
    assert not signal()
    clock[0] = 0.25
    assert signal()
    assert (signal.why, signal.when) == folder.stop_request()
    folder.clear_unfinished()
    clock[0] = 9.0
    assert signal()  # a request that was seen is not forgotten


def test_a_run_stops_without_a_reason_while_its_node_drains(tmp_path, clock):
    signal = StopSignal(RunFolder(tmp_path / "run"), lambda: True)
    assert signal()
    assert (signal.why, signal.when) == ("", 0.0)


def test_a_request_for_another_reason_is_ignored_where_one_reason_is_named(tmp_path, clock):
    folder = RunFolder(tmp_path / "run")
    signal = StopSignal(folder, lambda: False, only="cancelled")
    folder.request_stop("over-budget")
    assert not signal()
    folder.request_stop("cancelled")
    clock[0] = 1.0
    assert signal()
    assert signal.why == "cancelled"
