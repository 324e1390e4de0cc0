"""The folder of one run: its journal, checkpoints and result. Whatever stops a run, what is here stays readable.

runs/<identity>/
  run.json           what is being trained
  journal.jsonl      the curves: one line a report; append-only
  progress.json      where training is now, for a progress bar
  checkpoints/       step-0000440-<16 hex digits of its sha256>.ckpt, the last two
  network.safetensors    the last model, once finished
  result.json        the Record, once ended; its presence means: never train this again
  lock               held by the process that trains
  log.txt            what happened to it, in sentences
  stop               why it should stop at its next step, for the processes that train it, wherever they are
  left.json          why it is not finished, where it was left for a reason: over-budget, cancelled, failed, ...
"""

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from pipeline.common.errors import UserError, explain_write_errors
from pipeline.common.files import file_hash, write_atomically
from pipeline.track.record import Record

CHECKPOINT_NAME = re.compile(r"step-(\d{10})-([0-9a-f]{16})\.ckpt")

CHECKPOINTS_KEPT = 2

UnfinishedReason = Literal["over-budget", "cancelled", "failed"]


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_file = path / "journal.jsonl"
        self.result_file = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.lock_file = path / "lock"
        self.network_file = path / "network.safetensors"
        self.log_file = path / "log.txt"

    def create(self, description: Mapping[str, Any]) -> None:
        """Make the folder, with what the run is."""
        with explain_disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / "run.json", json.dumps(description, indent=1, sort_keys=True))

    def description(self) -> dict[str, Any]:
        """What `create` was given."""
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

    def is_training(self) -> bool:
        """Whether a process trains it now."""
        try:
            with FileLock(self.lock_file, timeout=0):
                return False
        except Timeout:
            return True

    # The result

    def result(self) -> Record | None:
        """The run's record if it has ended."""
        if not self.result_file.is_file():
            return None
        try:
            return Record.from_dict(json.loads(self.result_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:  # damaged, or of a version before the first
            reason = f"{self.result_file} is not a run's record ({error})"
            raise UserError(f"{reason}; move its folder away, and the run will be trained again") from None

    def finish(self, record: Record, network: bytes | None) -> None:
        """Write the last model, if it converged, and then the record; the checkpoints have done their work."""
        with explain_disk_errors(self.path):
            if network is not None:
                write_atomically(self.network_file, network)
            write_atomically(self.result_file, json.dumps(record.to_dict(), indent=1, sort_keys=True))
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        (self.path / "progress.json").unlink(missing_ok=True)

    # What is asked of it and what became of it, for processes that share nothing but this folder

    def request_stop(self, why: str) -> None:
        """Ask whatever trains it to stop at its next step, resumable."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "stop", f"{why} {time.time():.3f}")

    def stop_reason(self) -> str:
        """Why it should stop, "" if nobody asked."""
        return self.stop_request()[0]

    def stop_request(self) -> tuple[str, float]:
        """Why it should stop, and when that was asked (seconds of the epoch)."""
        try:
            why, when = (self.path / "stop").read_text(encoding="utf-8").rsplit(" ", 1)
            return why, float(when)
        except (OSError, ValueError):
            return "", 0.0

    def mark_unfinished(self, why: UnfinishedReason, text: str, asked: float | None = None) -> None:
        """Say why it is not finished, and answer whoever asked, at what time."""
        when = asked or self.stop_request()[1] or time.time()
        write_atomically(self.path / "left.json", json.dumps({"why": why, "text": text, "asked": when}))
        (self.path / "stop").unlink(missing_ok=True)

    def unfinished(self) -> dict[str, Any]:
        """{"why", "text", "asked"} of a run that was left unfinished, or {}."""
        try:
            found = json.loads((self.path / "left.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and {"why", "text", "asked"} <= found.keys() else {}

    def clear_unfinished(self) -> None:
        """Forget what was asked and why it was left: somebody wants it again."""
        with explain_disk_errors(self.path):
            for name in ("stop", "left.json"):
                (self.path / name).unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add what happened to the run's log; one that cannot be written stops nothing."""
        stamp = datetime.now(UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
        with suppress(OSError):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write("".join(f"{stamp} {line}\n" for line in text.splitlines()))

    # The journal

    def append_journal(self, entry: Mapping[str, Any]) -> None:
        """Add one line to the journal: {"step", "time", "metrics"}."""
        with explain_disk_errors(self.path), self.journal_file.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def repair_journal(self) -> int:
        """Drop a half-written last line; returns the last step reported, -1 for none."""
        if not self.journal_file.is_file():
            return -1
        whole = self.journal_file.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            with self.journal_file.open("r+b") as file:
                file.truncate(end)
        return max((entry["step"] for entry, _ in self.journal()), default=-1)

    def journal(self, start: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Entries from byte `start` on, each with the byte after it; a half-written last line is left out."""
        if not self.journal_file.is_file():
            return
        with self.journal_file.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if line.endswith(b"\n"):
                    yield json.loads(line), start

    # Progress

    def write_progress(self, step: int, images_per_second: float) -> None:
        """Say where training is; a progress bar that cannot be written stops nothing."""
        where = {"host": socket.gethostname(), "pid": os.getpid()}
        text = json.dumps({"step": step, "images_per_second": images_per_second} | where)
        try:
            write_atomically(self.path / "progress.json", text)
        except OSError:
            return

    def read_progress(self) -> dict[str, Any]:
        """The last report: {"step", "images_per_second", "host", "pid"}, or {}."""
        try:
            return json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    # Checkpoints

    def save_checkpoint(self, step: int, save: Callable[[Path], None]) -> None:
        """Let `save` write a file, then put it in place whole; the newest two are kept."""
        with explain_disk_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            beside = self.checkpoints / ".writing"  # one name, so that a killed process leaves one file at most
            try:
                save(beside)
                with beside.open("rb") as file:
                    os.fsync(file.fileno())
                beside.replace(self.checkpoints / f"step-{step:010d}-{file_hash(beside)}.ckpt")
            finally:
                beside.unlink(missing_ok=True)
        for old in self.checkpoint_files()[CHECKPOINTS_KEPT:]:
            old.unlink(missing_ok=True)

    def evaluation_cache(self, checkpoint: str) -> "EvaluationCache":
        """Errors of the model in the file `checkpoint`, kept while others are measured."""
        return EvaluationCache(self.checkpoints / "judged.json", checkpoint)

    def checkpoint_files(self) -> list[Path]:
        """All checkpoints, the newest first, damaged ones included."""
        found = [path for path in self.checkpoints.glob("*.ckpt") if CHECKPOINT_NAME.fullmatch(path.name)]
        return sorted(found, reverse=True)

    def last_step(self) -> int:
        """Return the step of the newest checkpoint file, 0 for none; the file itself is not read."""
        names = [CHECKPOINT_NAME.fullmatch(path.name) for path in self.checkpoint_files()]
        return max((int(name[1]) for name in names if name), default=0)

    def last_checkpoint(self, warn: Callable[[str], None]) -> tuple[int, Path] | None:
        """Step and file of the newest whole checkpoint; a damaged one is named through `warn` and passed over."""
        files = self.checkpoint_files()
        for path in files:
            match = CHECKPOINT_NAME.fullmatch(path.name)
            if match and file_hash(path) == match[2]:
                return int(match[1]), path
            instead = "starting from the first update" if path == files[-1] else "using the one before"
            warn(f"checkpoint {path.name} is damaged; {instead}")
        return None


class EvaluationCache:
    """Errors of one model, in a file that ends with the checkpoints."""

    def __init__(self, file: Path, checkpoint: str) -> None:
        self.file, self.checkpoint = file, checkpoint

    def read(self) -> dict[str, dict[str, float]]:
        """All that is kept of this model; nothing of another."""
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))
            return dict(kept["errors"]) if kept["checkpoint"] == self.checkpoint else {}
        except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: they are measured again
            return {}

    def add(self, name: str, errors: dict[str, float]) -> None:
        """Keep these too."""
        kept = {"checkpoint": self.checkpoint, "errors": self.read() | {name: errors}}
        with explain_disk_errors(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, json.dumps(kept))


def explain_disk_errors(path: Path) -> AbstractContextManager[None]:
    """Turn an operating system's refusal to write under `path` into a sentence."""
    return explain_write_errors(
        path,
        "nothing is lost: make room (or mend the folder) and start the same command again, which resumes",
    )


def local_records() -> list[Record]:
    """All ended runs on this machine."""
    from pipeline.common.paths import runs_folder

    found = [RunFolder(path.parent).result() for path in sorted(runs_folder().glob("*/result.json"))]
    return [record for record in found if record]
