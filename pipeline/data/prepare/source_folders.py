"""Source images in class folders: `train/<class>/*` and `test/<class>/*` (or `val`), or one split alone."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.common.words import printable
from pipeline.data.class_names import check_distinct, class_order, imagenet_wnids
from pipeline.data.folder_listing import (
    NAME_END,
    TINY_ANNOTATIONS,
    is_folder,
    list_class_folders,
    visible_entries,
)
from pipeline.data.images import DataError
from pipeline.data.prepare.source_images import SourceImage, SourceImageSequence, SourceSet
from pipeline.data.sources import ILSVRC_2012, IMAGENET, NAMES, SET_NAME

SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "test"}  # folder -> split

ARCHIVE_SIZES = {  # of the ILSVRC-2012 archives: bytes, and the number of tar files in them
    "train": (147_897_477_120, 1001),
    "test": (6_744_924_160, 1),
}

PUBLISHED_SETS = (*NAMES, IMAGENET)  # names that imply a known content

# Sorts the images of Tiny ImageNet, as it is unpacked, into class folders. Its test images have no labels.
SORT_TINY_IMAGENET = (
    "for c in train/*/; do mv $c/images/* $c && rmdir $c/images; done; cd val; while read f c _; do"
    f" mkdir -p $c && mv images/$f $c/; done < {TINY_ANNOTATIONS}; rmdir images; cd ..; mv test ../tiny-unlabelled"
)


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
    `folder`. Files that are not images are left out and listed in `skipped`.

    Raise DataError for a folder without images, with images outside of class folders, or with unequal classes.
    """
    shown = printable(str(folder))
    if not folder.is_dir():
        raise DataError(f"folder {shown} not found; give one with train/<class>/ and test/<class>/")
    if split is not None:
        if split not in SPLIT_FOLDERS:
            raise DataError(f"--split {split!r}: must be train or test (val means test)")
        split = SPLIT_FOLDERS[split]
    inside = [entry.name for entry in visible_entries(folder) if is_folder(entry)]
    if (folder / "val" / "images").is_dir() and (folder / "val" / TINY_ANNOTATIONS).is_file():
        raise DataError(
            f"{shown} is Tiny ImageNet as it is unpacked; sort its images into class folders, in this folder with:"
            f" {SORT_TINY_IMAGENET}"
        )
    if not inside:
        list_class_folders(folder)  # raises an error about images without class folders
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
    listings = {key: list_class_folders(folder / name if name else folder) for key, name in found.items()}
    files = {key: listing.names for key, listing in listings.items()}
    classes = class_names(shown, files)
    splits: dict[str, Sequence[SourceImage]] = {}
    for key, name in found.items():
        parent = str(folder / name) if name else str(folder)
        splits[key] = FileListing([f"{parent}/{wnid}" for wnid in classes], [files[key][wnid] for wnid in classes])
    return SourceSet(
        set_name(folder.resolve().name, classes, splits),
        f"class folders {printable(origin)}",
        classes,
        splits,
        skipped=tuple(path for listing in listings.values() for path in listing.skipped),
    )


def no_class_folders(shown: str) -> DataError:
    """Return the error for a folder without class folders."""
    return DataError(f"{shown} contains no class folders; put the images into train/<class>/ and test/<class>/")


def class_names(shown: str, files: dict[str, dict[str, bytes]]) -> tuple[str, ...]:
    """Return the classes in their order; DataError if a class lacks images in a split.

    `files`: split -> class -> the names of its files, each ended by NAME_END.
    """
    classes = class_order(name for of_split in files.values() for name in of_split)
    if not classes:
        raise no_class_folders(shown)
    check_distinct(shown, classes)
    for name in classes:
        if name != name.strip():
            raise DataError(
                f"{shown}: the name of the class folder {printable(name)!r} has a blank at an end; rename it"
                f" {printable(name.strip())!r}"
            )
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

    A folder called like a published set, or like one that was resized, gets the suffix "-folders", unless its
    classes, counts and sizes are those of ImageNet.
    """
    name = folder
    if not SET_NAME.fullmatch(name):
        name = re.sub(r"[^\w.-]+", "-", name).strip("-._") or "folders"
        name = name if SET_NAME.fullmatch(name) else f"set-{name}"
    if re.sub(r"-short\d+$", "", name.lower()) not in PUBLISHED_SETS:
        return name
    is_imagenet = name == IMAGENET and list(classes) == imagenet_wnids()
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
