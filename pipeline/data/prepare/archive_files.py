"""ImageNet's archive files: names, sizes, MD5 sums, and how to check them."""

import contextlib
import hashlib
import json
import tarfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.data.images import DataError
from pipeline.data.prepare.originals import SPLIT_FOLDERS, visible_names
from pipeline.data.shard_manifest import FORBIDDEN_MEMBERS

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"

VAL_ARCHIVE = "ILSVRC2012_img_val.tar"

DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"

STAND_IN_FILE = "STAND-IN.json"

CHECKSUM_CACHE = "archives.json"  # in the cache: the sums that were found

WNIDS = Path(__file__).parent.with_name("imagenet_classes.txt")  # the thousand classes in order

HASH_CHUNK = 1 << 23  # bytes read at once when summing

HashProgress = Callable[[int, int], None]  # bytes done, bytes in all

Span = tuple[str, int, int]  # a member's name, where its content begins in the outermost file, its bytes


class PublishedSum(BaseModel):
    """What an archive must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    md5: str = Field(pattern=r"^[0-9a-f]{32}$")
    bytes: int | None = None  # None: not known


class StandInSums(BaseModel):
    """STAND-IN.json: that these archives are not ImageNet's, how they were made, and what they must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal[1]
    what: str
    classes: int = Field(ge=1, le=1000)
    train: int  # pictures a class
    test: int
    side: int  # pixels
    seed: int
    numbers: tuple[int, ...]  # the devkit's number of each class; meta.mat says the same
    files: dict[str, PublishedSum]  # empty for class folders

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


# md5 as in torchvision.datasets.imagenet.ARCHIVE_META; bytes as image-net.org sends them
PUBLISHED_SUMS = {
    TRAIN_ARCHIVE: PublishedSum(md5="1d675b47d978889d74fa0da5fadfb00e", bytes=147_897_477_120),
    VAL_ARCHIVE: PublishedSum(md5="29b22e2961454d5413ddabcf34fc5622", bytes=6_744_924_160),
    DEVKIT_ARCHIVE: PublishedSum(md5="fa75699e90414af021442c21a62c3abf"),
}


@dataclass(frozen=True)
class Archives:
    """A folder with some of the three, and what they must be."""

    folder: Path
    stand_in: StandInSums | None

    @property
    def sums(self) -> dict[str, PublishedSum]:
        """What each archive must be."""
        return self.stand_in.files if self.stand_in else PUBLISHED_SUMS

    @property
    def remedy(self) -> str:
        """What to do about a damaged one."""
        return "make the stand-in again" if self.stand_in else "download it again from https://image-net.org"

    def path(self, name: str) -> Path:
        """Where an archive lies."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return self.path(name).is_file()

    def wrong(self, where: str, what: str) -> DataError:
        """The sentence for a damaged archive."""
        return DataError(f"{self.folder}: {where} {what}; {self.remedy}")


@dataclass
class Meter:
    """Bytes summed and listed so far."""

    progress: HashProgress
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        self.progress(self.done, self.total)


def has_archives(folder: Path) -> bool:
    """Whether a folder is one for `from_ilsvrc`: pictures are in archives called as ImageNet's are, or nowhere.

    torchvision leaves the devkit beside the train/ and val/ that it unpacks.
    """
    names = {entry.name for entry in visible_names(folder)}
    return bool(names & {TRAIN_ARCHIVE, VAL_ARCHIVE}) or (
        DEVKIT_ARCHIVE in names and not names & SPLIT_FOLDERS.keys()
    )


def imagenet_wnids() -> list[str]:
    """The wnids of the thousand classes, in the order of their labels: sorted, as torchvision has them."""
    return WNIDS.read_text(encoding="ascii").split()


def _check_size(archives: Archives, name: str) -> None:
    """Raise DataError unless an archive is known and has the size that it should."""
    expected = archives.sums.get(name)
    if expected is None:
        raise DataError(
            f"{archives.folder}: {STAND_IN_FILE} does not know {name}; keep other archives in a folder of their own"
        )
    size = archives.path(name).stat().st_size
    if expected.bytes not in (None, size):
        raise archives.wrong(name, f"has {size:,} bytes where it should have {expected.bytes:,}")


def _check_sum(archives: Archives, name: str, cache: Path, meter: Meter) -> None:
    """Raise DataError unless an archive has the md5 that it should."""
    found, expected = _md5(archives.path(name), cache, meter), archives.sums[name].md5
    if found != expected:
        raise archives.wrong(name, f"is damaged or another file: its md5 is {found} where it should be {expected}")


def _md5(file: Path, cache: Path, meter: Meter) -> str:
    """The md5 of a file: remembered, if path, size and times are those that it was found for."""
    stat = file.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    key, notes = str(file.resolve()), cache / CHECKSUM_CACHE
    known = _notes(notes).get(key)
    if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
        meter.add(stat.st_size)
        return known[-1]
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(HASH_CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
    temporary = notes.with_name(f".{notes.name}.{uuid.uuid4().hex}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            json.dumps(_notes(notes) | {key: [*stamp, digest.hexdigest()]}, indent=1), encoding="utf-8"
        )
        temporary.replace(notes)
    except OSError:  # a read-only or full disk: only the next call's speed is lost
        with contextlib.suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()


def _notes(file: Path) -> dict[str, object]:
    """The sums remembered; none where they cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _said(error: BaseException) -> str:
    """An error of a library on one line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _check_kind(archives: Archives, where: str, member: tarfile.TarInfo) -> None:
    """Raise DataError unless a member is a regular file."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise archives.wrong(
            where, f"is {FORBIDDEN_MEMBERS.get(member.type, 'of an unknown kind')} where a file should be"
        )
