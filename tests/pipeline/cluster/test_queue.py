"""The queue: order, needs, budgets, cancellation; against a simple model; and its cost."""

import heapq
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.cluster.queue import Queue, QueueItem
from pipeline.cluster.sharing import FreeDevices
from tests.support.work import count_calls

HOUR = 3600.0


def item(name, devices=1, needs=()):
    return QueueItem(name, f"net-{name} seed 0", devices, tuple(needs))


def items(names, devices=1):
    return [item(name, devices) for name in names]


def names(found):
    """Return the identities of items as one string."""
    return "".join(one.identity for one in found)


def queue_of(*launches, **terms):
    """Return a queue with a launch "1", "2", … for each list of items, all with the same terms."""
    queue = Queue()
    for number, launched in enumerate(launches, start=1):
        queue.add(str(number), launched, **terms)
    return queue


# --- order -------------------------------------------------------------------------------------------------


def test_launches_are_served_in_order_of_arrival():
    queue = queue_of(items("ba"), items("dc"))
    assert names(queue.admit(FreeDevices(3), 0)) == "bad"
    assert queue.states() == {name: (state, "") for name, state in zip("badc", ["running"] * 3 + ["waiting"])}  # noqa: B905
    queue.ended("d", "finished", 1)
    assert names(queue.admit(FreeDevices(1), 1)) == "c"


def test_small_runs_do_not_overtake_a_large_one():
    queue = queue_of([item("a", 2), item("b", 4), item("c", 1)])
    assert names(queue.admit(FreeDevices(4), 0)) == "a"
    assert names(queue.admit(FreeDevices(2), 0)) == ""
    queue.ended("a", "finished", 1)
    assert names(queue.admit(FreeDevices(4), 1)) == "b"


def test_runs_that_share_devices_are_counted_exactly():
    """Three thirds are one device; as decimal numbers they would be more or less."""
    third = Fraction(1, 3)
    queue = queue_of(items("abcdefg", third), max_device_hours=1.0)
    assert names(queue.admit(FreeDevices(2), 0)) == "abcdef"
    assert queue.waiting(FreeDevices(0))["g"] == "needs 1/3 of a device, 0 free"
    assert queue.spent("1", HOUR / 4) == pytest.approx(2 / 4)
    queue.ended("a", "finished", HOUR / 4)
    assert names(queue.admit(FreeDevices(0, (third,)), HOUR / 4)) == "g"
    assert queue.over_budget(0.499 * HOUR) == []
    assert queue.over_budget(0.501 * HOUR) == list("bcdefg")


def test_a_run_on_a_whole_device_does_not_start_on_two_halves():
    half = Fraction(1, 2)
    queue = queue_of([item("a", 1), item("b", half), item("c", half)])
    halves = FreeDevices(0, (half, half))
    assert names(queue.admit(halves, 0)) == ""
    assert queue.waiting(halves)["a"] == "needs 1 device, 0 free"
    assert names(queue.admit(FreeDevices(1, (half, half)), 1)) == "abc"


def test_a_run_on_a_whole_device_is_not_overtaken_by_runs_that_share():
    quarter = Fraction(1, 4)
    queue = queue_of([*items("ab", quarter), item("c", 1), item("d", quarter)])
    assert names(queue.admit(FreeDevices(1), 0)) == "ab"
    halves = FreeDevices(0, (Fraction(1, 2),))
    assert queue.waiting(halves) == {"c": "needs 1 device, 0 free", "d": "behind 1 other run"}
    queue.ended("a", "finished", 1)
    assert names(queue.admit(FreeDevices(0, (Fraction(3, 4),)), 1)) == ""
    queue.ended("b", "finished", 2)
    assert names(queue.admit(FreeDevices(1), 2)) == "c"


def test_the_devices_wanted_are_those_of_running_items_and_of_all_that_may_start():
    queue = queue_of([item("a", 2), item("b", 4), item("c", 1, "a")])
    assert queue.wanted_devices(0) == 6  # c needs a first
    queue.admit(FreeDevices(2), 0)
    assert queue.wanted_devices(0) == 6
    queue.ended("a", "finished", 1)
    assert queue.wanted_devices(1) == 5
    for name in "bc":
        queue.cancel(name)
    assert queue.wanted_devices(1) == 0


def test_the_devices_wanted_respect_limits_and_budgets():
    queue = queue_of(items("abcd"), max_concurrent=2, max_device_hours=1.0)
    assert queue.wanted_devices(0) == 2
    queue.admit(FreeDevices(1), 0)
    assert queue.wanted_devices(0) == 2
    queue.add("other", items("dxy", 2))
    assert queue.wanted_devices(0) == 2 + 1 + 2 * 2  # d is in both launches
    queue.over_budget(HOUR)
    assert queue.wanted_devices(HOUR) == 1 + 1 + 2 * 2  # a stops; d, x and y belong to the other launch


