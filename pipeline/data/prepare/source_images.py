"""Source images: the input of `repro data prepare`, before it is written to shards.

A `SourceSet` lists its images without opening them: 1.3 million file names take seconds to list and about 40 bytes
each. `source_folders` reads class folders, `source_archives` the ILSVRC-2012 archives, `source_from_named_set` a
small set that is held in memory.
"""

import os
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import overload

import numpy as np

from pipeline.common.words import printable
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.prepare.annotations import BoxAnnotations
from pipeline.data.prepare.png import encode_png
from pipeline.data.sources import load_images

MAX_IMAGE_BYTES = 1 << 28  # a larger file is not an image


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image before it is in a shard: a file, or a byte range of an archive."""

    label: int  # position in SourceSet.classes
    stem: str  # of the file name, kept in the shard for traceability: "n01440764_10026"
    file: str  # path of the file or archive
    offset: int = 0  # first byte of the image in the file
    size: int | None = None  # bytes; None: the whole file

    @property
    def where(self) -> str:
        """Location for a message: the file, or the archive and the image's stem."""
        if self.size is None:
            return printable(self.file)
        return f"{printable(Path(self.file).name)}, {self.stem}"

    def read(self) -> bytes:
        """Return the encoded image; raise DataError if it cannot be read."""
        try:
            with Path(self.file).open("rb", buffering=0) as opened:
                if self.size is None:
                    return self._read_file(opened)
                return self._read_range(opened.fileno(), self.size)
        except OSError as error:
            raise DataError(f"{self.where} cannot be read ({error.strerror}); restore or remove it") from None

    def _read_file(self, opened: FileIO) -> bytes:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{self.where} has {size:,} bytes, too large for an image; remove it")
        return opened.read()

    def _read_range(self, file: int, size: int) -> bytes:
        content = os.pread(file, size, self.offset)
        if len(content) != size:
            raise DataError(f"{self.where} is truncated: {len(content)} of {size} bytes; restore the archive")
        return content

    def signature(self) -> tuple[int, int]:
        """Return the image's size in bytes and its file's modification time in ns; DataError if it is missing.

        The signature changes when the image does.
        """
        try:
            stat = Path(self.file).stat()
        except OSError as error:
            raise DataError(f"{self.where} cannot be read ({error.strerror}); restore or remove it") from None
        return stat.st_size if self.size is None else self.size, stat.st_mtime_ns


@dataclass(frozen=True, slots=True)
class InMemorySourceImage(SourceImage):
    """An image held in memory as pixels."""

    pixels: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 1), np.uint8))  # uint8 (H, W, C)

    def read(self) -> bytes:
        """Return the image as a PNG file."""
        return encode_png(self.pixels)

    def signature(self) -> tuple[int, int]:
        """Return the size of the PNG file in bytes and its CRC-32."""
        content = self.read()
        return len(content), zlib.crc32(content)


@dataclass(frozen=True)
class SourceSet:
    """An image set before it is prepared."""

    name: str  # "imagenet", "imagenet-standin", "mnist", or the name of a folder
    source: str  # one line: its origin, without a local path
    classes: tuple[str, ...]
    splits: dict[str, Sequence[SourceImage]]  # "train" and "test", or one of them
    boxes: BoxAnnotations | None = None  # bounding boxes of the objects in the images
    skipped: tuple[str, ...] = ()  # paths of files in the folders that are not images


class SourceImageSequence(Sequence[SourceImage]):
    """A sequence that builds each SourceImage when it is accessed."""

    @abstractmethod
    def image(self, index: int) -> SourceImage:
        """Return the image at `index`, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> SourceImage: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[SourceImage]: ...

    def __getitem__(self, index: int | slice) -> SourceImage | Sequence[SourceImage]:
        if isinstance(index, slice):
            return [self.image(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.image(index % len(self))


class InMemorySourceImages(SourceImageSequence):
    """The images of one split of a set held in memory."""

    def __init__(self, images: LabelledImages, source: str) -> None:
        """`source`: set and split, for messages."""
        self.images, self.source = images, source

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> SourceImage:
        """Return the image at `index`; its stem is the index."""
        pixels, label = self.images.pixels[index].numpy(), int(self.images.labels[index])
        return InMemorySourceImage(label, str(index), f"{self.source}, image {index}", pixels=pixels)


def source_from_named_set(name: str, root: Path) -> SourceSet:
    """Return a set of `sources.load_images` in its canonical order; its shards hold lossless PNG files."""
    images = load_images(name, root)
    splits = {"train": images.train, "test": images.test}
    return SourceSet(
        images.name,
        images.source,
        images.classes,
        {key: InMemorySourceImages(split, f"{images.name}, {key}") for key, split in splits.items()},
    )
