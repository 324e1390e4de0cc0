"""Send run folders to the tracking server in a background thread. Training never waits for the server."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.common.words import plural
from pipeline.track.mlflow_errors import TrackingError
from pipeline.track.mlflow_reader import redact
from pipeline.track.mlflow_writer import Tracker, record_from_run
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder

SYNC_SECONDS = 5.0


class BackgroundSync:
    """Sends run folders to the tracking server in a background thread. Errors are kept, not raised."""

    def __init__(self) -> None:
        self.trouble = ""  # the last error, "" if there is none
        self._left: dict[Path, RunFolder] = {}  # watched and not completely sent
        self._tracker: Tracker | None = None
        self._over = threading.Event()
        self._round = threading.Lock()
        self._slow = False  # whether the last round failed after a timeout
        self._thread: threading.Thread | None = None

    def watch(self, path: Path) -> None:
        """Add a folder, which need not exist yet. It is watched until all of it is sent."""
        self._left[path] = RunFolder(path)

    def tracker(self) -> Tracker:
        """Return the tracker of the configured server."""
        if self._tracker is None:
            self._tracker = Tracker()
        return self._tracker

    def records(self) -> list[Record]:
        """Return the tracked records; none if the server cannot be used."""
        try:
            return self.tracker().records()
        except UserError as error:
            self.trouble = str(error)
            return []

    def sync(self) -> None:
        """Send all folders that are left, once. If the server cannot be used, the next round tries again.

        After the thread has ended, a server that has timed out is not tried again.
        """
        timed_out, self._slow = self._over.is_set() and self._slow, False
        if not timed_out:
            self._sync(lambda: False)

    def _sync(self, stop: Callable[[], bool]) -> None:
        begun = time.monotonic()
        self._slow = False
        with self._round:
            try:
                done, errors = send(self.tracker(), existing_folders(list(self._left.values())), stop)
            except TrackingError as error:
                self.trouble = str(error)
                self._slow = time.monotonic() - begun > SYNC_SECONDS
                return
            for folder in done:
                del self._left[folder.path]
            self.trouble = summarise_errors(errors)

    def __enter__(self) -> "BackgroundSync":
        """Start the thread."""
        self._thread = threading.Thread(target=self._sync_until_stopped, name="repro-tracking", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the thread after the folder that is being sent. The caller should call `sync` once more."""
        self._over.set()
        if self._thread:
            self._thread.join()

    def _sync_until_stopped(self) -> None:
        while not self._over.wait(SYNC_SECONDS):
            try:
                self._sync(self._over.is_set)
            except Exception as error:  # noqa: BLE001 - training continues; the next round tries again
                self.trouble = redact(f"tracking failed: {type(error).__name__}: {error}")


def existing_folders(folders: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the folders that hold a run. Lists the parent first, since most folders may not exist yet."""
    listed = {parent: list_names(parent) for parent in {folder.path.parent for folder in folders}}
    existing = [folder for folder in folders if folder.path.name in listed[folder.path.parent]]
    return [folder for folder in existing if (folder.path / "run.json").is_file()]


def list_names(parent: Path) -> set[str]:
    """Return the names in a folder; none if it cannot be read."""
    try:
        return {path.name for path in parent.iterdir()}
    except OSError:
        return set()


def send(
    tracker: Tracker, folders: Iterable[RunFolder], stop: Callable[[], bool] = lambda: False
) -> tuple[list[RunFolder], list[str]]:
    """Send what is new in these folders; return those that are completely sent, and the errors of others.

    Raises TrackingError at the first folder where the server cannot be used.
    """
    done, errors = [], []
    for folder in folders:
        if stop():
            break
        try:
            if tracker.sync(folder):
                done.append(folder)
        except TrackingError:
            raise
        except (UserError, OSError) as error:
            text = str(error) if isinstance(error, UserError) else f"{folder.path} is not tracked: {error}"
            errors.append(redact(text))
    return done, errors


def summarise_errors(errors: Sequence[str]) -> str:
    """Return the first error and the number of others; "" for none."""
    more = f" (and {plural(len(errors) - 1, 'more error')})" if len(errors) > 1 else ""
    return f"{errors[0]}{more}" if errors else ""


def sync_all(tracker: Tracker) -> tuple[list[Record], str]:
    """Send every run folder that is not completely sent, except those that another process trains and sends.

    Returns all tracked records, and a summary of the errors of folders that cannot be sent. Folders that the
    server has completely are not opened. Runs that were deleted there are sent again.
    """
    ended = tracker.ended()
    sent = {row.record.get("identity") for row in ended if row.sent}
    names = sorted(list_names(runs_folder()) - sent)
    existing = existing_folders([RunFolder(runs_folder() / name) for name in names])
    folders = [folder for folder in existing if folder.result_file.is_file() or not folder.is_training()]
    for folder in folders:
        tracker.forget(folder)
    done, errors = send(tracker, folders)
    return [record_from_run(row) for row in (tracker.ended() if done else ended)], summarise_errors(errors)


def local_records(*, known: Collection[str] = ()) -> list[Record]:
    """Return the records of the runs that ended on this machine, without those of the identities in `known`."""
    names = sorted(list_names(runs_folder()) - set(known))
    results = [RunFolder(runs_folder() / name).result() for name in names]
    return [record for record in results if record]
