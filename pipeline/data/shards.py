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

import hashlib
import threading
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline.data.images import DataError
from pipeline.data.shard_cache import ShardCache, file_sha256, shard_cache_bytes
from pipeline.data.shard_manifest import ShardManifest, SplitManifest, read_manifest
from pipeline.data.store import Range, Store, open_store

INDEX_DTYPE = np.dtype(  # one row of an index
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


class ShardSplit:
    """The samples of one split (see samples.Samples)."""

    def __init__(
        self, where: Store, name: str, split: SplitManifest, index: np.ndarray, cache: "ShardCache | None"
    ) -> None:
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


class ShardSet:
    """A prepared set, opened: its manifest and its splits."""

    def __init__(self, where: Store, manifest: ShardManifest, splits: dict[str, ShardSplit]) -> None:
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


def open_shards(where: str | Path | Store, *, cache: Path | None = None) -> ShardSet:
    """The set at a folder or address. Its index files are checked against the manifest and mapped into memory.

    `cache`: a folder for what is read again and again from afar: the index, and shards up to REPRO_SHARD_CACHE_GB.
    """
    here = where if isinstance(where, Store) else open_store(where)
    manifest = read_manifest(here)
    limit = shard_cache_bytes()
    splits: dict[str, ShardSplit] = {}
    for name, split in manifest.splits.items():
        index = open_index(here, manifest, split, cache)
        copies = None
        if cache and limit and not here.local:
            copies = ShardCache(cache, limit, here, manifest.sha256[:16])
        splits[name] = ShardSplit(here, name, split, index, copies)
    return ShardSet(here, manifest, splits)


@contextmanager
def copy_in_background(part: ShardSplit, warn: Callable[[str], None] = lambda _: None) -> Iterator[None]:
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


def open_index(
    here: Store, manifest: ShardManifest, split: SplitManifest, cache: Path | None = None
) -> np.ndarray:
    """A split's index, checked, and mapped into memory where it is on a disk."""
    file = here.local / split.index if here.local else None
    if not here.local and cache:
        file = cache / manifest.sha256[:16] / split.index
        if not (file.is_file() and file_sha256(file) == split.index_sha256):
            here.fetch(split.index, file)
    shown = f"{here}/{split.index}"
    if file:
        if not file.is_file():
            raise DataError(f"there is no {shown}; restore it, or prepare the set anew")
        found = file_sha256(file)
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
    fits = index.dtype == INDEX_DTYPE and index.shape == (split.samples,)
    within = {"shard": len(split.shards) - 1, "label": len(split.per_class) - 1}
    within |= dict.fromkeys(("offset", "size"), max((shard.bytes for shard in split.shards), default=0))
    fits = fits and all(int(index[column].max()) <= most for column, most in within.items())
    fits = fits and int(index["label"].min()) >= 0
    if not fits or np.bincount(index["label"], minlength=len(split.per_class)).tolist() != [*split.per_class]:
        raise DataError(f"{shown} is not the index of these shards; prepare the set anew")
    return index