def test_the_devices_wanted_are_whole_ones_beside_half_used_ones():
    """Two halves run on two devices: the run on a whole one needs a third, until they are on one device."""
    half = Fraction(1, 2)
    queue = queue_of([*items("ab", half), item("c", 1), *items("def", half)])
    assert queue.wanted_devices(0) == 2 + 1 + 1  # five halves and a whole one
    assert names(queue.admit(FreeDevices(0, (half, half)), 0)) == "ab"
    assert queue.wanted_devices(0, (half, half)) == 2 + 1 + 1
    queue.cancel("f")
    assert queue.wanted_devices(0, (half, half)) == 2 + 1
    assert queue.wanted_devices(0, (Fraction(0),)) == 1 + 1 + 1


def test_an_item_without_devices_keeps_its_position():
    queue = queue_of([item("a", 1), item("s", 0, "a"), item("b", 2), item("t", 0)])
    assert names(queue.admit(FreeDevices(1), 0)) == "a"
    queue.ended("a", "finished", 1)
    assert names(queue.admit(FreeDevices(1), 1)) == "s"
    assert names(queue.admit(FreeDevices(2), 1)) == "bt"


def test_a_retried_run_keeps_its_position():
    queue = queue_of(items("abc"))
    assert names(queue.admit(FreeDevices(2), 0)) == "ab"
    assert queue.ended("a", "again", 5, "its worker died") == []
    assert queue.states()["a"] == ("waiting", "its worker died")
    assert names(queue.admit(FreeDevices(1), 5)) == "a"
    assert queue.states()["a"] == ("running", "")


def test_a_postponed_run_goes_behind_all_others_and_is_not_charged():
    queue = queue_of(items("abc"))
    assert names(queue.admit(FreeDevices(1), 0)) == "a"
    queue.postpone("a", 0)
    assert list(queue.states()) == ["b", "c", "a"]
    assert names(queue.admit(FreeDevices(1), 0)) == "b"
    queue.ended("b", "finished", HOUR)
    assert queue.spent("1", HOUR) == 1.0
    assert names(queue.admit(FreeDevices(2), HOUR)) == "ca"


def test_a_run_can_be_postponed_that_is_also_in_a_launch_over_budget():
    queue = Queue()
    queue.add("1", items("a"), max_device_hours=0.0)
    queue.add("2", items("ab"))
    assert names(queue.admit(FreeDevices(1), 0)) == "a"
    queue.postpone("a", 0)
    assert names(queue.admit(FreeDevices(2), 0)) == "ba"


def test_a_limit_of_concurrent_runs_does_not_block_later_launches():
    queue = Queue()
    queue.add("1", items("abc"), max_concurrent=1)
    queue.add("2", items("xy"))
    assert names(queue.admit(FreeDevices(9), 0)) == "axy"
    assert names(queue.admit(FreeDevices(9), 0)) == ""
    queue.ended("a", "finished", 1)
    assert names(queue.admit(FreeDevices(9), 1)) == "b"


# --- needs -------------------------------------------------------------------------------------------------


def test_an_item_waits_for_all_its_needs_and_blocks_no_other():
    queue = queue_of([item("s", 1, "ab"), *items("abc")])
    assert names(queue.admit(FreeDevices(2), 0)) == "ab"
    queue.ended("a", "finished", 1)
    assert names(queue.admit(FreeDevices(1), 1)) == "c"
    queue.ended("b", "finished", 2)
    assert names(queue.admit(FreeDevices(1), 2)) == "s"


def test_a_failure_fails_direct_and_indirect_dependants_only():
    queue = queue_of([*items("ab"), item("s", 0, "ab"), item("t", 0, "s"), item("u", 0, "b")])
    queue.admit(FreeDevices(2), 0)
    why = "needs net-a seed 0, which failed: no space left"
    assert queue.ended("a", "failed", 1, "no space left") == [("s", why), ("t", why)]
    assert queue.states()["t"] == ("failed", why)
    assert queue.state("b") == "running"
    assert queue.ended("b", "finished", 1) == []
    assert names(queue.admit(FreeDevices(0), 1)) == "u"


@pytest.mark.parametrize(
    ("state", "why", "usable", "expected"),
    [
        ("finished", "did not converge", False, "which cannot be used: did not converge"),
        ("cancelled", "", True, "which was cancelled"),
        ("over-budget", "2 device hours used", True, "which is over budget: 2 device hours used"),
    ],
)
def test_a_failed_dependant_has_the_reason(state, why, usable, expected):
    queue = queue_of([item("a"), item("s", 0, "a")])
    assert queue.ended("a", state, 0, why, usable=usable) == [("s", f"needs net-a seed 0, {expected}")]
    assert queue.states()["a"] == (state, why)
    assert queue.is_over("1")


