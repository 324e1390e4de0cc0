"""Prefetching by threads, with results in order.

Decoding and resizing release the interpreter's lock, so threads are as fast as processes, without zombie
processes, shared memory, or copies between processes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

JobT = TypeVar("JobT")

ResultT = TypeVar("ResultT")


class StopRequested(Exception):  # noqa: N818 - not an error: the caller requested it
    """Work ended early because its caller requested a stop."""


def never_stop() -> bool:
    """Return False: a `stop` function for work that always runs to its end."""
    return False


def raise_if_stopped(stop: Callable[[], bool]) -> None:
    """Raise StopRequested if `stop()` is true."""
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
    """Yield `work(job)` for each job, in the order of the jobs, with at most `depth` results in the queue.

    With `threads` < 1 the work runs in the caller's thread, one job at a time. An exception of `work` is raised
    when its result is due. After that, or when the caller closes the generator, no further job starts. Raises
    StopRequested before the next result once `stop()` is true.
    """
    if threads < 1:
        for job in jobs:
            raise_if_stopped(stop)
            yield work(job)
        return
    caller_threads = torch.get_num_threads()
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
        torch.set_num_threads(caller_threads)  # otherwise later threads would inherit the readers' 1
