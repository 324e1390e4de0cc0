"""The lock of a cluster's only head, and its heartbeat, by which other machines recognise a dead head."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from pipeline.cluster.processes import is_same_process
from pipeline.cluster.token import cluster_folder, cluster_name, clusters_folder
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import file_system_time, probed_time
from pipeline.common.locks import LEASE_SECONDS, file_lock
from pipeline.common.paths import home

HEAD_BEAT_SECONDS = 5.0

LOST_SECONDS = 60.0  # age of the heartbeat after which the head is dead, on whichever machine it ran

HEAD_END_SECONDS = 15.0  # a head that shuts down releases its lock within this time

KEPT_SECONDS = 24 * 3600.0  # time after which the folder of an ended Slurm job's cluster is removed


def heartbeat_file(folder: Path) -> Path:
    """Return the file in a cluster's folder that its head touches every HEAD_BEAT_SECONDS."""
    return folder / "heartbeat"


def heartbeat_age(folder: Path) -> float | None:
    """Return the seconds since the last heartbeat by the file system's clock; None if there is no heartbeat.

    OSError where the file system does not answer, which says nothing of the head.
    """
    try:
        return probed_time(folder.parent) - heartbeat_file(folder).stat().st_mtime
    except FileNotFoundError:
        return None


class Heartbeat:
    """The heartbeat of this process's head: a thread that touches the file while the file has the head's id.

    A head that is cut off from the file system for LOST_SECONDS counts as dead. Another one may then take over its
    lock and write its own id, by which the first one learns that it was replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.file, self.id = heartbeat_file(folder), secrets.token_hex(8)
        self.ended, self.replaced = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)

    def is_replaced(self) -> bool:
        """Return whether another head has taken over."""
        return self.replaced.is_set()

    def start(self) -> None:
        """Write the head's id and start the thread."""
        self.file.write_text(self.id, encoding="utf-8")
        self.thread.start()

    def stop(self) -> None:
        """End the thread, and remove the file unless it belongs to another head."""
        self.ended.set()
        self.thread.join()
        with contextlib.suppress(OSError):
            if self.file.read_text(encoding="utf-8") == self.id:
                self.file.unlink()

    def _loop(self) -> None:
        while not self.ended.wait(HEAD_BEAT_SECONDS) and not self.replaced.is_set():
            with contextlib.suppress(OSError):  # a file server that is away for a moment
                self._beat()

    def _beat(self) -> None:
        """Touch the file; a missing one is written again, unless another head does so at this moment."""
        try:
            if self.file.read_text(encoding="utf-8") != self.id:
                self.replaced.set()
            else:
                os.utime(self.file)
        except FileNotFoundError:
            with self.file.open("x", encoding="utf-8") as file:
                file.write(self.id)


@contextmanager
def hold_head_lock() -> Iterator[Heartbeat]:
    """Hold the lock of the cluster's only head, with a heartbeat; UserError where another head holds it.

    The lock of a head that died with its machine may remain with the file server. It is taken over once the
    heartbeat has stopped.
    """
    folder = cluster_folder()
    with explain_write_errors(home()):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "head.lock"
        lock = file_lock(path)
        try:
            lock.acquire(timeout=HEAD_END_SECONDS)
        except Timeout:
            if not is_lost(folder):
                raise UserError(
                    f"another head of the cluster {cluster_name()!r} of REPRO_HOME {home()} runs but does not"
                    " respond; stop it where it was started, or set REPRO_CLUSTER to another name"
                ) from None
            path.unlink(missing_ok=True)
            lock = file_lock(path)
            lock.acquire(timeout=LEASE_SECONDS + HEAD_END_SECONDS)
        heartbeat = Heartbeat(folder)
        heartbeat.start()
    try:
        remove_dead_clusters()
        yield heartbeat
    finally:
        heartbeat.stop()
        lock.release()


def is_lost(folder: Path) -> bool:
    """Return whether the head that holds the lock is dead: its heartbeat has stopped, and it is no process here.

    False where the file system does not answer. A head without a heartbeat is about to begin it.
    """
    try:
        age = heartbeat_age(folder)
        if age is None or age <= LOST_SECONDS:
            return False
        raw = json.loads((folder / "node.json").read_text(encoding="utf-8"))
        return bool(raw["host"] != socket.gethostname()) or not is_same_process(raw["pid"], raw["began"])
    except FileNotFoundError:  # it died during its start
        return True
    except OSError:
        return False
    except (ValueError, KeyError, TypeError):  # a damaged node.json
        return True


def remove_dead_clusters() -> None:
    """Remove the folders of Slurm jobs' clusters whose head has ended a day ago; their names do not come back.

    A head that ended in order has no heartbeat, but changed its folder at its end.
    """
    own, now = cluster_folder(), file_system_time(clusters_folder())
    for folder in clusters_folder().glob("slurm-*"):
        if folder != own and re.fullmatch(r"slurm-\d+(-\d+)?", folder.name):
            with contextlib.suppress(OSError):
                heartbeat = heartbeat_file(folder)
                alive = (heartbeat if heartbeat.exists() else folder).stat().st_mtime
                if now - alive > KEPT_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)
