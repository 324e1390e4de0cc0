"""500 runs on 8 devices each of 1000: the scheduling benchmark with a simulated clock, and with Ray (slow)."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.queue import Queue
from pipeline.cluster.sharing import FreeDevices

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "scheduling.py"
BENCHMARK = runpy.run_path(str(FILE))


def test_the_ideal_schedule_of_a_small_case():
    assert BENCHMARK["ideal_ends"]([3.0, 1.0, 2.0, 2.0, 1.0], slots=2) == [3.0, 1.0, 3.0, 5.0, 4.0]


def test_500_runs_end_as_in_the_ideal_schedule():
    lengths = BENCHMARK["run_lengths"](500)
    ends = BENCHMARK["simulated_ends"](lengths, 1000)
    assert ends == BENCHMARK["ideal_ends"](lengths, 125)
    changes = [(end, -8) for end in ends] + [(end - length, 8) for end, length in zip(ends, lengths, strict=True)]
    used = peak = 0
    for _, devices in sorted((round(at, 9), devices) for at, devices in changes):
        used += devices
        peak = max(peak, used)
    assert peak == 1000
    assert max(ends) >= sum(lengths) / 125


def test_run_lengths_are_unequal_and_reproducible():
    lengths = BENCHMARK["run_lengths"](500)
    assert lengths == BENCHMARK["run_lengths"](500)
    ordered = sorted(lengths)
    assert ordered[475] / ordered[250] == pytest.approx(2.7, rel=0.15)  # exp(1.645 x 0.6), the 95th percentile


def test_a_queue_slower_than_the_ideal_schedule_is_detected(monkeypatch):
    admit = Queue.admit
    monkeypatch.setattr(Queue, "admit", lambda self, free, now: admit(self, FreeDevices(min(free.whole, 8)), now))
    with pytest.raises(AssertionError, match="200 runs: the queue's makespan is"):
        BENCHMARK["queue_cost"](200, 1)


@pytest.mark.slow
def test_ray_is_at_most_five_percent_slower_than_the_ideal_schedule():
    argv = [sys.executable, str(FILE), "--part", "ray", "--rounds", "2"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert 1 <= found["ray"]["over_ideal"] <= BENCHMARK["WANTED"], done.stdout
