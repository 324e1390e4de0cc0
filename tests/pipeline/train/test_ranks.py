"""Test micro-batches, and the collective operations of one and of three ranks."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.common.errors import UserError
from pipeline.data.prefetch import StopRequested, raise_if_stopped
from pipeline.train.ranks import SINGLE_RANK, RankGroup, current_ranks, divisors, micro_batches
from tests.support.rank_processes import Ranks

# --- micro-batches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "world", "device_batch", "count"),
    [
        (128, 1, None, 1),
        (128, 4, None, 4),  # one micro-batch per device
        (128, 4, 128, 4),
        (128, 4, 32, 4),
        (128, 4, 31, 8),  # of 16 images, the largest divisor of a share that is <= 31
        (128, 4, 1, 128),
        (128, 1, 100, 2),
        (256, 8, 20, 16),
        (96, 3, 20, 6),  # of 16 images: four of 24 are too large, and three devices cannot share five
        (1, 1, 7, 1),
    ],
)
def test_batch_is_split_into_the_fewest_micro_batches_that_fit(batch, world, device_batch, count):
    assert micro_batches(batch, world, device_batch) == count


@given(batch=st.integers(1, 300), world=st.integers(1, 20), device_batch=st.none() | st.integers(1, 300))
def test_micro_batches_are_equal_small_enough_and_the_fewest(batch, world, device_batch):
    if batch % world:
        with pytest.raises(UserError, match="cannot share a batch of"):
            micro_batches(batch, world, device_batch)
        return
    count = micro_batches(batch, world, device_batch)

    def fits(n):
        return batch % n == 0 and n % world == 0 and batch // n <= (device_batch or batch)

    assert fits(count)
    assert not any(fits(fewer) for fewer in range(1, count))


def test_error_lists_the_numbers_of_devices_that_can_share_the_batch():
    with pytest.raises(UserError) as caught:
        micro_batches(20, 3, 4)
    assert str(caught.value) == (
        "3 devices cannot share a batch of 20 images equally; use 1, 2, 4, 5, 10 or 20 devices, with a"
        " device batch of 20, 10, 5, 4, 2 or 1"
    )


@pytest.mark.parametrize("device_batch", [0, -1])
def test_error_lists_the_possible_device_batches(device_batch):
    with pytest.raises(UserError) as caught:
        micro_batches(20, 2, device_batch)
    assert str(caught.value) == (
        f"a batch of 20 images on 2 devices cannot use a device batch of {device_batch}; use 1, 2, 5 or 10"
    )


def test_divisors():
    assert [divisors(n) for n in (1, 12, 13)] == [[1], [1, 2, 3, 4, 6, 12], [1, 13]]


# --- one rank ------------------------------------------------------------------------------------------------


def test_single_process_is_a_group_of_one_rank():
    assert current_ranks() == SINGLE_RANK == RankGroup(0, 1)


def test_operations_of_a_single_rank_use_no_torch_distributed():
    network = nn.BatchNorm1d(3)
    SINGLE_RANK.broadcast_buffers(network)
    assert SINGLE_RANK.all_gather("x") == ["x"]
    assert SINGLE_RANK.broadcast("x") == "x"
    assert SINGLE_RANK.any_rank(True, False) == (True, False)
    for operation in (SINGLE_RANK.on_all_ranks, SINGLE_RANK.on_rank_zero):
        assert operation(lambda stop: stop(), lambda: "requested") == "requested"
        with pytest.raises(ZeroDivisionError):
            operation(lambda _: 1 // 0)


# --- three ranks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    three = Ranks(tmp_path_factory.mktemp("ranks"), 3)
    yield three
    three.close()


def test_ranks_know_their_number(ranks):
    assert ranks.run(current_ranks) == [RankGroup(0, 3), RankGroup(1, 3), RankGroup(2, 3)]


def exchange():
    """Exchange a value and flags with the other ranks."""
    group = current_ranks()
    name = f"rank {group.rank}"
    return group.all_gather(name), group.broadcast(name), group.any_rank(False, group.rank == 2, True)


def test_values_and_flags_are_known_to_all_ranks(ranks):
    names = ["rank 0", "rank 1", "rank 2"]
    assert ranks.run(exchange) == [(names, "rank 0", (False, True, True))] * 3


def broadcast_statistics():
    group = current_ranks()
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        network[0].weight.fill_(group.rank)
    network(torch.full((4, 2), float(group.rank)) * torch.arange(4.0)[:, None])
    group.broadcast_buffers(network)
    return network[0].weight[0, 0].item(), [buffer.tolist() for buffer in network.buffers()]


def test_buffers_of_rank_0_are_copied_and_parameters_are_not(ranks):
    weights, buffers = zip(*ranks.run(broadcast_statistics), strict=True)
    assert weights == (0.0, 1.0, 2.0)
    assert buffers[0] == buffers[1] == buffers[2]


def act_on_rank_zero():
    done = []
    group = current_ranks()
    result = group.on_rank_zero(lambda _: done.append(group.rank) or f"by {group.rank}")
    return result, done


def test_rank_0_acts_and_all_ranks_get_its_result(ranks):
    assert ranks.run(act_on_rank_zero) == [("by 0", [0]), ("by 0", []), ("by 0", [])]


def full_disk(_stop):
    raise UserError("cannot write to /runs: no space left on device")


def fail_on_rank_zero():
    return current_ranks().on_rank_zero(full_disk)


def test_user_error_of_rank_0_is_raised_on_all_ranks(ranks):
    for error in ranks.run(fail_on_rank_zero):
        assert isinstance(error, UserError)
        assert str(error) == "cannot write to /runs: no space left on device"
    assert ranks.run(current_ranks)[1] == RankGroup(1, 3)  # the ranks still work


def work_unevenly(pieces):
    """Do pieces[rank] pieces of work, and check for a stop request before each."""
    group, done = current_ranks(), 0

    def act(stop):
        nonlocal done
        for _ in range(pieces[group.rank]):
            raise_if_stopped(stop)
            done += 1
        return done

    return group.on_all_ranks(act)


@pytest.mark.parametrize("pieces", [(3, 3, 3), (0, 5, 1), (4, 0, 0)])
def test_ranks_may_have_different_amounts_of_work(ranks, pieces):
    assert ranks.run(work_unevenly, pieces) == list(pieces)


def work_until_stopped(stopping, method):
    """Endless work that rank `asked` alone stops at its tenth call of `stop`; number of calls on this rank."""
    group, calls = current_ranks(), 0

    def act(stop):
        while True:
            raise_if_stopped(stop)

    def stop():
        nonlocal calls
        calls += 1
        return group.rank == stopping and calls >= 10

    try:
        return getattr(group, method)(act, stop)
    except StopRequested:
        return calls


@pytest.mark.parametrize("method", ["on_all_ranks", "on_rank_zero"])
@pytest.mark.parametrize("stopping", [0, 1, 2])
def test_stop_request_on_one_rank_ends_the_work_of_all(ranks, stopping, method):
    # A rank that only waits finds out one round later.
    assert all(10 <= calls <= 11 for calls in ranks.run(work_until_stopped, stopping, method))


def fail_on_one_rank(failing):
    group = current_ranks()

    def act(stop):
        for piece in range(100):
            raise_if_stopped(stop)
            if group.rank == failing and piece == 3:
                raise UserError("test.tar, sample 70 is not an image")
            time.sleep(0.001)

    return group.on_all_ranks(act)


@pytest.mark.parametrize("failing", [0, 2])
def test_user_error_of_one_rank_is_raised_on_all_ranks(ranks, failing):
    for error in ranks.run(fail_on_one_rank, failing):
        assert isinstance(error, UserError)
        assert str(error) == "test.tar, sample 70 is not an image"
