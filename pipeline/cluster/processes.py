"""Processes that train on a node, and whether the node is shutting down."""

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

SAME_SECONDS = 2.0  # two readings of a process's start differ less: the system's clock may be set between them

NODE_VARIABLE = "REPRO_NODE"


def is_same_process(pid: int, began: float) -> bool:
    """Whether a process lives that began then (seconds of the epoch), not another with its number."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - began) < SAME_SECONDS
    except (psutil.Error, ValueError, TypeError):
        return False


last_drain_check: tuple[float, bool] = (-DRAIN_POLL_SECONDS, False)  # when, and whether the node was leaving


def node_is_draining() -> bool:
    """Whether the node this process runs on was asked to end. It looks four times a second: call it often."""
    global last_drain_check
    place = os.environ.get(NODE_VARIABLE)
    now = time.monotonic()
    if place and not last_drain_check[1] and now - last_drain_check[0] >= DRAIN_POLL_SECONDS:
        last_drain_check = now, (Path(place) / "leaving").exists()
    return bool(place) and last_drain_check[1]


@contextmanager
def register_training() -> Iterator[None]:
    """Within: the node knows that this process trains, and waits for it when asked to end."""
    place = os.environ.get(NODE_VARIABLE)
    if not place:
        yield
        return
    mine = Path(place) / "training" / str(os.getpid())
    mine.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(mine, repr(psutil.Process().create_time()))
    try:
        yield
    finally:
        mine.unlink(missing_ok=True)


def training_pids(place: Path) -> list[int]:
    """The processes that train on the node of this folder; one that died without a word does not count."""
    found = []
    for path in place.glob("training/*"):
        with contextlib.suppress(OSError, ValueError):
            if path.name.isdigit() and is_same_process(int(path.name), float(path.read_text(encoding="utf-8"))):
                found.append(int(path.name))
    return sorted(found)


def prctl(option: int, value: int) -> None:
    """Linux's prctl; nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