def test_a_later_launch_may_need_items_that_have_ended():
    queue = queue_of(items("abc"))
    queue.admit(FreeDevices(3), 0)
    queue.ended("a", "finished", 1)
    queue.ended("b", "finished", 1, "did not converge", usable=False)
    queue.ended("c", "failed", 1, "boom")
    queue.add("2", [item("s", 0, "a"), item("t", 0, "ab"), item("u", 0, "c"), item("v", 0, "d"), item("d")])
    assert names(queue.admit(FreeDevices(9), 2)) == "sd"
    whys = ["needs net-b seed 0, which cannot be used: did not converge", "needs net-c seed 0, which failed: boom"]
    assert queue.news() == [("t", "failed", whys[0]), ("u", "failed", whys[1])]
    assert queue.state("v") == "waiting"


def test_an_item_queued_again_depends_on_its_new_needs_only():
    queue = queue_of([*items("ab"), item("s", 0, "a")])
    queue.cancel("s")
    queue.add("2", [item("s", 0, "b")])
    assert queue.ended("a", "failed", 0, "boom") == []
    assert queue.ended("b", "failed", 0, "boom") == [("s", "needs net-b seed 0, which failed: boom")]


@pytest.mark.parametrize(
    ("launched", "terms", "message"),
    [
        ([item("a", -1)], {}, "net-a seed 0 has -1 devices; must be >= 0"),
        ([item("a")], {"max_concurrent": 0}, "max_concurrent is 0; must be >= 1"),
        ([item("a"), item("s", 0, "x")], {}, "net-s seed 0 needs x, which is in no launch"),
        ([item("a", 1, "b"), item("b", 1, "a")], {}, "circular needs"),
        ([item("a", 1, "a")], {}, "circular needs"),
    ],
)
def test_items_that_could_never_run_are_refused_without_a_change(launched, terms, message):
    queue = queue_of(items("z"))
    with pytest.raises(ValueError, match=message):
        queue.add("2", launched, **terms)
    assert queue.states() == {"z": ("waiting", "")}
    queue.add("2", items("y"))
    assert names(queue.admit(FreeDevices(9), 0)) == "zy"


# --- runs shared by launches ------------------------------------------------------------------------


def test_twenty_launches_of_the_same_runs_execute_each_once():
    queue = Queue()
    for number in range(20):
        queue.add(str(number), items("abcdef"))
    admitted = ""
    for now in range(6):
        started = queue.admit(FreeDevices(1), now)
        admitted += names(started)
        for one in started:
            queue.ended(one.identity, "finished", now + 0.5)
    assert admitted == "abcdef"
    assert all(queue.is_over(str(number)) for number in range(20))


def test_adding_a_launch_twice_has_no_effect():
    queue = queue_of(items("ab"))
    queue.add("1", items("abc"), max_concurrent=1)
    assert names(queue.admit(FreeDevices(9), 0)) == "ab"


def test_finished_runs_are_not_repeated_and_failed_ones_are_queued_again_at_the_end():
    queue = queue_of(items("abcd"))
    queue.admit(FreeDevices(3), 0)
    queue.ended("a", "finished", 1)
    queue.ended("b", "failed", 1, "boom")
    queue.ended("c", "cancelled", 1)
    queue.add("2", items("abc"))
    assert list(queue.states()) == ["a", "d", "b", "c"]
    assert names(queue.admit(FreeDevices(9), 1)) == "dbc"
    assert queue.states()["b"] == ("running", "")


def test_a_shared_run_starts_when_one_of_its_launches_may_run_it():
    queue = Queue()
    queue.add("1", items("abc"), max_concurrent=1)
    queue.add("2", items("c"))
    assert names(queue.admit(FreeDevices(9), 0)) == "ac"
    queue.ended("a", "finished", 1)  # c belongs to the first launch too, and runs
    assert names(queue.admit(FreeDevices(9), 1)) == ""
    queue.ended("c", "finished", 2)
    assert names(queue.admit(FreeDevices(9), 2)) == "b"


def test_a_running_run_counts_toward_the_limit_of_a_later_launch():
    queue = queue_of(items("a"))
    queue.admit(FreeDevices(9), 0)
    queue.add("2", items("ab"), max_concurrent=1)
    assert names(queue.admit(FreeDevices(9), 0)) == ""
    queue.ended("a", "finished", 1)
    assert names(queue.admit(FreeDevices(9), 1)) == "b"


