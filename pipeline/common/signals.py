"""Stop signals, counted instead of ending the process."""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def count_stop_signals(
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM), *, raise_on_second: bool = False
) -> Iterator[Callable[[], int]]:
    """Count the stop signals that this process receives within the block; yield a function that returns the count.

    The signals interrupt nothing. With `raise_on_second`, each signal after the first raises KeyboardInterrupt.
    Must be entered in the main thread, as `signal.signal` requires. The previous handlers are restored at the end.
    """
    received = 0

    def count(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received and raise_on_second:
            raise KeyboardInterrupt
        received += 1

    previous = {number: signal.signal(number, count) for number in numbers}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def node_stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a cluster node: SIGTERM, SIGINT and, unless nohup ignores it, SIGHUP."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
