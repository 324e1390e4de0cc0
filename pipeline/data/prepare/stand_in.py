"""The stand-in for ImageNet: synthetic images in ILSVRC-2012's layout, for tests, dry runs and scaling studies.

The files depend on the seed and the sizes alone, not on time, user or machine: with the same versions of Pillow
and SciPy, the bytes are the same everywhere. See synthetic_images.py for the images.
"""

import hashlib
import io
import os
import shutil
import struct
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline.data.class_names import imagenet_wnids
from pipeline.data.images import DataError
from pipeline.data.order import seeded_generator
from pipeline.data.prefetch import prefetch
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    TRAIN_BOXES,
    VAL_ARCHIVE,
    VAL_BOXES,
    ExpectedFile,
    StandInInfo,
)
from pipeline.data.prepare.devkit import META, TRUTH
from pipeline.data.prepare.png import stored_blocks
from pipeline.data.prepare.synthetic_images import SyntheticImage, encode_image, shape_box

README = "ILSVRC2012_devkit_t12/readme.txt"

DESCRIPTION = "generated pictures in the layout of ILSVRC-2012; not ImageNet"  # written into the archives

SIZE_LIMITS = {"classes": (1, 1000), "train": (1, 10_000), "test": (1, 10_000), "side": (32, 2000)}


