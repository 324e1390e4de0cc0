"""Who is admitted when: first come, first served, within budgets. Pure: no clock, no files, no processes.

Each launch has a heap of its items that may run, by their place in the queue; one more heap holds the first of
each launch. An event costs O(log n) for each launch that wants the item, however many have finished or wait.
"""

import graphlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Literal

from pipeline.common.words import plural

ItemStatus = Literal["waiting", "running", "finished", "failed", "cancelled", "over-budget"]

ItemEnding = Literal["finished", "failed", "cancelled", "over-budget", "again"]

ACTIVE: tuple[ItemStatus, ...] = ("waiting", "running")

ENDING_WORDS = {  # what is said of an item to those that need it
    "finished": "cannot be used",
    "failed": "failed",
    "cancelled": "was cancelled",
    "over-budget": "is over budget",
}


@dataclass(frozen=True)
class QueueItem:
    """A run or a step to be done."""

    identity: str
    title: str
    devices: int  # wanted at the same time; 0 for a step that takes no device of its own
    needs: tuple[str, ...] = ()  # identities that must have finished before


@dataclass(eq=False)
class LaunchState:
    """A launch, as the queue sees it."""

    launch: str
    number: int  # of its coming
    max_concurrent: int | None
    max_device_hours: float | None
    hours: float  # device hours up to `since`
    since: float = 0.0  # seconds
    rate: int = 0  # devices that it pays for at present
    running: int = 0  # items that it wants and that run
    left: int = 0  # items that it wants and that wait or run
    budget_exhausted: bool = False  # found over its budget, for ever
    identities: list[str] = field(default_factory=list)  # of all that it brought
    ready: list[tuple[int, str]] = field(default_factory=list)  # heap; what no longer waits goes when it is met
    listed: int | None = None  # its place in the queue's `heads`

    def spent(self, now: float) -> float:
        """Device hours up to now."""
        return self.hours + self.rate * (now - self.since) / 3600

    def pay(self, devices: int, now: float) -> None:
        """From now on for so many devices more (or fewer)."""
        self.hours, self.since = self.spent(now), now
        self.rate += devices

    def is_over_budget(self, now: float) -> bool:
        """Whether nothing of it may start since its device hours are used up."""
        return self.budget_exhausted or (
            self.max_device_hours is not None and self.spent(now) >= self.max_device_hours
        )

    def is_full(self) -> bool:
        """Whether as many of its items run as may at a time."""
        return self.max_concurrent is not None and self.running >= self.max_concurrent


@dataclass(frozen=True)
class StopRequest:
    """A running item was asked to stop."""

    becomes: Literal["cancelled", "over-budget"]
    wanted: int  # launches that wanted it then; those that came later still do


@dataclass(eq=False)
class ItemState:
    """An item and how far it is."""

    item: QueueItem
    place: int  # in the queue
    wanted: dict[str, LaunchState] = field(default_factory=dict)  # by these launches, first come first
    missing: set[str] = field(default_factory=set)  # needs that have not finished
    state: ItemStatus = "waiting"
    why: str = ""
    is_usable: bool = True  # its result, by those that need it
    payer: LaunchState | None = None  # whose device hours a running one uses
    stop: StopRequest | None = None

    def has_result(self) -> bool:
        """Whether those that need it can start."""
        return self.state == "finished" and self.is_usable


