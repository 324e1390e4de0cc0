"""ILSVRC-2012 ("ImageNet") as downloaded: three archives, read in place and never unpacked.

    ILSVRC2012_img_train.tar      a tar file of 1000 tar files: n01440764.tar, in it n01440764_10026.JPEG, ...
    ILSVRC2012_img_val.tar        ILSVRC2012_val_00000001.JPEG to _00050000.JPEG, which serve as the test part
    ILSVRC2012_devkit_t12.tar.gz  the classes of the validation pictures, by numbers that meta.mat explains

Each must have the published md5. A stand-in (see standin.py) says in STAND-IN.json what its own archives must be,
and is never called ImageNet.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from pipeline.data.images import DataError
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    Archives,
    HashProgress,
    Meter,
    Span,
    StandInSums,
    _check_kind,
    _check_size,
    _check_sum,
    _said,
    imagenet_wnids,
)
from pipeline.data.prepare.devkit import Devkit, read_devkit
from pipeline.data.prepare.originals import MAX_IMAGE_BYTES, SourceImage, SourceSet
from pipeline.declare.validation import validation_message

PLAIN_FILE_NAME = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
)  # a file's name and nothing more: no folder, no way up

VAL_IMAGE_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")

STEM = 23  # letters of a picture's name at most: ILSVRC2012_val_00000001

ARCHIVE_ENTRY_DTYPE = np.dtype([("label", "<i4"), ("stem", f"S{STEM}"), ("offset", "<u8"), ("size", "<u4")])


class ArchiveListing(Sequence[SourceImage]):
    """Pictures that lie in one archive; 1.3 million of them take 50 MB."""

    def __init__(self, file: Path, pictures: Sequence[np.ndarray]) -> None:
        """`pictures`: rows of PICTURE, in pieces."""
        self.file, self.rows = str(file), np.concatenate(pictures)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's two signatures say more than they help
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label, stem, offset, size = self.rows[index].item()
        return SourceImage(label, stem.decode("ascii"), self.file, offset, size)


def source_from_archives(folder: Path, *, cache: Path, progress: HashProgress | None = None) -> SourceSet:
    """The pictures of the archives in `folder`: both splits, or only that whose archive is there.

    Sorted by class and by name, as they would be read from class folders. `cache`: a folder where sums that were
    found are remembered, so that 138 GB are not summed twice. `progress` counts each archive's bytes twice: when
    they are summed and when their pictures are listed.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the one that holds {TRAIN_ARCHIVE}")
    try:
        archives = Archives(folder, _stand_in(folder))
        return _from_ilsvrc(archives, cache, progress or (lambda done, total: None))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror or error}); mend that and start again"
        ) from None


def _from_ilsvrc(archives: Archives, cache: Path, progress: HashProgress) -> SourceSet:
    folder = archives.folder
    present = [name for name in (DEVKIT_ARCHIVE, VAL_ARCHIVE, TRAIN_ARCHIVE) if archives.has(name)]
    if TRAIN_ARCHIVE not in present and VAL_ARCHIVE not in present:
        raise DataError(
            f"{folder} holds neither {TRAIN_ARCHIVE} nor {VAL_ARCHIVE}; download them from https://image-net.org,"
            " or make a stand-in with: repro data stand-in imagenet"
        )
    if VAL_ARCHIVE in present and DEVKIT_ARCHIVE not in present:
        raise DataError(
            f"{folder} holds {VAL_ARCHIVE} but not {DEVKIT_ARCHIVE}, which says what its pictures show; download that too,"
            f" or move {VAL_ARCHIVE} away"
        )
    for name in present:
        _check_size(archives, name)
    meter = Meter(progress, 2 * sum(archives.path(name).stat().st_size for name in present))
    for name in present:
        _check_sum(archives, name, cache, meter)
    devkit = read_devkit(archives, meter) if DEVKIT_ARCHIVE in present else None
    splits: dict[str, Sequence[SourceImage]] = {}
    classes = devkit.classes if devkit else ()
    if TRAIN_ARCHIVE in present:
        classes, splits["train"] = _train(archives, devkit, meter)
    if devkit and VAL_ARCHIVE in present:
        splits["test"] = _val(archives, devkit, meter)
    return SourceSet(
        name="imagenet-standin" if archives.stand_in else "imagenet",
        source=_source(archives, splits),
        classes=classes,
        splits=splits,
    )


def _source(archives: Archives, splits: dict[str, Sequence[SourceImage]]) -> str:
    parts = []
    if "train" in splits:
        parts.append(TRAIN_ARCHIVE)
    if "test" in splits:
        parts.append(
            f"{VAL_ARCHIVE} with the classes of {DEVKIT_ARCHIVE} (the {len(splits['test']):,} validation images are the test part)"
        )
    made = archives.stand_in
    begins = f"a stand-in for ILSVRC-2012, generated with seed {made.seed}" if made else "ILSVRC-2012"
    return f"{begins}: {' and '.join(parts)}"


def _stand_in(folder: Path) -> StandInSums | None:
    """What STAND-IN.json says, if there is one."""
    file = folder / STAND_IN_FILE
    if not file.exists():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = StandInSums.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_message(error, StandInSums, raw)}; make the stand-in again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); make the stand-in again") from None
    if len(found.numbers) != found.classes:
        raise DataError(
            f"{file} numbers {len(found.numbers)} classes where it says that there are {found.classes};"
            " make the stand-in again"
        )
    return found


