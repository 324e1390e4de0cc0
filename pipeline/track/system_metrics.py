"""System metrics of a run: use of processors, memory, disk, network and GPUs, written to its folder.

MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true switches them on, and MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets the
seconds between samples, as for MLflow itself. MLflow's own monitor sends each sample to the server; here a sample
is a line of a file, which is sent with the run's curves. So training waits for no server.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.track.run_folder import RunFolder, remove_half_line

SWITCH = "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"

DEFAULT_SECONDS, DEFAULT_SAMPLES = 10.0, 1  # MLflow's: between samples; samples that are averaged


def is_switched_on() -> bool:
    """Return True if the user wants system metrics."""
    return os.environ.get(SWITCH, "").strip().lower() in ("true", "1")


@contextmanager
def system_metrics(folder: RunFolder) -> Iterator[None]:
    """Write system metrics to the run's folder during the block, if they are switched on."""
    if not is_switched_on():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=record_samples, args=(folder, over), name="repro-system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def record_samples(folder: RunFolder, over: threading.Event) -> None:
    """Append a line for each sample until `over` is set. The numbers of samples continue those of the file."""
    from mlflow.environment_variables import (
        MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING,
        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL,
    )

    seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or DEFAULT_SECONDS
    samples = MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING.get() or DEFAULT_SAMPLES
    monitors = make_monitors()
    number = sum(1 for _ in folder.system_metrics())
    while not over.is_set():
        for _ in range(samples):
            for monitor in monitors:
                monitor.collect_metrics()
            over.wait(seconds)
        metrics = {key: value for one in monitors for key, value in one.aggregate_metrics().items()}
        for monitor in monitors:
            monitor.clear_metrics()
        line = json.dumps({"step": number, "time": time.time(), "metrics": metrics})
        with suppress(OSError):  # a full disk; the line may then be cut
            remove_half_line(folder.system_file)
            with folder.system_file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")
        number += 1


def make_monitors() -> Sequence[Any]:
    """Return MLflow's monitors of this machine; that of GPUs only where it has any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(Exception):  # as MLflow's own monitor does: no library, no driver or no GPU
        monitors.append(GPUMonitor())
    return monitors
