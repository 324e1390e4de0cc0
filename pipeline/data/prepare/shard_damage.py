"""Diagnosis of damaged shards: what is wrong with a sample, and why a shard differs from its manifest."""

import contextlib
import mmap
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.images import DataError
from pipeline.data.jpeg import decode
from pipeline.data.shard_manifest import FORBIDDEN_MEMBERS, ShardInfo

TAR_MAGIC, TAR_MAGIC_OFFSET = b"ustar", 257  # in a tar header

MEMBER_NAME = re.compile(r"(\d{8,})-([A-Za-z0-9_-]{0,60})\.(cls|jpg|png)")

REGULAR_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)

MAX_LISTED_SAMPLES = 5  # ranges of samples in one message; the rest is counted

REPAIR_HINT = "restore it or prepare the set again"


@dataclass(frozen=True)
class ShardCheck:
    """One shard to check."""

    split: str
    shard: ShardInfo
    first: int  # index of its first sample within the split
    rows: np.ndarray | None  # of the index, INDEX_DTYPE; None: the index is damaged


def sample_problem(sample: bytes, number: int, row: Sequence[int], *, last: bool) -> str | None:
    """Return what is wrong with a sample whose CRC-32 is right: a shard may be crafted. None if nothing is.

    `row`: its index row; `last`: it is the last sample of the shard, which includes the end of the tar file.
    """
    _, _, _, _, image, length, label, *_ = row
    position, members = 0, {}
    for _ in range(2):
        try:
            header = tarfile.TarInfo.frombuf(
                sample[position : position + tarfile.BLOCKSIZE], "utf-8", "surrogateescape"
            )
        except tarfile.HeaderError:
            return "has no tar header at the start of a member"
        forbidden = forbidden_member(header)
        if forbidden:
            return f"has {forbidden}"
        name = MEMBER_NAME.fullmatch(header.name)
        assert name is not None
        if int(name[1]) != number:
            return f"has the member {header.name!r} of another sample"
        position += tarfile.BLOCKSIZE
        members[member_kind(name)] = header.name.rpartition(".")[0], position, header.size
        position += -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if len(members) != 2 or members["label"][0] != members["image"][0]:
        return "does not consist of one label and one image"
    if members["image"][1:] != (image, length):
        return "has its image at another place than the index says"
    if (len(sample) != position and not last) or sample[position:].strip(b"\0"):
        return "is followed by bytes that belong to no member"
    _, begin, size = members["label"]
    if sample[begin : begin + size] != str(label).encode():
        return f"has label {short_text(sample[begin : begin + size])}, but the index says {label}"
    return None


def image_problem(sample: bytes, row: Sequence[int], where: str) -> str | None:
    """Return why an image cannot be decoded to the size in its index row, None if it can."""
    _, _, _, _, image, length, _, height, width = row
    try:
        found = decode(sample[image : image + length], where).shape[:2]
    except DataError:
        return "has an image that cannot be decoded"
    if found != (height, width):
        return f"has an image of {found[0]} x {found[1]} pixels, but the index says {height} x {width}"
    return None


def forbidden_member(header: tarfile.TarInfo) -> str | None:
    """Return a description of a tar member that no shard may have, None for a label or an image."""
    name = repr(header.name)
    if header.type not in REGULAR_FILES:
        kind = FORBIDDEN_MEMBERS.get(header.type, "of an unknown type")
        return f"the member {name}, {kind} instead of a regular file"
    if header.name.startswith("/") or ".." in header.name.split("/"):
        return f"the member {name}, whose path is absolute or contains '..'"
    if not MEMBER_NAME.fullmatch(header.name):
        return f"the member {name}, which is neither the label nor the image of a sample"
    return None


def member_kind(name: re.Match[str]) -> str:
    """Return 'label' or 'image' for a match of MEMBER_NAME."""
    return "label" if name[3] == "cls" else "image"


