"""The ILSVRC-2012 archive files: their names, sizes and MD5 sums, and how to check them."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.checksums import cached_md5
from pipeline.data.folder_listing import visible_entries
from pipeline.data.images import DataError
from pipeline.data.prepare.source_folders import SPLIT_FOLDERS
from pipeline.data.shard_manifest import FORBIDDEN_MEMBERS
from pipeline.declare.validation import validation_message

TRAIN_ARCHIVE = "ILSVRC2012_img_train.tar"

VAL_ARCHIVE = "ILSVRC2012_img_val.tar"

DEVKIT_ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"

TRAIN_BOXES = "ILSVRC2012_bbox_train_v2.tar.gz"

VAL_BOXES = "ILSVRC2012_bbox_val_v3.tgz"

STAND_IN_FILE = "STAND-IN.json"


class ExpectedFile(BaseModel):
    """MD5 sum and size that an archive must have."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    md5: str = Field(pattern=r"^[0-9a-f]{32}$")
    bytes: int | None = None  # None: not published


class StandInInfo(BaseModel):
    """Content of STAND-IN.json: marks archives as not ImageNet's, how they were made, and their MD5 sums."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal[1]
    what: str
    classes: int = Field(ge=1, le=1000)
    train: int  # images per class
    test: int  # images per class
    side: int  # pixels: the smallest short side of an image
    seed: int
    numbers: tuple[int, ...]  # ILSVRC2012_ID of each class; meta.mat has the same
    files: dict[str, ExpectedFile]  # empty for class folders

    def to_json(self) -> str:
        """Return the text of STAND-IN.json."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


# MD5 sums as in torchvision.datasets.imagenet.ARCHIVE_META, those of boxes as on image-net.org's page of
# downloads; bytes as image-net.org sends them
PUBLISHED_FILES = {
    TRAIN_ARCHIVE: ExpectedFile(md5="1d675b47d978889d74fa0da5fadfb00e", bytes=147_897_477_120),
    VAL_ARCHIVE: ExpectedFile(md5="29b22e2961454d5413ddabcf34fc5622", bytes=6_744_924_160),
    DEVKIT_ARCHIVE: ExpectedFile(md5="fa75699e90414af021442c21a62c3abf"),
    TRAIN_BOXES: ExpectedFile(md5="9271167e2176350e65cfe4e546f14b17"),
    VAL_BOXES: ExpectedFile(md5="f4cd18b5ea29fe6bbea62ec9c20d80f0"),
}


@dataclass(frozen=True)
class Archives:
    """A folder with some of the archives."""

    folder: Path
    stand_in: StandInInfo | None  # None: the archives must be ImageNet's own

    @property
    def expected(self) -> dict[str, ExpectedFile]:
        """MD5 sum and size that each archive must have."""
        return self.stand_in.files if self.stand_in else PUBLISHED_FILES

    def path(self, name: str) -> Path:
        """Path of an archive."""
        return self.folder / name

    def error(self, where: str, problem: str) -> DataError:
        """Return the error for a damaged archive: `where`, what is wrong, and what to do."""
        remedy = "make the stand-in again" if self.stand_in else "download it again from https://image-net.org"
        return DataError(f"{self.folder}: {where} {problem}; {remedy}")


@dataclass
class ByteCounter:
    """Reports the bytes that were hashed and listed so far."""

    progress: Callable[[int, int], None]  # receives bytes done and bytes in total
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """Add `count` bytes and report."""
        self.done += count
        self.progress(self.done, self.total)


def has_archives(folder: Path) -> bool:
    """Return True if `folder` must be read as archives, not as class folders.

    A devkit archive beside train/ or val/ does not count: torchvision leaves it there after unpacking.
    """
    names = {entry.name for entry in visible_entries(folder)}
    return bool(names & {TRAIN_ARCHIVE, VAL_ARCHIVE}) or (
        DEVKIT_ARCHIVE in names and not names & SPLIT_FOLDERS.keys()
    )


def read_stand_in_info(folder: Path) -> StandInInfo | None:
    """Return the content of STAND-IN.json, None if `folder` has none; DataError if it is damaged."""
    file = folder / STAND_IN_FILE
    if not file.exists():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = StandInInfo.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_message(error, StandInInfo, raw)}; make the stand-in again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); make the stand-in again") from None
    if len(found.numbers) != found.classes:
        raise DataError(
            f"{file}: numbers has {len(found.numbers)} entries, but classes is {found.classes}; make the stand-in"
            " again"
        )
    return found


def require_packed(archives: Archives, name: str) -> None:
    """Raise DataError if a compressed archive is missing, but what a browser unpacked from it is there."""
    tar = name.removesuffix(".gz") if name.endswith(".tar.gz") else f"{name.removesuffix('.tgz')}.tar"
    unpacked = [found for found in (tar, tar.removesuffix(".tar")) if archives.path(found).exists()]
    if unpacked and not archives.path(name).exists():
        raise DataError(
            f"{archives.folder} contains {unpacked[0]} but not {name}, which a browser may have unpacked; its MD5"
            f" cannot be checked: download {name} again with curl or wget, which keep it as it is"
        )


def check_size(archives: Archives, name: str) -> None:
    """Raise DataError unless an archive is known and has the expected size."""
    expected = archives.expected.get(name)
    if expected is None:
        raise DataError(
            f"{archives.folder}: {STAND_IN_FILE} does not list {name}; keep other archives in a separate folder"
        )
    size = archives.path(name).stat().st_size
    if expected.bytes not in (None, size):
        raise archives.error(name, f"has {size:,} bytes, expected {expected.bytes:,}")


def check_md5(archives: Archives, name: str, cache: Path, counter: ByteCounter) -> None:
    """Raise DataError unless an archive has the expected MD5 sum."""
    found, expected = cached_md5(archives.path(name), cache, counter.add), archives.expected[name].md5
    if found != expected and name.endswith("gz") and is_plain_tar(archives.path(name)):
        raise archives.error(name, "is not compressed; a browser may have unpacked it, and curl or wget does not")
    if found != expected:
        raise archives.error(name, f"is damaged or a different file: its MD5 is {found}, expected {expected}")


def is_plain_tar(file: Path) -> bool:
    """Return True if a file begins like a tar archive that is not compressed."""
    with file.open("rb") as opened:
        return opened.read(tarfile.BLOCKSIZE)[257:262] == b"ustar"


def check_regular_file(archives: Archives, where: str, member: tarfile.TarInfo) -> None:
    """Raise DataError unless a tar member is a regular file."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = FORBIDDEN_MEMBERS.get(member.type, "of an unknown type")
        raise archives.error(where, f"is {kind}, not a regular file")


def one_line(error: BaseException) -> str:
    """Return a library's error message on one line, or the error's type if it has no message."""
    return " ".join(str(error).split())[:120] or type(error).__name__
