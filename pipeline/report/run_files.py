"""Curves and weights of finished runs: from the run folder if it is here, else curves from the tracking server."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.common.paths import runs_folder
from pipeline.report.paper_figures.figure_data import Curve
from pipeline.track.mlflow_errors import RefusedError, TrackingError
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder

Points = list[tuple[int, float]]  # (step, value)


class DamagedJournalError(Exception):
    """A line of a journal is not a journal entry."""


class RunFiles:
    """Reads curves and weights of finished runs, each journal once.

    What cannot be read is left out; `unread` says so for each run.
    """

    def __init__(self, tracker: Any | None) -> None:
        self.tracker = tracker  # None if the tracking server cannot be used
        self._journal_faults: dict[str, str] = {}  # identity of a run -> why its curves cannot be read
        self._weight_faults: dict[str, str] = {}  # identity -> why its weights cannot be read
        self._journals: dict[str, dict[str, Points]] = {}  # identity -> metric -> curve
        self._tracked: dict[tuple[str, str], Points] = {}  # identity and metric -> curve on the server
        self._away = ""  # why the tracking server cannot be used, once it did not answer

    @property
    def unread(self) -> dict[str, str]:
        """Identity of a run -> what cannot be read and why, in one sentence."""
        faults = (self._journal_faults, self._weight_faults)
        return {
            identity: "; ".join(found[identity] for found in faults if identity in found)
            for identity in dict.fromkeys([*self._journal_faults, *self._weight_faults])
        }

    def curve(self, record: Record, metric: str) -> Curve:
        """Return the curve of a run; empty if it has none. Without a readable journal it is the server's."""
        if record.identity not in self._journals:
            self._journals[record.identity] = self._read_journal(record)
        journal = self._journals[record.identity]
        if not journal and self.tracker and record.run_id:
            key = record.identity, metric
            if key not in self._tracked:
                self._tracked[key] = self._tracked_curve(self.tracker, record, metric)
            return self._tracked[key]
        return journal.get(metric, [])

    def weights(self, record: Record) -> Mapping[str, Any] | None:
        """Return the tensors of a run's network, the last or the selected one; None if its file is not here."""
        file = RunFolder(runs_folder() / record.identity).network_file
        if not file.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            self._weight_faults[record.identity] = f"{file} cannot be read ({error})"
            return None

    def _read_journal(self, record: Record) -> dict[str, Points]:
        """Return the curves in the journal of a run by metric; {} if it is not here or damaged."""
        folder = RunFolder(runs_folder() / record.identity)
        try:
            return journal_curves(folder, record)
        except DamagedJournalError as error:
            self._journal_faults[record.identity] = f"{folder.journal_file} is damaged: {error}"
        except OSError as error:
            self._journal_faults[record.identity] = f"{folder.journal_file} cannot be read: {error.strerror}"
        return {}

    def _tracked_curve(self, tracker: Any, record: Record, metric: str) -> Points:
        """Return a curve of the tracking server. A server that did not answer is not asked again."""
        if not self._away:
            try:
                points: Points = tracker.curves(record.run_id, metric)
            except TrackingError as error:
                self._away = str(error)
            except RefusedError as error:
                self._add_journal_fault(record, str(error))
            else:
                if points:
                    self._journal_faults.pop(record.identity, None)
                return points
        if self._away:
            self._journal_faults.setdefault(record.identity, "its journal is not on this machine")
            self._add_journal_fault(record, self._away)
        return []

    def _add_journal_fault(self, record: Record, reason: str) -> None:
        """Add why the curves of a run cannot be read, once."""
        here = self._journal_faults.get(record.identity, "")
        if reason not in here:
            self._journal_faults[record.identity] = f"{here}; {reason}" if here else reason


def journal_curves(folder: RunFolder, record: Record) -> dict[str, Points]:
    """Return the curves in the journal of a run by metric. They end with the last model, or the selected one.

    Raises DamagedJournalError for a line that is not a journal entry, and OSError.
    """
    found: dict[str, Points] = {}
    line, last = 1, -1
    try:
        for entry, _ in folder.journal():
            last = int(entry["step"])
            for metric, value in entry["metrics"].items():
                found.setdefault(metric, []).append((last, float(value)))
            line += 1
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedJournalError(f"line {line} is not a journal entry") from None
    for metric, points in found.items():
        if metric in record.metrics and points[-1][0] < last:
            points.append((last, record.metrics[metric]))
    return found


def unread_sentences(records: Sequence[Record], unread: Mapping[str, str]) -> list[str]:
    """Return a sentence for each of these runs whose curves or weights cannot be read."""
    return [
        f"{one.variant} seed {one.seed} of {one.experiment} at {one.scale} scale: {unread[one.identity]}"
        for one in records
        if one.identity in unread
    ]
