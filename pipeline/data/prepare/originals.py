"""Sets of pictures before they are prepared: what is in which file, and where from.

`from_folders` reads `train/<class>/*` and `test/<class>/*` (or `val`), or class folders that are said to be one of
the two; `from_small_set` takes a set that is held in memory; archives.py reads those of ILSVRC. Pictures are not
opened here: 1.3 million names are listed in seconds and cost some 40 bytes each.
"""

import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np

from pipeline.data.class_folders import WNIDS_FILE
from pipeline.data.folders import SMALL_IMAGE_SUFFIXES
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.sources import ILSVRC_2012, IMAGENET, NAMES, SET_NAME, load_images

PNG = b"\x89PNG\r\n\x1a\n"

PNG_END = b"\0"  # of a file's name, which cannot hold it

SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test"}  # folder -> split

ARCHIVE_SUFFIXES = {
    "train": (147_897_477_120, 1001),
    "test": (6_744_924_160, 1),
}  # ILSVRC-2012's: bytes, tar files in all

MAX_IMAGE_BYTES = 1 << 28  # bytes

PUBLISHED_SETS = (*NAMES, IMAGENET)  # names that say what is in the set


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One picture before it is in a shard: a file, or a part of one."""

    label: int  # position in Originals.classes
    stem: str  # of its name, for traceability: "n01440764_10026"
    file: str  # path of the file that holds it
    offset: int = 0  # where in that file it begins
    size: int | None = None  # its bytes; None: the whole file

    @property
    def where(self) -> str:
        """For a message: the file, or archive and name."""
        if self.size is None:
            return printable(self.file)
        return f"{printable(Path(self.file).name)}, {self.stem}"

    def read(self) -> bytes:
        """Its bytes; DataError where they cannot be had."""
        try:
            with Path(self.file).open("rb", buffering=0) as opened:
                if self.size is None:
                    return self._whole(opened)
                return self._part(opened.fileno(), self.size)
        except OSError as error:
            raise DataError(f"{self.where} cannot be read ({error.strerror}); restore or remove it") from None

    def _whole(self, opened: FileIO) -> bytes:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_IMAGE_BYTES:
            raise DataError(f"{self.where} has {size:,} bytes, far more than a picture; remove it")
        return opened.read()

    def _part(self, file: int, size: int) -> bytes:
        content = os.pread(file, size, self.offset)
        if len(content) != size:
            raise DataError(
                f"{self.where} is cut off: {len(content)} of {size} bytes are there; restore the archive"
            )
        return content

    def facts(self) -> tuple[int, int]:
        """The picture's bytes, and when its file was last changed (ns); DataError where it is gone."""
        try:
            found = Path(self.file).stat()
        except OSError as error:
            raise DataError(f"{self.where} cannot be read ({error.strerror}); restore or remove it") from None
        return found.st_size if self.size is None else self.size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class InMemorySourceImage(SourceImage):
    """A picture that lies in memory."""

    pixels: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 1), np.uint8))  # uint8 (H, W, C)

    def read(self) -> bytes:
        """As a PNG."""
        return encode_png(self.pixels)

    def facts(self) -> tuple[int, int]:
        """The PNG's bytes, and its crc32 instead of a time."""
        content = self.read()
        return len(content), zlib.crc32(content)


@dataclass(frozen=True)
class SourceSet:
    """A set before it is prepared."""

    name: str  # "imagenet", "imagenet-standin", "mnist", a folder's name
    source: str  # one line: where it came from (no local path)
    classes: tuple[str, ...]
    splits: dict[str, Sequence[SourceImage]]  # "train", "test"; a set may have only one of them


