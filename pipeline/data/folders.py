"""Sets of images of one size from class folders: `<name>/train/<class>/*` and `<name>/test/<class>/*` (or `val`).

The decoded set is cached in `<root>/.cache/`, so that a second load takes a second or less. The cache is used only
if the files' names, sizes and times are those it was made from and its content has the fingerprint it was written
with; otherwise it is rebuilt.
"""

import contextlib
import hashlib
import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.common.files import write_atomically
from pipeline.common.words import some_of
from pipeline.data.class_names import check_distinct, class_order
from pipeline.data.folder_listing import list_class_folders
from pipeline.data.images import DataError, ImageSet, LabelledImages, fingerprint, in_canonical_order
from pipeline.data.jpeg import FORMATS, MAX_PIXELS

MODES = {"L": 1, "RGB": 3}  # Pillow's mode -> channels


@dataclass(frozen=True)
class SplitFiles:
    """The sorted files of one split."""

    files: tuple[tuple[str, str], ...]  # (class, path of the file)
    classes: tuple[str, ...]  # also classes without files
    stamp: str  # sha256 of every file's name, size and times


def read_folders(name: str, root: Path) -> ImageSet:
    """Return the set in `root/name`, from the cache if that is valid; DataError for an unusable folder or file."""
    folder = root / name
    tests = [split for split in ("test", "val") if (folder / split).is_dir()]
    if not (folder / "train").is_dir() or not tests:
        raise DataError(
            f"{folder} is not an image set; it must hold the folders train/<class>/"
            " and test/<class>/ (or val/<class>/)"
        )
    train, test = _list(folder / "train"), _list(folder / tests[0])
    classes = _common_classes(folder, train, test)
    stamp = hashlib.sha256(f"{train.stamp} {tests[0]} {test.stamp}".encode()).hexdigest()
    source = f"class folders {name}/train and {name}/{tests[0]}"

    cache = root / ".cache" / f"{name}.safetensors"
    parts = _from_cache(cache, stamp, classes)
    if parts is None:
        arrays = _decode([*train.files, *test.files], classes)
        cut = len(train.files)
        parts = (
            in_canonical_order(LabelledImages(arrays.pixels[:cut], arrays.labels[:cut])),
            in_canonical_order(LabelledImages(arrays.pixels[cut:], arrays.labels[cut:])),
        )
        _to_cache(cache, stamp, classes, *parts)
    return ImageSet(name, source, classes, *parts)


def _list(split: Path) -> SplitFiles:
    """Return the image files of one split; DataError names other files, except those that systems create."""
    listing = list_class_folders(split)
    if listing.others:
        raise DataError(
            f"{split} contains files that are not images: {some_of(listing.others)}; convert them or move them"
            " away"
        )
    files: list[tuple[str, str]] = []
    stamps: list[str] = []
    for name in listing.names:
        for path in map(Path, listing.files(name)):
            # ctime also changes when a file is replaced by another of the same size and mtime.
            stat = path.stat()
            stamps.append(f"{name}/{path.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
            files.append((name, str(path)))
    stamp = hashlib.sha256("\0".join(stamps).encode(errors="surrogateescape")).hexdigest()
    return SplitFiles(tuple(files), tuple(listing.names), stamp)


def _common_classes(folder: Path, train: SplitFiles, test: SplitFiles) -> tuple[str, ...]:
    """Return the classes in their order; DataError for one without images in a split."""
    classes = class_order([*train.classes, *test.classes])
    check_distinct(str(folder), classes)
    if not classes:
        raise DataError(f"{folder} holds no class folders; put the images into train/<class>/ and test/<class>/")
    filled = {"train": {name for name, _ in train.files}, "test": {name for name, _ in test.files}}
    for name in classes:
        for split, present in filled.items():
            if name not in present:
                raise DataError(
                    f"{folder}: class {name!r} has no images in the {split} split; add some"
                    " or remove the class from both splits"
                )
    return classes


def _decode(files: list[tuple[str, str]], classes: tuple[str, ...]) -> LabelledImages:
    """Decode the files in the given order.

    One thread decodes 20,000 images/s (28 x 28 PNG files). Two are three times slower, since most of the work
    holds the interpreter's lock.
    """
    first_path = files[0][1]
    first = read_pixels(first_path, first_path)
    pixels = np.empty((len(files), *first.shape), np.uint8)
    for row, (_, path) in zip(pixels, files, strict=True):
        image = read_pixels(path, path)
        if image.shape != first.shape:
            raise DataError(
                f"{path} is {_describe_image(image)}, but {first_path} is {_describe_image(first)};"
                " all images of a set must have one size and mode: convert it or move it away"
            )
        row[...] = image
    number = {name: index for index, name in enumerate(classes)}
    return LabelledImages(torch.from_numpy(pixels), torch.tensor([number[name] for name, _ in files]))


def read_pixels(file: str | bytes, where: str) -> NDArray[np.uint8]:
    """Decode a path or the bytes of a file to uint8 (H, W, C); DataError names an unreadable file as `where`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as image:
            mode, array = image.mode, np.asarray(image)
    except Image.DecompressionBombError:
        raise DataError(f"{where} has more than {MAX_PIXELS:,} pixels; resize or remove it") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:  # of broken files
        raise DataError(f"{where} cannot be read as an image; restore or remove it ({error})") from error
    if mode not in MODES:
        raise DataError(f"{where} has Pillow's mode {mode!r}; convert it to grey (L) or colour (RGB)")
    return array.reshape(*array.shape[:2], MODES[mode])


def _describe_image(image: NDArray[np.uint8]) -> str:
    """Return size and mode for a message, such as "28x28 grey"."""
    height, width, channels = image.shape
    return f"{width}x{height} {'RGB' if channels == 3 else 'grey'}"


def _to_cache(
    path: Path, stamp: str, classes: tuple[str, ...], train: LabelledImages, test: LabelledImages
) -> None:
    """Write both splits to the cache, as far as the disk allows."""
    from safetensors.torch import save

    tensors = {
        "train.pixels": train.pixels,
        "train.labels": train.labels,
        "test.pixels": test.pixels,
        "test.labels": test.labels,
    }
    content = save(tensors, {"stamp": stamp, "sha256": fingerprint(classes, train, test)})
    with contextlib.suppress(OSError):  # on a read-only or full disk the next load decodes again
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)


def _from_cache(path: Path, stamp: str, classes: tuple[str, ...]) -> tuple[LabelledImages, LabelledImages] | None:
    """Return both splits, or None if the cache was made from other files or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("stamp") != stamp:
                return None
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        train = LabelledImages(tensors["train.pixels"], tensors["train.labels"])
        test = LabelledImages(tensors["test.pixels"], tensors["test.labels"])
    except (OSError, SafetensorError, KeyError):
        return None
    if fingerprint(classes, train, test) != metadata.get("sha256"):
        return None
    return train, test


def known_folders(root: Path) -> list[str]:
    """Return the names of folders in `root` that look like image sets, for suggestions."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.name[0] != "." and (path / "train").is_dir())
