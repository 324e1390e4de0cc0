"""Queue of runs: first come, first served, within budgets. Pure: no clock, no files, no processes.

Each launch has a heap of its ready items, ordered by position in the queue; another heap holds the first ready
item of each launch. An event costs O(log n) for each launch that contains the item, regardless of how many items
wait.
"""

import graphlib
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from heapq import heappop, heappush, heapreplace
from typing import Literal

from pipeline.cluster.sharing import Devices, FreeDevices, devices_text
from pipeline.common.words import plural

ItemStatus = Literal["waiting", "running", "finished", "failed", "cancelled", "over-budget"]

ItemEnding = Literal["finished", "failed", "cancelled", "over-budget", "again"]

ACTIVE: tuple[ItemStatus, ...] = ("waiting", "running")

ENDING_WORDS = {  # the end of an item, in the message of an item that needs it
    "finished": "cannot be used",
    "failed": "failed",
    "cancelled": "was cancelled",
    "over-budget": "is over budget",
}


@dataclass(frozen=True)
class QueueItem:
    """A run or derived run to execute."""

    identity: str
    title: str
    devices: Devices  # used at the same time; 0 for an item that needs none, 1/N where N items share a device
    needs: tuple[str, ...] = ()  # identities of the items that must finish first


@dataclass(eq=False)
class LaunchState:
    """A launch and its use of devices."""

    launch: str
    number: int  # in order of arrival
    max_concurrent: int | None
    max_device_hours: float | None
    hours: float  # device hours used up to `since`
    since: float = 0.0  # seconds
    charged_devices: Devices = 0  # devices charged to this launch since `since`
    running: int = 0  # running items of this launch
    active: int = 0  # waiting and running items of this launch
    budget_exhausted: bool = False  # set by `Queue.over_budget`, never reset
    identities: list[str] = field(default_factory=list)  # of the items that were active when it was added
    ready: list[tuple[int, str]] = field(default_factory=list)  # heap; items that no longer wait are popped lazily
    head_position: int | None = None  # position of its item in the queue's `heads`

    def spent(self, now: float) -> float:
        """Return the device hours used up to `now`."""
        return self.hours + self.charged_devices * (now - self.since) / 3600

    def change_devices(self, devices: Devices, now: float) -> None:
        """Charge `devices` more devices (fewer if negative) from `now` on."""
        self.hours, self.since = self.spent(now), now
        self.charged_devices += devices

    def is_over_budget(self, now: float) -> bool:
        """Return whether the device hours are used up, so that none of its items may start."""
        return self.budget_exhausted or (
            self.max_device_hours is not None and self.spent(now) >= self.max_device_hours
        )

    def is_full(self) -> bool:
        """Return whether `max_concurrent` of its items run."""
        return self.max_concurrent is not None and self.running >= self.max_concurrent

    def has_room(self, more: int, now: float) -> bool:
        """Return whether another item may start, after `more` that do not run yet."""
        limit = self.max_concurrent
        return not self.is_over_budget(now) and (limit is None or self.running + more < limit)


@dataclass(frozen=True)
class StopRequest:
    """A request to stop a running item."""

    becomes: Literal["cancelled", "over-budget"]
    launches: int  # number of launches that contained the item at the time; later ones still want it


@dataclass(eq=False)
class ItemState:
    """An item and its status."""

    item: QueueItem
    position: int  # in the queue
    launches: dict[str, LaunchState] = field(default_factory=dict)  # that contain it, in order of arrival
    devices: dict[str, Devices] = field(default_factory=dict)  # by launch; `item` has those of the first launch
    missing: set[str] = field(default_factory=set)  # needs that have not finished
    state: ItemStatus = "waiting"
    why: str = ""
    is_usable: bool = True  # the result is usable by items that need it
    charged_to: LaunchState | None = None  # the launch that pays for the devices of a running item
    stop: StopRequest | None = None

    def wanted_by(self) -> list[LaunchState]:
        """Return the launches that want the item: with a stop request, those that were added after it."""
        return list(self.launches.values())[self.stop.launches if self.stop else 0 :]

    def has_result(self) -> bool:
        """Return whether items that need this one can start."""
        return self.state == "finished" and self.is_usable