def _train(archives: Archives, devkit: Devkit | None, meter: Meter) -> tuple[tuple[str, ...], ArchiveListing]:
    """The classes, and every training picture, in the order of classes and names."""
    path = archives.path(TRAIN_ARCHIVE)
    size, pictures = path.stat().st_size, []
    known = set(devkit.classes if devkit else imagenet_wnids())
    with path.open("rb") as opened:
        tars: dict[str, tuple[int, int]] = {}
        for name, offset, length in _members(archives, opened.fileno(), 0, size, TRAIN_ARCHIVE):
            wnid = name.removesuffix(".tar")
            if wnid == name or wnid not in known:
                raise archives.wrong(
                    f"{TRAIN_ARCHIVE}, {name}", f"is not the tar file of one of the {len(known)} classes"
                )
            if wnid in tars:
                raise archives.wrong(f"{TRAIN_ARCHIVE}, {name}", "is there twice")
            tars[wnid] = offset, length
        if not tars:
            raise archives.wrong(TRAIN_ARCHIVE, "holds no classes")
        classes = devkit.classes if devkit else tuple(sorted(tars))
        for label, wnid in enumerate(classes):
            if wnid not in tars:
                raise archives.wrong(
                    TRAIN_ARCHIVE, f"has no pictures of class {wnid}, which {DEVKIT_ARCHIVE} knows"
                )
            offset, length = tars[wnid]
            where = f"{TRAIN_ARCHIVE}, {wnid}.tar"
            inside = _images_in_tar(archives, opened.fileno(), offset, offset + length, where, f"{wnid}_")
            pictures.append(_rows(inside, [label] * len(inside)))
            meter.add(length)
    meter.add(size - sum(length for _, length in tars.values()))
    return classes, ArchiveListing(path, pictures)


def _val(archives: Archives, devkit: Devkit, meter: Meter) -> ArchiveListing:
    """Every validation picture, in the order of classes and names."""
    path = archives.path(VAL_ARCHIVE)
    size = path.stat().st_size
    with path.open("rb") as opened:
        found = _images_in_tar(archives, opened.fileno(), 0, size, VAL_ARCHIVE, "ILSVRC2012_val_")
    if len(found) != len(devkit.truth):
        raise archives.wrong(
            VAL_ARCHIVE,
            f"holds {len(found):,} pictures, but {DEVKIT_ARCHIVE} says of {len(devkit.truth):,} what they show",
        )
    for number, (name, _, _) in enumerate(found, start=1):
        numbered = VAL_IMAGE_NAME.fullmatch(name)
        if not numbered or int(numbered[1]) != number:  # they are sorted, so one that is missing is noticed here
            raise archives.wrong(f"{VAL_ARCHIVE}, {name}", f"is where ILSVRC2012_val_{number:08}.JPEG should be")
    meter.add(size)
    rows = _rows(found, devkit.truth)
    return ArchiveListing(path, [rows[np.argsort(rows["label"], kind="stable")]])  # within a class by name


def _rows(pictures: Sequence[Span], labels: Sequence[int]) -> np.ndarray:
    """Pictures and their labels as rows of PICTURE."""
    stems = [(label, name[:-5], begin, size) for label, (name, begin, size) in zip(labels, pictures, strict=True)]
    return np.array(stems, ARCHIVE_ENTRY_DTYPE)


def _images_in_tar(archives: Archives, file: int, begin: int, end: int, where: str, prefix: str) -> list[Span]:
    """The pictures of one tar file, sorted by name; each is called as `prefix` says."""
    found: dict[str, Span] = {}
    for name, offset, size in _members(archives, file, begin, end, where):
        if not name.startswith(prefix) or not name.endswith(".JPEG") or len(name) == len(prefix) + 5:
            raise archives.wrong(f"{where}, {name}", f"should be called {prefix}... .JPEG")
        if size > MAX_IMAGE_BYTES:
            raise archives.wrong(f"{where}, {name}", f"has {size:,} bytes, far more than a picture")
        if len(name) > STEM + 5:
            raise archives.wrong(f"{where}, {name}", "has a name that is too long")
        if name in found:
            raise archives.wrong(f"{where}, {name}", "is there twice")
        found[name] = name, offset, size
    if not found:
        raise archives.wrong(where, "holds no pictures")
    return [found[name] for name in sorted(found)]


def _members(archives: Archives, file: int, begin: int, end: int, where: str) -> Iterator[Span]:
    """The members of the tar file that lies in bytes `begin` to `end` of an open file: regular files with plain
    names, none empty, all within; DataError for anything else."""
    at = begin
    while True:
        block = os.pread(file, tarfile.BLOCKSIZE, at) if at + tarfile.BLOCKSIZE <= end else b""
        if block == bytes(tarfile.BLOCKSIZE):
            return
        try:
            head = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            what = f"is damaged at byte {at - begin:,} ({_said(error)})" if block else "is cut off"
            raise archives.wrong(where, what) from None
        name = f"{where}, {head.name!r}"
        _check_kind(archives, name, head)
        if not PLAIN_FILE_NAME.fullmatch(head.name):
            raise archives.wrong(name, "has a name that could lead elsewhere")
        at += tarfile.BLOCKSIZE
        if head.size <= 0:
            raise archives.wrong(name, "is empty")
        if at + head.size > end:
            raise archives.wrong(name, "is cut off")
        yield head.name, at, head.size
        at += -(-head.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