def printable(path: str) -> str:
    """A path on one line, whatever bytes are in it."""
    text = os.fsencode(path).decode(errors="replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


class FileListing(Sequence[SourceImage]):
    """The files of a split, class by class, each class sorted by name."""

    def __init__(self, folders: Sequence[str], names: Sequence[bytes]) -> None:
        """`folders`: one a class, in the classes' order; `names`: the files in each, every name ended by a 0."""
        self.folders = tuple(folders)
        self.ends = np.cumsum([of_class.count(PNG_END) for of_class in names])  # of each class
        self.text = b"".join(names)
        self.cuts = np.flatnonzero(np.frombuffer(self.text, np.uint8) == PNG_END[0])  # of each name

    def __len__(self) -> int:
        return len(self.cuts)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's two signatures say more than they help
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        label = int(np.searchsorted(self.ends, index, side="right"))
        start = self.cuts[index - 1] + 1 if index else 0
        name = os.fsdecode(self.text[start : self.cuts[index]])
        return SourceImage(label, Path(name).stem, f"{self.folders[label]}/{name}")


def source_from_folders(folder: Path, split: str | None = None) -> SourceSet:
    """The set in a folder: `train/<class>/` and `test/<class>/` (or `val/`), or one of them.

    `split` ("train", "test") takes that part alone; it is needed where the class folders lie directly in `folder`.
    """
    here = printable(str(folder))
    if not folder.is_dir():
        raise DataError(f"there is no folder {here}; give one with train/<class>/ and test/<class>/")
    if split is not None:
        if split not in SPLIT_FOLDERS:
            raise DataError(f"--split {split!r}: a set's parts are train and test (val is taken for test)")
        split = SPLIT_FOLDERS[split]
    inside = [entry.name for entry in visible_names(folder) if entry.is_dir()]
    if not inside:
        raise DataError(f"{here} holds no class folders; put the pictures into train/<class>/ and test/<class>/")
    if set(inside) <= SPLIT_FOLDERS.keys():
        if {"test", "val"} <= set(inside):
            raise DataError(f"{here} holds both test and val; move away the one that is not the test part")
        parts = {SPLIT_FOLDERS[name]: name for name in inside}
        if split and split not in parts:
            raise DataError(f"{here} holds no {split} part, only {' and '.join(sorted(inside))}")
        parts = {key: name for key, name in parts.items() if split in (None, key)}
        said = " and ".join(f"{folder.resolve().name}/{parts[key]}" for key in ("train", "test") if key in parts)
    elif split is None:
        some = ", ".join(printable(name) for name in inside[:3])
        more = ", ..." if len(inside) > 3 else ""
        raise DataError(
            f"{here} holds the folders {some}{more} and not just train and test (or val); if these are"
            " classes, say which part of a set they are: --split train or --split test"
        )
    else:
        parts, said = {split: ""}, f"{folder.resolve().name} as {split}"
    files = {key: files_by_class(folder / name if name else folder) for key, name in parts.items()}
    classes = class_names(here, files)
    splits: dict[str, Sequence[SourceImage]] = {}
    for key, name in parts.items():
        above = str(folder / name) if name else str(folder)
        splits[key] = FileListing([f"{above}/{name}" for name in classes], [files[key][name] for name in classes])
    return SourceSet(
        set_name(folder.resolve().name, classes, splits), f"class folders {printable(said)}", classes, splits
    )


def visible_names(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, but for hidden files, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{printable(str(folder))} cannot be read ({error.strerror}); check its permissions"
        ) from None


def files_by_class(part: Path) -> dict[str, bytes]:
    """Class -> its files' names, sorted, each ended by a 0; DataError names what does not belong among them."""
    found: dict[str, bytes] = {}
    for folder in visible_names(part):
        if not folder.is_dir():
            raise DataError(f"{printable(folder.path)} is a file where only class folders belong; move it away")
        names = []
        for entry in visible_names(folder.path):
            if not entry.is_file():
                raise DataError(
                    f"{printable(entry.path)} is no file, where only pictures belong; mend it or move it away"
                )
            if not entry.name.lower().endswith(SMALL_IMAGE_SUFFIXES) and not looks_like_image(entry.path):
                raise DataError(f"{printable(entry.path)} is no picture; move it away")
            names.append(os.fsencode(entry.name) + PNG_END)
        found[folder.name] = b"".join(names)
    return found


def looks_like_image(path: str) -> bool:
    """Whether a file without a picture's suffix begins like a JPEG or a PNG."""
    try:
        with Path(path).open("rb") as opened:
            return image_kind(opened.read(len(PNG))) is not None
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror}); restore or remove it") from None