class Queue:
    """The items of all launches and their status. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.launches: dict[str, LaunchState] = {}
        self.items: dict[str, ItemState] = {}  # in queue order
        self.dependants: dict[str, list[str]] = {}  # active item -> the items that need it
        self.heads: list[tuple[int, int, str]] = []  # heap: position of a launch's first ready item, number, id
        self.unchecked: dict[str, LaunchState] = {}  # launches to check in the next `over_budget`
        self.inherited: list[str] = []  # running items with a stop request that a later launch wants
        self.next_position = 0
        self.unreported: list[tuple[str, ItemStatus, str]] = []

    # --- adding launches ---

    def add(
        self,
        launch: str,
        items: Sequence[QueueItem],
        *,
        max_concurrent: int | None = None,
        max_device_hours: float | None = None,
        spent: float = 0.0,
    ) -> None:
        """Append a launch's items to the queue, in their order.

        An item that already waits or runs belongs to both launches from then on, with the devices of the earlier
        one. Its device hours are charged to the earlier launch while that is within its budget. A finished item is
        not repeated; one that failed, was cancelled or ran over budget is queued again, at the end. A launch that
        was added before has no effect. ValueError, before any change, for a need that is neither in the queue nor
        in the launch, for circular needs, and for invalid numbers.
        """
        if launch in self.launches:
            return
        check_items(launch, items, max_concurrent, self.items.keys())
        added = self.launches[launch] = LaunchState(
            launch, len(self.launches), max_concurrent, max_device_hours, spent
        )
        fresh = []
        for item in items:
            entry = self.items.get(item.identity)
            if entry is None or entry.state not in (*ACTIVE, "finished"):
                self.items.pop(item.identity, None)  # it moves to the end of the queue
                entry = self.items[item.identity] = ItemState(item, self.next_position)
                self.next_position += 1
                fresh.append(entry)
            if entry.state in ACTIVE and launch not in entry.launches:
                entry.launches[launch], entry.devices[launch] = added, item.devices
                added.identities.append(item.identity)
                added.active += 1
                added.running += entry.state == "running"
                if entry.stop:
                    self.inherited.append(item.identity)
        self.unchecked[launch] = added
        for entry in fresh:  # a second loop: an item may need one that comes after it
            entry.missing = {need for need in entry.item.needs if not self.items[need].has_result()}
            for need in entry.missing:
                self.dependants.setdefault(need, []).append(entry.item.identity)
        for need in [need for entry in fresh for need in entry.item.needs if need in entry.missing]:
            if self.items[need].state not in ACTIVE:
                self.unreported += self.fail_dependants(need)
        for identity in added.identities:
            self.make_ready(self.items[identity])

    # --- starting items ---

    def admit(self, free: FreeDevices, now: float) -> list[QueueItem]:
        """Return the items that start now on `free` devices, and mark them as running.

        Strictly in order: the first ready item that does not fit blocks the items behind it, so that large runs
        are not starved. An item that waits for its needs blocks nothing, nor does one whose launches are all over
        budget or at their limit of concurrent runs.
        """
        started = []
        while (entry := self.first(now)) and (left := free.after_start(entry.item.devices)):
            self.start(entry, now)
            free = left
            started.append(entry.item)
        return started

    def first(self, now: float) -> ItemState | None:
        """Return the first item that may run now."""
        while self.heads:
            position, number, name = self.heads[0]
            launch, entry = self.launches[name], self.first_ready(name)
            if launch.head_position != position:  # superseded by an earlier item of the launch
                heappop(self.heads)
            elif entry is None or launch.is_full() or launch.is_over_budget(now):
                heappop(self.heads)
                launch.head_position = None
            elif entry.position != position:
                heapreplace(self.heads, (entry.position, number, name))
                launch.head_position = entry.position
            else:
                return entry
        return None

    def first_ready(self, launch: str) -> ItemState | None:
        """Return the first waiting item of a launch whose needs have all finished."""
        ready = self.launches[launch].ready
        while ready:
            entry = self.items[ready[0][1]]
            if entry.state == "waiting" and entry.position == ready[0][0] and launch in entry.launches:
                return entry
            heappop(ready)
        return None

    def make_ready(self, entry: ItemState) -> None:
        """Add an item that waits for no other to the heaps of its launches."""
        if entry.state == "waiting" and not entry.missing:
            for name, launch in entry.launches.items():
                heappush(launch.ready, (entry.position, entry.item.identity))
                self.push_head(name)

    def push_head(self, name: str) -> None:
        """Add a launch's first ready item to `heads`, unless it is there."""
        launch, entry = self.launches[name], self.first_ready(name)
        if entry and (launch.head_position is None or entry.position < launch.head_position):
            launch.head_position = entry.position
            heappush(self.heads, (entry.position, launch.number, name))

    def start(self, entry: ItemState, now: float) -> None:
        """Mark an item as running, charged to its first launch within budget."""
        entry.state, entry.why = "running", ""
        payer = next(launch for launch in entry.launches.values() if not launch.is_over_budget(now))
        self.charge(payer, entry, now)
        for launch in entry.launches.values():
            launch.running += 1

    def charge(self, launch: LaunchState, entry: ItemState, now: float) -> None:
        """Charge an item's devices to a launch from `now` on."""
        launch.change_devices(entry.item.devices, now)
        entry.charged_to = launch
        self.unchecked[launch.launch] = launch

    def postpone(self, identity: str, now: float) -> None:
        """Move a running item, which has not begun, behind all others."""
        entry = self.items[identity] = self.items.pop(identity)  # the last of the queue
        entry.position, self.next_position = self.next_position, self.next_position + 1
        self.release(entry, now)
        self.make_ready(entry)

    # --- ending items ---

    def ended(
        self, identity: str, state: ItemEnding, now: float, why: str = "", *, usable: bool = True
    ) -> list[tuple[str, str]]:
        """Record the end of an item; return (identity, why) of the items that fail because they need it.

        `usable`: False for a result that other items cannot use (it did not converge). "again" (a worker died, a
        node was preempted) puts the item back to its position, unless a stop was requested. An item that stopped
        on request keeps waiting for the launches added after the request. Ignored for an item that had ended
        before.
        """
        entry = self.items[identity]
        if entry.state not in ACTIVE:
            return []
        stop, entry.stop = entry.stop, None
        if entry.state == "running":
            self.release(entry, now)
        given = state
        if stop and state == "again":
            state = stop.becomes
        if stop and state in ("cancelled", "over-budget") and stop.launches < len(entry.launches):
            self.drop_launches(entry, stop.launches)
            state = "again"
        if state == "again" and all(launch.budget_exhausted for launch in entry.launches.values()):
            state = "over-budget"
        if state == "again":
            entry.state, entry.why = "waiting", why
            self.make_ready(entry)
            return []
        if state != given:
            self.unreported.append((identity, state, why))
        self.end(entry, state, why, usable=usable)
        failed = self.update_dependants(entry)
        self.unreported += failed
        return [(identity, why) for identity, _, why in failed]

    def over_budget(self, now: float) -> list[str]:
        """Return the running items to stop because all launches that want them are over budget; each once.

        Waiting items of such launches end as "over-budget". An item that continues although the launches before
        gave it up is charged to those that want it.
        """
        checked = list(self.unchecked.values())
        stopping: list[ItemState] = []
        ending: list[ItemState] = []
        exhausted = [launch for launch in checked if launch.is_over_budget(now)]
        for launch in exhausted:
            launch.budget_exhausted = True
        self.unchecked = {
            launch.launch: launch for launch in checked if launch.charged_devices and not launch.budget_exhausted
        }
        inherited, self.inherited = self.inherited, []
        for entry in [self.items[identity] for identity in inherited if identity in self.items]:
            payer = next((other for other in entry.wanted_by() if not other.budget_exhausted), None)
            if entry.charged_to and payer and entry.charged_to not in entry.wanted_by():
                entry.charged_to.change_devices(-entry.item.devices, now)
                self.charge(payer, entry, now)
        for launch in exhausted:
            for entry in [self.items[identity] for identity in launch.identities]:
                heirs = entry.wanted_by()
                payer = next((other for other in heirs if not other.budget_exhausted), None)
                if entry.state == "waiting" and not payer:
                    self.end(entry, "over-budget", f"{plural(launch.max_device_hours or 0, 'device hour')} used")
                    ending.append(entry)
                elif entry.state == "running" and not payer and heirs:
                    entry.stop = StopRequest("over-budget", len(entry.launches))
                    stopping.append(entry)
                elif entry.state == "running" and payer and entry.charged_to is launch:
                    launch.change_devices(-entry.item.devices, now)
                    self.charge(payer, entry, now)
        for entry in ending:  # after all have ended, so that dependants are over budget too instead of failed
            self.unreported += [(entry.item.identity, entry.state, entry.why), *self.update_dependants(entry)]
        return [entry.item.identity for entry in sorted(stopping, key=lambda entry: entry.position)]

    def cancel(self, identity: str) -> ItemStatus:
        """Cancel a waiting item, or request that a running one stops; return its state before.

        The caller stops a running entry and then calls `ended`.
        """
        entry = self.items[identity]
        before = entry.state
        if before == "waiting":
            self.end(entry, "cancelled", "")
            self.unreported += [(identity, "cancelled", ""), *self.update_dependants(entry)]
        elif before == "running":
            entry.stop = StopRequest("cancelled", len(entry.launches))
        return before

    def release(self, entry: ItemState, now: float) -> None:
        """Return the devices of an item that no longer runs."""
        if entry.charged_to:
            entry.charged_to.change_devices(-entry.item.devices, now)
        entry.charged_to, entry.state = None, "waiting"
        for name, launch in entry.launches.items():
            launch.running -= 1
            self.push_head(name)  # the launch may have been full

    def drop_launches(self, entry: ItemState, count: int) -> None:
        """Remove an item from the first `count` of its launches, which are not all.

        Its devices are those of the first launch that remains.
        """
        for name in list(entry.launches)[:count]:
            entry.launches.pop(name).active -= 1
        entry.item = replace(entry.item, devices=entry.devices[next(iter(entry.launches))])

    def end(self, entry: ItemState, state: ItemStatus, why: str, *, usable: bool = True) -> None:
        """Set the final state of an item."""
        entry.state, entry.why, entry.is_usable = state, why, usable
        for launch in entry.launches.values():
            launch.active -= 1

    def update_dependants(self, entry: ItemState) -> list[tuple[str, ItemStatus, str]]:
        """Make the items that need an ended item ready, or fail them if it has no result; return the failed."""
        identity = entry.item.identity
        if not entry.has_result():
            return self.fail_dependants(identity)
        for name in self.dependants.pop(identity, ()):
            dependant = self.items[name]
            dependant.missing.discard(identity)
            self.make_ready(dependant)
        return []

    def fail_dependants(self, identity: str) -> list[tuple[str, ItemStatus, str]]:
        """Fail the items that need this one, directly or indirectly; return them with the reason."""
        first = self.items[identity]
        why = f"needs {first.item.title}, which {ENDING_WORDS[first.state]}" + (
            f": {first.why}" if first.why else ""
        )
        failed: list[tuple[str, ItemStatus, str]] = []
        lost = [identity]
        while lost:
            need = lost.pop()
            for name in self.dependants.pop(need, ()):
                entry = self.items[name]
                if entry.state == "waiting" and need in entry.missing:
                    self.end(entry, "failed", why)
                    failed.append((name, "failed", why))
                    lost.append(name)
        return failed

    # --- status ---

    def news(self) -> list[tuple[str, ItemStatus, str]]:
        """Return (identity, state, why) of items that ended since the last call in a state not given to `ended`.

        These are waiting items that were cancelled or ran over budget, dependants that failed, and items that
        would wait again but for a stop request or an exhausted budget.
        """
        news, self.unreported = self.unreported, []
        return news

    def wanted_devices(self, now: float, rooms: tuple[Fraction, ...] = ()) -> int:
        """Return the devices of the running items, and of all waiting ones that may start if there were enough.

        `rooms`: the free part of each device that running items share; waiting ones fill these first.
        """
        left = unlimited = FreeDevices(sys.maxsize, rooms)
        running = len(rooms)
        started: Counter[str] = Counter()  # of the waiting items, by launch
        for entry in self.items.values():
            devices = entry.item.devices
            if entry.state == "running":
                running += devices if isinstance(devices, int) else 0
            elif entry.state == "waiting" and not entry.missing:
                launches = entry.launches.values()
                if any(launch.has_room(started[launch.launch], now) for launch in launches):
                    fits = left.after_start(devices)
                    assert fits  # into unlimited devices
                    left = fits
                    started.update(launch.launch for launch in launches)
        return running + unlimited.whole - left.whole

    def spent(self, launch: str, now: float) -> float:
        """Return the device hours of a launch, including those it was added with."""
        return self.launches[launch].spent(now)

    def is_over(self, launch: str) -> bool:
        """Return whether no item of a launch waits or runs."""
        return not self.launches[launch].active

    def state(self, identity: str) -> ItemStatus:
        """Return the status of an item."""
        return self.items[identity].state

    def states(self) -> dict[str, tuple[ItemStatus, str]]:
        """Return (status, why) of all items by identity, in queue order."""
        return {identity: (entry.state, entry.why) for identity, entry in self.items.items()}

    def launches_of(self, identity: str) -> list[str]:
        """Return the launches that contain an item, in order of arrival."""
        return list(self.items[identity].launches)

    def must_stop_for_budget(self, identity: str) -> bool:
        """Return whether `over_budget` requested a stop of the item and no launch was added for it since."""
        entry = self.items[identity]
        stop = entry.stop
        return bool(stop and stop.becomes == "over-budget" and stop.launches == len(entry.launches))

    def waiting(self, free: FreeDevices) -> dict[str, str]:
        """Return why each waiting item waits while `free` devices are free, by identity and in queue order."""
        reasons, ahead = {}, 0
        for identity, entry in self.items.items():
            if entry.state != "waiting":
                continue
            devices = entry.item.devices
            if entry.missing:
                reasons[identity] = f"needs {self.missing_titles(entry)}"
            elif all(launch.budget_exhausted or launch.is_full() for launch in entry.launches.values()):
                limit = max(
                    launch.max_concurrent or 0 for launch in entry.launches.values() if not launch.budget_exhausted
                )
                reasons[identity] = f"limited to {plural(limit, 'run')} at a time"
            elif ahead:
                reasons[identity] = f"behind {plural(ahead, 'other run')}"
                ahead += 1
            elif left := free.after_start(devices):
                reasons[identity] = "starts next"
                free = left
            else:
                reasons[identity] = f"needs {devices_text(devices)}, {free.text(devices)}"
                ahead += 1
        return reasons

    def missing_titles(self, entry: ItemState) -> str:
        """'resnet-56 seed 1 and 3 others': the missing needs of an item."""
        first, *others = (need for need in entry.item.needs if need in entry.missing)
        return self.items[first].item.title + (f" and {plural(len(others), 'other')}" if others else "")


def check_items(
    launch: str, items: Sequence[QueueItem], max_concurrent: int | None, known: Collection[str]
) -> None:
    """Raise ValueError for items that could never run."""
    if max_concurrent is not None and max_concurrent < 1:
        raise ValueError(f"{launch}: max_concurrent is {max_concurrent}; must be >= 1")
    added = {item.identity: item.needs for item in items}
    for item in items:
        if item.devices < 0:
            raise ValueError(f"{launch}: {item.title} has {item.devices} devices; must be >= 0")
        for need in item.needs:
            if need not in added and need not in known:
                raise ValueError(f"{launch}: {item.title} needs {need}, which is in no launch")
    try:
        graphlib.TopologicalSorter(added).prepare()
    except graphlib.CycleError as error:
        raise ValueError(f"{launch}: circular needs: {', '.join(error.args[1])}") from None
