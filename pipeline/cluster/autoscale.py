"""Ask an autoscaler outside this cluster, such as KubeRay's, for the devices that runs need. Imports Ray.

Runs are admitted only to devices that are there, so that waiting for a node costs no device hours. The request
names all devices that running and waiting runs could use; Ray keeps it until the next one. The autoscaler adds
nodes for it up to its own limit, and removes idle nodes that it does not need.
"""

import os
from typing import Literal

AUTOSCALED_VARIABLE = "REPRO_AUTOSCALED"  # "gpu" or "cpu" on a head whose cluster has an autoscaler

MAX_REQUESTED = 1000  # devices; more than an autoscaler's limit of nodes, few enough for it to place in a moment

AutoscaledKind = Literal["gpu", "cpu"]


def autoscaled_kind() -> str:
    """Return the devices of the nodes that the autoscaler adds, "gpu" or "cpu"; "" without an autoscaler."""
    return os.environ.get(AUTOSCALED_VARIABLE, "")


class DeviceRequest:
    """The number of devices that this cluster requests from its autoscaler."""

    def __init__(self) -> None:
        self.devices: int | None = None  # requested last; None: not yet

    def update(self, wanted: int, *, gpu: bool) -> None:
        """Request `wanted` devices; nothing happens without an autoscaler or a change."""
        devices = min(wanted, MAX_REQUESTED)
        if not autoscaled_kind() or devices == self.devices:
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[{"GPU" if gpu else "CPU": 1}] * devices)
        self.devices = devices
