"""Anchors of papers, experiments, claims and runs in a report: safe as ids, in addresses and as file names."""

import hashlib
import re

from pipeline.judge.ledger import LedgerEntry

PLAIN_NAME = re.compile(r"[A-Za-z0-9_/-]+")
MAX_LENGTH = 80  # characters of an id, without its hash


def anchor(*parts: str) -> str:
    """Return an id made from texts: ("claim", "resnet/depth", "top1") -> "claim.resnet.depth.top1".

    Texts with other characters than letters, digits, "/", "_" and "-" get a hash, so that ids stay distinct.
    """
    text = ".".join(parts)
    plain = re.sub(r"[^A-Za-z0-9_-]+", ".", text).strip(".")
    if all(map(PLAIN_NAME.fullmatch, parts)):
        return plain
    return f"{plain[:MAX_LENGTH]}.{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:8]}"


def claim_anchor(entry: LedgerEntry) -> str:
    """Return the id of a claim's row."""
    return anchor("claim", entry.experiment, entry.claim.id)


def run_anchor(identity: str) -> str:
    """Return the id of a run's row."""
    return anchor("run", identity)
