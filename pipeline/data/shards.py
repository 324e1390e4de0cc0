"""Sets of images in WebDataset shards, read by sample number.

A set is a folder (or a prefix on a server) with

    manifest.json     classes, counts, and name, size and sha256 of every shard
    train.index.npy   location and checksum of each sample; test.index.npy likewise
    train-00000.tar   tar files as WebDataset writes and reads them: 00000017-n01440764_10026.cls, .jpg, ...

WebDataset streams shards, so the samples of a process depend on the number of processes. This module reads any
sample by its number, so that the order of training is a function of (seed, epoch, step) alone. Other tools can
stream the same files.

Every byte of a shard belongs to the record of one sample, and each read verifies the record's crc32. The sha256 of
whole shards is verified by `repro data verify`.
"""

import hashlib
import io
import threading
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.common.files import file_sha256
from pipeline.data.images import DataError
from pipeline.data.shard_cache import ShardCache, damaged_file, shard_cache_bytes
from pipeline.data.shard_manifest import ShardManifest, SplitManifest, read_manifest
from pipeline.data.store import Range, Store, open_store

INDEX_DTYPE = np.dtype(  # one row of an index
    [
        ("shard", "<u4"),  # number of the shard
        ("offset", "<u8"),  # of the sample's record (its tar headers and members) in the shard
        ("size", "<u4"),  # of the record in bytes; records leave no gap, and the last one includes the tar's end
        ("crc32", "<u4"),  # zlib.crc32 of the record
        ("image", "<u4"),  # offset of the image file in the record
        ("bytes", "<u4"),  # size of the image file
        ("label", "<i4"),
        ("height", "<u4"),  # pixels
        ("width", "<u4"),
    ]
)


Index = NDArray[Any]  # of INDEX_DTYPE, (samples,)


class ShardSplit:
    """The samples of one split; implements samples.Samples."""

    def __init__(
        self, store: Store, name: str, split: SplitManifest, index: Index, cache: ShardCache | None
    ) -> None:
        self.store, self.name, self.split, self.cache = store, name, split, cache
        self.index = index.view(np.ndarray)  # reading rows through np.memmap's class is slower
        self.labels = torch.from_numpy(index["label"].astype(np.int64))
        self._shards = [(shard.name, shard.bytes) for shard in split.shards]

    def __len__(self) -> int:
        return len(self.index)

    def where(self, index: int) -> str:
        """Shard and number of a sample, for a message."""
        return f"{self.store}/{self._shards[self.index[index]['shard']][0]}, sample {index} of {self.name}"

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the image files of the samples. DataError names a sample whose record fails its checksum."""
        rows = self.index[np.asarray(indices, dtype=np.int64)].tolist()  # tuples of int are faster than numpy rows
        parts = [self._part(*row[:3]) for row in rows]
        records: Iterable[bytes]
        if self.store.local:  # one by one, so that each read reuses the memory of the one before
            records = (self.store.read_ranges([part])[0] for part in parts)
        elif self.cache is None:
            records = self.store.read_ranges(parts)
        else:
            cached = [self.cache.read(part, row[3]) for part, row in zip(parts, rows, strict=True)]
            missing = [part for part, record in zip(parts, cached, strict=True) if record is None]
            remote = iter(self.store.read_ranges(missing))
            records = (next(remote) if record is None else record for record in cached)
        files = []
        for index, row, record in zip(indices, rows, records, strict=True):
            _, _, size, crc32, image, length, *_ = row
            if len(record) != size or zlib.crc32(record) != crc32:
                raise DataError(self._damage(index, len(record), size))
            files.append(record[image : image + length])
        return files

    def _part(self, shard: int, offset: int, size: int) -> Range:
        """Return the range of a record; for a shard's last record also the byte after it, which must not exist."""
        name, end = self._shards[shard]
        return name, offset, size + (offset + size == end)

    def _damage(self, index: int, found: int, size: int) -> str:
        """Return the message about a sample of which `found` bytes were read instead of `size`."""
        problem = "is damaged: its checksum is wrong"
        if found < size:
            problem = f"is truncated: {found} of {size} bytes were read"
        elif found > size:
            problem = "is followed by extra bytes"
        return f"{self.where(index)} {problem}; run repro data verify {self.store} to list all damage"


