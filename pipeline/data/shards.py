"""Sets of photographs in WebDataset shards: the manifest that identifies them, and reading by number.

A set is a folder (or a prefix on a server) with

    manifest.json     classes, counts, the name, size and sha256 of every shard
    train.index.npy   where each sample lies, with a checksum of its own; test.index.npy likewise
    train-00000.tar   tar files as WebDataset writes and reads them: 00000017-n01440764_10026.cls, .jpg, ...

WebDataset streams: what a process sees depends on how many there are. Here any sample is read by its number, so
that the order of training is a function of (seed, epoch, step) alone; other tools may stream the same files.

Every byte of a shard belongs to one sample's record and is checked by that record's crc32 whenever it is read; the
sha256 of whole shards is for `repro data verify`.
"""

import contextlib
import hashlib
import json
import os
import tarfile
import threading
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.data.images import DataError
from pipeline.data.store import MissingError, Place, Range, place
from pipeline.mistakes import sentence

MANIFEST = "manifest.json"
SPLITS = ("train", "test")
RECORD = np.dtype(  # one row of an index
    [
        ("shard", "<u4"),  # its number
        ("offset", "<u8"),  # where the sample's record begins: its tar headers and members
        ("size", "<u4"),  # the record's bytes; records leave no gap, a shard's last one takes the tar's end
        ("crc32", "<u4"),  # zlib.crc32 of the record
        ("image", "<u4"),  # where in the record the picture's file begins
        ("bytes", "<u4"),  # and its length
        ("label", "<i4"),
        ("height", "<u4"),  # pixels
        ("width", "<u4"),
    ]
)

