"""Prefetching by threads: results in order, a bounded queue, and no threads left behind."""

import threading
import time

import pytest
import torch

from pipeline.data.prefetch import prefetch


def readers():
    """Return the running reader threads."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.fixture(autouse=True)
def _no_readers_are_left():
    yield
    assert readers() == []


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_results_have_the_order_of_the_jobs(threads):
    def work(n):
        time.sleep(0.002 * (n % 3))
        return n * n

    assert list(prefetch(range(30), work, threads=threads, depth=4)) == [n * n for n in range(30)]
    assert list(prefetch([], work, threads=threads, depth=4)) == []


def test_without_threads_jobs_run_on_demand():
    finished = []
    results = prefetch(range(9), finished.append, threads=0, depth=4)
    next(results)
    next(results)
    assert finished == [0, 1]


def test_at_most_depth_results_wait():
    started = []
    results = prefetch(range(100), started.append, threads=2, depth=4)
    for taken in range(1, 6):
        next(results)
        time.sleep(0.02)  # time for the threads to go too far
        assert len(started) <= taken + 4
    results.close()


def test_jobs_are_taken_no_further_than_depth():
    taken = []

    def jobs():
        for n in range(100):
            taken.append(n)
            yield n

    results = prefetch(jobs(), abs, threads=2, depth=4)
    next(results)
    assert len(taken) == 5
    results.close()


@pytest.mark.parametrize("threads", [0, 2])
def test_error_is_raised_in_order_and_ends_the_rest(threads):
    started = []

    def work(n):
        started.append(n)
        if n == 3:
            raise OSError("job 3")
        return n

    results, received = prefetch(range(1000), work, threads=threads, depth=4), []
    with pytest.raises(OSError, match="job 3"):
        received.extend(results)
    assert len(started) <= 3 + 1 + 4 + 1
    assert readers() == []


def test_error_of_the_jobs_is_raised():
    def jobs():
        yield 1
        raise OSError("no more jobs")

    with pytest.raises(OSError, match="no more jobs"):
        list(prefetch(jobs(), abs, threads=2, depth=4))


def test_closed_or_deleted_generator_ends_its_threads():
    results = prefetch(range(1000), lambda n: time.sleep(0.001), threads=3, depth=4)
    next(results)
    assert len(readers()) > 0
    results.close()
    assert readers() == []
    results = prefetch(range(1000), lambda n: time.sleep(0.001), threads=3, depth=4)
    next(results)
    del results
    assert readers() == []


def test_waiting_jobs_do_not_start_after_close():
    started = []

    def work(n):
        started.append(n)
        time.sleep(0.05)

    results = prefetch(range(100), work, threads=1, depth=8)
    next(results)
    results.close()
    assert len(started) <= 3


def test_readers_use_one_thread_each_and_the_caller_keeps_its_number():
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
        assert later == [2]  # also in later threads
    finally:
        torch.set_num_threads(before)
