"""Photographs of many sizes from class folders, one crop each: what published ImageNet weights are evaluated on.

The folder holds a folder for each class. Where these are called as ILSVRC calls its classes (n01440764, ...), they
may be any of the thousand; otherwise there are as many as the network has classes, in the order of their names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_modules.recipe import Batch
from pipeline.data.images import DataError

WNIDS = Path(__file__).with_name("imagenet_classes.txt")  # ILSVRC-2012's thousand classes in order
SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")
BATCH = 32


@dataclass(frozen=True)
class SingleCrop:
    """The short side resized, the middle cut out, each channel normalised: pixels / 255, minus mean, over std."""

    crop: int
    resize: int
    interpolation: str = "bilinear"  # or "bicubic"; with anti-aliasing, as PIL does it
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def words(self) -> str:
        """As it is named beside a result."""
        return f"single central crop {self.crop} of short side {self.resize} ({self.interpolation})"

    def __call__(self, image: Image.Image) -> Tensor:
        """A picture -> float32 (3, crop, crop)."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        small = F.resize(image.convert("RGB"), [self.resize], InterpolationMode(self.interpolation))
        pixels = F.pil_to_tensor(F.center_crop(small, [self.crop])).float() / 255
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class Folder(Dataset[tuple[Tensor, int]]):
    """The pictures of `folder`, class by class in order of name."""

    def __init__(self, folder: Path, classes: int, protocol: SingleCrop) -> None:
        """DataError for a folder without class folders, with an empty one, or not of `classes` classes."""
        named = sorted(path.name for path in class_folders(folder))
        labels = class_numbers(folder, named, classes)
        self.folder, self.protocol = folder, protocol
        self.files: list[tuple[Path, int]] = []
        self.ignored: list[Path] = []  # files that are not pictures by their names
        for name, label in zip(named, labels, strict=True):
            inside = sorted(path for path in (folder / name).iterdir() if path.is_file())
            pictures = [path for path in inside if path.suffix.lower() in SUFFIXES]
            if not pictures:
                raise DataError(f"{folder / name} holds no picture ({', '.join(SUFFIXES)}); fill it, or remove it")
            self.ignored += [path for path in inside if path not in pictures]
            self.files += [(path, label) for path in pictures]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                return self.protocol(image), label
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is no readable picture ({error}); replace it, or remove it") from None

    def batches(self, workers: int) -> Iterator[Batch]:
        """All pictures once, in order."""
        loader = DataLoader(self, batch_size=BATCH, num_workers=workers)
        try:
            for step, (images, labels) in enumerate(loader):
                yield Batch(step, images, labels)
        except DataError as error:  # from a worker it comes with the worker's traceback as its words
            said = str(error).strip().splitlines()[-1]
            raise DataError(said.partition("DataError: ")[2] or said) from None


def class_folders(folder: Path) -> list[Path]:
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


def class_numbers(folder: Path, named: list[str], classes: int) -> list[int]:
    """The number of each class folder's class."""
    wnids = WNIDS.read_text(encoding="ascii").split()
    if classes == len(wnids) and set(named) <= set(wnids):
        number = {wnid: i for i, wnid in enumerate(wnids)}
        return [number[name] for name in named]
    if len(named) != classes:
        said = f"{folder} holds {len(named)} class folders, and the network tells {classes} classes apart"
        if classes == len(wnids):
            strange = next(name for name in named if name not in wnids)
            said += f" (or some of ILSVRC's, called as n01440764 is; {strange!r} is not)"
        raise DataError(said)
    return list(range(classes))