# --- budgets -----------------------------------------------------------------------------------------------


def test_device_hours_count_running_items():
    queue = queue_of([item("a", 4), item("b", 2), item("s", 0)], spent=1.0)
    queue.admit(FreeDevices(9), 0)
    assert queue.spent("1", HOUR / 2) == pytest.approx(1 + 3)
    queue.ended("a", "again", HOUR)
    assert queue.spent("1", 2 * HOUR) == pytest.approx(1 + 4 + 2 * 2)


def test_at_the_end_of_a_budget_running_items_are_stopped_once_and_waiting_ones_end():
    queue = Queue()
    queue.add("1", [item("s", 0, "c"), *items("abc"), item("t", 0, "c")], max_device_hours=2)
    queue.add("2", items("z"))
    assert names(queue.admit(FreeDevices(2), 0)) == "ab"
    assert queue.over_budget(0.99 * HOUR) == []
    assert queue.over_budget(HOUR) == ["a", "b"]
    assert queue.over_budget(1.1 * HOUR) == []
    why = "2 device hours used"
    assert queue.news() == [(name, "over-budget", why) for name in "sct"]
    assert queue.news() == []
    queue.ended("a", "over-budget", 1.2 * HOUR)
    assert queue.ended("b", "again", 1.2 * HOUR, "preempted") == []
    assert queue.news() == [("b", "over-budget", "preempted")]
    assert queue.is_over("1")
    assert names(queue.admit(FreeDevices(2), 1.2 * HOUR)) == "z"
    assert queue.spent("1", 9 * HOUR) == pytest.approx(2 * 1.2)


def test_no_item_of_a_launch_over_budget_starts_between_two_checks():
    queue = Queue()
    queue.add("1", items("ab"), max_device_hours=1)
    queue.add("2", items("z"))
    queue.admit(FreeDevices(1), 0)
    queue.ended("a", "finished", HOUR)
    assert names(queue.admit(FreeDevices(2), HOUR)) == "z"
    assert queue.over_budget(HOUR) == []
    assert queue.state("b") == "over-budget"
    assert queue.is_over("1")


def test_a_budget_does_not_stop_the_runs_of_another_launch():
    queue = Queue()
    queue.add("1", items("abc"), max_device_hours=1)
    queue.add("2", items("ac"))
    queue.admit(FreeDevices(2), 0)
    assert queue.over_budget(HOUR) == ["b"]
    queue.ended("b", "over-budget", HOUR)
    assert names(queue.admit(FreeDevices(1), HOUR)) == "c"
    assert queue.over_budget(2 * HOUR) == []
    assert queue.spent("1", 2 * HOUR) == pytest.approx(2)  # of a and b, until its budget was used up
    assert queue.spent("2", 2 * HOUR) == pytest.approx(2)  # of a and c, since then


def test_a_run_stopped_for_a_budget_continues_for_a_later_launch():
    queue = queue_of(items("a"), max_device_hours=1)
    queue.admit(FreeDevices(1), 0)
    assert queue.over_budget(HOUR) == ["a"]
    queue.add("2", items("a"))
    queue.ended("a", "over-budget", 1.1 * HOUR)
    assert queue.is_over("1")
    assert names(queue.admit(FreeDevices(1), 1.1 * HOUR)) == "a"
    assert queue.spent("2", 2.1 * HOUR) == pytest.approx(1)


def test_a_run_that_goes_on_for_a_later_launch_is_charged_to_it():
    """Cancelled, and launched again before it stopped: the first launch does not pay for it for good."""
    queue = queue_of(items("a"))
    queue.admit(FreeDevices(1), 0)
    queue.cancel("a")
    queue.add("2", items("a"), max_device_hours=1)
    assert queue.over_budget(HOUR) == []
    assert (queue.spent("1", 2 * HOUR), queue.spent("2", 1.5 * HOUR)) == (1.0, 0.5)
    assert queue.over_budget(2.1 * HOUR) == ["a"]
    assert queue.must_stop_for_budget("a")


def test_a_stopping_run_is_stopped_again_for_a_later_launch_over_budget():
    queue = queue_of(items("a"), max_device_hours=1)
    queue.admit(FreeDevices(1), 0)
    assert queue.over_budget(HOUR) == ["a"]
    queue.add("2", items("a"), max_device_hours=1, spent=1)
    assert queue.over_budget(1.1 * HOUR) == ["a"]  # adding a launch removes the earlier request
    assert queue.over_budget(1.1 * HOUR) == []
    queue.ended("a", "over-budget", 1.2 * HOUR)
    assert queue.state("a") == "over-budget"
    assert queue.is_over("1")
    assert queue.is_over("2")