def image_kind(content: bytes) -> str | None:
    """'jpg' or 'png', by the content."""
    if content.startswith(b"\xff\xd8\xff"):
        return "jpg"
    return "png" if content.startswith(PNG) else None


def class_names(here: str, files: dict[str, dict[str, bytes]]) -> tuple[str, ...]:
    """The classes, sorted by name (numbers by value); each must have pictures in every part.

    ILSVRC's thousand come in the order of imagenet_classes.txt, which is sorted by name too.
    """
    named = {name for part in files.values() for name in part}
    if not named:
        raise DataError(f"{here} holds no class folders; put the pictures into train/<class>/ and test/<class>/")
    numbers = all(name.isdecimal() for name in named)
    classes = tuple(sorted(named, key=lambda name: (int(name) if numbers else 0, name)))
    for name in classes:
        for part, found in files.items():
            if not found.get(name):
                everywhere = " from both parts" if len(files) > 1 else ""
                raise DataError(
                    f"{here}: class {printable(name)!r} has no pictures in the {part} part; add some, or remove the"
                    f" class{everywhere}"
                )
    try:
        "".join(classes).encode()
    except UnicodeEncodeError:
        bad = next(printable(name) for name in classes if printable(name) != name)
        raise DataError(f"{here}: the class folder {bad!r} has a name that is not UTF-8; rename it") from None
    return classes


def set_name(folder: str, classes: Sequence[str], splits: dict[str, Sequence[SourceImage]]) -> str:
    """The folder's name, as a set may be called; that of a published set only where classes, counts and sizes are
    ImageNet's."""
    name = folder
    if not SET_NAME.fullmatch(name):
        name = re.sub(r"[^\w.-]+", "-", name).strip("-._") or "folders"
        name = name if SET_NAME.fullmatch(name) else f"set-{name}"
    if name.lower() not in PUBLISHED_SETS:
        return name
    whole = name == IMAGENET and list(classes) == WNIDS_FILE.read_text(encoding="ascii").split()
    whole = whole and all(
        len(split) == ILSVRC_2012[key] and matches_published(key, split) for key, split in splits.items()
    )
    return name if whole else f"{name}-folders"


def matches_published(split: str, pictures: Sequence[SourceImage]) -> bool:
    """Whether the files, packed as ILSVRC-2012's were, give archives of the published size: resized ones do not.

    A tar file has 512 bytes before each member, members filled up to 512, and at its end 1 to 21 KB of zeros.
    """
    published, tars = ARCHIVE_SUFFIXES[split]
    packed = sum(512 + -(-Path(one.file).stat().st_size // 512) * 512 for one in pictures)
    packed += 512 * (tars - 1)  # headers of tar files within a tar file
    return packed + tars * 1024 <= published <= packed + tars * (1024 + 2 * 10240)


class InMemorySourceImages(Sequence[SourceImage]):
    """Images in memory, as originals."""

    def __init__(self, images: LabelledImages, source: str) -> None:
        self.images, self.source = images, source

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # as Listing
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        pixels, label = self.images.pixels[index].numpy(), int(self.images.labels[index])
        return InMemorySourceImage(
            label, str(index % len(self)), f"{self.source}, picture {index % len(self)}", pixels=pixels
        )


def source_from_named_set(name: str, root: Path) -> SourceSet:
    """A set that sources.load knows, in its canonical order; its shards hold PNGs, which lose nothing."""
    images = load_images(name, root)
    splits = {"train": images.train, "test": images.test}
    return SourceSet(
        images.name,
        images.source,
        images.classes,
        {key: InMemorySourceImages(split, f"{images.name}, {key}") for key, split in splits.items()},
    )


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (H, W, 1 or 3) as a PNG file, not compressed: the same bytes whatever library compresses how."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    raw = rows.tobytes()
    blocks = [raw[i : i + 65535] for i in range(0, len(raw), 65535)]
    stored = b"".join(
        struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for i, block in enumerate(blocks)
    )  # RFC 1951, section 3.2.4
    zipped = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(raw))  # RFC 1950
    head = struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    return PNG + b"".join(
        png_chunk(kind, body) for kind, body in ((b"IHDR", head), (b"IDAT", zipped), (b"IEND", b""))
    )


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