STRANGE = {  # what a tar file may hold beside regular files, and no archive or shard of ours does
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Shard(Frozen):
    """One tar file."""

    name: str = Field(pattern=r"^[a-z]+-\d{5,}\.tar$")  # below the manifest's own folder, never beyond
    bytes: int = Field(ge=0, lt=2**62)
    sha256: str
    samples: int = Field(gt=0)


class Split(Frozen):
    """The training or the test part."""

    samples: int = Field(gt=0)
    per_class: tuple[int, ...]  # samples of each class
    sha256: str  # of the content: each sample's label and its picture's sha256, in order
    index: str = Field(pattern=r"^[a-z]+\.index\.npy$")
    index_sha256: str
    shards: tuple[Shard, ...]

    @property
    def bytes(self) -> int:
        """All shards together."""
        return sum(shard.bytes for shard in self.shards)


class Resized(Frozen):
    """How pictures were changed when the shards were made."""

    short_side: int = Field(gt=0)
    interpolation: Literal["bilinear"] = "bilinear"
    quality: int = Field(gt=0, le=100)  # of the JPEG written


class ShardManifest(Frozen):
    """What a prepared set is."""

    format: Literal[1]
    name: str
    source: str  # where it came from
    classes: tuple[str, ...] = Field(min_length=1)
    order: str  # of the samples within the shards
    resized: Resized | None  # None: the pictures are the source's own bytes
    splits: dict[Literal["train", "test"], Split]
    sha256: str  # content_hash: the same pictures, whatever the shards' size

    @field_validator("name")
    @classmethod
    def plain(cls, name: str) -> str:
        """Figures are called by it, and sets may come from strangers."""
        if not name or name[0] == "." or not name.isprintable() or {"/", "\\"} & {*name}:
            raise ValueError(f"{name!r} is no name for a set; prepare the set anew")
        return name

    def to_json(self) -> str:
        """As it stands in the file."""
        return sealed(self.model_dump(mode="json"))


def sealed(values: dict[str, Any]) -> str:
    """A manifest's text, with a hash of all of it: no forger's obstacle, but a hand's, and a broken disk's."""
    bare = {key: value for key, value in values.items() if key != "seal"}
    return json.dumps(bare | {"seal": seal_of(bare)}, indent=1) + "\n"


def seal_of(values: Any) -> str:
    """The sha256 of plain values, independent of layout."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def content_hash(classes: Sequence[str], resized: Resized | None, splits: dict[Any, Split]) -> str:
    """The identity of a set: classes, what was done to the pictures, and the content of each split."""
    said = {
        "classes": list(classes),
        "resized": resized.model_dump(mode="json") if resized else None,
        "splits": {name: [split.samples, split.sha256] for name, split in sorted(splits.items())},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sample_digest(label: int, content: bytes) -> bytes:
    """What a sample adds to its split's hash."""
    return label.to_bytes(8, "little", signed=True) + hashlib.sha256(content).digest()


def read_manifest(where: Place) -> ShardManifest:
    """The manifest of the set at `where`; DataError says what is wrong with it."""
    file = f"{where}/{MANIFEST}"
    try:
        content = where.read(MANIFEST)
    except MissingError:
        raise MissingError(
            f"there is no {file}; shards are made by repro data prepare, which writes it last"
        ) from None
    try:
        raw = json.loads(content)
        seal = raw.pop("seal", None) if isinstance(raw, dict) else None
        manifest = ShardManifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(f"{file} is no manifest of shards: {sentence(error, ShardManifest, raw)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}); restore it, or prepare the set anew") from None
    if seal != seal_of(raw):
        raise DataError(f"{file} was changed by hand: its seal is not that of what it says; restore it")
    if not manifest.splits:
        raise DataError(f"{file} lists no pictures; prepare the set anew")
    if manifest.sha256 != content_hash(manifest.classes, manifest.resized, dict(manifest.splits)):
        raise DataError(f"{file} was changed: its sha256 is not that of what it lists; restore it")
    for name, split in manifest.splits.items():
        counts = sum(split.per_class), sum(shard.samples for shard in split.shards)
        if {*counts, split.samples} != {split.samples} or len(split.per_class) != len(manifest.classes):
            raise DataError(f"{file}: the counts of {name!r} do not fit each other; restore it")
    names = [shard.name for split in manifest.splits.values() for shard in split.shards]
    if len({*names}) != len(names):
        raise DataError(f"{file} lists a shard twice; restore it")
    return manifest


class ShardSplit:
    """The samples of one split (see samples.Samples)."""

    def __init__(self, where: Place, name: str, split: Split, index: np.ndarray, cache: "Cache | None") -> None:
        self.place, self.name, self.split, self.cache = where, name, split, cache
        self.index = index.view(np.ndarray)  # a memmap's own class makes every row dearer
        self.labels = torch.from_numpy(index["label"].astype(np.int64))
        self._shards = [(shard.name, shard.bytes) for shard in split.shards]

    def __len__(self) -> int:
        return len(self.index)

    def where(self, index: int) -> str:
        """Shard and number, for a message."""
        return f"{self.place}/{self._shards[self.index[index]['shard']][0]}, sample {index} of {self.name}"

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The pictures' files. DataError names a sample whose bytes are not those that were prepared."""
        rows = self.index[np.asarray(indices, dtype=np.int64)].tolist()  # plain numbers are read faster
        wanted = [self._part(*row[:3]) for row in rows]
        records: Iterable[bytes]
        if self.place.local:  # one by one: each in the memory that the one before it gave back
            records = (self.place.ranges([part])[0] for part in wanted)
        elif self.cache is None:
            records = self.place.ranges(wanted)
        else:
            near = [self.cache.read(part, row[3]) for part, row in zip(wanted, rows, strict=True)]
            far = iter(
                self.place.ranges([part for part, found in zip(wanted, near, strict=True) if found is None])
            )
            records = (next(far) if found is None else found for found in near)
        pictures = []
        for index, row, record in zip(indices, rows, records, strict=True):
            _, _, size, crc32, image, length, *_ = row
            if len(record) != size or zlib.crc32(record) != crc32:
                raise DataError(self._damage(index, len(record), size))
            pictures.append(record[image : image + length])
        return pictures

    def _part(self, shard: int, offset: int, size: int) -> Range:
        """Where a record lies. Of a shard's last one also the byte behind it, where none should be."""
        name, end = self._shards[shard]
        return name, offset, size + (offset + size == end)

    def _damage(self, index: int, found: int, size: int) -> str:
        what = "is damaged: its bytes are not those that were prepared"
        if found < size:
            what = f"is cut off: {found} of {size} bytes are there"
        elif found > size:
            what = "is followed by bytes that were not prepared"
        return f"{self.where(index)} {what}; repro data verify {self.place} names all that is damaged"


class Cache:
    """Copies of remote shards on this machine: `limit` bytes below `root` in all, whatever sets they are of.

    What is there stays: with every sample drawn once an epoch, throwing out the oldest would throw out what comes
    next. Only the copies of other sets make room, those first that were not used for longest.
    """

    def __init__(self, root: Path, limit: int, source: Place, identity: str) -> None:
        self.root, self.limit, self.source = root, limit, source
        self.folder = root / identity
        self.near = Place(str(self.folder))
        self.have: set[str] = set()

    def read(self, wanted: Range, crc32: int) -> bytes | None:
        """A part of a shard, if a copy is there and undamaged; a damaged one is not used again."""
        if wanted[0] not in self.have:
            return None
        with contextlib.suppress(DataError):  # another set's process may have needed the room
            (record,) = self.near.ranges([wanted])
            if zlib.crc32(record) == crc32:
                return record
        self.have.discard(wanted[0])
        with contextlib.suppress(OSError):
            (self.folder / wanted[0]).unlink()
        return None

    def fill(self, shards: Sequence[Shard], *, stop: Callable[[], bool] = lambda: False) -> None:
        """Copy what fits, one shard after the other; other processes may do the same at the same time.

        DataError where a shard cannot be had, or is not what the manifest says.
        """
        from filelock import FileLock, Timeout

        with self.near.trouble(""):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        for shard in shards:
            while not stop():
                with contextlib.suppress(Timeout), lock.acquire(timeout=1):
                    with self.near.trouble(""):
                        self._keep(shard)
                    break

    def _keep(self, shard: Shard) -> None:
        """Have a copy of `shard`, if there is room. Only one process does this at a time."""
        file = self.folder / shard.name
        if not (file.is_file() and file.stat().st_size == shard.bytes):
            for half in self.root.glob("*/.*.tar.*"):  # of a process that was killed
                half.unlink()
            if not self._room(shard.bytes):
                return
            fresh = file.with_name(f".{file.name}.copied")
            self.source.fetch(shard.name, fresh)
            found = sha256_of(fresh)
            if found != shard.sha256:
                fresh.unlink()
                raise DataError(
                    f"{self.source}/{shard.name} is damaged: its sha256 is {found[:12]} where the manifest"
                    f" says {shard.sha256[:12]}; restore it, or prepare the set anew"
                )
            fresh.replace(file)
        os.utime(self.folder)
        self.have.add(shard.name)

    def _room(self, size: int) -> bool:
        """Whether `size` more bytes may be kept, after other sets' copies made room where that is enough."""
        files = {file: file.stat().st_size for file in self.root.glob("*/*.tar") if not file.name.startswith(".")}
        others = [file for file in files if file.parent != self.folder]
        over = sum(files.values()) + size - self.limit
        if over > sum(files[file] for file in others):
            return False
        for file in sorted(others, key=lambda file: (file.parent.stat().st_mtime, file)):
            if over <= 0:
                break
            over -= files[file]
            file.unlink()
        return True


def sha256_of(file: Path) -> str:
    """The sha256 of a file, read in pieces."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class ShardSet:
    """A prepared set, opened: its manifest and its splits."""

    def __init__(self, where: Place, manifest: ShardManifest, splits: dict[str, ShardSplit]) -> None:
        self.place, self.manifest, self.splits = where, manifest, splits
        self.name, self.classes, self.source = manifest.name, manifest.classes, manifest.source

    @property
    def train(self) -> ShardSplit:
        """The training part; DataError where the set has none."""
        return self._split("train")

    @property
    def test(self) -> ShardSplit:
        """The test part; DataError where the set has none."""
        return self._split("test")

    def _split(self, name: str) -> ShardSplit:
        if name not in self.splits:
            raise DataError(f"{self.place} has no {name} part; prepare the set with one")
        return self.splits[name]


def open_shards(where: str | Path | Place, *, cache: Path | None = None) -> ShardSet:
    """The set at a folder or address. Its index files are checked against the manifest and mapped into memory.

    `cache`: a folder for what is read again and again from afar: the index, and shards up to REPRO_SHARD_CACHE_GB.
    """
    here = where if isinstance(where, Place) else place(where)
    manifest = read_manifest(here)
    limit = cache_limit()
    splits: dict[str, ShardSplit] = {}
    for name, split in manifest.splits.items():
        index = open_index(here, manifest, split, cache)
        copies = None
        if cache and limit and not here.local:
            copies = Cache(cache, limit, here, manifest.sha256[:16])
        splits[name] = ShardSplit(here, name, split, index, copies)
    return ShardSet(here, manifest, splits)


@contextmanager
def copied_meanwhile(part: ShardSplit, warn: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Within: a thread copies the part's shards to this machine, if they are far and REPRO_SHARD_CACHE_GB allows.

    What goes wrong is said through `warn`; the pictures are then read from afar.
    """
    if part.cache is None:
        yield
        return
    cache, over = part.cache, threading.Event()

    def copy() -> None:
        try:
            cache.fill(part.split.shards, stop=over.is_set)
        except DataError as error:
            warn(f"shards are no longer copied to this machine: {error}")

    thread = threading.Thread(target=copy, name="shards")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cache_limit() -> int:
    """Bytes of REPRO_SHARD_CACHE_GB; 0 without it."""
    said = os.environ.get("REPRO_SHARD_CACHE_GB", "0")
    try:
        limit = float(said)
    except ValueError:
        limit = -1
    if not 0 <= limit < 1e9:
        raise DataError(f"REPRO_SHARD_CACHE_GB is {said!r}; it should be a number of gigabytes, such as 200")
    return int(limit * 1e9)


def open_index(here: Place, manifest: ShardManifest, split: Split, cache: Path | None = None) -> np.ndarray:
    """A split's index, checked, and mapped into memory where it is on a disk."""
    file = here.local / split.index if here.local else None
    if not here.local and cache:
        file = cache / manifest.sha256[:16] / split.index
        if not (file.is_file() and sha256_of(file) == split.index_sha256):
            here.fetch(split.index, file)
    shown = f"{here}/{split.index}"
    if file:
        if not file.is_file():
            raise DataError(f"there is no {shown}; restore it, or prepare the set anew")
        found = sha256_of(file)
    else:
        content = here.read(split.index)
        found = hashlib.sha256(content).hexdigest()
    if found != split.index_sha256:
        raise DataError(
            f"{shown} is damaged: its sha256 is {found[:12]} where the manifest says {split.index_sha256[:12]};"
            " restore it, or prepare the set anew"
        )
    try:
        if file:
            index = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            import io

            index = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{shown} is no index ({error}); prepare the set anew") from None
    fits = index.dtype == RECORD and index.shape == (split.samples,)
    within = {"shard": len(split.shards) - 1, "label": len(split.per_class) - 1}
    within |= dict.fromkeys(("offset", "size"), max((shard.bytes for shard in split.shards), default=0))
    fits = fits and all(int(index[column].max()) <= most for column, most in within.items())
    fits = fits and int(index["label"].min()) >= 0
    if not fits or np.bincount(index["label"], minlength=len(split.per_class)).tolist() != [*split.per_class]:
        raise DataError(f"{shown} is not the index of these shards; prepare the set anew")
    return index
