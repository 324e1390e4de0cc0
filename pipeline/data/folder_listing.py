"""The image files of class folders. Every reader of class folders takes the same files as images.

A file is an image if its name has the suffix of one, or if it begins like one. Other files are left out and
listed, and so is what operating systems, file servers and programs leave in folders (hidden files, Thumbs.db,
@eaDir). Whatever may hold an image that would be missed is an error: a folder in a class folder, a link that leads
to no file, an image beside the class folders.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common.words import printable, some_of
from pipeline.data.class_names import check_distinct
from pipeline.data.images import DataError

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm",
)  # fmt: skip
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
UNREAD_SUFFIXES = (  # of images in formats that are not read
    ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".tga", ".pcx", ".dng", ".cr2", ".nef", ".arw",
)  # fmt: skip
CLUTTER_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # in lower case
CLUTTER_FOLDERS = {"@eadir", "__macosx", "lost+found", "$recycle.bin", "#recycle", "system volume information"}
TINY_ANNOTATIONS = "val_annotations.txt"  # beside the folder `images`, in the validation part of Tiny ImageNet
ILSVRC_VAL_PREFIX = (
    "ILSVRC2012_val_"  # of the file names of ILSVRC-2012's validation images, which have no folders
)
NAME_END = b"\0"  # a file name cannot contain it


@dataclass
class FolderListing:
    """The image files of one split, by class."""

    folder: Path
    names: dict[str, bytes] = field(default_factory=dict)  # class -> its sorted file names, each ended by NAME_END
    clutter: list[str] = field(default_factory=list)  # paths of what operating systems and programs left there
    others: list[str] = field(default_factory=list)  # paths of other files that are not images

    @property
    def skipped(self) -> list[str]:
        """Sorted paths of all that is left out."""
        return sorted([*self.clutter, *self.others])

    def files(self, name: str) -> Iterator[str]:
        """Yield the paths of the images of a class, sorted by name; bytes that are not text are escaped."""
        for file in self.names[name].split(NAME_END)[:-1]:
            yield f"{self.folder}/{name}/{os.fsdecode(file)}"

    @property
    def without_images(self) -> list[str]:
        """The classes without images."""
        return [name for name, files in self.names.items() if not files]


def list_class_folders(split_folder: Path) -> FolderListing:
    """Return the images in the class folders of `split_folder`.

    Raises DataError for a folder that cannot be read, images without a class folder, entries that may hold images
    but are no files, and two class folders of one name in different spellings.
    """
    found = FolderListing(split_folder)
    faults: list[str] = []  # entries that may hold images, and why they are not read
    images: list[str] = []  # beside the class folders
    for entry in read_entries(split_folder):
        if is_clutter(entry):
            found.clutter.append(entry.path)
        elif is_folder(entry):
            found.names[entry.name] = _list_images(entry.path, found, faults)
        elif _is_file(entry):
            (images if is_image(entry) else found.others).append(entry.path)
        else:
            faults.append(_describe_fault(entry))
    shown = printable(str(split_folder))
    if (split_folder / TINY_ANNOTATIONS).is_file() and found.names.get("images"):
        raise DataError(
            f"{shown} is the validation part of Tiny ImageNet: its images are in one folder, and their classes in"
            f" {TINY_ANNOTATIONS}; sort them into class folders, in this folder with: while read f c _; do"
            f" mkdir -p $c && mv images/$f $c/; done < {TINY_ANNOTATIONS}; rmdir images"
        )
    if images:
        raise _images_without_class(shown, [Path(path).name for path in images])
    if faults:
        raise DataError(f"{shown} cannot be used: {some_of(faults)}; restore, move or remove them")
    check_distinct(shown, list(found.names))
    return found


def _list_images(folder: str, listing: FolderListing, faults: list[str]) -> bytes:
    """Return the names of the images in a class folder; add all else to `listing` or `faults`."""
    names = []
    for entry in read_entries(folder):
        if is_clutter(entry):
            listing.clutter.append(entry.path)
        elif not _is_file(entry):
            faults.append(_describe_fault(entry))
        elif is_image(entry):
            names.append(os.fsencode(entry.name) + NAME_END)
        elif entry.name.lower().endswith(UNREAD_SUFFIXES):
            faults.append(f"{printable(entry.path)} is an image in a format that is not read (convert it to PNG)")
        else:
            listing.others.append(entry.path)
    return b"".join(names)


def _describe_fault(entry: os.DirEntry[str]) -> str:
    """Return what is wrong with an entry that is not a file: "val/cat/x.jpg is a link to nothing"."""
    kind = "not a file"
    if is_folder(entry):
        kind = "a folder in a class folder (class folders contain only images)"
    elif entry.is_symlink():
        kind = "a link that leads to no file"
    return f"{printable(entry.path)} is {kind}"


def _images_without_class(shown: str, names: list[str]) -> DataError:
    """Return the error for images that lie beside the class folders, or without any."""
    text = f"{shown} contains images that are in no class folder: {some_of([printable(name) for name in names])}"
    if names[0].startswith(ILSVRC_VAL_PREFIX):
        return DataError(
            f"{text}; the classes of ILSVRC's validation images are in the devkit: prepare"
            " ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz with repro data prepare, or sort the images"
            " into class folders"
        )
    return DataError(f"{text}; move each into the folder of its class")


def read_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, sorted by name; DataError if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{printable(str(folder))} cannot be read ({error.strerror}); check its permissions"
        ) from None


def visible_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not clutter, sorted by name; DataError if it cannot be read."""
    return [entry for entry in read_entries(folder) if not is_clutter(entry)]


def is_clutter(entry: os.DirEntry[str]) -> bool:
    """Return True for hidden entries (.git, .ipynb_checkpoints, ._x.JPEG) and those that systems create."""
    name = entry.name.lower()
    if name.startswith("."):
        return True
    return (name in CLUTTER_FILES and not is_folder(entry)) or (name in CLUTTER_FOLDERS and is_folder(entry))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder or a link to one; False for a link that cannot be followed."""
    try:
        return entry.is_dir()
    except OSError:  # a circle of links, or a link into a folder without access
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return True for a file or a link to one; False for a link that cannot be followed."""
    try:
        return entry.is_file()
    except OSError:
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Return True if a file has the suffix of an image, or begins like one. DataError if it cannot be read."""
    if entry.name.lower().endswith(IMAGE_SUFFIXES):
        return True
    try:
        with Path(entry.path).open("rb") as opened:
            start = opened.read(16)
    except OSError as error:
        raise DataError(
            f"{printable(entry.path)} cannot be read ({error.strerror}); restore or remove it"
        ) from None
    return start.startswith(IMAGE_STARTS) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
