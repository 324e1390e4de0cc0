"""Register the processes that train on a node, and detect that the node is shutting down."""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.common.files import write_atomically

DRAIN_POLL_SECONDS = 0.25

START_TOLERANCE_SECONDS = 2.0  # a clock adjustment between two readings moves the start time of a process

NODE_VARIABLE = "REPRO_NODE"


def is_same_process(pid: int, began: float) -> bool:
    """Return whether process `pid` is alive and started at `began` (Unix time), so that the pid was not reused."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return bool(abs(process.create_time() - began) < START_TOLERANCE_SECONDS)
    except (psutil.Error, ValueError, TypeError):
        return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs: it is no zombie, and its pid was not reused."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


last_drain_check: tuple[float, bool] = (-DRAIN_POLL_SECONDS, False)  # time.monotonic(), result


def node_is_draining() -> bool:
    """Return whether the node of this process is shutting down; checks a file at most four times a second."""
    global last_drain_check
    folder = os.environ.get(NODE_VARIABLE)
    now = time.monotonic()
    if folder and not last_drain_check[1] and now - last_drain_check[0] >= DRAIN_POLL_SECONDS:
        last_drain_check = now, (Path(folder) / "leaving").exists()
    return bool(folder) and last_drain_check[1]


@contextmanager
def register_training() -> Iterator[None]:
    """Register this process as training within the block: a node that shuts down waits for its checkpoint."""
    folder = os.environ.get(NODE_VARIABLE)
    if not folder:
        yield
        return
    entry = Path(folder) / "training" / str(os.getpid())
    entry.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(entry, repr(psutil.Process().create_time()))
    try:
        yield
    finally:
        entry.unlink(missing_ok=True)


def training_pids(folder: Path) -> list[int]:
    """Return the pids of the processes that train on the node of `folder`; dead processes are left out."""
    pids = []
    for path in folder.glob("training/*"):
        with contextlib.suppress(OSError, ValueError):
            if path.name.isdigit() and is_same_process(int(path.name), float(path.read_text(encoding="utf-8"))):
                pids.append(int(path.name))
    return sorted(pids)


def prctl(option: int, value: int) -> None:
    """Call Linux's prctl(2); do nothing on other systems."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
