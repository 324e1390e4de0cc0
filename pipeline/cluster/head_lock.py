"""The lock of a cluster's only head, and its heartbeat, by which other machines recognise a dead head."""

import contextlib
import json
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from pipeline.cluster.processes import is_same_process
from pipeline.cluster.token import cluster_folder, cluster_name, clusters_folder
from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.locks import LEASE_SECONDS, file_lock
from pipeline.common.paths import home

HEAD_BEAT_SECONDS = 5.0

LOST_SECONDS = 60.0  # age of the heartbeat after which the head is dead, on whichever machine it ran

HEAD_END_SECONDS = 15.0  # a head that shuts down releases its lock within this time

KEPT_SECONDS = 24 * 3600.0  # age of the heartbeat after which the folder of a Slurm job's cluster is removed


def heartbeat_file(folder: Path) -> Path:
    """Return the file in a cluster's folder that its head touches every HEAD_BEAT_SECONDS."""
    return folder / "heartbeat"


def heartbeat_age(folder: Path) -> float | None:
    """Return the seconds since the last heartbeat by the file system's clock; None if there is no heartbeat.

    The clocks of two machines may differ, so both times are those of files.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            return Path(probe.name).stat().st_mtime - heartbeat_file(folder).stat().st_mtime
    except OSError:
        return None


@contextmanager
def hold_head_lock() -> Iterator[None]:
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
        ended = threading.Event()
        heartbeat_file(folder).touch()
    thread = threading.Thread(target=beat, args=(folder, ended), name="heartbeat", daemon=True)
    thread.start()
    try:
        remove_dead_clusters()
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            heartbeat_file(folder).unlink()
        lock.release()


def beat(folder: Path, ended: threading.Event) -> None:
    """Touch the heartbeat file until `ended` is set."""
    while not ended.wait(HEAD_BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a file server that is away for a moment
            heartbeat_file(folder).touch()


def is_lost(folder: Path) -> bool:
    """Return whether the head that holds the lock is dead: no heartbeat, and it is no process here."""
    age = heartbeat_age(folder)
    if age is not None and age <= LOST_SECONDS:
        return False
    try:
        raw = json.loads((folder / "node.json").read_text(encoding="utf-8"))
        return bool(raw["host"] != socket.gethostname()) or not is_same_process(raw["pid"], raw["began"])
    except (OSError, ValueError, KeyError, TypeError):
        return age is not None


def remove_dead_clusters() -> None:
    """Remove the folders of Slurm jobs' clusters whose head is dead for a day; their names do not come back."""
    own = cluster_folder()
    for folder in clusters_folder().glob("slurm-*"):
        is_of_job = folder != own and re.fullmatch(r"slurm-\d+(-\d+)?", folder.name)
        age = heartbeat_age(folder) if is_of_job else None
        if age is not None and age > KEPT_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
