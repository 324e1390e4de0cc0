"""Images of any size in class folders, read one by one: the data for evaluating weights without shards.

The folder holds one folder per class. `class_labels` says which output of the network each class is.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch

from pipeline.common.words import printable, some_of
from pipeline.data import jpeg
from pipeline.data.class_names import class_order
from pipeline.data.folder_listing import FolderListing, is_folder, list_class_folders, visible_entries
from pipeline.data.images import DataError
from pipeline.derive.class_labels import ClassLabels

SPLIT_NAMES = ("train", "val", "test")  # of folders that hold class folders


class ClassFolders:
    """The images of the classes of a listing, sorted by class and file name; implements samples.Samples."""

    def __init__(self, listing: FolderListing, labels: ClassLabels) -> None:
        """`labels`: of the classes in the order of `class_order`."""
        self.folder, self.skipped = listing.folder, listing.skipped
        self.files: list[Path] = []
        numbers: list[int] = []
        for name, number in zip(class_order(listing.names), labels.numbers, strict=True):
            files = [Path(file) for file in listing.files(name)]
            self.files += files
            numbers += [number] * len(files)
        self.labels = torch.tensor(numbers)

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """Path of an image."""
        return printable(str(self.files[index]))

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the bytes of the files; DataError names an unreadable file."""
        return [self._content(index) for index in indices]

    def _content(self, index: int) -> bytes:
        try:
            return self.files[index].read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.where(index)} cannot be read ({error.strerror}); restore or remove it"
            ) from None

    def check(self, threads: int) -> str:
        """Check every image; return 16 hex digits of the sha256 of all files' names and contents.

        DataError names all images that cannot be decoded, now and not after hours of evaluation. `threads`: at
        least 1 is used.
        """
        order = sorted(range(len(self)), key=lambda index: self.files[index])
        whole, errors = hashlib.sha256(), []
        with ThreadPoolExecutor(max(1, threads), "check") as pool:
            for index, (content, error) in zip(order, pool.map(self._checked, order), strict=True):
                whole.update(os.fsencode(f"{self.files[index].relative_to(self.folder)} {content}\n"))
                errors += [(self.where(index), error)] if error else []
        if len(errors) == 1:
            raise DataError(errors[0][1])
        if errors:
            paths = some_of([path for path, _ in errors], limit=20)
            raise DataError(
                f"{len(errors)} images in {self.folder} cannot be decoded; restore or remove them: {paths}"
                f" (the first: {errors[0][1]})"
            )
        return whole.hexdigest()[:16]

    def _checked(self, index: int) -> tuple[str, str]:
        """Return the sha256 of an image's file, and what is wrong with the image, "" for a good one."""
        try:
            content = self._content(index)
            check_image(content, self.where(index))
        except DataError as error:
            return "", str(error)
        return hashlib.sha256(content).hexdigest(), ""


def check_image(content: bytes, where: str) -> None:
    """Raise DataError for a file's bytes that `jpeg.decode` rejects, in less than half of its time.

    A JPEG is decoded to an eighth of its size: libjpeg reads all of its data, and reports the same errors.
    """
    import simplejpeg

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if height * width <= jpeg.MAX_PIXELS and colours in ("Gray", "YCbCr"):
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1)
            return
    except ValueError:
        pass
    jpeg.decode(content, where)


def list_test_folder(folder: Path) -> FolderListing:
    """Return the images of a folder of class folders.

    Raises DataError if there are no class folders, if one is empty, or for splits instead of classes.
    """
    if not folder.is_dir():
        raise DataError(f"folder {folder} not found; pass a folder that holds one folder of images per class")
    names = {entry.name for entry in visible_entries(folder) if is_folder(entry)}
    splits = [name for name in SPLIT_NAMES if name in names]
    inside = chain(*(visible_entries(folder / name) for name in splits))
    if splits and (names == {*splits} or any(map(is_folder, inside))):  # else classes that are called so
        raise DataError(
            f"{folder} holds the splits {' and '.join(splits)}; pass one of them, such as {folder / splits[-1]}"
        )
    listing = list_class_folders(folder)
    if not listing.names:
        raise DataError(f"{folder} holds no class folders; it must hold one folder of images per class")
    if empty := listing.without_images:
        shown = [printable(f"{folder}/{name}") for name in empty]
        raise DataError(f"no images in the class folders {some_of(shown)}; add some or remove the folders")
    return listing
