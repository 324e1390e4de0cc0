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

LOOK_SECONDS = 0.25

SAME_SECONDS = 2.0  # two readings of a process's start differ less: the system's clock may be set between them

NODE = "REPRO_NODE"


def is_same(pid: int, began: float) -> bool:
    """Whether a process lives that began then (seconds of the epoch), not another with its number."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - began) < SAME_SECONDS
    except (psutil.Error, ValueError, TypeError):
        return False


looked: tuple[float, bool] = (-LOOK_SECONDS, False)  # when, and whether the node was leaving


def leaving() -> bool:
    """Whether the node this process runs on was asked to end. It looks four times a second: call it often."""
    global looked
    place = os.environ.get(NODE)
    now = time.monotonic()
    if place and not looked[1] and now - looked[0] >= LOOK_SECONDS:
        looked = now, (Path(place) / "leaving").exists()
    return bool(place) and looked[1]


@contextmanager
def training_here() -> Iterator[None]:
    """Within: the node knows that this process trains, and waits for it when asked to end."""
    place = os.environ.get(NODE)
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


def trainings(place: Path) -> list[int]:
    """The processes that train on the node of this folder; one that died without a word does not count."""
    found = []
    for path in place.glob("training/*"):
        with contextlib.suppress(OSError, ValueError):
            if path.name.isdigit() and is_same(int(path.name), float(path.read_text(encoding="utf-8"))):
                found.append(int(path.name))
    return sorted(found)


def control_process(option: int, value: int) -> None:
    """Linux's prctl; nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