# --- cancelling --------------------------------------------------------------------------------------------


def test_a_waiting_run_is_cancelled_at_once_and_a_running_one_when_it_ends():
    queue = queue_of([*items("ab"), item("s", 0, "b")])
    queue.admit(FreeDevices(1), 0)
    assert [queue.cancel("a"), queue.cancel("b"), queue.cancel("b")] == ["running", "waiting", "cancelled"]
    assert queue.news() == [("b", "cancelled", ""), ("s", "failed", "needs net-b seed 0, which was cancelled")]
    assert queue.state("a") == "running"
    assert queue.ended("a", "cancelled", 1) == []
    assert queue.is_over("1")


def test_a_cancelled_run_whose_worker_dies_is_not_retried():
    queue = queue_of(items("a"))
    queue.admit(FreeDevices(1), 0)
    queue.cancel("a")
    queue.ended("a", "again", 1, "its worker died")
    assert queue.state("a") == "cancelled"
    assert names(queue.admit(FreeDevices(1), 1)) == ""


def test_a_launch_after_a_cancellation_gets_the_run():
    queue = queue_of(items("a"))
    queue.admit(FreeDevices(1), 0)
    queue.cancel("a")
    queue.add("2", items("a"))
    queue.ended("a", "cancelled", 1)
    assert queue.is_over("1")
    assert not queue.is_over("2")
    assert names(queue.admit(FreeDevices(1), 1)) == "a"


def test_a_run_cancelled_in_its_first_launch_belongs_to_the_later_one_only():
    queue = Queue()
    queue.add("1", items("xa"), max_concurrent=1)
    queue.add("2", items("a"))
    assert names(queue.admit(FreeDevices(9), 0)) == "xa"
    queue.cancel("a")
    queue.add("3", items("a"), max_device_hours=1, spent=1)
    queue.ended("a", "cancelled", 1)
    queue.ended("x", "finished", 1)
    assert queue.state("a") == "waiting"
    assert names(queue.admit(FreeDevices(9), 1)) == ""
    queue.over_budget(1)
    assert queue.news() == [("a", "over-budget", "1 device hour used")]


def test_an_item_whose_needs_have_finished_starts_before_later_items():
    queue = queue_of([item("s", 1, "z"), *items("acz")])
    assert names(queue.admit(FreeDevices(1), 0)) == "a"
    queue.cancel("a")
    queue.add("2", items("a"))
    queue.ended("a", "cancelled", 1)  # belongs to the later launch now, in its old position between s and c
    assert names(queue.admit(FreeDevices(0), 1)) == ""
    queue.ended("z", "finished", 1)
    assert names(queue.admit(FreeDevices(3), 1)) == "sac"


def test_an_ended_item_does_not_change():
    queue = queue_of(items("a"))
    queue.ended("a", "finished", 0)
    assert queue.ended("a", "failed", 1, "boom") == []
    assert queue.cancel("a") == "finished"
    assert queue.states() == {"a": ("finished", "")}


# --- reasons to wait ------------------------------------------------------------------------------------------


def test_every_waiting_item_has_a_reason():
    queue = Queue()
    queue.add("1", items("ab"), max_concurrent=1)
    queue.add("2", [item("c", 8), item("d", 1), item("e", 1), item("s", 0, "cde"), item("t", 0, "a")])
    assert names(queue.admit(FreeDevices(5), 0)) == "a"
    assert queue.waiting(FreeDevices(4)) == {
        "b": "limited to 1 run at a time",
        "c": "needs 8 devices, 4 free",
        "d": "behind 1 other run",
        "e": "behind 2 other runs",
        "s": "needs net-c seed 0 and 2 others",
        "t": "needs net-a seed 0",
    }
    assert queue.waiting(FreeDevices(4))["d"] == "behind 1 other run"
    assert queue.waiting(FreeDevices(9))["d"] == "starts next"
    assert "a" not in queue.waiting(FreeDevices(4))


# --- against a simple model --------------------------------------------------------------------


