"""Work done ahead by threads, its results in order. Decoding and resizing let other threads run, so threads serve
as well as processes, and leave nothing behind: no zombies, no shared memory, no copies between processes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

JobT = TypeVar("JobT")

ResultT = TypeVar("ResultT")


class StopRequested(Exception):  # noqa: N818 - no error: it was asked for
    """Work was asked to end before it was done."""


def never_stop() -> bool:
    """Nobody asks to stop."""
    return False


def raise_if_stopped(stop: Callable[[], bool]) -> None:
    """Stopped, if that was asked for."""
    if stop():
        raise StopRequested


def prefetch(
    jobs: Iterable[JobT],
    work: Callable[[JobT], ResultT],
    *,
    threads: int,
    depth: int,
    stop: Callable[[], bool] = never_stop,
) -> Generator[ResultT, None, None]:
    """`work(job)` of each job, in the jobs' order; at most `depth` results wait. Without threads: one by one.

    What `work` raises comes out at its job's turn; what is left then, or when the caller stops, is not begun.
    Raises Stopped, before the next result, once `stop()` is true.
    """
    if threads < 1:
        for job in jobs:
            raise_if_stopped(stop)
            yield work(job)
        return
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "reader", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[ResultT]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > depth:
                raise_if_stopped(stop)
                yield waiting.popleft().result()
        while waiting:
            raise_if_stopped(stop)
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(own)  # a reader's 1 is its own, but later threads would take it over