def tar_headers(file: Path) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Yield offset and header of every valid tar header at any offset, also after lost or inserted bytes."""
    if not file.stat().st_size:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.find(TAR_MAGIC)
        while found >= 0:
            begin = found - TAR_MAGIC_OFFSET
            if begin >= 0:
                block = content[begin : begin + tarfile.BLOCKSIZE]
                with contextlib.suppress(tarfile.HeaderError):
                    yield begin, tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            found = content.find(TAR_MAGIC, found + 1)


def damage_reasons(file: Path, check: ShardCheck, damaged: Sequence[int], size: int) -> list[str]:
    """Return why a shard differs from its manifest, as far as can be determined; at least one reason.

    `damaged`: the samples whose CRC-32 differs; `size`: bytes of the file.
    """
    expected = check.shard.bytes
    if not size:
        return ["it is empty"]
    reasons = []
    if size < expected:
        reasons.append(f"{expected - size} of its {expected} bytes are missing")
    elif size > expected:
        reasons.append(f"it has {size - expected} bytes too many")
    members: dict[int, dict[str, list[int]]] = {}  # sample -> offsets of its labels and of its images
    for offset, header in tar_headers(file):
        forbidden = forbidden_member(header)
        name = MEMBER_NAME.fullmatch(header.name)
        if forbidden or not name:
            reasons.append(f"it has {forbidden}")
            continue
        members.setdefault(int(name[1]), {"label": [], "image": []})[member_kind(name)].append(offset)
    end = check.first + check.shard.samples
    samples: dict[str, list[int]] = {}  # state -> samples
    if check.rows is not None:
        with file.open("rb") as opened:
            for number in damaged:
                row = check.rows[number - check.first].tolist()
                state = sample_state(opened.read, opened.seek, row, members.get(number), size)
                samples.setdefault(state, []).append(number)
    samples["duplicated"] = [n for n, kinds in members.items() if max(map(len, kinds.values())) > 1]
    samples["from another shard"] = [number for number in members if not check.first <= number < end]
    if check.rows is None:
        samples["missing"] = [number for number in range(check.first, end) if number not in members]
    reasons += [f"{list_samples(numbers)} {state}" for state, numbers in samples.items() if numbers]
    if reasons:
        return reasons[: 2 * MAX_LISTED_SAMPLES]
    return ["its bytes do not match the sha256 in the manifest"]


def sample_state(
    read: Callable[[int], bytes],
    seek: Callable[[int], int],
    row: Sequence[int],
    members: dict[str, list[int]] | None,
    size: int,
) -> str:
    """Return what happened to a sample whose CRC-32 differs.

    `read` and `seek`: of the shard, which has `size` bytes; `row`: the sample's index row; `members`: offsets of
    the tar headers of its labels and images.
    """
    _, offset, length, crc32, _, _, label, *_ = row
    if not members:
        return "missing"
    for begin in members["label"]:
        seek(begin)
        if zlib.crc32(read(length)) == crc32:
            return "intact, but at another offset"
    for kind in ("label", "image"):
        if not members[kind]:
            return f"without {kind}"
    if offset + length > size and members["label"] == [offset]:
        return "truncated"
    seek(members["label"][0])
    sample = read(length)
    found = sample[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + len(str(label))]
    if found != str(label).encode():
        return f"changed (label {short_text(found)}, but the index says {label})"
    if image_problem(sample, row, ""):
        return "changed (the image cannot be decoded)"
    return "changed"


def list_samples(numbers: Sequence[int]) -> str:
    """Return 'sample 3 is' or 'samples 3, 5 to 9 are'; after MAX_LISTED_SAMPLES ranges the rest is counted."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(a) if a == b else f"{a}{' to ' if b > a + 1 else ', '}{b}" for a, b in ranges]
    more = sum(b - a + 1 for a, b in ranges[MAX_LISTED_SAMPLES:])
    shown = ", ".join(texts[:MAX_LISTED_SAMPLES]) + (f" and {more} more" if more else "")
    return f"sample {shown} is" if len(numbers) == 1 else f"samples {shown} are"


def short_text(content: bytes) -> str:
    """Return the first 12 bytes for a message, quoted, with escapes."""
    return repr(content[:12].decode("ascii", "backslashreplace"))