class ModelQueue:
    """The rules of the queue without heaps and counters: each method scans lists."""

    def __init__(self):
        self.order = []  # identities in queue order
        self.items, self.state, self.usable, self.wanted_by, self.payer, self.stops = {}, {}, {}, {}, {}, {}
        self.terms, self.exhausted, self.hours, self.devices = {}, set(), {}, {}
        self.now = 0.0

    def advance(self, now):
        for identity, launch in self.payer.items():
            self.hours[launch] += self.items[identity].devices * (now - self.now) / 3600
        self.now = now

    def add(self, launch, launched, max_concurrent, max_device_hours, spent):
        self.terms[launch], self.hours[launch] = (max_concurrent, max_device_hours), spent
        for one in launched:
            name = one.identity
            if self.state.get(name) not in ("waiting", "running", "finished"):
                self.order = [other for other in self.order if other != name] + [name]
                self.items[name], self.state[name], self.wanted_by[name] = one, "waiting", []
            if self.state[name] != "finished" and launch not in self.wanted_by[name]:
                self.wanted_by[name].append(launch)
                self.devices[launch, name] = one.devices
        self.fail_dependants()

    def fail_dependants(self):
        lost = ("failed", "cancelled", "over-budget")
        for _ in self.order:  # as often as a failure can propagate
            for name in self.order:
                for need in self.items[name].needs:
                    useless = self.state[need] in lost or (
                        self.state[need] == "finished" and not self.usable[need]
                    )
                    if useless and self.state[name] == "waiting":
                        self.state[name] = "failed"

    def is_over_budget(self, launch):
        most = self.terms[launch][1]
        return most is not None and self.hours[launch] >= most

    def is_full(self, launch):
        most = self.terms[launch][0]
        running = [name for name in self.order if self.state[name] == "running" and launch in self.wanted_by[name]]
        return most is not None and len(running) >= most

    def may_run(self, name):
        return (
            self.state[name] == "waiting"
            and all(self.state[need] == "finished" and self.usable[need] for need in self.items[name].needs)
            and any(not self.is_over_budget(one) and not self.is_full(one) for one in self.wanted_by[name])
        )

    def admit(self, free):
        started = []
        for name in self.order:
            if self.may_run(name):
                if self.items[name].devices > free:
                    break
                free -= self.items[name].devices
                self.state[name] = "running"
                self.payer[name] = next(one for one in self.wanted_by[name] if not self.is_over_budget(one))
                started.append(name)
        return started

    def ended(self, name, state, usable):
        if self.state[name] not in ("waiting", "running"):
            return
        self.payer.pop(name, None)
        becomes, launches = self.stops.pop(name, (None, []))
        if becomes and state == "again":
            state = becomes
        later = [one for one in self.wanted_by[name] if one not in launches]
        if becomes and state in ("cancelled", "over-budget") and later:
            self.wanted_by[name], state = later, "again"
            self.items[name] = replace(self.items[name], devices=self.devices[later[0], name])
        if state == "again":
            state = "over-budget" if self.exhausted.issuperset(self.wanted_by[name]) else "waiting"
        self.state[name], self.usable[name] = state, usable
        self.fail_dependants()

    def postpone(self, name):
        self.payer.pop(name)
        self.state[name] = "waiting"
        self.order = [other for other in self.order if other != name] + [name]

    def over_budget(self):
        new = {launch for launch in self.terms if self.is_over_budget(launch)} - self.exhausted
        self.exhausted |= new
        stopping = []
        for name in self.order:
            if self.state[name] in ("waiting", "running"):
                heirs = [one for one in self.wanted_by[name] if one not in self.stops.get(name, ("", []))[1]]
                payers = [one for one in heirs if one not in self.exhausted]
                if not payers and self.state[name] == "waiting":
                    self.state[name] = "over-budget"
                elif self.state[name] == "running" and not payers and heirs:
                    self.stops[name] = ("over-budget", list(self.wanted_by[name]))
                    stopping.append(name)
                elif payers and self.state[name] == "running" and self.payer[name] not in payers:
                    self.payer[name] = payers[0]
        self.fail_dependants()
        return stopping

    def cancel(self, name):
        was = self.state[name]
        if was == "waiting":
            self.state[name] = "cancelled"
        elif was == "running":
            self.stops[name] = ("cancelled", list(self.wanted_by[name]))
        self.fail_dependants()
        return was


DEVICES = 6
NEEDS = {"s": "ab", "t": "sc", "u": "d"}  # of the items a, b, c, d, e, f, s, t, u
QUARTERS = st.integers(0, 8).map(lambda number: number / 4)  # exact in binary, as are all hours below


