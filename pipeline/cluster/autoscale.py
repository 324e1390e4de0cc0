"""Ask an autoscaler outside this cluster, such as KubeRay's, for the devices that runs need. Imports Ray.

Runs are admitted only to devices that are there, so that waiting for a node costs no device hours. The request
names all devices that running and waiting runs could use; Ray keeps it until the next one. The autoscaler adds
nodes for it up to its own limit, and removes idle nodes that it does not need.

Version 2 of Ray's autoscaler (2.60) adds no node for a request beyond its limit; it reports the request as
infeasible. So the largest possible request is found by bisection.
"""

import functools
import os
from typing import Any, Literal

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
        self.possible, self.impossible = 0, MAX_REQUESTED + 1  # the autoscaler's limit is in this interval
        self.version = 0  # of the cluster's state with the last request

    def update(self, wanted: int, *, gpu: bool) -> None:
        """Request `wanted` devices, or as many as the autoscaler can add; called about once a second.

        Nothing happens without an autoscaler or a change. The next supervisor notices a limit that was raised.
        """
        if not autoscaled_kind():
            return
        if self.devices is not None:
            self._learn()
        devices = wanted if wanted < self.impossible else (self.possible + self.impossible) // 2
        if devices == self.devices:
            return
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[{"GPU" if gpu else "CPU": 1}] * devices)
        self.devices = devices
        self.version, _, _ = read_autoscaler_state()

    def _learn(self) -> None:
        """Narrow the interval once the autoscaler has seen the last request."""
        assert self.devices is not None
        _, seen, infeasible = read_autoscaler_state()
        if seen < self.version:
            return
        if infeasible:
            self.impossible = min(self.impossible, self.devices)
            self.possible = min(self.possible, self.devices - 1)
        else:
            self.possible = max(self.possible, self.devices)


def read_autoscaler_state() -> tuple[int, int, bool]:
    """Return the version of the cluster's state, the version that the autoscaler saw last, and its judgement.

    The judgement is True if the request that it saw is infeasible. Version 1 of the autoscaler, which adds as many
    nodes as it can, never sees a version: the second number is 0.
    """
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    status = GetClusterStatusReply.FromString(gcs_client().get_cluster_status())
    state = status.autoscaling_state
    return (
        status.cluster_resource_state.cluster_resource_state_version,
        state.last_seen_cluster_resource_state_version,
        bool(state.infeasible_cluster_resource_constraints),
    )


@functools.cache
def gcs_client() -> Any:
    """Return a client of the GCS of the cluster that this process is connected to."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # a compiled module

    return GcsClient(ray.get_runtime_context().gcs_address)
