"""Threads that work ahead: results in order, so many and no more waiting, nothing left behind."""

import threading
import time

import pytest
import torch

from pipeline.data.prefetch import prefetch


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert readers() == []


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_results_come_in_the_jobs_order(threads):
    def work(n):
        time.sleep(0.002 * (n % 3))
        return n * n

    assert list(prefetch(range(30), work, threads=threads, depth=4)) == [n * n for n in range(30)]
    assert list(prefetch([], work, threads=threads, depth=4)) == []


def test_without_threads_nothing_is_done_before_it_is_asked_for():
    done = []
    results = prefetch(range(9), done.append, threads=0, depth=4)
    next(results)
    next(results)
    assert done == [0, 1]


def test_no_more_than_depth_results_wait():
    begun = []
    results = prefetch(range(100), begun.append, threads=2, depth=4)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.02)  # as long as they like
        assert len(begun) <= taken + 4
    results.close()


def test_jobs_are_drawn_no_further_than_needed():
    drawn = []

    def jobs():
        for n in range(100):
            drawn.append(n)
            yield n

    results = prefetch(jobs(), abs, threads=2, depth=4)
    next(results)
    assert len(drawn) == 5
    results.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_a_failure_comes_out_at_its_turn_and_ends_the_rest(threads):
    begun = []

    def work(n):
        begun.append(n)
        if n == 3:
            raise OSError("the fourth")
        return n

    results, got = prefetch(range(1000), work, threads=threads, depth=4), []
    with pytest.raises(OSError, match="the fourth"):
        got.extend(results)
    assert len(begun) <= 3 + 1 + 4 + 1
    assert readers() == []


def test_a_failure_of_the_jobs_themselves_comes_out():
    def jobs():
        yield 1
        raise OSError("no more jobs")

    with pytest.raises(OSError, match="no more jobs"):
        list(prefetch(jobs(), abs, threads=2, depth=4))


def test_a_caller_that_stops_leaves_no_thread():
    results = prefetch(range(1000), lambda n: time.sleep(0.001), threads=3, depth=4)
    next(results)
    assert len(readers()) > 0
    results.close()
    assert readers() == []
    results = prefetch(range(1000), lambda n: time.sleep(0.001), threads=3, depth=4)
    next(results)
    del results
    assert readers() == []


def test_what_waits_is_not_begun_when_the_caller_stops():
    begun = []

    def work(n):
        begun.append(n)
        time.sleep(0.05)

    results = prefetch(range(100), work, threads=1, depth=8)
    next(results)
    results.close()
    assert len(begun) <= 3


def test_readers_use_one_thread_each_and_the_callers_number_stays():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        results = prefetch(range(8), lambda n: torch.get_num_threads(), threads=2, depth=2)
        seen = [next(results)]
        assert torch.get_num_threads() == 2  # while they run
        seen += results
        assert seen == [1] * 8
        assert torch.get_num_threads() == 2
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [2]  # and of threads that come later
    finally:
        torch.set_num_threads(before)