class QueueAgainstModel(RuleBasedStateMachine):
    """Any sequence of events has the same effect on the queue and the model."""

    def __init__(self):
        super().__init__()
        self.queue, self.model, self.launches = Queue(), ModelQueue(), 0

    def running(self):
        return [name for name in self.model.order if self.model.state[name] == "running"]

    def free(self):
        return DEVICES - sum(self.model.items[name].devices for name in self.running())

    def assert_news(self, before, known=()):
        """Assert that the news are the items that ended since `before`, except `known` ones, each once."""
        ended = {(name, state) for name, state in self.model.state.items() if state not in ("waiting", "running")}
        news = [(name, state) for name, state, _ in self.queue.news()]
        assert len(news) == len(set(news))
        assert set(news) == ended - set(before.items()) - set(known)

    @rule(
        wanted=st.lists(st.sampled_from("abcdefstu"), min_size=1, unique=True),
        devices=st.integers(0, 4),
        max_concurrent=st.none() | st.integers(1, 3),
        max_device_hours=st.none() | QUARTERS,
        spent=QUARTERS,
    )
    def launch(self, wanted, devices, max_concurrent, max_device_hours, spent):
        known = self.model.state.keys()
        for name in "tsu":  # add the needs that are in no launch yet
            if name in wanted:
                wanted += [need for need in NEEDS[name] if need not in known and need not in wanted]
        if "s" in wanted:
            wanted += [need for need in NEEDS["s"] if need not in known and need not in wanted]
        launched = [item(name, devices, NEEDS.get(name, "")) for name in wanted]
        before = {
            name: state for name, state in self.model.state.items() if state == "finished" or name not in wanted
        }
        self.launches += 1
        terms = {"max_concurrent": max_concurrent, "max_device_hours": max_device_hours, "spent": spent}
        self.queue.add(str(self.launches), launched, **terms)
        self.model.add(str(self.launches), launched, **terms)
        self.assert_news(before)

    @rule(quarters=st.integers(1, 4))
    def wait(self, quarters):
        self.model.advance(self.model.now + quarters * HOUR / 4)

    @rule(kept=st.integers(0, 1))
    def admit(self, kept):
        free = max(0, self.free() - kept)
        started = self.queue.admit(FreeDevices(free), self.model.now)
        assert [one.identity for one in started] == self.model.admit(free)
        assert sum(one.devices for one in started) <= free
        for one in started:
            assert all(self.model.state[need] == "finished" and self.model.usable[need] for need in one.needs)

    @rule(data=st.data())
    def admit_and_postpone(self, data):
        """Postpone some of the items that have just been admitted, as the supervisor does."""
        free = max(0, self.free())
        started = names(self.queue.admit(FreeDevices(free), self.model.now))
        assert started == "".join(self.model.admit(free))
        for name in started:
            if data.draw(st.booleans()):
                self.queue.postpone(name, self.model.now)
                self.model.postpone(name)

    @rule()
    def check_budgets(self):
        before = dict(self.model.state)
        assert self.queue.over_budget(self.model.now) == self.model.over_budget()
        self.assert_news(before)
        self.admit(0)
        assert "starts next" not in self.queue.waiting(FreeDevices(self.free())).values()

    @rule(
        data=st.data(),
        state=st.sampled_from(["finished", "finished", "failed", "cancelled", "over-budget", "again", "again"]),
        usable=st.booleans(),
    )
    def end(self, data, state, usable):
        if not self.model.order:
            return
        name = data.draw(st.sampled_from(self.running() or self.model.order))
        before = dict(self.model.state)
        failed = self.queue.ended(name, state, self.model.now, "why", usable=usable)
        self.model.ended(name, state, usable)
        changed = {other for other in before if before[other] != self.model.state[other]} - {name}
        assert {other for other, _ in failed} == changed
        self.assert_news(before, known=[(name, state)])

    @rule(data=st.data())
    def cancel(self, data):
        if self.model.order:
            name = data.draw(st.sampled_from(self.model.order))
            before = dict(self.model.state)
            assert self.queue.cancel(name) == self.model.cancel(name)
            self.assert_news(before)

    @invariant()
    def queue_equals_model(self):
        model, states = self.model, self.queue.states()
        assert {name: state for name, (state, _) in states.items()} == model.state
        assert list(states) == model.order
        assert list(self.queue.waiting(FreeDevices(0))) == [
            name for name in model.order if model.state[name] == "waiting"
        ]
        assert self.free() >= 0
        for launch in model.terms:
            assert self.queue.spent(launch, model.now) == model.hours[launch]
            left = [
                n
                for n, wants in model.wanted_by.items()
                if launch in wants and model.state[n] in ("waiting", "running")
            ]
            assert self.queue.is_over(launch) == (not left)


TestQueueAgainstModel = QueueAgainstModel.TestCase
TestQueueAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# --- whole schedules ---------------------------------------------------------------------------------------


