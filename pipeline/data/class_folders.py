"""Images of any size in class folders, read one by one: the data for evaluating weights without shards.

The folder holds one folder per class. If these are named like ILSVRC's classes (n01440764, ...), they may be any
subset of the 1000 classes. Otherwise there must be as many as the network has classes, in the order of their
names.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.images import DataError

WNIDS_FILE = Path(__file__).with_name("imagenet_classes.txt")  # ILSVRC-2012's 1000 classes in order
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")


class ClassFolders:
    """The images of `folder`, sorted by class and file name; implements samples.Samples."""

    def __init__(self, folder: Path, classes: int) -> None:
        """Raise DataError for a folder without class folders, with an empty one, or not of `classes` classes."""
        names = sorted(path.name for path in list_class_folders(folder))
        numbers = class_numbers(str(folder), names, classes)
        self.folder = folder
        self.files: list[Path] = []
        self.ignored: list[Path] = []  # files whose names are not those of images
        labels: list[int] = []
        for name, label in zip(names, numbers, strict=True):
            files = sorted(path for path in (folder / name).iterdir() if path.is_file())
            images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
            if not images:
                raise DataError(
                    f"{folder / name} holds no images ({', '.join(IMAGE_SUFFIXES)}); add some or remove the folder"
                )
            self.ignored += [path for path in files if path not in images]
            self.files += images
            labels += [label] * len(images)
        self.labels = torch.tensor(labels)

    def fingerprint(self) -> str:
        """Return 16 hex digits of the sha256 of all files' names and sizes."""
        lines = [f"{file.relative_to(self.folder)} {file.stat().st_size}" for file in self.files]
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """Path of an image."""
        return str(self.files[index])

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Return the bytes of the files; DataError names an unreadable file."""
        return [self._content(self.files[index]) for index in indices]

    def _content(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); restore or remove it") from None


def list_class_folders(folder: Path) -> list[Path]:
    """Return the folders in `folder`; DataError if there are none, or if it holds splits instead of classes."""
    if not folder.is_dir():
        raise DataError(f"folder {folder} not found; pass a folder that holds one folder of images per class")
    found = [path for path in folder.iterdir() if path.is_dir()]
    splits = sorted(path.name for path in found if path.name in ("val", "test", "train"))
    if splits:
        raise DataError(
            f"{folder} holds the splits {' and '.join(splits)}; pass one of them, such as {folder / splits[0]}"
        )
    if not found:
        raise DataError(f"{folder} holds no class folders; it must hold one folder of images per class")
    return found


def class_numbers(where: str, names: Sequence[str], classes: int) -> list[int]:
    """Return the index in a network of `classes` classes of each class in `names`; DataError names `where`."""
    wnids = WNIDS_FILE.read_text(encoding="ascii").split()
    if classes == len(wnids) and set(names) <= set(wnids):
        number = {wnid: i for i, wnid in enumerate(wnids)}
        return [number[name] for name in names]
    if len(names) != classes:
        message = f"{where} holds {len(names)} classes, but the network has {classes}"
        if classes == len(wnids):
            other = next(name for name in names if name not in wnids)
            message += (
                f"; use all of them, or any of ILSVRC's by name, such as n01440764 ({other!r} is none of them)"
            )
        raise DataError(message)
    return list(range(classes))
