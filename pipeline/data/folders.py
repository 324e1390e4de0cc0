"""Image sets from class folders: `<name>/train/<class>/*` and `<name>/test/<class>/*` (or `val`).

The decoded set is kept in `<root>/.cache/`, so that a second load takes a second or less. The cache is
only ever a shortcut: it is used if the files' names, sizes and times are those it was made from and
its content still has the fingerprint it was written with, and is rebuilt otherwise.
"""

import contextlib
import hashlib
import io
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.data.images import DataError, ImageSet, LabelledImages, fingerprint, in_canonical_order

SMALL_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
MODES = {"L": 1, "RGB": 3}  # Pillow's mode -> channels


@dataclass(frozen=True)
class FolderListing:
    """The files of one split, in order, before any is opened."""

    files: tuple[tuple[str, str], ...]  # (class, path of the file)
    classes: tuple[str, ...]  # also those without files
    stamp: str  # sha256 of every file's name, size and times


def read_folders(name: str, root: Path) -> ImageSet:
    """The set in `root/name`, from the cache if that is still valid."""
    folder = root / name
    tests = [split for split in ("test", "val") if (folder / split).is_dir()]
    if not (folder / "train").is_dir() or not tests:
        raise DataError(
            f"{folder} is not an image set; it needs the folders train/<class>/"
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


def _list(split: Path) -> FolderListing:
    """Every image file below one split; hidden files are ignored, anything else unexpected is named."""
    files: list[tuple[str, str]] = []
    stamps: list[str] = []
    folders = _visible(split)
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder.path} is a file where only class folders belong; move it away")
        for entry in _visible(folder.path):
            if not entry.name.lower().endswith(SMALL_IMAGE_SUFFIXES) or not entry.is_file():
                raise DataError(
                    f"{entry.path} is not an image file ({', '.join(SMALL_IMAGE_SUFFIXES)}); convert it or move it away"
                )
            # The time of change (ctime) also sees a file swapped for another of the same size and date.
            stat = entry.stat()
            stamps.append(f"{folder.name}/{entry.name} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}")
            files.append((folder.name, entry.path))
    stamp = hashlib.sha256("\0".join(stamps).encode(errors="surrogateescape")).hexdigest()
    return FolderListing(tuple(files), tuple(folder.name for folder in folders), stamp)


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _common_classes(folder: Path, train: FolderListing, test: FolderListing) -> tuple[str, ...]:
    """The classes, sorted by name (numbers by value); each must have images in both splits."""
    named = {*train.classes, *test.classes}
    numbers = all(name.isdecimal() for name in named)
    classes = tuple(sorted(named, key=lambda name: (int(name) if numbers else 0, name)))
    if not classes:
        raise DataError(f"{folder} holds no class folders; put the images into train/<class>/ and test/<class>/")
    filled = {"train": {name for name, _ in train.files}, "test": {name for name, _ in test.files}}
    for name in classes:
        for split, present in filled.items():
            if name not in present:
                raise DataError(
                    f"{folder}: class {name!r} has no images in the {split} split; add some,"
                    " or remove the class from both splits"
                )
    return classes


def _decode(files: list[tuple[str, str]], classes: tuple[str, ...]) -> LabelledImages:
    """Every file, in the order given. One thread: two were three times slower (20,000 images/s
    against 7,000 for 28 x 28 PNG files), since most of the work holds the interpreter's lock."""
    first_path = files[0][1]
    first = read_pixels(first_path, first_path)
    pixels = np.empty((len(files), *first.shape), np.uint8)
    for row, (_, path) in zip(pixels, files, strict=True):
        image = read_pixels(path, path)
        if image.shape != first.shape:
            raise DataError(
                f"{path} is {_describe_image(image)}, but {first_path} is {_describe_image(first)};"
                " every image of a set needs the same size and mode: convert it or move it away"
            )
        row[...] = image
    number = {name: index for index, name in enumerate(classes)}
    return LabelledImages(torch.from_numpy(pixels), torch.tensor([number[name] for name, _ in files]))


def read_pixels(file: str | bytes, where: str) -> np.ndarray:
    """A file's path, or its content -> uint8 (H, W, C); DataError names a broken one as `where`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            mode, array = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for broken files
        raise DataError(f"{where} cannot be read as an image; restore or remove it ({error})") from error
    if mode not in MODES:
        raise DataError(f"{where} has Pillow's mode {mode!r}; convert it to grey (L) or colour (RGB)")
    return array.reshape(*array.shape[:2], MODES[mode])


def _describe_image(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{width}x{height} {'RGB' if channels == 3 else 'grey'}"


def _to_cache(
    path: Path, stamp: str, classes: tuple[str, ...], train: LabelledImages, test: LabelledImages
) -> None:
    """Write beside, then rename: a reader sees the old cache or the new one, never half of one."""
    from safetensors.torch import save

    tensors = {
        "train.pixels": train.pixels,
        "train.labels": train.labels,
        "test.pixels": test.pixels,
        "test.labels": test.labels,
    }
    content = save(tensors, {"stamp": stamp, "sha256": fingerprint(classes, train, test)})
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:  # a read-only or full disk: only the next load's speed is lost
        with contextlib.suppress(OSError):
            temporary.unlink()


def _from_cache(path: Path, stamp: str, classes: tuple[str, ...]) -> tuple[LabelledImages, LabelledImages] | None:
    """Both splits if the cache was made from these files and is undamaged, else None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            noted = file.metadata() or {}
            if noted.get("stamp") != stamp:
                return None
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        train = LabelledImages(tensors["train.pixels"], tensors["train.labels"])
        test = LabelledImages(tensors["test.pixels"], tensors["test.labels"])
    except (OSError, SafetensorError, KeyError):
        return None
    if fingerprint(classes, train, test) != noted.get("sha256"):
        return None
    return train, test


def known_folders(root: Path) -> list[str]:
    """The names below `root` that look like image sets, for suggestions."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.name[0] != "." and (path / "train").is_dir())
