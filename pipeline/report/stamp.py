"""Stamp of a report: tells that figure, page and MLflow's runs show the same runs and verdicts as now.

Drawing the figure and publishing to MLflow take seconds, most of them to import matplotlib and MLflow.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.files import write_atomically
from pipeline.declare.experiment import Experiment
from pipeline.judge.ledger import LedgerEntry
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.track.mlflow_reader import are_active_runs, server_key
from pipeline.track.record import Record


@dataclass(frozen=True)
class ReportStamp:
    """File next to a report: hash of all that the report shows, its files, and the MLflow runs that show it."""

    file: Path
    content: str  # hash

    def files(self, tracker: Any | None) -> list[Path] | None:
        """Return the report's files if they are up to date on disk and, with a tracker, in MLflow; else None."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            if kept["content"] != self.content or any(
                file_state(Path(path)) != state for path, state in kept["files"]
            ):
                return None
            if tracker and kept["run_ids"] and not are_active_runs(tracker.uri, kept["run_ids"]):
                return None
            return [Path(path) for path, _ in kept["files"]]
        except (OSError, ValueError, KeyError, TypeError):  # no stamp, a damaged one, or a file is missing
            return None

    def write(self, files: Sequence[Path], run_ids: Collection[str]) -> None:
        """Write the stamp. If it cannot be written, the next command makes the report again."""
        kept = {
            "content": self.content,
            "files": [(str(path), file_state(path)) for path in files],
            "run_ids": sorted(run_ids),
        }
        with suppress(OSError):
            write_atomically(self.file, json.dumps(kept))


def file_state(path: Path) -> list[int]:
    """Return size and modification time of a file."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def report_hash(
    experiment: Experiment,
    scale: str,
    rows: Sequence[LeaderboardRow],
    entries: Sequence[LedgerEntry],
    records: Sequence[Record],
    tracker: Any | None,
) -> str:
    """Return the hash of all that a report depends on, the code that makes it included."""
    shown = {
        "experiment": experiment.model_dump(mode="json"),
        "scale": scale,
        "rows": [row.to_dict() for row in rows],
        "entries": [entry.to_dict() for entry in entries],
        "records": [record.to_dict() for record in records],
        "server": server_key(tracker.uri) if tracker else "",
    }
    found = hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode())
    here = Path(__file__).parent
    for path in (*sorted(here.rglob("*")), *sorted((here.parent / "track").glob("mlflow_*.py"))):
        if path.is_file() and path.suffix != ".pyc":
            found.update(path.read_bytes())
    return found.hexdigest()