class ShardSet:
    """An open set in shards: its manifest and its splits."""

    def __init__(self, store: Store, manifest: ShardManifest, splits: dict[str, ShardSplit]) -> None:
        self.store, self.manifest, self.splits = store, manifest, splits
        self.name, self.classes, self.source = manifest.name, manifest.classes, manifest.source

    @property
    def train(self) -> ShardSplit:
        """The training part; DataError if the set has none."""
        return self._split("train")

    @property
    def test(self) -> ShardSplit:
        """The test part; DataError if the set has none."""
        return self._split("test")

    def _split(self, name: str) -> ShardSplit:
        if name not in self.splits:
            raise DataError(f"{self.store} has no {name} part; prepare the set with one")
        return self.splits[name]


def open_shards(where: str | Path | Store, *, cache: Path | None = None) -> ShardSet:
    """Open the set in a folder or at an address. Its index files are verified and mapped into memory.

    `cache` is a folder for local copies of remote files: index files, and shards up to REPRO_SHARD_CACHE_GB.
    Raises DataError for a missing or damaged manifest or index.
    """
    store = where if isinstance(where, Store) else open_store(where)
    manifest = read_manifest(store)
    limit = shard_cache_bytes()
    splits: dict[str, ShardSplit] = {}
    for name, split in manifest.splits.items():
        index = open_index(store, manifest, split, cache)
        shard_cache = None
        if cache and limit and not store.local:
            shard_cache = ShardCache(cache, limit, store, manifest.sha256[:16])
        splits[name] = ShardSplit(store, name, split, index, shard_cache)
    return ShardSet(store, manifest, splits)


@contextmanager
def copy_in_background(part: ShardSplit, report: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Within the context, a thread copies the part's remote shards to its cache, if it has one.

    `report` receives the error that ends the copying; images are then read from the server.
    """
    if part.cache is None:
        yield
        return
    cache, finished = part.cache, threading.Event()

    def copy() -> None:
        try:
            cache.fill(part.split.shards, stop=finished.is_set)
        except DataError as error:
            report(f"stopped copying shards to this machine: {error}")

    thread = threading.Thread(target=copy, name="shards")
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def open_index(store: Store, manifest: ShardManifest, split: SplitManifest, cache: Path | None = None) -> Index:
    """Return a split's index, verified, and mapped into memory if it is on this machine or `cache` is given.

    Raises DataError for a missing or damaged index, or one that does not fit the manifest.
    """
    file = store.local / split.index if store.local else None
    if not store.local and cache:
        file = cache / manifest.sha256[:16] / split.index
        if not (file.is_file() and file_sha256(file) == split.index_sha256):
            store.fetch(split.index, file)
    name = f"{store}/{split.index}"
    if file:
        if not file.is_file():
            raise DataError(f"{name} not found; restore it or prepare the set again")
        sha256 = file_sha256(file)
    else:
        content = store.read(split.index)
        sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != split.index_sha256:
        raise DataError(damaged_file(name, sha256, split.index_sha256))
    try:
        if file:
            index = np.load(file, mmap_mode="r", allow_pickle=False)
        else:
            index = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{name} is not an index ({error}); prepare the set again") from None
    maxima = {"shard": len(split.shards) - 1, "label": len(split.per_class) - 1}
    maxima |= dict.fromkeys(("offset", "size"), max((shard.bytes for shard in split.shards), default=0))
    fits = index.dtype == INDEX_DTYPE and index.shape == (split.samples,)
    fits = fits and all(int(index[column].max()) <= maximum for column, maximum in maxima.items())
    fits = fits and int(index["label"].min()) >= 0
    if not fits or np.bincount(index["label"], minlength=len(split.per_class)).tolist() != [*split.per_class]:
        raise DataError(f"{name} is not the index of these shards; prepare the set again")
    checked: Index = index
    return checked
