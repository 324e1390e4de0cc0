"""Source images in the ILSVRC-2012 ("ImageNet") archives, read in place without unpacking.

    ILSVRC2012_img_train.tar      a tar file of 1000 tar files: n01440764.tar with n01440764_10026.JPEG, ...
    ILSVRC2012_img_val.tar        ILSVRC2012_val_00000001.JPEG to _00050000.JPEG, used as the test split
    ILSVRC2012_devkit_t12.tar.gz  the classes of the validation images, as numbers that meta.mat explains

Bounding boxes are read if their archives are in the same folder (see box_archives.py).

Each must have the published MD5 sum. A stand-in (see stand_in.py) lists the MD5 sums of its own archives in
STAND-IN.json and is never named ImageNet.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.data.class_names import imagenet_wnids
from pipeline.data.images import DataError
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    Archives,
    ByteCounter,
    check_md5,
    check_regular_file,
    check_size,
    one_line,
    read_stand_in_info,
    require_packed,
)
from pipeline.data.prepare.box_archives import box_archives_present, read_annotations
from pipeline.data.prepare.devkit import Devkit, read_devkit
from pipeline.data.prepare.source_images import MAX_IMAGE_BYTES, SourceImage, SourceImageSequence, SourceSet

SAFE_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # no folder, no "..", not hidden

VAL_IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

MAX_STEM = 23  # letters: ILSVRC2012_val_00000001

ARCHIVE_ENTRY_DTYPE = np.dtype([("label", "<i4"), ("stem", f"S{MAX_STEM}"), ("offset", "<u8"), ("size", "<u4")])

Member = tuple[str, int, int]  # of a tar file: name, offset of its content in the outermost file, bytes


class ArchiveListing(SourceImageSequence):
    """The images in one archive; 1.3 million of them take 50 MB."""

    def __init__(self, file: Path, entries: Sequence[np.ndarray]) -> None:
        """`entries`: arrays of ARCHIVE_ENTRY_DTYPE, which are concatenated."""
        self.file, self.entries = str(file), np.concatenate(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def image(self, index: int) -> SourceImage:
        """Return the image at `index`."""
        label, stem, offset, size = self.entries[index].item()
        return SourceImage(label, stem.decode("ascii"), self.file, offset, size)


def source_from_archives(
    folder: Path, *, cache: Path, progress: Callable[[int, int], None] | None = None
) -> SourceSet:
    """List the images of the archives in `folder`: both splits, or the one whose archive exists.

    Images are sorted by class and name, as in class folders. `cache` is a folder that keeps MD5 sums, so that
    138 GB are not hashed twice. `progress(done, total)` counts each archive's bytes twice: once for hashing, once
    for listing. Raise DataError for a missing, damaged or different archive.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} not found; give the folder that contains {TRAIN_ARCHIVE}")
    try:
        archives = Archives(folder, read_stand_in_info(folder))
        return _list_archives(archives, cache, progress or (lambda done, total: None))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror or error}); fix this and run again"
        ) from None


def _list_archives(archives: Archives, cache: Path, progress: Callable[[int, int], None]) -> SourceSet:
    folder = archives.folder
    present = [name for name in (DEVKIT_ARCHIVE, VAL_ARCHIVE, TRAIN_ARCHIVE) if archives.path(name).is_file()]
    if TRAIN_ARCHIVE not in present and VAL_ARCHIVE not in present:
        raise DataError(
            f"{folder} contains neither {TRAIN_ARCHIVE} nor {VAL_ARCHIVE}; download them from https://image-net.org,"
            " or make a stand-in with: repro data stand-in imagenet --out DIR"
        )
    if VAL_ARCHIVE in present and DEVKIT_ARCHIVE not in present:
        require_packed(archives, DEVKIT_ARCHIVE)
        raise DataError(
            f"{folder} contains {VAL_ARCHIVE} but not {DEVKIT_ARCHIVE}, which has its labels; download"
            f" {DEVKIT_ARCHIVE} or move {VAL_ARCHIVE} away"
        )
    boxes = box_archives_present(archives)
    present += boxes
    for name in present:
        check_size(archives, name)
    counter = ByteCounter(progress, 2 * sum(archives.path(name).stat().st_size for name in present))
    for name in present:
        check_md5(archives, name, cache, counter)
    devkit = read_devkit(archives, counter) if DEVKIT_ARCHIVE in present else None
    splits: dict[str, Sequence[SourceImage]] = {}
    classes = devkit.classes if devkit else ()
    if TRAIN_ARCHIVE in present:
        classes, splits["train"] = _list_train(archives, devkit, counter)
    if devkit and VAL_ARCHIVE in present:
        splits["test"] = _list_val(archives, devkit, counter)
    return SourceSet(
        name="imagenet-standin" if archives.stand_in else "imagenet",
        source=_describe_source(archives, splits),
        classes=classes,
        splits=splits,
        boxes=read_annotations(archives, boxes, counter),
    )


def _describe_source(archives: Archives, splits: dict[str, Sequence[SourceImage]]) -> str:
    """Return the origin of the set for its manifest."""
    parts = []
    if "train" in splits:
        parts.append(TRAIN_ARCHIVE)
    if "test" in splits:
        parts.append(
            f"{VAL_ARCHIVE} with the classes of {DEVKIT_ARCHIVE} (the {len(splits['test']):,} validation images"
            " are the test part)"
        )
    stand_in = archives.stand_in
    origin = f"a stand-in for ILSVRC-2012, generated with seed {stand_in.seed}" if stand_in else "ILSVRC-2012"
    return f"{origin}: {' and '.join(parts)}"


