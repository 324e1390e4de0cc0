"""Shard records: one small file per finished shard, from which an interrupted `repro data prepare` resumes.

A record holds the fingerprint of the source images, the shard's size and sha256, its index rows and its sample
digests. It is written after its shard and removed when the set is finished.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.shard_manifest import ShardInfo
from pipeline.data.shards import INDEX_DTYPE


@dataclass(frozen=True)
class ShardRecord:
    """Everything the manifest and the index need of a finished shard."""

    fingerprint: str  # ShardJob.fingerprint of the job that wrote it
    shard: ShardInfo
    rows: np.ndarray  # of the index, INDEX_DTYPE
    digests: bytes  # sample_digest of each sample, concatenated


def build_record(fingerprint: str, name: str, file: Path, rows: np.ndarray, digests: bytes) -> bytes:
    """Return the content of a record; reads the shard `file` back from the disk and completes `rows`.

    Fill in the CRC-32 of each row, and extend the last row to the end of the tar file.
    """
    length = file.stat().st_size
    rows["size"][-1] = length - rows["offset"][-1]
    whole = hashlib.sha256()
    with file.open("rb") as stream:
        for row in rows:
            sample = stream.read(row["size"])
            row["crc32"] = zlib.crc32(sample)
            whole.update(sample)
    content = rows.tobytes() + digests
    header = {
        "plan": fingerprint,
        "shard": {"name": name, "bytes": length, "sha256": whole.hexdigest(), "samples": len(rows)},
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + content


def read_record(file: Path) -> ShardRecord | None:
    """Return a record, None if it is missing or damaged."""
    try:
        line, _, content = file.read_bytes().partition(b"\n")
        header = json.loads(line)
        if hashlib.sha256(content).hexdigest() != header["sha256"]:
            return None
        shard = ShardInfo.model_validate(header["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rows_end = shard.samples * INDEX_DTYPE.itemsize
    rows = np.frombuffer(content[:rows_end], INDEX_DTYPE)
    return ShardRecord(header["plan"], shard, rows, content[rows_end:])
