"""The summaries of failed attempts. (With real processes: test_cluster_faults.py.)"""

import pytest
import ray

from pipeline.cluster.attempt import NODE_LOST, death_reason, failure_summary, last_line


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
