"""Run folders go to the tracking server beside the training, which never waits for it."""

import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.paths import runs_folder
from pipeline.track.mlflow_reader import redact
from pipeline.track.mlflow_writer import Tracker, TrackingError, record_from_run
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder

SYNC_SECONDS = 5.0


class BackgroundSync:
    """Sends run folders to the tracking server from a thread of its own; trouble is kept, not raised."""

    def __init__(self) -> None:
        self.trouble = ""  # what is wrong, "" where nothing is
        self._left: dict[Path, RunFolder] = {}  # watched, and not yet sent for good
        self._tracker: Tracker | None = None
        self._over = threading.Event()
        self._round = threading.Lock()
        self._slow = False  # whether the server let us wait before it was given up
        self._thread: threading.Thread | None = None

    def watch(self, path: Path) -> None:
        """Send this folder too, from when it is there until all of it has been sent."""
        self._left[path] = RunFolder(path)

    def tracker(self) -> Tracker:
        """The tracking server that is named now."""
        if self._tracker is None:
            self._tracker = Tracker()
        return self._tracker

    def records(self) -> list[Record]:
        """Tracked records, none where the server cannot be used."""
        try:
            return self.tracker().records()
        except UserError as error:
            self.trouble = str(error)
            return []

    def sync(self) -> None:
        """One round over all folders that are left; a server that cannot be used ends it, to be tried again.

        After the end, a server that was waited for in vain is not waited for once more.
        """
        waited, self._slow = self._over.is_set() and self._slow, False
        if not waited:
            self._sync(lambda: False)

    def _sync(self, stop: Callable[[], bool]) -> None:
        begun = time.monotonic()
        self._slow = False
        with self._round:
            try:
                done, wrong = send(self.tracker(), existing_folders(list(self._left.values())), stop)
            except TrackingError as error:
                self.trouble = str(error)
                self._slow = time.monotonic() - begun > SYNC_SECONDS
                return
            for folder in done:
                del self._left[folder.path]
            self.trouble = summarise_errors(wrong)

    def __enter__(self) -> "BackgroundSync":
        """Start the thread."""
        self._thread = threading.Thread(target=self._go_on, name="repro-tracking", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End it, after the folder that is being sent; a last `sync` is the caller's."""
        self._over.set()
        if self._thread:
            self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(SYNC_SECONDS):
            try:
                self._sync(self._over.is_set)
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on and tracking tries again
                self.trouble = redact(f"tracking failed: {type(error).__name__}: {error}")


def existing_folders(folders: Sequence[RunFolder]) -> list[RunFolder]:
    """Those of the folders that hold a run: by a list of what is there, since most may wait for their turn."""
    there = {parent: list_names(parent) for parent in {folder.path.parent for folder in folders}}
    named = [folder for folder in folders if folder.path.name in there[folder.path.parent]]
    return [folder for folder in named if (folder.path / "run.json").is_file()]


def list_names(parent: Path) -> set[str]:
    """What a folder holds; nothing where there is none."""
    try:
        return {path.name for path in parent.iterdir()}
    except OSError:
        return set()


def send(
    tracker: Tracker, folders: Iterable[RunFolder], stop: Callable[[], bool] = lambda: False
) -> tuple[list[RunFolder], list[str]]:
    """Send what is new in these folders: those with nothing left to send, and what is wrong with others.

    TrackingError, and the rest is not tried, where the server cannot be used.
    """
    done, wrong = [], []
    for folder in folders:
        if stop():
            break
        try:
            if tracker.sync(folder):
                done.append(folder)
        except TrackingError:
            raise
        except (UserError, OSError) as error:
            said = str(error) if isinstance(error, UserError) else f"{folder.path} is not tracked: {error}"
            wrong.append(redact(said))
    return done, wrong


def summarise_errors(wrong: Sequence[str]) -> str:
    """The first of some sentences, and how many more there are."""
    more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}" if wrong else ""


def sync_all(tracker: Tracker) -> tuple[list[Record], str]:
    """Send every run folder that still holds something unsent (its server was away).

    Returns all tracked records after it, and what is wrong with folders that cannot be sent. A folder that the
    server has whole is not even looked at.
    """
    ended = tracker.ended()
    whole = {row.record.get("identity") for row in ended if row.sent}
    names = sorted(list_names(runs_folder()) - whole)
    done, wrong = send(tracker, existing_folders([RunFolder(runs_folder() / name) for name in names]))
    return [record_from_run(row) for row in (tracker.ended() if done else ended)], summarise_errors(wrong)


def local_records_except(but: Collection[str]) -> list[Record]:
    """The runs that ended on this machine, without those of the identities `but`."""
    names = sorted(list_names(runs_folder()) - set(but))
    found = [RunFolder(runs_folder() / name).result() for name in names]
    return [record for record in found if record]
