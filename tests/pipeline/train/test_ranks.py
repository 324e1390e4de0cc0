"""Ranks agree: on values, on flags, on what one of them does for all, and on what ends them."""

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

# --- into how many groups a batch is cut -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "world", "device_batch", "count"),
    [
        (128, 1, None, 1),
        (128, 4, None, 4),  # the whole share of each
        (128, 4, 128, 4),
        (128, 4, 32, 4),
        (128, 4, 31, 8),  # of 16, the largest that divide it and are at most 31
        (128, 4, 1, 128),
        (128, 1, 100, 2),
        (256, 8, 20, 16),
        (96, 3, 20, 6),  # of 16: four of 24 are too large, and three cannot share five
        (1, 1, 7, 1),
    ],
)
def test_a_batch_is_cut_into_as_few_groups_as_fit(batch, world, device_batch, count):
    assert micro_batches(batch, world, device_batch) == count


@given(batch=st.integers(1, 300), world=st.integers(1, 20), device_batch=st.none() | st.integers(1, 300))
def test_groups_are_equal_shared_equally_small_enough_and_the_fewest(batch, world, device_batch):
    if batch % world:
        with pytest.raises(UserError, match="cannot share a batch of"):
            micro_batches(batch, world, device_batch)
        return
    count = micro_batches(batch, world, device_batch)

    def fits(n):
        return batch % n == 0 and n % world == 0 and batch // n <= (device_batch or batch)

    assert fits(count)
    assert not any(fits(fewer) for fewer in range(1, count))


def test_devices_that_cannot_share_a_batch_are_told_which_could():
    with pytest.raises(UserError) as refused:
        micro_batches(20, 3, 4)
    assert str(refused.value) == (
        "3 devices cannot share a batch of 20 images equally; use 1, 2, 4, 5, 10 or 20 devices, with a"
        " device batch of 20, 10, 5, 4, 2 or 1"
    )


@pytest.mark.parametrize("device_batch", [0, -1])
def test_a_device_batch_of_nothing_is_told_what_could_be(device_batch):
    with pytest.raises(UserError) as refused:
        micro_batches(20, 2, device_batch)
    assert str(refused.value) == (
        f"a batch of 20 images on 2 devices cannot use a device batch of {device_batch}; use 1, 2, 5 or 10"
    )


def test_divisors():
    assert [divisors(n) for n in (1, 12, 13)] == [[1], [1, 2, 3, 4, 6, 12], [1, 13]]


# --- alone -----------------------------------------------------------------------------------------------------


def test_a_process_by_itself_is_a_group_of_one():
    assert current_ranks() == SINGLE_RANK == RankGroup(0, 1)


def test_alone_all_is_as_if_there_were_no_group():
    network = nn.BatchNorm1d(3)
    SINGLE_RANK.broadcast_buffers(network)
    assert SINGLE_RANK.all_gather("x") == ["x"]
    assert SINGLE_RANK.broadcast("x") == "x"
    assert SINGLE_RANK.any_rank(True, False) == (True, False)
    for together in (SINGLE_RANK.on_all_ranks, SINGLE_RANK.on_rank_zero):
        assert together(lambda stop: stop(), lambda: "asked") == "asked"
        with pytest.raises(ZeroDivisionError):
            together(lambda _: 1 // 0)


# --- three ranks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    three = Ranks(tmp_path_factory.mktemp("ranks"), 3)
    yield three
    three.close()


def test_they_know_who_they_are(ranks):
    assert ranks.run(current_ranks) == [RankGroup(0, 3), RankGroup(1, 3), RankGroup(2, 3)]


def told():
    group = current_ranks()
    name = f"rank {group.rank}"
    return group.all_gather(name), group.broadcast(name), group.any_rank(False, group.rank == 2, True)


def test_values_and_flags_are_heard_by_all(ranks):
    everybody = ["rank 0", "rank 1", "rank 2"]
    assert ranks.run(told) == [(everybody, "rank 0", (False, True, True))] * 3


def averages():
    group = current_ranks()
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        network[0].weight.fill_(group.rank)
    network(torch.full((4, 2), float(group.rank)) * torch.arange(4.0)[:, None])
    group.broadcast_buffers(network)
    return network[0].weight[0, 0].item(), [buffer.tolist() for buffer in network.buffers()]


def test_buffers_become_those_of_the_first_and_parameters_do_not(ranks):
    weights, buffers = zip(*ranks.run(averages), strict=True)
    assert weights == (0.0, 1.0, 2.0)
    assert buffers[0] == buffers[1] == buffers[2]


def led_by_the_first():
    done = []
    group = current_ranks()
    said = group.on_rank_zero(lambda _: done.append(group.rank) or f"by {group.rank}")
    return said, done


def test_what_is_led_is_done_by_the_first_and_told_to_all(ranks):
    assert ranks.run(led_by_the_first) == [("by 0", [0]), ("by 0", []), ("by 0", [])]


def full_disk(_stop):
    raise UserError("cannot write to /runs: no space left on device")


def led_astray():
    return current_ranks().on_rank_zero(full_disk)


def test_what_the_first_cannot_do_is_told_to_all(ranks):
    for error in ranks.run(led_astray):
        assert isinstance(error, UserError)
        assert str(error) == "cannot write to /runs: no space left on device"
    assert ranks.run(current_ranks)[1] == RankGroup(1, 3)  # and they go on


def uneven(pieces):
    """Each rank has another number of pieces of work, and asks before each whether to go on."""
    group, done = current_ranks(), 0

    def act(stop):
        nonlocal done
        for _ in range(pieces[group.rank]):
            raise_if_stopped(stop)
            done += 1
        return done

    return group.on_all_ranks(act)


@pytest.mark.parametrize("pieces", [(3, 3, 3), (0, 5, 1), (4, 0, 0)])
def test_ranks_may_have_more_to_do_than_others(ranks, pieces):
    assert ranks.run(uneven, pieces) == list(pieces)


def long_work(asked, way):
    """Endless work that rank `asked` alone stops at its tenth call of `stop`; number of calls on this rank."""
    group, calls = current_ranks(), 0

    def act(stop):
        while True:
            raise_if_stopped(stop)

    def stop():
        nonlocal calls
        calls += 1
        return group.rank == asked and calls >= 10

    try:
        return getattr(group, way)(act, stop)
    except StopRequested:
        return calls


@pytest.mark.parametrize("way", ["on_all_ranks", "on_rank_zero"])
@pytest.mark.parametrize("asked", [0, 1, 2])
def test_work_ends_on_all_ranks_when_one_is_asked_to_stop_also_one_that_only_waits(ranks, asked, way):
    # A rank that only waits finds out one round later.
    assert all(10 <= calls <= 11 for calls in ranks.run(long_work, asked, way))


def one_fails(failing):
    group = current_ranks()

    def act(stop):
        for piece in range(100):
            raise_if_stopped(stop)
            if group.rank == failing and piece == 3:
                raise UserError("test.tar, sample 70 is no readable picture")
            time.sleep(0.001)

    return group.on_all_ranks(act)


@pytest.mark.parametrize("failing", [0, 2])
def test_the_mistake_that_ends_one_rank_is_what_all_say(ranks, failing):
    for error in ranks.run(one_fails, failing):
        assert isinstance(error, UserError)
        assert str(error) == "test.tar, sample 70 is no readable picture"