def _list_train(
    archives: Archives, devkit: Devkit | None, counter: ByteCounter
) -> tuple[tuple[str, ...], ArchiveListing]:
    """Return the classes, and the training images sorted by class and name."""
    path = archives.path(TRAIN_ARCHIVE)
    size, entries = path.stat().st_size, []
    known = set(devkit.classes if devkit else imagenet_wnids())
    with path.open("rb") as opened:
        tar_files: dict[str, tuple[int, int]] = {}
        for name, offset, length in _tar_members(archives, opened.fileno(), 0, size, TRAIN_ARCHIVE):
            wnid = name.removesuffix(".tar")
            if wnid == name or wnid not in known:
                raise archives.error(
                    f"{TRAIN_ARCHIVE}, {name}", f"is not the tar file of one of the {len(known)} classes"
                )
            if wnid in tar_files:
                raise archives.error(f"{TRAIN_ARCHIVE}, {name}", "occurs twice")
            tar_files[wnid] = offset, length
        if not tar_files:
            raise archives.error(TRAIN_ARCHIVE, "contains no classes")
        classes = devkit.classes if devkit else tuple(sorted(tar_files))
        for label, wnid in enumerate(classes):
            if wnid not in tar_files:
                raise archives.error(
                    TRAIN_ARCHIVE, f"has no images of class {wnid}, which is a class of {DEVKIT_ARCHIVE}"
                )
            offset, length = tar_files[wnid]
            where = f"{TRAIN_ARCHIVE}, {wnid}.tar"
            images = _images_in_tar(archives, opened.fileno(), offset, offset + length, where, f"{wnid}_")
            entries.append(_entries(images, [label] * len(images)))
            counter.add(length)
    counter.add(size - sum(length for _, length in tar_files.values()))
    return classes, ArchiveListing(path, entries)


def _list_val(archives: Archives, devkit: Devkit, counter: ByteCounter) -> ArchiveListing:
    """Return the validation images sorted by class and name."""
    path = archives.path(VAL_ARCHIVE)
    size = path.stat().st_size
    with path.open("rb") as opened:
        images = _images_in_tar(archives, opened.fileno(), 0, size, VAL_ARCHIVE, "ILSVRC2012_val_")
    if len(images) != len(devkit.val_labels):
        raise archives.error(
            VAL_ARCHIVE,
            f"contains {len(images):,} images, but {DEVKIT_ARCHIVE} has {len(devkit.val_labels):,} labels",
        )
    for number, (name, _, _) in enumerate(images, start=1):
        numbered = VAL_IMAGE_NAME.fullmatch(name)
        if not numbered or int(numbered[1]) != number:  # images are sorted, so this also finds a missing one
            raise archives.error(f"{VAL_ARCHIVE}, {name}", f"is where ILSVRC2012_val_{number:08}.JPEG should be")
    counter.add(size)
    entries = _entries(images, devkit.val_labels)
    return ArchiveListing(path, [entries[np.argsort(entries["label"], kind="stable")]])  # by name within a class


def _entries(images: Sequence[Member], labels: Sequence[int]) -> np.ndarray:
    """Return images and their labels as an array of ARCHIVE_ENTRY_DTYPE."""
    rows = [(label, name[:-5], offset, size) for label, (name, offset, size) in zip(labels, images, strict=True)]
    return np.array(rows, ARCHIVE_ENTRY_DTYPE)


def _images_in_tar(archives: Archives, file: int, begin: int, end: int, where: str, prefix: str) -> list[Member]:
    """Return the images of one tar file, sorted by name; each must be named `prefix`*.JPEG."""
    found: dict[str, Member] = {}
    for name, offset, size in _tar_members(archives, file, begin, end, where):
        if not name.startswith(prefix) or not name.endswith(".JPEG") or len(name) == len(prefix) + 5:
            raise archives.error(f"{where}, {name}", f"must be named {prefix}*.JPEG")
        if size > MAX_IMAGE_BYTES:
            raise archives.error(f"{where}, {name}", f"has {size:,} bytes, too large for an image")
        if len(name) > MAX_STEM + 5:
            raise archives.error(f"{where}, {name}", "has a name that is too long")
        if name in found:
            raise archives.error(f"{where}, {name}", "occurs twice")
        found[name] = name, offset, size
    if not found:
        raise archives.error(where, "contains no images")
    return [found[name] for name in sorted(found)]


def _tar_members(archives: Archives, file: int, begin: int, end: int, where: str) -> Iterator[Member]:
    """Yield the members of the tar file in bytes `begin` to `end` of an open file.

    Raise DataError for anything but regular, non-empty files with safe names that lie within these bytes.
    """
    position = begin
    while True:
        block = os.pread(file, tarfile.BLOCKSIZE, position) if position + tarfile.BLOCKSIZE <= end else b""
        if block == bytes(tarfile.BLOCKSIZE):
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            problem = f"is damaged at byte {position - begin:,} ({one_line(error)})" if block else "is truncated"
            raise archives.error(where, problem) from None
        name = f"{where}, {header.name!r}"
        check_regular_file(archives, name, header)
        if not SAFE_FILE_NAME.fullmatch(header.name):
            raise archives.error(name, "has an unsafe name")
        position += tarfile.BLOCKSIZE
        if header.size <= 0:
            raise archives.error(name, "is empty")
        if position + header.size > end:
            raise archives.error(name, "is truncated")
        yield header.name, position, header.size
        position += -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
