"""Work done ahead by threads, its results in order. Decoding and resizing let other threads run, so threads serve
as well as processes, and leave nothing behind: no zombies, no shared memory, no copies between processes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")

Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818 - no error: it was asked for
    """Work was asked to end before it was done."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def go_on(stop: Callable[[], bool]) -> None:
    """Stopped, if that was asked for."""
    if stop():
        raise Stopped


def ahead(
    jobs: Iterable[Job],
    work: Callable[[Job], Result],
    *,
    threads: int,
    depth: int,
    stop: Callable[[], bool] = never,
) -> Generator[Result, None, None]:
    """`work(job)` of each job, in the jobs' order; at most `depth` results wait. Without threads: one by one.

    What `work` raises comes out at its job's turn; what is left then, or when the caller stops, is not begun.
    Raises Stopped, before the next result, once `stop()` is true.
    """
    if threads < 1:
        for job in jobs:
            go_on(stop)
            yield work(job)
        return
    own = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "reader", initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > depth:
                go_on(stop)
                yield waiting.popleft().result()
        while waiting:
            go_on(stop)
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(own)  # a reader's 1 is its own, but later threads would take it over
