"""Metrics of the supervisor for Prometheus, which Ray exports with its own. Imports Ray.

Ray adds the prefix "ray_" to the names. docker/grafana/cnn-repro.json shows them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pipeline.cluster.queue import ItemStatus

SERVICE_DISCOVERY = "/api/prometheus/sd"  # of the dashboard: the endpoints of all nodes; requires the token

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> description, labels
    "repro_runs": ("Runs and derived runs of all launches in the queue, by state", ("state",)),
    "repro_devices": (
        "Devices: all of the cluster, free ones, and those requested from an autoscaler",
        ("state",),
    ),
    "repro_images_per_second": ("Images that all training runs read in a second", ()),
    "repro_device_hours": ("Device hours that the open launches have used", ()),
}


def metric_values(
    states: Iterable[ItemStatus], devices: Mapping[str, float], images_per_second: float, device_hours: float
) -> list[tuple[str, dict[str, str], float]]:
    """Return (name, labels, value) of each metric; states without runs are 0, so that no old value remains."""
    runs = Counter(states)
    return [
        *(("repro_runs", {"state": state}, runs[state]) for state in get_args(ItemStatus)),
        *(("repro_devices", {"state": state}, devices.get(state, 0)) for state in ("all", "free", "requested")),
        ("repro_images_per_second", {}, images_per_second),
        ("repro_device_hours", {}, device_hours),
    ]


class ClusterMetrics:
    """Gauges of this process."""

    def __init__(self) -> None:
        self.gauges: dict[str, Any] = {}

    def set(self, values: Iterable[tuple[str, dict[str, str], float]]) -> None:
        """Set each metric; the gauges are created with the first values."""
        from ray.util.metrics import Gauge

        for name, labels, value in values:
            if name not in self.gauges:
                description, keys = GAUGES[name]
                self.gauges[name] = Gauge(name, description=description, tag_keys=keys)
            self.gauges[name].set(value, tags=labels)
