"""Counting stop signals."""

import os
import signal

import pytest

from pipeline.common.signals import count_stop_signals, node_stop_signals

STOP = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", STOP)
def test_a_stop_signal_is_counted_and_interrupts_nothing(number):
    with count_stop_signals() as received:
        assert received() == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert received() == 2


def test_the_second_signal_may_raise():
    with count_stop_signals(raise_on_second=True) as received:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert received() == 1


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_previous_handlers_are_restored(error):
    before = [signal.getsignal(number) for number in STOP]
    try:
        with count_stop_signals():
            assert [signal.getsignal(number) for number in STOP] != before
            if error:
                raise error
    except ValueError:
        pass
    assert [signal.getsignal(number) for number in STOP] == before


@pytest.mark.parametrize(("handler", "included"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_hangup_stops_a_node_unless_it_is_ignored(handler, included):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        numbers = node_stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert set(STOP) <= set(numbers)
    assert (signal.SIGHUP in numbers) is included
