"""Stop signals and the summaries of failed attempts. (With real processes: test_cluster_faults.py.)"""

import pytest
import ray

from pipeline.cluster import attempt, processes
from pipeline.cluster.attempt import NODE_LOST, StopSignal, death_reason, failure_summary, last_line
from pipeline.track.run_folder import RunFolder


@pytest.fixture
def clock(monkeypatch):
    """A list whose only item is the time of `time.monotonic()`."""
    now = [0.0]
    monkeypatch.setattr(attempt.time, "monotonic", lambda: now[0])
    return now


def test_a_stop_request_is_read_four_times_a_second_at_most(tmp_path, clock):
    folder = RunFolder(tmp_path / "run")
    stop = StopSignal(folder)
    assert not stop()
    folder.request_stop("cancelled")
    clock[0] = 0.24
    assert not stop()
    clock[0] = 0.25
    assert stop()
    assert (stop.why, stop.when) == folder.stop_request()
    folder.clear_unfinished()
    clock[0] = 9.0
    assert stop()  # a request that was seen is not forgotten


def test_a_run_stops_without_a_reason_while_its_node_drains(tmp_path, clock, monkeypatch):
    stop = StopSignal(RunFolder(tmp_path / "run"))
    monkeypatch.setattr(processes, "node_is_draining", lambda: True)
    assert stop()
    assert (stop.why, stop.when) == ("", 0.0)


class GroupError(Exception):
    """An error of Ray Train with the failures of the ranks."""

    def __init__(self, **failures):
        super().__init__("training failed\nsee the ranks")
        self.worker_failures = {int(rank.removeprefix("rank")): failure for rank, failure in failures.items()}


def test_a_failed_group_is_summarized_by_its_first_two_ranks():
    error = GroupError(rank2=ValueError("c"), rank0=ValueError("long\nstory\nends"), rank1=OSError("b"))
    assert failure_summary(error) == "rank 0: ends; rank 1: b"
    assert failure_summary(GroupError()) == "see the ranks"
    assert failure_summary(ValueError("alone")) == "alone"


def test_a_group_that_lost_a_node_is_not_blamed():
    assert failure_summary(GroupError(rank1=RuntimeError("the actor's node has died."))) == NODE_LOST


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ray.exceptions.NodeDiedError("x"), NODE_LOST),
        (ray.exceptions.OutOfMemoryError("x"), "its node ran out of memory"),
        (ray.exceptions.WorkerCrashedError(), "its process was killed"),
        (ValueError("first\n\n  second  \n"), "second"),
    ],
)
def test_a_death_has_a_reason(error, reason):
    assert death_reason(error) == reason


def test_the_last_line_of_an_error_is_cut_at_300_characters():
    assert last_line(ValueError("x" * 400)) == "x" * 300
    assert last_line(ValueError()) == "ValueError()"
