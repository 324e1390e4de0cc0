"""Notes on MLflow experiments. A note that somebody else has written or edited is left as it is."""

import re

from pipeline.common.hashing import digest
from pipeline.track.mlflow_writer import Tracker

NOTE_TAG = "mlflow.note.content"

SIGNATURE = re.compile(r"\n\n\[//\]: # \(repro ([0-9a-f]{16})\)")  # an unused link in Markdown, which is not shown

SIGNATURE_LENGTH = len("\n\n[//]: # (repro 0123456789abcdef)")

MAX_TAG_LENGTH = 5000  # characters of a tag

MAX_NOTE_LENGTH = MAX_TAG_LENGTH - SIGNATURE_LENGTH


def signed(text: str) -> str:
    """Return a note with the hash of its text at the end, by which `is_ours` knows it."""
    return f"{text}\n\n[//]: # (repro {digest(text)})"


def is_ours(note: str, text: str) -> bool:
    """Return True if `note` was written by `set_note` and not edited since, or if there is none.

    `text`: the text that is to replace it. A note without hash, of an earlier version, is ours if it begins as
    `text` does, with the same title and authors.
    """
    if not note.strip():
        return True
    found = SIGNATURE.search(note)
    if found:
        return found.end() == len(note) and digest(note[: found.start()]) == found[1]
    return note.split("\n\n")[:2] == text.split("\n\n")[:2]


def set_note(tracker: Tracker, experiment_id: str, text: str) -> None:
    """Set the note of an MLflow experiment, unless somebody else has written or edited it.

    `text` has at most MAX_NOTE_LENGTH characters. Raises MLflow's exceptions.
    """
    now, new = tracker.client.get_experiment(experiment_id).tags.get(NOTE_TAG, ""), signed(text)
    if now != new and is_ours(now, text):
        tracker.client.set_experiment_tag(experiment_id, NOTE_TAG, new)
