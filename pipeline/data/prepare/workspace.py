"""The working folder of `repro data prepare`: its lock, the plan, and the records of finished shards.

The plan and the records are in `.preparing/` of a local target, in `preparing/` of a server. An interrupted call
resumes from them.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.images import DataError
from pipeline.data.prepare.shard_plan import RECORD_SUFFIX, ShardPlan, format_value, require_same_settings
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.store import MissingFileError, Store, scratch_folder

RECORDS_FOLDER, PLAN_FILE, LOCK_FILE, TRIAL_FILE = "preparing", "plan.json", "lock", "trial"

OWNER_KEY = "by"  # in the plan on a server: the call that owns the target

LEFTOVER = re.compile(r"\.[a-z.\d-]+\.[0-9a-f]{32}")  # temporary names of Store.put, left by a killed process

SHARD_NAME = re.compile(r"(train|test)-\d{5,}\.tar")

TEMPORARY_SUFFIX = ".tmp"


@dataclass(frozen=True)
class Workspace:
    """Where one call of `prepare_shards` works."""

    out: Store  # target of the shards
    folder: Path  # on this machine, for files in progress and for local copies of the records
    records: Store  # the plan and the shard records; for a local target the same as `folder`


@contextlib.contextmanager
def open_workspace(out: Store) -> Iterator[Workspace]:
    """Lock the working folder of `out` and create it if necessary; remove it at the end if it is empty.

    For a local target it is `.preparing/` in the target, on the same disk. For a server it is a private folder
    below the system's temporary folder, the same for the same address. Raise DataError if the target cannot be
    written, is locked by another process or contains other files.
    """
    from filelock import Timeout

    from pipeline.common.locks import file_lock

    if out.http:
        raise DataError(f"{out}: http is read-only; write to a folder or to s3://")
    if out.local:
        folder = out.local / f".{RECORDS_FOLDER}"
        records = Store(str(folder))
    else:
        key = hashlib.sha256(out.address.encode()).hexdigest()[:16]
        folder = scratch_folder() / f"repro-prepare-{os.getuid()}" / key
        records = Store(f"{out.address}/{RECORDS_FOLDER}")
    lock_file = folder / LOCK_FILE
    with explain_os_errors(out.local or folder):
        if out.local and out.local.exists() and not out.local.is_dir():
            raise DataError(f"{out} is a file; give a folder")
        if not out.local:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            if folder.parent.stat().st_uid != os.getuid():
                raise DataError(f"{folder.parent} belongs to another user; set TMPDIR to a folder of your own")
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = file_lock(lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise DataError(f"another command is writing to {out}; wait until it ends") from None
    try:
        if out.local:
            with explain_os_errors(folder):
                refuse_foreign_files(out, out.local)
        yield Workspace(out, folder, records)
    finally:
        with contextlib.suppress(OSError):
            if all(path.name.startswith(LOCK_FILE) for path in folder.iterdir()):  # nothing to resume from
                shutil.rmtree(folder)
                for path in created[1:]:
                    path.rmdir()
        lock.release()


def refuse_foreign_files(out: Store, folder: Path) -> None:
    """Raise DataError if a folder contains files, but neither a finished nor an unfinished set."""
    known = {f".{RECORDS_FOLDER}", MANIFEST_NAME}
    is_set = (folder / f".{RECORDS_FOLDER}" / PLAN_FILE).is_file() or (folder / MANIFEST_NAME).is_file()
    foreign = [path.name for path in folder.iterdir() if path.name not in known]
    if foreign and not is_set:
        raise DataError(f"{out} contains other files ({min(foreign)}); use a new or an empty folder")


def check_writable(out: Store) -> None:
    """Raise DataError if `out` cannot be written or contains other files, before the source is read for hours."""
    with open_workspace(out) as workspace:
        if not out.local and not out.exists(MANIFEST_NAME):
            read_plan(workspace)
            write_first_file(b"", workspace, TRIAL_FILE)
            workspace.records.remove(TRIAL_FILE)


def read_plan(workspace: Workspace) -> dict[str, Any] | None:
    """Return the plan of an unfinished set, None if there is none; DataError if a server has other files there."""
    out, records = workspace.out, workspace.records
    if records.exists(PLAN_FILE):
        return dict(json.loads(records.read(PLAN_FILE)))  # put writes files whole or not at all
    if not out.local and out.names():
        raise DataError(f"{out} contains other files ({out.names()[0]}); use another address")
    return None


def claim_output(
    plan: ShardPlan, workspace: Workspace, report: Callable[[str], None] = lambda _: None
) -> Callable[[], None]:
    """Write the plan, after checking what an earlier call left at the target and removing its temporary files.

    Return a function that raises DataError if another call has claimed the target since. The lock excludes this
    for a folder; on a server, the last call wins. `report` receives a line if an unfinished set is discarded
    because its source has changed.
    """
    out, folder, records = workspace.out, workspace.folder, workspace.records
    settings, existing = plan.settings(), read_plan(workspace)
    owner = (existing or {}).pop(OWNER_KEY, None)
    changed = existing not in (None, settings)
    if existing and changed and (owner or any(name.endswith(RECORD_SUFFIX) for name in records.names())):
        if not plan.differs_only_in_counts(existing):
            require_same_settings(existing, settings, out, "an unfinished set", f"{records} and the shards")
        before, now = format_value(existing["pictures"]), format_value(settings["pictures"])
        report(f"the images of the unfinished set at {out} have changed ({before}, now {now}); starting again")
    with explain_os_errors(folder):
        for path in folder.iterdir():
            kept = records.local or path.name == LOCK_FILE  # records of a server are copied again
            if path.suffix == TEMPORARY_SUFFIX or LEFTOVER.fullmatch(path.name) or not kept:
                path.unlink()
        for path in out.local.iterdir() if out.local else ():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
    if changed:
        for name in records.names():
            if name.endswith(RECORD_SUFFIX):
                records.remove(name)
        for name in filter(SHARD_NAME.fullmatch, out.names()):
            out.remove(name)
    own = json.dumps(settings if records.local else settings | {OWNER_KEY: uuid.uuid4().hex}).encode()
    if changed or existing is None or not records.local:
        write_first_file(own, workspace, PLAN_FILE)

    def check_owner() -> None:
        with contextlib.suppress(MissingFileError):
            if records.local or records.read(PLAN_FILE) == own:
                return
        raise DataError(
            f"another command has started to write to {out}; wait until it ends, or use another address"
        )

    return check_owner


def write_first_file(content: bytes, workspace: Workspace, name: str) -> None:
    """Write the first file to the records; a missing bucket is reported as such."""
    try:
        write_small_file(content, workspace.folder, workspace.records, name)
    except MissingFileError:
        raise DataError(f"{workspace.out} cannot be written: the bucket does not exist; create it first") from None


def write_small_file(content: bytes, folder: Path, store: Store, name: str) -> None:
    """Write a file to `store` atomically, through a temporary file in `folder`."""
    file = folder / f"{name}{TEMPORARY_SUFFIX}"
    with explain_os_errors(folder):
        try:
            with file.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            file.unlink(missing_ok=True)
            raise
    store.put(file, name)
    file.unlink(missing_ok=True)


def remove_records(workspace: Workspace, workers: int) -> None:
    """Remove the records of a finished set.

    The plan goes last: if this is interrupted, what remains is still recognised as a set.
    """
    records = workspace.records
    if not records.local:
        names = [name for name in records.names() if name != PLAN_FILE]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(records.remove, names))
        records.remove(PLAN_FILE)
    for path in workspace.folder.iterdir():
        if path.name != LOCK_FILE:
            path.unlink()


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into a DataError about `path`."""
    try:
        yield
    except OSError as error:
        path = path.parent if path.name == f".{RECORDS_FOLDER}" else path
        reason = error.strerror or str(error)
        raise DataError(f"{path} cannot be written ({reason}); fix this and run again to resume") from None