class Queue:
    """The items of all launches and how far they are. Times are seconds of one clock that never goes back."""

    def __init__(self) -> None:
        self.orders: dict[str, LaunchState] = {}
        self.entries: dict[str, ItemState] = {}  # in queue order
        self.dependants: dict[str, list[str]] = {}  # of what has not ended
        self.heads: list[tuple[int, int, str]] = []  # heap: place of a launch's first item, its number, its id
        self.suspects: dict[
            str, LaunchState
        ] = {}  # launches that may have got over their budgets since the last look
        self.places = 0  # given out so far
        self.untold: list[tuple[str, ItemStatus, str]] = []

    # --- what comes in ---

    def add(
        self,
        launch: str,
        items: Sequence[QueueItem],
        *,
        max_concurrent: int | None = None,
        max_device_hours: float | None = None,
        spent: float = 0.0,
    ) -> None:
        """Queue a launch's items, in their order, behind those of earlier launches.

        What waits or runs already, as it was queued first, belongs to both launches then; its device hours go to
        the one that brought it first, while that one is within its budget. What has finished is not repeated; what
        failed, was cancelled or over budget before is queued anew, at the end. The same launch a second time
        changes nothing. ValueError, before anything is changed, for a need that neither the queue nor the launch
        knows, for needs that go in a circle, and for impossible numbers.
        """
        if launch in self.orders:
            return
        check_items(launch, items, max_concurrent, self.entries.keys())
        order = self.orders[launch] = LaunchState(
            launch, len(self.orders), max_concurrent, max_device_hours, spent
        )
        fresh = []
        for item in items:
            entry = self.entries.get(item.identity)
            if entry is None or entry.state not in (*ACTIVE, "finished"):
                self.entries.pop(item.identity, None)  # its new place is the last
                entry = self.entries[item.identity] = ItemState(item, self.places)
                self.places += 1
                fresh.append(entry)
            if entry.state in ACTIVE and launch not in entry.wanted:
                entry.wanted[launch] = order
                order.identities.append(item.identity)
                order.left += 1
                order.running += entry.state == "running"
        self.suspects[launch] = order
        for entry in fresh:  # now that all are known
            entry.missing = {need for need in entry.item.needs if not self.entries[need].has_result()}
            for need in entry.missing:
                self.dependants.setdefault(need, []).append(entry.item.identity)
        for need in [need for entry in fresh for need in entry.item.needs if need in entry.missing]:
            if self.entries[need].state not in ACTIVE:
                self.untold += self.fail_dependants(need)
        for identity in order.identities:
            self.make_ready(self.entries[identity])

    # --- what starts ---

    def admit(self, free: int, now: float) -> list[QueueItem]:
        """The items that start now on `free` devices; from here on they are running.

        Strictly in order: the first that may run but does not fit blocks those behind it, so that large runs are
        not starved. What waits for its needs blocks nothing, nor does an item whose launches all are over their
        budgets or have as many runs as they may at a time.
        """
        started = []
        while (entry := self.first(now)) and entry.item.devices <= free:
            self.start(entry, now)
            free -= entry.item.devices
            started.append(entry.item)
        return started

    def first(self, now: float) -> ItemState | None:
        """The first item that may run now."""
        while self.heads:
            place, number, launch = self.heads[0]
            order, entry = self.orders[launch], self.first_ready(launch)
            if order.listed != place:  # superseded by one before it
                heappop(self.heads)
            elif entry is None or order.is_full() or order.is_over_budget(now):
                heappop(self.heads)
                order.listed = None
            elif entry.place != place:
                heapreplace(self.heads, (entry.place, number, launch))
                order.listed = entry.place
            else:
                return entry
        return None

    def first_ready(self, launch: str) -> ItemState | None:
        """The first of a launch's items that waits and has all that it needs."""
        ready = self.orders[launch].ready
        while ready:
            entry = self.entries[ready[0][1]]
            if entry.state == "waiting" and launch in entry.wanted:
                return entry
            heappop(ready)
        return None

    def make_ready(self, entry: ItemState) -> None:
        """Let it be admitted, if it waits for nothing but its turn."""
        if entry.state == "waiting" and not entry.missing:
            for launch, order in entry.wanted.items():
                heappush(order.ready, (entry.place, entry.item.identity))
                self.enlist(launch)

    def enlist(self, launch: str) -> None:
        """Enter a launch's first item among the heads, unless it is there."""
        order, entry = self.orders[launch], self.first_ready(launch)
        if entry and (order.listed is None or entry.place < order.listed):
            order.listed = entry.place
            heappush(self.heads, (entry.place, order.number, launch))

    def start(self, entry: ItemState, now: float) -> None:
        """It runs from now on, and the first launch within its budget pays."""
        entry.state, entry.why = "running", ""
        self.charge(next(order for order in entry.wanted.values() if not order.is_over_budget(now)), entry, now)
        for order in entry.wanted.values():
            order.running += 1

    def charge(self, order: LaunchState, entry: ItemState, now: float) -> None:
        """From now on this launch pays for it."""
        order.pay(entry.item.devices, now)
        entry.payer = order
        self.suspects[order.launch] = order

    # --- what ends ---

    def ended(
        self, identity: str, state: ItemEnding, now: float, why: str = "", *, usable: bool = True
    ) -> list[tuple[str, str]]:
        """An item no longer runs, or was found ended while it waited; -> [(identity, why)] of those that now fail.

        These are the dependants, at any remove, that can never run. `usable` is False for a result that is of no
        use to them (it did not converge). "again" (a dead worker, a preempted node): back to its old place, unless
        it was asked to stop. What stopped because it was asked to waits on for the launches that came after that.
        What had ended before stays as it was.
        """
        entry = self.entries[identity]
        if entry.state not in ACTIVE:
            return []
        asked, entry.stop = entry.stop, None
        if entry.state == "running":
            self.release(entry, now)
        said = state
        if asked and state == "again":
            state = asked.becomes
        if asked and state in ("cancelled", "over-budget") and asked.wanted < len(entry.wanted):
            self.forget(entry, asked.wanted)
            state = "again"
        if state == "again" and all(order.budget_exhausted for order in entry.wanted.values()):
            state = "over-budget"
        if state == "again":
            entry.state, entry.why = "waiting", why
            self.make_ready(entry)
            return []
        if state != said:
            self.untold.append((identity, state, why))
        self.end(entry, state, why, usable=usable)
        failed = self.follow(entry)
        self.untold += failed
        return [(identity, why) for identity, _, why in failed]

    def over_budget(self, now: float) -> list[str]:
        """Running items to be asked to stop, as every launch that wants them is over its budget; each named once.

        What waits for such launches only becomes "over-budget".
        """
        looked_at, stopping, ending = list(self.suspects.values()), [], []
        broke = [order for order in looked_at if order.is_over_budget(now)]
        for order in broke:
            order.budget_exhausted = True
        self.suspects = {order.launch: order for order in looked_at if order.rate and not order.budget_exhausted}
        for order in broke:
            for entry in [self.entries[identity] for identity in order.identities]:
                heir = next((other for other in entry.wanted.values() if not other.budget_exhausted), None)
                if entry.state == "waiting" and not heir:
                    self.end(entry, "over-budget", f"{plural(order.max_device_hours or 0, 'device hour')} used")
                    ending.append(entry)
                elif entry.state == "running" and not heir and not entry.stop:
                    entry.stop = StopRequest("over-budget", len(entry.wanted))
                    stopping.append(entry)
                elif entry.state == "running" and heir and entry.payer is order:
                    order.pay(-entry.item.devices, now)
                    self.charge(heir, entry, now)
        for entry in ending:  # after all of them, so that a dependant is over budget too rather than failed
            self.untold += [(entry.item.identity, entry.state, entry.why), *self.follow(entry)]
        return [entry.item.identity for entry in sorted(stopping, key=lambda entry: entry.place)]

    def cancel(self, identity: str) -> ItemStatus:
        """-> the state it was in. What waits is cancelled; what runs is stopped by whoever calls `ended` then."""
        entry = self.entries[identity]
        was = entry.state
        if was == "waiting":
            self.end(entry, "cancelled", "")
            self.untold += [(identity, "cancelled", ""), *self.follow(entry)]
        elif was == "running":
            entry.stop = StopRequest("cancelled", len(entry.wanted))
        return was

    def release(self, entry: ItemState, now: float) -> None:
        """It holds no devices any more."""
        if entry.payer:
            entry.payer.pay(-entry.item.devices, now)
        entry.payer, entry.state = None, "waiting"
        for launch, order in entry.wanted.items():
            order.running -= 1
            self.enlist(launch)  # it may have been full

    def forget(self, entry: ItemState, count: int) -> None:
        """Its first `count` launches do not want it any more."""
        for launch in list(entry.wanted)[:count]:
            entry.wanted.pop(launch).left -= 1

    def end(self, entry: ItemState, state: ItemStatus, why: str, *, usable: bool = True) -> None:
        """It has ended, and its launches have one item less to wait for."""
        entry.state, entry.why, entry.is_usable = state, why, usable
        for order in entry.wanted.values():
            order.left -= 1

    def follow(self, entry: ItemState) -> list[tuple[str, ItemStatus, str]]:
        """What needs an ended item is a step nearer to its start; without a result, -> what fails with it."""
        identity = entry.item.identity
        if not entry.has_result():
            return self.fail_dependants(identity)
        for name in self.dependants.pop(identity, ()):
            dependant = self.entries[name]
            dependant.missing.discard(identity)
            self.make_ready(dependant)
        return []

    def fail_dependants(self, identity: str) -> list[tuple[str, ItemStatus, str]]:
        """Those that can never run as this one has no result, at any remove, with the reason."""
        first = self.entries[identity]
        why = f"needs {first.item.title}, which {ENDING_WORDS[first.state]}" + (
            f": {first.why}" if first.why else ""
        )
        failed: list[tuple[str, ItemStatus, str]] = []
        lost = [identity]
        while lost:
            need = lost.pop()
            for name in self.dependants.pop(need, ()):
                entry = self.entries[name]
                if entry.state == "waiting" and need in entry.missing:
                    self.end(entry, "failed", why)
                    failed.append((name, "failed", why))
                    lost.append(name)
        return failed

    # --- what is known ---

    def news(self) -> list[tuple[str, ItemStatus, str]]:
        """(identity, state, why) of what has ended since the last call without an `ended` that said just that.

        Waiting items that were cancelled or got over budget, dependants that failed, and what would have waited
        again but for its launches' budgets.
        """
        told, self.untold = self.untold, []
        return told

    def spent(self, launch: str, now: float) -> float:
        """Device hours of a launch, with those it began with."""
        return self.orders[launch].spent(now)

    def is_over(self, launch: str) -> bool:
        """Whether nothing of it waits or runs."""
        return not self.orders[launch].left

    def state(self, identity: str) -> ItemStatus:
        """How far an item is."""
        return self.entries[identity].state

    def states(self) -> dict[str, tuple[ItemStatus, str]]:
        """identity -> (state, why), in queue order."""
        return {identity: (entry.state, entry.why) for identity, entry in self.entries.items()}

    def waiting(self, free: int) -> dict[str, str]:
        """For a person: identity -> why it waits while so many devices are free; in queue order."""
        found, ahead = {}, 0
        for identity, entry in self.entries.items():
            if entry.state != "waiting":
                continue
            devices = entry.item.devices
            if entry.missing:
                found[identity] = f"needs {self.named(entry)}"
            elif all(order.budget_exhausted or order.is_full() for order in entry.wanted.values()):
                most = max(
                    order.max_concurrent or 0 for order in entry.wanted.values() if not order.budget_exhausted
                )
                found[identity] = f"{plural(most, 'run')} at a time"
            elif ahead:
                found[identity] = f"behind {plural(ahead, 'other')}"
                ahead += 1
            elif devices > free:
                found[identity] = f"wants {plural(devices, 'device')}, {free} free"
                ahead += 1
            else:
                found[identity] = "starts next"
                free -= devices
        return found

    def named(self, entry: ItemState) -> str:
        """'resnet-56 seed 1 and 3 others': what it needs and has not."""
        first, *others = (need for need in entry.item.needs if need in entry.missing)
        return self.entries[first].item.title + (f" and {plural(len(others), 'other')}" if others else "")


def check_items(
    launch: str, items: Sequence[QueueItem], max_concurrent: int | None, known: Collection[str]
) -> None:
    """ValueError for what could never run."""
    if max_concurrent is not None and max_concurrent < 1:
        raise ValueError(f"{launch}: {max_concurrent} runs at a time; at least 1 is needed")
    brought = {item.identity: item.needs for item in items}
    for item in items:
        if item.devices < 0:
            raise ValueError(f"{launch}: {item.title} wants {item.devices} devices")
        for need in item.needs:
            if need not in brought and need not in known:
                raise ValueError(f"{launch}: {item.title} needs {need}, which no launch has brought")
    try:
        graphlib.TopologicalSorter(brought).prepare()
    except graphlib.CycleError as error:
        raise ValueError(f"{launch}: needs that go in a circle: {', '.join(error.args[1])}") from None
