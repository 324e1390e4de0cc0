"""Devices that several runs share, each reserved as a whole by a placement group. Imports Ray.

Ray alone could spread fractions over all devices, so that a run that needs a whole one waits for ever. Here a run
joins the fullest device with room, and a device that no process uses is given back.
"""

import secrets
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import ray

from pipeline.cluster.sharing import Devices

GROUP_PREFIX = "repro-shared-device-"  # of the names of the placement groups


@dataclass(eq=False)
class SharedDevice:
    """A device reserved for runs that share it."""

    gpu: bool
    group: Any  # placement group with one bundle
    used: Devices = 0  # by runs that train
    actors: int = 0  # processes on it, idle ones included

    def strategy(self) -> Any:
        """Return the scheduling strategy of an actor on this device."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=0)


class SharedDevices:
    """The shared devices of a cluster."""

    def __init__(self) -> None:
        self.devices: list[SharedDevice] = []

    def rooms(self, *, gpu: bool) -> tuple[Fraction, ...]:
        """Return the free part of each device that runs share now, a full one's included.

        A device with idle processes only is not one of them: they are killed where a run needs the whole device.
        """
        return tuple(Fraction(1 - device.used) for device in self.devices if device.gpu == gpu and device.used)

    def choose(self, share: Fraction, *, gpu: bool) -> SharedDevice:
        """Return the fullest device with room for `share` of a device; reserve another one if none has room."""
        fitting = [device for device in self.devices if device.gpu == gpu and device.used + share <= 1]
        if fitting:
            return max(fitting, key=lambda device: device.used)
        name = f"{GROUP_PREFIX}{secrets.token_hex(4)}"
        group = ray.util.placement_group([{"GPU" if gpu else "CPU": 1}], name=name)
        device = SharedDevice(gpu, group)
        self.devices.append(device)
        return device

    def remove_actor(self, device: SharedDevice) -> None:
        """Count one process less on a device; give the device back after the last one."""
        device.actors -= 1
        if not device.actors:
            self.devices.remove(device)
            ray.util.remove_placement_group(device.group)


def remove_left_groups() -> None:
    """Give back the devices that an earlier supervisor reserved; Ray keeps them while that actor restarts."""
    for entry in ray.util.placement_group_table().values():
        if entry["name"].startswith(GROUP_PREFIX) and entry["state"] != "REMOVED":
            ray.util.remove_placement_group(ray.util.get_placement_group(entry["name"]))
