"""Photographs of many sizes in class folders, read one by one: what weights are evaluated on without shards.

The folder holds a folder for each class. Where these are called as ILSVRC calls its classes (n01440764, ...), they
may be any of the thousand; otherwise there are as many as the network has classes, in the order of their names.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.data.images import DataError

WNIDS_FILE = Path(__file__).with_name("imagenet_classes.txt")  # ILSVRC-2012's thousand classes in order
IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")


class ClassFolders:
    """The pictures of `folder`, class by class in order of name (see samples.Samples)."""

    def __init__(self, folder: Path, classes: int) -> None:
        """DataError for a folder without class folders, with an empty one, or not of `classes` classes."""
        named = sorted(path.name for path in list_class_folders(folder))
        numbers = class_numbers(str(folder), named, classes)
        self.folder = folder
        self.files: list[Path] = []
        self.ignored: list[Path] = []  # files that are not pictures by their names
        labels: list[int] = []
        for name, label in zip(named, numbers, strict=True):
            inside = sorted(path for path in (folder / name).iterdir() if path.is_file())
            pictures = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
            if not pictures:
                raise DataError(
                    f"{folder / name} holds no picture ({', '.join(IMAGE_SUFFIXES)}); fill it, or remove it"
                )
            self.ignored += [path for path in inside if path not in pictures]
            self.files += pictures
            labels += [label] * len(pictures)
        self.labels = torch.tensor(labels)

    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of all files' names and sizes."""
        said = [f"{file.relative_to(self.folder)} {file.stat().st_size}" for file in self.files]
        return hashlib.sha256("\n".join(said).encode(errors="surrogateescape")).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self.files[index])

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The files' bytes."""
        return [self._content(self.files[index]) for index in indices]

    def _content(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); restore it, or remove it") from None


def list_class_folders(folder: Path) -> list[Path]:
    """The folders in `folder`; DataError where there is none to read."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give one that holds a folder of pictures for each class")
    found = [path for path in folder.iterdir() if path.is_dir()]
    splits = sorted(path.name for path in found if path.name in ("val", "test", "train"))
    if splits:
        raise DataError(f"{folder} holds {' and '.join(splits)}; name the one that is meant: {folder / splits[0]}")
    if not found:
        raise DataError(f"{folder} holds no class folders; a folder of pictures for each class is needed")
    return found


def class_numbers(where: str, named: Sequence[str], classes: int) -> list[int]:
    """The number that a network of `classes` classes gives each class named at `where`."""
    wnids = WNIDS_FILE.read_text(encoding="ascii").split()
    if classes == len(wnids) and set(named) <= set(wnids):
        number = {wnid: i for i, wnid in enumerate(wnids)}
        return [number[name] for name in named]
    if len(named) != classes:
        said = f"{where} holds {len(named)} classes, and the network tells {classes} classes apart"
        if classes == len(wnids):
            strange = next(name for name in named if name not in wnids)
            said += f" (or some of ILSVRC's, called as n01440764 is; {strange!r} is not)"
        raise DataError(said)
    return list(range(classes))
