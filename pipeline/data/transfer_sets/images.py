"""Sets for transfers: images of many sizes, read in place from tar archives, with one or several labels each."""

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.data.images import DataError
from pipeline.data.manifest import Manifest

AveragePrecision = Literal["11-point", "area"]

MAX_MEMBER_BYTES = 1 << 28  # a larger file is neither an image nor a list

POSITIVE, DIFFICULT, NEGATIVE = 1, 0, -1  # marks of one class in one image, as PASCAL VOC writes them


class TarMember(NamedTuple):
    """A file in an uncompressed tar archive."""

    archive: Path
    name: str
    offset: int  # of its content in the archive
    size: int  # bytes

    def read(self) -> bytes:
        """Return its content. Raises DataError if it cannot be read, is truncated, or is too large."""
        where = f"{self.archive}, {self.name}"
        if self.size > MAX_MEMBER_BYTES:
            raise DataError(f"{where} has {self.size:,} bytes, too large; restore the archive")
        try:
            file = os.open(self.archive, os.O_RDONLY)
            try:
                content = os.pread(file, self.size, self.offset)
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(f"{where} cannot be read ({error.strerror}); restore the archive") from None
        if len(content) != self.size:
            raise DataError(f"{where} is truncated: {len(content)} of {self.size} bytes; restore the archive")
        return content


def tar_members(archive: Path) -> Iterator[TarMember]:
    """Yield the regular files of a tar archive in their order; nothing is unpacked. DataError if it is damaged."""
    try:
        with tarfile.open(archive, "r:") as opened:
            for member in opened:
                if member.isreg():
                    yield TarMember(archive, member.name.removeprefix("./"), member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{archive} cannot be read as a tar archive ({' '.join(str(error).split())}); delete it and run again"
        ) from None


class ArchiveImages:
    """Images in archives; implements samples.Samples."""

    def __init__(self, members: Sequence[TarMember], labels: Tensor) -> None:
        """`labels`: int64 (N,) classes, or int8 (N, classes) marks (POSITIVE, DIFFICULT, NEGATIVE)."""
        assert len(members) == len(labels)
        self.members, self.labels = tuple(members), labels

    def __len__(self) -> int:
        return len(self.members)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the bytes of the image files."""
        return [self.members[index].read() for index in indices]

    def where(self, index: int) -> str:
        """Archive and name of an image, for a message."""
        return f"{self.members[index].archive}, {self.members[index].name}"


@dataclass(frozen=True, eq=False)
class TransferSet:
    """A published set for transfers, or its stand-in."""

    name: str
    source: str  # origin, in one line
    classes: tuple[str, ...]
    images: ArchiveImages
    parts: Mapping[str, Tensor]  # name of a part -> ascending indices, int64; empty: the set has no parts
    sha256: str  # of the archives' names and checksums
    average_precision: AveragePrecision | None = None  # of sets with several labels per image

    def __len__(self) -> int:
        return len(self.images)

    @property
    def manifest(self) -> Manifest:
        """The manifest: `test` counts the images of the part "test", `train` all others."""
        is_test = torch.zeros(len(self), dtype=torch.bool)
        if "test" in self.parts:
            is_test[self.parts["test"]] = True
        return Manifest(
            name=self.name,
            source=self.source,
            classes=self.classes,
            image=(3, 0, 0),
            train=int((~is_test).sum()),
            test=int(is_test.sum()),
            per_class={"train": self._per_class(~is_test), "test": self._per_class(is_test)},
            sha256=self.sha256,
        )

    def _per_class(self, chosen: Tensor) -> list[int]:
        """Return the number of images of each class among the chosen ones; difficult objects do not count."""
        labels = self.images.labels[chosen]
        if labels.ndim == 2:
            return [int(count) for count in (labels == POSITIVE).sum(0)]
        return [int(count) for count in torch.bincount(labels, minlength=len(self.classes))]


def sorted_members(archives: Sequence[Path], chosen: Callable[[str], bool], what: str) -> list[TarMember]:
    """Return the files whose names are `chosen`, sorted by name. Raises DataError if there are none."""
    found = {member.name: member for file in archives for member in tar_members(file) if chosen(member.name)}
    if not found:
        raise DataError(f"{archives[0]} has no {what}; delete it and run again")
    return [found[name] for name in sorted(found)]