def make_stand_in(
    out: Path,
    *,
    classes: int = 10,
    train: int = 130,
    test: int = 50,
    side: int = 160,
    seed: int = 0,
    layout: Literal["archives", "folders"] = "archives",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in to `out`, a new or empty folder, completely or not at all.

    `train` and `test`: images per class. `side`: the smallest short side in pixels; short sides go up to 1.5 times
    this. `progress(done, total)` counts images. Raise DataError for sizes out of range, or if `out` cannot be
    written or is not empty.
    """
    sizes = {"classes": classes, "train": train, "test": test, "side": side}
    for name, (least, most) in SIZE_LIMITS.items():
        if not least <= sizes[name] <= most:
            raise DataError(f"stand-in: {name} is {sizes[name]}, must be from {least} to {most}")
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    # As in ImageNet, ILSVRC2012_ID follows another order than the labels.
    order = torch.randperm(classes, generator=seeded_generator(seed, "stand-in", "numbers"))
    numbers = tuple((order + 1).tolist())
    info = StandInInfo(format=1, what=DESCRIPTION, seed=seed, numbers=numbers, files={}, **sizes)
    progress = progress or (lambda done, total: None)
    try:
        _check_empty(out)
        temporary.mkdir(parents=True)
        if layout == "archives":
            info = _write_archives(temporary, info, progress)
        else:
            _write_folders(temporary, info, progress)
        (temporary / STAND_IN_FILE).write_text(info.to_json(), encoding="utf-8", newline="\n")
        _check_empty(out)
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}); fix this and run again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_empty(out: Path) -> None:
    """Raise DataError unless `out` does not exist or is an empty folder."""
    if out == Path.cwd():
        raise DataError(f"{out} is the current folder; give a new folder for the stand-in")
    if out.is_dir():
        present = sorted(path.name for path in out.iterdir())
        if present:
            raise DataError(f"{out} already contains {present[0]}; give a new or an empty folder for the stand-in")
    elif out.exists():
        raise DataError(f"{out} exists and is not a folder; give a new folder for the stand-in")


def _write_archives(folder: Path, info: StandInInfo, progress: Callable[[int, int], None]) -> StandInInfo:
    """Write the archives of images, labels and boxes, and return `info` with their MD5 sums."""
    wnids = imagenet_wnids()[: info.classes]
    with _new_tar(folder / TRAIN_ARCHIVE) as outer:
        for label, images in groupby(_encoded_images(info, "train", progress), lambda pair: pair[0].label):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as inner:
                for image, content in images:
                    _add_file(inner, image.name, content)
            _add_file(outer, f"{wnids[label]}.tar", buffer.getvalue())
    with _new_tar(folder / VAL_ARCHIVE) as archive:
        for image, content in _encoded_images(info, "test", progress):
            _add_file(archive, image.name, content)
    (folder / DEVKIT_ARCHIVE).write_bytes(gzip_stored(_devkit_tar(info, wnids)))
    for name, split in ((TRAIN_BOXES, "train"), (VAL_BOXES, "test")):
        (folder / name).write_bytes(gzip_stored(_boxes_tar(info, split, wnids)))
    files = {}
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE, TRAIN_BOXES, VAL_BOXES):
        with (folder / name).open("rb") as opened:
            digest = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False))
        files[name] = ExpectedFile(md5=digest.hexdigest(), bytes=(folder / name).stat().st_size)
    return info.model_copy(update={"files": files})


def _write_folders(folder: Path, info: StandInInfo, progress: Callable[[int, int], None]) -> None:
    """Write train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, the same images as in the archives."""
    wnids = imagenet_wnids()
    for split, name in (("train", "train"), ("test", "val")):
        for image, content in _encoded_images(info, split, progress):
            file = folder / name / wnids[image.label] / image.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _new_tar(file: Path) -> tarfile.TarFile:
    return tarfile.open(file, mode="w", format=tarfile.USTAR_FORMAT)


def _add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to a tar file, without user and time."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


def gzip_stored(content: bytes) -> bytes:
    """Return a gzip file without compression; compressed bytes differ between versions of zlib."""
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # RFC 1952: deflate, no name, no time, unknown system
    trailer = struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
    return header + stored_blocks(content) + trailer


def _devkit_tar(info: StandInInfo, wnids: list[str]) -> bytes:
    """Return a tar file with the members of the devkit that torchvision and `read_devkit` use."""
    truth = "".join(f"{info.numbers[label]}\n" for label in shuffled_val_labels(info))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add_file(archive, README, f"{DESCRIPTION}\n".encode())
        _add_file(archive, META, _meta(wnids, info.numbers))
        _add_file(archive, TRUTH, truth.encode())
    return content.getvalue()


def _boxes_tar(info: StandInInfo, split: str, wnids: list[str]) -> bytes:
    """Return a tar file with an annotation for each image: the box around its shape."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for image in _planned_images(info, split):
            wnid, stem = wnids[image.label], image.name.removesuffix(".JPEG")
            folder = wnid if split == "train" else "val"
            _add_file(archive, f"{folder}/{stem}.xml", _annotation(image, folder, stem, wnid))
    return content.getvalue()


def _annotation(image: SyntheticImage, folder: str, stem: str, wnid: str) -> bytes:
    """Return the annotation of an image, as in ImageNet's archives."""
    (height, width), (left, top, right, bottom) = shape_box(image)
    box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
    size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
    lines = [
        f"<annotation><folder>{folder}</folder><filename>{stem}</filename>",
        f"<source><database>{DESCRIPTION}</database></source><size>{size}</size>",
        f"<object><name>{wnid}</name><bndbox>{box}</bndbox></object></annotation>",
    ]
    return "\n".join([*lines, ""]).encode()


def _meta(wnids: list[str], numbers: Sequence[int]) -> bytes:
    """Return meta.mat: the synsets of the classes by number, then one parent (the real file has 676)."""
    from scipy.io import savemat

    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    no_children = np.zeros((1, 0), np.uint16)
    rows: list[tuple[Any, ...]] = [
        (np.uint16(number), wnid, f"stand-in {wnid}", DESCRIPTION, np.uint16(0), no_children, np.uint16(0))
        for number, wnid in sorted(zip(numbers, wnids, strict=True))
    ]
    parent = np.uint16(len(wnids) + 1)
    children = np.arange(1, len(wnids) + 1, dtype=np.uint16)
    rows.append((parent, "n00001740", "entity", DESCRIPTION, np.uint16(len(wnids)), children, np.uint16(1)))
    synsets = np.empty((len(rows), 1), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        synsets[index, 0] = row
    content = io.BytesIO()
    savemat(content, {"synsets": synsets})
    return b"MATLAB 5.0 MAT-file".ljust(116) + content.getvalue()[116:]  # scipy writes the time into these bytes


def shuffled_val_labels(info: StandInInfo) -> list[int]:
    """Return the labels of the validation images in the order of their numbers: shuffled, as in ImageNet."""
    shuffled = torch.randperm(info.classes * info.test, generator=seeded_generator(info.seed, "stand-in", "test"))
    labels: list[int] = (shuffled % info.classes).tolist()
    return labels


def _encoded_images(
    info: StandInInfo, split: str, progress: Callable[[int, int], None]
) -> Iterator[tuple[SyntheticImage, bytes]]:
    """Yield every image of a split with its file, in order."""
    total = info.classes * (info.train + info.test)
    done = info.classes * info.train if split == "test" else 0
    jobs = _planned_images(info, split)
    for encoded in prefetch(
        jobs, lambda image: (image, encode_image(image)), threads=os.cpu_count() or 1, depth=64
    ):
        done += 1
        progress(done, total)
        yield encoded


def _planned_images(info: StandInInfo, split: str) -> Iterator[SyntheticImage]:
    """Yield the images of a split in the order of their numbers."""
    if split == "train":
        for label, wnid in enumerate(imagenet_wnids()[: info.classes]):
            for i in range(info.train):
                number, name = label * info.train + i, f"{wnid}_{18 + 37 * i}.JPEG"
                yield SyntheticImage(info.seed, split, number, label, name, info.side)
    else:
        for number, label in enumerate(shuffled_val_labels(info)):
            name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
            yield SyntheticImage(info.seed, split, number, label, name, info.side)
