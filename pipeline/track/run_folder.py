"""The folder of one run: journal, checkpoints and result. It stays readable whatever stops the run.

runs/<identity>/
  run.json           description of the run
  journal.jsonl      learning curves, one report per line; append-only
  system.jsonl       system metrics, where they are switched on; one sample per line
  progress.json      current step and speed, for a progress bar
  checkpoints/       step-0000440-<16 hex digits of its sha256>.ckpt, the last two
  network.safetensors    the last model of a finished run, or the one selected by its validation error
  average.safetensors    its averaged weights, if the recipe averages them
  model/             the network with its normalisation, as an MLflow model
  result.json        the Record of an ended run, which is never trained again
  lock               held by the process that trains; lock.lease on a file system without flock
  log.txt            events, one sentence per line
  stop               a request to stop after the current step, with its reason; read by every process that trains
  left.json          the reason why the run is unfinished: over-budget, cancelled or failed
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import file_hash, write_atomically
from pipeline.common.locks import is_locked
from pipeline.track.record import Record

CHECKPOINT_NAME = re.compile(r"step-(\d{10})-([0-9a-f]{16})\.ckpt")

CHECKPOINTS_KEPT = 2

UnfinishedReason = Literal["over-budget", "cancelled", "failed"]


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_file = path / "journal.jsonl"
        self.system_file = path / "system.jsonl"
        self.result_file = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.execution_file = self.checkpoints / "execution.json"  # while the run is unfinished
        self.lock_file = path / "lock"
        self.network_file = path / "network.safetensors"
        self.average_file = path / "average.safetensors"
        self.model_folder = path / "model"
        self.log_file = path / "log.txt"

    def create(self, description: Mapping[str, Any]) -> None:
        """Create the folder and write the run's description."""
        with explain_disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "run.json", json.dumps(description, indent=1, sort_keys=True))

    def description(self) -> dict[str, Any]:
        """Return the description that `create` wrote."""
        description: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        return description

    def is_training(self) -> bool:
        """Return True while a process holds the run's lock."""
        return self.path.is_dir() and is_locked(self.lock_file)

    # The result

    def result(self) -> Record | None:
        """Return the record of an ended run, else None. Raises UserError if it cannot be read."""
        if not self.result_file.is_file():
            return None
        try:
            return Record.from_dict(json.loads(self.result_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:  # damaged
            reason = f"{self.result_file} is not a run's record ({error})"
            raise UserError(f"{reason}; move its folder away to train the run again") from None

    def finish(self, record: Record, weights: Mapping[str, bytes] | None = None) -> None:
        """Write the files of weights, if the run converged, then the record; remove the checkpoints."""
        with explain_disk_errors(self.path):
            for name, content in (weights or {}).items():
                write_atomically(self.path / name, content)
            write_atomically(self.result_file, json.dumps(record.to_dict(), indent=1, sort_keys=True))
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.path / "progress.json").unlink(missing_ok=True)

    # Requests to stop, and reasons; also for processes on other machines that share the folder

    def request_stop(self, why: str) -> None:
        """Request that the run stops after its current step, resumable."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "stop", f"{why} {time.time():.3f}")

    def stop_reason(self) -> str:
        """Return the reason of the request to stop, "" if there is none."""
        return self.stop_request()[0]

    def stop_request(self) -> tuple[str, float]:
        """Return the reason of the request to stop and its time (Unix seconds); ("", 0.0) if there is none."""
        try:
            why, when = (self.path / "stop").read_text(encoding="utf-8").rsplit(" ", 1)
            return why, float(when)
        except (OSError, ValueError):
            return "", 0.0

    def mark_unfinished(self, why: UnfinishedReason, text: str, asked: float | None = None) -> None:
        """Write why the run is unfinished, and remove the request to stop, made at the time `asked`."""
        when = asked or self.stop_request()[1] or time.time()
        write_atomically(self.path / "left.json", json.dumps({"why": why, "text": text, "asked": when}))
        (self.path / "stop").unlink(missing_ok=True)

    def unfinished(self) -> dict[str, Any]:
        """Return why the run is unfinished: {"why", "text", "asked"}, or {}."""
        try:
            found = json.loads((self.path / "left.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and {"why", "text", "asked"} <= found.keys() else {}

    def clear_unfinished(self) -> None:
        """Remove the request to stop and the reason why the run is unfinished."""
        with explain_disk_errors(self.path):
            for name in ("stop", "left.json"):
                (self.path / name).unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add lines with the current time to the run's log. Write errors are ignored."""
        stamp = datetime.now(UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
        with suppress(OSError):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write("".join(f"{stamp} {line}\n" for line in text.splitlines()))

    # The journal

    def append_journal(self, entry: Mapping[str, Any]) -> None:
        """Add one entry to the journal: {"step", "time", "metrics"}."""
        with explain_disk_errors(self.path), self.journal_file.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def repair_journal(self) -> int:
        """Remove a half-written last line; return the last step in the journal, -1 for none."""
        remove_half_line(self.journal_file)
        return max((entry["step"] for entry, _ in self.journal()), default=-1)

    def journal(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the entries from byte `start`, each with the byte after it; skip a half-written last line."""
        return read_lines(self.journal_file, start)

    def system_metrics(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield the samples of system metrics from byte `start`, as `journal` does; skip damaged ones."""
        return read_lines(self.system_file, start, skip_damaged=True)

    # Progress

    def write_progress(self, step: int, images_per_second: float) -> None:
        """Write step and speed for a progress bar. Write errors are ignored."""
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        text = json.dumps({"step": step, "images_per_second": images_per_second} | where)
        try:
            write_atomically(self.path / "progress.json", text)
        except OSError:
            return

    def read_progress(self) -> dict[str, Any]:
        """Return the last progress: {"step", "images_per_second", "host", "pid"}, or {}."""
        try:
            progress: dict[str, Any] = json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return progress

    # Checkpoints

    def save_checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """Write a checkpoint with `save`, rename it into place, and keep the newest two."""
        with explain_disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            partial = self.checkpoints / ".writing"  # one name, so that killed processes leave at most one file
            try:
                save(partial)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(self.checkpoints / f"step-{step:010d}-{file_hash(partial)}.ckpt")
            finally:
                partial.unlink(missing_ok=True)
        for old in self.checkpoint_files()[CHECKPOINTS_KEPT:]:
            old.unlink(missing_ok=True)

    def evaluation_cache(self, checkpoint: str, prefix: str = "") -> "EvaluationCache":
        """Return the cache of errors of the model in the file `checkpoint`; one per prefix."""
        return EvaluationCache(self.checkpoints / f"{prefix}judged.json", checkpoint)

    def checkpoint_files(self) -> list[Path]:
        """Return all checkpoint files, newest first, including damaged ones."""
        found = [path for path in self.checkpoints.glob("*.ckpt") if CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def last_step(self) -> int:
        """Return the step of the newest checkpoint file, 0 for none; the file itself is not read."""
        names = [CHECKPOINT_NAME.fullmatch(path.name) for path in self.checkpoint_files()]
        return max((int(name[1]) for name in names if name), default=0)

    def last_checkpoint(self, report: Callable[[str], None]) -> tuple[int, Path] | None:
        """Return step and file of the newest undamaged checkpoint; `report` is called for each damaged one."""
        files = self.checkpoint_files()
        for path in files:
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match and file_hash(path) == match[2]:
                return int(match[1]), path
            fallback = "starting from the first step" if path == files[-1] else "using the one before"
            report(f"checkpoint {path.name} is damaged; {fallback}")
        return None


def remove_half_line(path: Path) -> None:
    """Remove a half-written last line of a file, if it exists and has one."""
    whole = path.read_bytes() if path.is_file() else b""
    end = whole.rfind(b"\n") + 1
    if end < len(whole):
        with path.open("r+b") as file:
            file.truncate(end)


def read_lines(path: Path, start: int, *, skip_damaged: bool = False) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the JSON lines of a file from byte `start`, each with the byte after it; none if there is no file.

    Raises ValueError for a damaged line, unless these are skipped.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if line.endswith(b"\n"):
                with suppress(ValueError) if skip_damaged else nullcontext():
                    yield json.loads(line), start


class EvaluationCache:
    """Errors of one model by protocol, in a file that is removed with the checkpoints."""

    def __init__(self, file: Path, checkpoint: str) -> None:
        self.file, self.checkpoint = file, checkpoint

    def read(self) -> dict[str, dict[str, float]]:
        """Return the errors of this model; {} if the file has those of another."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            return dict(kept["errors"]) if kept["checkpoint"] == self.checkpoint else {}
        except (OSError, ValueError, KeyError, TypeError):  # no file, or damaged: evaluate again
            return {}

    def add(self, name: str, errors: dict[str, float]) -> None:
        """Add the errors by one protocol."""
        kept = {"checkpoint": self.checkpoint, "errors": self.read() | {name: errors}}
        with explain_disk_errors(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(kept))


def explain_disk_errors(path: Path) -> AbstractContextManager[None]:
    """Turn an OSError while writing to a run folder into a UserError."""
    return explain_write_errors(
        path, "nothing is lost: free some space or fix the folder, and run the same command again to resume"
    )
