"""Verify a sharded data set byte by byte."""

import contextlib
import hashlib
import mmap
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.prefetch import prefetch
from pipeline.data.prepare.originals import printable
from pipeline.data.shard_manifest import FORBIDDEN_MEMBERS, MANIFEST_NAME, ShardInfo, read_manifest, sample_digest
from pipeline.data.shards import open_index
from pipeline.data.store import MissingFileError, Store, scratch_folder

TAR_BLOCK_SIZE = 512  # bytes: tar's unit

SCAN_CHUNK = 2**20  # bytes read at once beyond the last sample

MAGIC, MAGIC_AT = b"ustar", 257  # in a tar header

MEMBER = re.compile(r"(\d{8,})-([A-Za-z0-9_-]{0,60})\.(cls|jpg|png)")

PRINTABLE = (tarfile.REGTYPE, tarfile.AREGTYPE)

MAX_LISTED_SAMPLES = 5  # that many of a kind are named in one sentence

REPAIR_HINT = "restore it, or prepare the set anew"


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check."""

    split: str
    shard: ShardInfo
    first: int  # number of its first sample within the split
    rows: np.ndarray | None  # of the index (shards.RECORD); None where that is damaged itself


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard."""

    part: ShardCheck
    faults: list[str]
    digests: bytes  # sample_digest of each sample; without meaning if there are faults


