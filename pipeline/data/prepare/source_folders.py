"""Source images in class folders: `train/<class>/*` and `test/<class>/*` (or `val`), or one split alone."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.data.class_folders import WNIDS_FILE
from pipeline.data.folders import SMALL_IMAGE_SUFFIXES
from pipeline.data.images import DataError
from pipeline.data.prepare.png import PNG_SIGNATURE, image_format
from pipeline.data.prepare.source_images import SourceImage, SourceImageSequence, SourceSet, printable
from pipeline.data.sources import ILSVRC_2012, IMAGENET, NAMES, SET_NAME

NAME_END = b"\0"  # a file name cannot contain it

SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test"}  # folder -> split

ARCHIVE_SIZES = {  # of the ILSVRC-2012 archives: bytes, and the number of tar files in them
    "train": (147_897_477_120, 1001),
    "test": (6_744_924_160, 1),
}

PUBLISHED_SETS = (*NAMES, IMAGENET)  # names that imply a known content


class FileListing(SourceImageSequence):
    """The files of a split, class by class, sorted by name within a class."""

    def __init__(self, folders: Sequence[str], names: Sequence[bytes]) -> None:
        """`folders`: one per class, in class order; `names`: the file names in each, each ended by NAME_END."""
        self.folders = tuple(folders)
        self.class_ends = np.cumsum([of_class.count(NAME_END) for of_class in names])  # index after its last file
        self.text = b"".join(names)
        self.name_ends = np.flatnonzero(np.frombuffer(self.text, np.uint8) == NAME_END[0])

    def __len__(self) -> int:
        return len(self.name_ends)

    def image(self, index: int) -> SourceImage:
        """Return the image at `index`."""
        label = int(np.searchsorted(self.class_ends, index, side="right"))
        start = self.name_ends[index - 1] + 1 if index else 0
        name = os.fsdecode(self.text[start : self.name_ends[index]])
        return SourceImage(label, Path(name).stem, f"{self.folders[label]}/{name}")


def source_from_folders(folder: Path, split: str | None = None) -> SourceSet:
    """List the set in `folder`: `train/<class>/` and `test/<class>/` (or `val/`), or one of them.

    `split` ("train", "test" or "val") selects one split. It is required if the class folders lie directly in
    `folder`. Raise DataError for a folder without images, with anything else in it, or with unequal classes.
    """
    shown = printable(str(folder))
    if not folder.is_dir():
        raise DataError(f"folder {shown} not found; give one with train/<class>/ and test/<class>/")
    if split is not None:
        if split not in SPLIT_FOLDERS:
            raise DataError(f"--split {split!r}: must be train or test (val means test)")
        split = SPLIT_FOLDERS[split]
    inside = [entry.name for entry in visible_entries(folder) if entry.is_dir()]
    if not inside:
        raise no_class_folders(shown)
    if set(inside) <= SPLIT_FOLDERS.keys():
        if {"test", "val"} <= set(inside):
            raise DataError(f"{shown} contains both test and val; move away the one that is not the test split")
        found = {SPLIT_FOLDERS[name]: name for name in inside}
        if split and split not in found:
            raise DataError(f"{shown} has no {split} split, only {' and '.join(sorted(inside))}")
        found = {key: name for key, name in found.items() if split in (None, key)}
        origin = " and ".join(f"{folder.resolve().name}/{found[key]}" for key in ("train", "test") if key in found)
    elif split is None:
        some = ", ".join(printable(name) for name in inside[:3])
        more = ", ..." if len(inside) > 3 else ""
        raise DataError(
            f"{shown} contains the folders {some}{more}, not only train and test (or val); if these are classes,"
            " name their split: --split train or --split test"
        )
    else:
        found, origin = {split: ""}, f"{folder.resolve().name} as {split}"
    files = {key: files_by_class(folder / name if name else folder) for key, name in found.items()}
    classes = class_names(shown, files)
    splits: dict[str, Sequence[SourceImage]] = {}
    for key, name in found.items():
        parent = str(folder / name) if name else str(folder)
        splits[key] = FileListing([f"{parent}/{wnid}" for wnid in classes], [files[key][wnid] for wnid in classes])
    return SourceSet(
        set_name(folder.resolve().name, classes, splits), f"class folders {printable(origin)}", classes, splits
    )


def no_class_folders(shown: str) -> DataError:
    """Return the error for a folder without class folders."""
    return DataError(f"{shown} contains no class folders; put the images into train/<class>/ and test/<class>/")


def visible_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder sorted by name, without hidden files; DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{printable(str(folder))} cannot be read ({error.strerror}); check its permissions"
        ) from None


def files_by_class(split_folder: Path) -> dict[str, bytes]:
    """Return class -> its sorted file names, each ended by NAME_END; DataError names anything but images."""
    found: dict[str, bytes] = {}
    for folder in visible_entries(split_folder):
        if not folder.is_dir():
            raise DataError(f"{printable(folder.path)} is not a class folder; move it away")
        names = []
        for entry in visible_entries(folder.path):
            if not entry.is_file():
                raise DataError(
                    f"{printable(entry.path)} is not a file (class folders contain only images); move it away"
                )
            if not entry.name.lower().endswith(SMALL_IMAGE_SUFFIXES) and not looks_like_image(entry.path):
                raise DataError(f"{printable(entry.path)} is not an image; move it away")
            names.append(os.fsencode(entry.name) + NAME_END)
        found[folder.name] = b"".join(names)
    return found


def looks_like_image(path: str) -> bool:
    """Return True if a file begins like a JPEG or a PNG, whatever its suffix."""
    try:
        with Path(path).open("rb") as opened:
            return image_format(opened.read(len(PNG_SIGNATURE))) is not None
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read ({error.strerror}); restore or remove it") from None


def class_names(shown: str, files: dict[str, dict[str, bytes]]) -> tuple[str, ...]:
    """Return the classes sorted by name (numbers by value); DataError if a class lacks images in a split.

    The 1000 classes of ILSVRC get the order of imagenet_classes.txt, which is sorted by name too.
    `files`: split -> files_by_class.
    """
    named = {name for of_split in files.values() for name in of_split}
    if not named:
        raise no_class_folders(shown)
    numbers = all(name.isdecimal() for name in named)
    classes = tuple(sorted(named, key=lambda name: (int(name) if numbers else 0, name)))
    for name in classes:
        for split, found in files.items():
            if not found.get(name):
                everywhere = " from both splits" if len(files) > 1 else ""
                raise DataError(
                    f"{shown}: class {printable(name)!r} has no images in the {split} split; add some, or remove"
                    f" the class{everywhere}"
                )
    try:
        "".join(classes).encode()
    except UnicodeEncodeError:
        bad = next(printable(name) for name in classes if printable(name) != name)
        raise DataError(f"{shown}: the name of the class folder {bad!r} is not UTF-8; rename it") from None
    return classes


def set_name(folder: str, classes: Sequence[str], splits: dict[str, Sequence[SourceImage]]) -> str:
    """Return the folder's name as a valid set name.

    A folder called like a published set gets the suffix "-folders", unless its classes, counts and sizes are those
    of ImageNet.
    """
    name = folder
    if not SET_NAME.fullmatch(name):
        name = re.sub(r"[^\w.-]+", "-", name).strip("-._") or "folders"
        name = name if SET_NAME.fullmatch(name) else f"set-{name}"
    if name.lower() not in PUBLISHED_SETS:
        return name
    is_imagenet = name == IMAGENET and list(classes) == WNIDS_FILE.read_text(encoding="ascii").split()
    is_imagenet = is_imagenet and all(
        len(split) == ILSVRC_2012[key] and matches_published_size(key, split) for key, split in splits.items()
    )
    return name if is_imagenet else f"{name}-folders"


def matches_published_size(split: str, images: Sequence[SourceImage]) -> bool:
    """Return True if the files, packed like ILSVRC-2012, would give archives of the published size.

    Resized images do not.

    A tar file has a 512-byte header before each member, pads members to 512 bytes, and ends with 1 to 21 KB of
    zeros.
    """
    published, tar_files = ARCHIVE_SIZES[split]
    packed = sum(512 + -(-Path(image.file).stat().st_size // 512) * 512 for image in images)
    packed += 512 * (tar_files - 1)  # headers of the tar files in the outer tar file
    return packed + tar_files * 1024 <= published <= packed + tar_files * (1024 + 2 * 10240)
