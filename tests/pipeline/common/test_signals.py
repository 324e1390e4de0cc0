"""Counted stop signals: they interrupt nothing, and the previous handlers return."""

import os
import signal
import time

import pytest

from pipeline.common.signals import count_stop_signals, node_stop_signals


def send(number):
    """Send a signal to this process; its handler runs before the function returns."""
    os.kill(os.getpid(), number)
    time.sleep(0)  # gives the interpreter a chance to run the handler


def test_signals_are_counted_and_interrupt_nothing():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with count_stop_signals() as count:
        assert count() == 0
        send(signal.SIGTERM)
        assert count() == 1
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert count() == 3
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_second_signal_can_raise_keyboard_interrupt():
    with count_stop_signals(raise_on_second=True) as count:
        send(signal.SIGINT)
        assert count() == 1
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)


def test_the_handlers_are_restored_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), count_stop_signals():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_node_stops_on_sighup_unless_nohup_ignores_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert node_stop_signals() == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert node_stop_signals() == [signal.SIGTERM, signal.SIGINT]
    finally:
        signal.signal(signal.SIGHUP, before)