def verify_shards(
    where: Store, *, threads: int, decoding: bool = True, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """All that is wrong with the set at `where`, each in one sentence; empty if it is whole.

    `decoding`: also decode every picture; without it verifying takes a fifth of the time, and pictures that were
    broken before they were prepared stay unseen. `progress` is told of bytes done and bytes in all. Remote shards
    are copied one by one to a temporary folder. DataError where there is no manifest, or a damaged one: without it
    nothing can be said of the rest.
    """
    manifest = read_manifest(where)
    if not where.local:
        scratch_folder()  # is there one?
    faults, parts = [], []
    for name, split in manifest.splits.items():
        index = None
        try:
            index = open_index(where, manifest, split)
        except DataError as error:
            faults.append(str(error))
        first = 0
        for number, shard in enumerate(split.shards):
            rows = None if index is None else index[first : first + shard.samples]
            if rows is not None and not _covers(rows, number, shard):
                faults.append(
                    f"{where}/{split.index} does not say where the samples of {shard.name} are; {REPAIR_HINT}"
                )
                rows = None
            parts.append(ShardCheck(name, shard, first, rows))
            first += shard.samples
    expected = {
        MANIFEST_NAME,
        *(split.index for split in manifest.splits.values()),
        *(one.shard.name for one in parts),
    }
    strange = [name for name in where.names(folders=True) if name not in expected]
    faults += [f"{where}/{printable(name)} is not part of the set; remove it" for name in strange]

    content = {str(name): hashlib.sha256() for name in manifest.splits}
    clean = {one.split: one.rows is not None for one in reversed(parts)}
    done, total = 0, sum(split.bytes for split in manifest.splits.values())
    classes = len(manifest.classes)
    for found in prefetch(
        parts, lambda part: _check(where, part, classes, decoding), threads=threads, depth=2 * threads
    ):
        faults += found.faults
        content[found.part.split].update(found.digests)
        clean[found.part.split] &= not found.faults and found.part.rows is not None
        done += found.part.shard.bytes
        if progress:
            progress(done, total)
    for name, split in manifest.splits.items():
        if clean[name] and content[name].hexdigest() != split.sha256:
            faults.append(
                f"{where}/{MANIFEST_NAME}: the sha256 of {name!r} is not that of its pictures and labels; {REPAIR_HINT}"
            )
    return faults


def _covers(rows: np.ndarray, number: int, shard: ShardInfo) -> bool:
    """Whether an index's rows are of this shard, and cover it without gap or overlap."""
    ends = rows["offset"] + rows["size"]
    return (
        len(rows) == shard.samples
        and bool((rows["shard"] == number).all())
        and int(rows["offset"][0]) == 0
        and bool((rows["offset"][1:] == ends[:-1]).all())
        and int(ends[-1]) == shard.bytes
    )


def _check(where: Store, part: ShardCheck, classes: int, decoding: bool) -> ShardReport:
    """One shard, start to end."""
    shown = f"{where}/{part.shard.name}"
    try:
        with _at_hand(where, part.shard.name) as file:
            return _examine(file, part, shown, classes, decoding)
    except MissingFileError:
        return ShardReport(part, [f"{shown} is missing; {REPAIR_HINT}"], b"")
    except DataError as error:
        return ShardReport(part, [str(error)], b"")


@contextlib.contextmanager
def _at_hand(where: Store, name: str) -> Iterator[Path]:
    """A file on this machine: itself, or a copy that goes away."""
    if where.local:
        with where.trouble(name):
            if not (where.local / name).is_file():
                raise MissingFileError(f"there is no {where}/{name}")
            yield where.local / name
        return
    with tempfile.TemporaryDirectory(prefix="repro-verify-", dir=scratch_folder()) as folder:
        where.fetch(name, Path(folder) / name)
        yield Path(folder) / name


def _examine(file: Path, part: ShardCheck, shown: str, classes: int, decoding: bool) -> ShardReport:
    """A shard's sums, and its samples one after the other; why it differs, where it does."""
    whole, digests, odd, bad = hashlib.sha256(), bytearray(), [], []
    rows = [] if part.rows is None else part.rows.tolist()
    with file.open("rb") as opened:
        for number, row in enumerate(rows, part.first):
            record = opened.read(row[2])
            whole.update(record)
            if len(record) != row[2] or zlib.crc32(record) != row[3]:
                bad.append(number)
                continue
            problem = _problem(record, number, row, last=number == part.first + len(rows) - 1)
            if decoding and not problem:
                problem = _undecodable(record, row, f"sample {number}")
            if problem:
                odd.append(f"{shown}, sample {number} {problem}; {REPAIR_HINT}")
            digests += sample_digest(row[6], record[row[4] : row[4] + row[5]])
        while piece := opened.read(SCAN_CHUNK):
            whole.update(piece)
    found = file.stat().st_size
    if bad or found != part.shard.bytes or whole.hexdigest() != part.shard.sha256:
        why = "; ".join(_reasons(file, part, bad, found))
        odd.insert(0, f"{shown} is damaged: {why}; {REPAIR_HINT}")
    elif part.rows is None:
        strange = [_stranger(header) for _, header in _headers(file)]
        odd += [f"{shown} has {name}; {REPAIR_HINT}" for name in strange if name]
    return ShardReport(part, odd, bytes(digests))


def _problem(record: bytes, number: int, row: Sequence[int], *, last: bool) -> str | None:
    """What is wrong with a sample's record although its checksum is right: a set may be made to harm."""
    _, _, _, _, image, length, label, *_ = row
    at, members = 0, {}
    for _ in range(2):
        try:
            header = tarfile.TarInfo.frombuf(record[at : at + TAR_BLOCK_SIZE], "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            return "has no tar header where a member begins"
        strange = _stranger(header)
        if strange:
            return f"has {strange}"
        found = MEMBER.fullmatch(header.name)
        assert found is not None
        if int(found[1]) != number:
            return f"has the member {header.name!r} of another one"
        members["cls" if found[3] == "cls" else "picture"] = (
            header.name.rpartition(".")[0],
            at + TAR_BLOCK_SIZE,
            header.size,
        )
        at += TAR_BLOCK_SIZE + -(-header.size // TAR_BLOCK_SIZE) * TAR_BLOCK_SIZE
    if len(members) != 2 or members["cls"][0] != members["picture"][0]:
        return "has not one label and one picture"
    if members["picture"][1:] != (image, length):
        return "has its picture elsewhere than the index says"
    if (len(record) != at and not last) or record[at:].strip(b"\0"):
        return "is followed by bytes of no member"
    _, begin, size = members["cls"]
    if record[begin : begin + size] != str(label).encode():
        return f"has the label {_text(record[begin : begin + size])}, where the index says {label}"
    return None


def _stranger(header: tarfile.TarInfo) -> str | None:
    """What a member is that no shard may have, in words; None if it is one of the two kinds."""
    name = repr(header.name)
    if header.type not in PRINTABLE:
        kind = FORBIDDEN_MEMBERS.get(header.type, "of an unknown kind")
        return f"the member {name}, {kind}: only plain files belong in shards"
    if header.name.startswith("/") or ".." in header.name.split("/"):
        return f"the member {name}, an absolute or climbing name"
    if not MEMBER.fullmatch(header.name):
        return f"the member {name}, which is neither the label nor the picture of a sample"
    return None


def _undecodable(record: bytes, row: Sequence[int], where: str) -> str | None:
    """What keeps a picture from being decoded, or from having the size that the index says."""
    _, _, _, _, image, length, _, height, width = row
    try:
        found = decode(record[image : image + length], where).shape[:2]
    except DataError:
        return "has a picture that cannot be decoded"
    if found != (height, width):
        return f"has a picture of {found[0]} x {found[1]} pixels, where the index says {height} x {width}"
    return None


def _headers(file: Path) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Every valid tar header, wherever it stands: bytes lost or added before it do not hide it."""
    if not file.stat().st_size:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(MAGIC)
        while at >= 0:
            begin = at - MAGIC_AT
            if begin >= 0:
                with contextlib.suppress(tarfile.HeaderError):
                    yield (
                        begin,
                        tarfile.TarInfo.frombuf(
                            content[begin : begin + TAR_BLOCK_SIZE], "utf-8", "surrogateescape"
                        ),
                    )
            at = content.find(MAGIC, at + 1)


def _reasons(file: Path, part: ShardCheck, bad: Sequence[int], size: int) -> list[str]:
    """Why a shard is not the one that the manifest lists, as far as can be seen; at least one reason.

    `bad`: numbers of the samples that are not what they should be at their place.
    """
    expected = part.shard.bytes
    if not size:
        return ["it is empty"]
    reasons = []
    if size < expected:
        reasons.append(f"{expected - size} of its {expected} bytes are missing")
    elif size > expected:
        reasons.append(f"it has {size - expected} bytes too many")
    members: dict[int, dict[str, list[int]]] = {}
    for at, header in _headers(file):
        strange = _stranger(header)
        found = MEMBER.fullmatch(header.name)
        if strange or not found:
            reasons.append(f"it has {strange}")
            continue
        kind = "cls" if found[3] == "cls" else "picture"
        members.setdefault(int(found[1]), {"cls": [], "picture": []})[kind].append(at)
    last = part.first + part.shard.samples
    groups: dict[str, list[int]] = {}
    if part.rows is not None:
        with file.open("rb") as opened:
            for number in bad:
                row = part.rows[number - part.first].tolist()
                state = _state(opened.read, opened.seek, row, members.get(number), size)
                groups.setdefault(state, []).append(number)
    groups["there more than once"] = [n for n, kinds in members.items() if max(map(len, kinds.values())) > 1]
    groups["of another shard"] = [number for number in members if not part.first <= number < last]
    if part.rows is None:
        groups["missing"] = [number for number in range(part.first, last) if number not in members]
    reasons += [f"{_numbers(numbers)} {state}" for state, numbers in groups.items() if numbers]
    if reasons:
        return reasons[: 2 * MAX_LISTED_SAMPLES]
    return ["its bytes are not those that the manifest lists"]


def _state(
    read: Callable[[int], bytes],
    seek: Callable[[int], int],
    row: Sequence[int],
    members: dict[str, list[int]] | None,
    size: int,
) -> str:
    """What became of a sample that is not what it should be at its place."""
    _, offset, length, crc32, _, _, label, *_ = row
    if not members:
        return "missing"
    for begin in members["cls"]:
        seek(begin)
        if zlib.crc32(read(length)) == crc32:
            return "whole, but not in place"
    for kind, word in (("cls", "label"), ("picture", "picture")):
        if not members[kind]:
            return f"without {word}"
    if offset + length > size and members["cls"] == [offset]:
        return "cut off"
    begin = members["cls"][0]
    seek(begin)
    record = read(length)
    said = record[TAR_BLOCK_SIZE : TAR_BLOCK_SIZE + len(str(label))]
    if said != str(label).encode():
        return f"changed (label {_text(said)} where the index says {label})"
    if _undecodable(record, row, ""):
        return "changed (the picture cannot be decoded)"
    return "changed"


def _numbers(numbers: Sequence[int]) -> str:
    """'sample 3 is', 'samples 3, 5 to 9 are': a few, then how many more."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(a) if a == b else f"{a}{' to ' if b > a + 1 else ', '}{b}" for a, b in spans]
    more = sum(b - a + 1 for a, b in spans[MAX_LISTED_SAMPLES:])
    shown = ", ".join(words[:MAX_LISTED_SAMPLES]) + (f" and {more} more" if more else "")
    return f"sample {shown} is" if len(numbers) == 1 else f"samples {shown} are"


def _text(content: bytes) -> str:
    """A few bytes for a message."""
    return repr(content[:12].decode("ascii", "backslashreplace"))