def simulate(queue, lengths, devices, every=None):
    """Run a queue to its end on a simulated clock; return the last start time of each item.

    `lengths`: seconds of each run. Budgets are checked at each event and every `every` seconds; runs stop at once.
    """
    now, free, ending, starts = 0.0, devices, [], {}
    while True:
        for name in queue.over_budget(now):
            ending = [(end, other, width) for end, other, width in ending if other != name]
            free += next(width for _, other, width in starts.values() if other == name)
            queue.ended(name, "over-budget", now)
        heapq.heapify(ending)
        for one in queue.admit(FreeDevices(free), now):
            free -= one.devices
            assert free >= 0
            starts[one.identity] = (now, one.identity, one.devices)
            heapq.heappush(ending, (now + lengths[one.identity], one.identity, one.devices))
        if not ending:
            return {name: start for name, (start, _, _) in starts.items()}
        now = min(ending[0][0], now + (every or float("inf")))
        while ending and ending[0][0] <= now:
            _, name, width = heapq.heappop(ending)
            free += width
            queue.ended(name, "finished", now)


def list_schedule(runs, devices):
    """Return the start times of runs (length, width) where none may start before the one before it."""
    starts, busy, now, free = [], [], 0.0, devices
    for length, width in runs:
        while width > free:
            now, back = heapq.heappop(busy)
            free += back
        starts.append(now)
        heapq.heappush(busy, (now + length, width))
        free -= width
    return starts


RUNS = st.lists(st.tuples(st.integers(1, 9).map(float), st.integers(0, 4)), min_size=1, max_size=40)


@settings(deadline=None)
@given(runs=RUNS, devices=st.integers(4, 9))
def test_start_times_equal_a_list_schedule(runs, devices):
    queue = queue_of([item(str(number), width) for number, (_, width) in enumerate(runs)])
    starts = simulate(queue, {str(number): length for number, (length, _) in enumerate(runs)}, devices)
    assert [starts[str(number)] for number in range(len(runs))] == list_schedule(runs, devices)
    assert queue.is_over("1")


@settings(deadline=None)
@given(runs=RUNS, devices=st.integers(4, 9), budget=st.integers(0, 60), quarters=st.integers(1, 20))
def test_a_budget_is_exceeded_by_at_most_the_time_between_two_checks(runs, devices, budget, quarters):
    queue, every = Queue(), quarters / 4
    launched = [item(str(number), width) for number, (_, width) in enumerate(runs)]
    queue.add("1", launched, max_device_hours=budget / HOUR)
    simulate(queue, {str(number): length for number, (length, _) in enumerate(runs)}, devices, every)
    assert queue.is_over("1")
    spent = queue.spent("1", 1e9)
    assert spent <= (budget + devices * every) / HOUR + 1e-9
    states = [state for state, _ in queue.states().values()]
    if spent < budget / HOUR:
        assert states == ["finished"] * len(runs)
        assert spent == pytest.approx(sum(length * width for length, width in runs) / HOUR)
    assert set(states) <= {"finished", "over-budget"}


# --- cost -----------------------------------------------------------------------------------------


def queue_of_shape(shape, runs):
    """Return a queue of `runs` runs in one of the shapes that could make it slow."""
    queue = Queue()
    each = [item(str(number)) for number in range(runs)]
    if shape == "one launch":
        queue.add("1", each)
    elif shape == "one at a time beside one that is not":
        queue.add("1", each[: runs // 2], max_concurrent=1)
        queue.add("2", each[runs // 2 :])
    elif shape == "twenty launches of the same runs":
        for number in range(20):
            queue.add(str(number), each[: runs // 8])
    elif shape == "a launch for each run":
        for one in each:
            queue.add(one.identity, [one], max_concurrent=1, max_device_hours=1e9)
    elif shape == "derived runs of five runs each":
        derived = [item(f"s{at}", 0, [str(at + k) for k in range(5)]) for at in range(0, runs - 5, 6)]
        queue.add("1", [*derived, *each])
    return queue


def simulate_shape(shape, runs):
    """Run a queue of that shape to its end on 100 devices."""
    lengths = {str(number): 1.0 + number % 7 for number in range(runs)} | {f"s{n}": 0.5 for n in range(runs)}
    simulate(queue_of_shape(shape, runs), lengths, 100)


SHAPES = [
    "one launch",
    "one at a time beside one that is not",
    "twenty launches of the same runs",
    "a launch for each run",
    "derived runs of five runs each",
]


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_times_the_runs_take_about_eight_times_the_calls(shape):
    ratio = count_calls(simulate_shape, shape, 4000) / count_calls(simulate_shape, shape, 500)
    assert ratio < 12  # n log n: 8 x 12/9 or less; n squared: 64


def test_a_queue_that_scans_all_items_is_detected(monkeypatch):
    first = Queue.first

    def scan_first(self, now):
        assert all(entry.item.identity.isdecimal() for entry in self.items.values())
        return first(self, now)

    monkeypatch.setattr(Queue, "first", scan_first)
    calls = [count_calls(simulate_shape, "one launch", runs) for runs in (125, 1000)]
    assert calls[1] / calls[0] > 24
