"""Image sets by name: `load("cifar10", Path("data"))`.

digits          scikit-learn's handwritten digits, 8 x 8 grey; every fifth image is test (1437/360)
mnist           28 x 28 grey, 60,000/10,000; downloaded, or class folders with the same content
fashion-mnist   28 x 28 grey, 60,000/10,000
cifar10         32 x 32 RGB, 50,000/10,000
cifar100        32 x 32 RGB, 50,000/10,000 (fine labels)
noise           16 x 16 RGB, 200/100; generated, ten easy classes, for tests
anything else   shards (see shards.py) or class folders (folders.py) below the data root
"""

import difflib
import http.client
import os
import pickle
import re
import tarfile
from pathlib import Path
from typing import overload

import numpy as np
import torch

from pipeline.data.class_folders import WNIDS_FILE
from pipeline.data.folders import known_folders, read_folders, read_pixels
from pipeline.data.images import DataError, ImageSet, LabelledImages, fingerprint, in_canonical_order
from pipeline.data.order import seeded_generator
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import ShardSet, ShardSplit, open_shards
from pipeline.data.store import Store, open_store

__all__ = ["MNIST_SHA256", "NAMES", "DataError", "ImageSet", "LabelledImages", "load_images"]

# images.fingerprint of MNIST with the classes "0" to "9", both splits in canonical order. The PNG files it
# was computed from, put back into their original order, gave the md5 sums of MNIST's own four files
# (train-images-idx3-ubyte: 6bbc9ace898e44ae57da46a324031adb). To recompute it from class folders in
# data/mnist (any lossless copy), without the comparison that `load` makes:
#   from pipeline.data.folders import read_folders; from pipeline.data.images import fingerprint
#   s = read_folders("mnist", Path("data")); fingerprint(s.classes, s.train, s.test)
MNIST_SHA256 = "2d8f870709d0608a5944ae5186068f58c33ed48fdced3348e1b427fee3cfda31"

TORCHVISION_SETS = {  # name -> (torchvision's class, where below the root its downloads go)
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", ""),
    "cifar100": ("CIFAR100", ""),
}
NAMES = ("digits", *TORCHVISION_SETS, "noise")
IMAGENET, ILSVRC_2012 = "imagenet", {"train": 1_281_167, "test": 50_000}  # the classification task's pictures
SIZES = {"fashion-mnist": (60_000, 10_000), "cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}
SET_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
DECODED_AT_ONCE = 1000  # pictures


@overload
def load_images(name: str, root: Path) -> ImageSet: ...
@overload
def load_images(name: str, root: Path, *, photographs: bool) -> ImageSet | ShardSet: ...
def load_images(name: str, root: Path, *, photographs: bool = False) -> ImageSet | ShardSet:
    """The named set, in canonical order. `root` holds downloads, shards, class folders and their cache.

    Shards are left where they are if they are read as `photographs`, and else decoded into memory.
    """
    where = find_shards(name, root) if SET_NAME.fullmatch(name) else None
    if where and where.exists(MANIFEST_NAME):
        shards = check_published_name(open_shards(where, cache=root / ".cache" / "shards"))
        if shards.name != name:
            raise DataError(
                f"the shards in {where} are of {shards.name!r}; put them into a folder of that name, and use it"
                f" (--set data.name={shards.name})"
            )
        return shards if photographs else decode_shards(shards)
    if photographs and where is None:
        raise DataError(
            f"{name!r} cannot be the name of a prepared set"
            f"{did_you_mean(name, root) or '; use the one that repro data prepare says'}"
        )
    if photographs:
        told = " (REPRO_SHARDS)" if os.environ.get("REPRO_SHARDS") else ""
        raise DataError(
            f"{name} is read as photographs, from shards, and there are none in {where}{told}"
            f"{did_you_mean(name, root) or f'; make them with: repro data prepare SOURCE --out {where}'}"
        )
    if name == "mnist" and _holds_classes(root / name):
        return _checked_mnist(read_folders(name, root), f"the class folders in {root / name}")
    if name in NAMES and _holds_classes(root / name):
        raise DataError(
            f"{root / name} holds class folders, but the name {name!r} means the published set;"
            f" rename the folder (for example to {name}-folders) and use that name"
        )
    if name == "digits":
        return _digits()
    if name == "noise":
        return _noise()
    if name in TORCHVISION_SETS:
        return _from_torchvision(name, root)
    if not name or name[0] == "." or "/" in name or "\\" in name or not (root / name).is_dir():
        hint = did_you_mean(name, root) or f"; known are {', '.join(known_sets(root))}"
        raise DataError(f"no data set is called {name!r}, and there is no folder {root / name}{hint}")
    return read_folders(name, root)


def known_sets(root: Path) -> list[str]:
    """All names that `load` takes now."""
    folders = {path.parent.name for path in root.glob(f"*/{MANIFEST_NAME}")} | {*known_folders(root)}
    return [*NAMES, *sorted(folders - {*NAMES})]


def did_you_mean(name: str, root: Path) -> str:
    """'; did you mean X?' where something is near."""
    near = difflib.get_close_matches(name, known_sets(root), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near and near[0] != name else ""


def find_shards(where: str, root: Path) -> Store:
    """Where the shards of a set are: at the path or address itself, if there are any; else by its name.

    A name is looked for below REPRO_SHARDS (a folder or an address) if that is set, but for small sets, else below
    `root`.
    """
    here = open_store(where)
    if not SET_NAME.fullmatch(where) or here.exists(MANIFEST_NAME):
        return here
    elsewhere = None if where in NAMES else os.environ.get("REPRO_SHARDS")
    return open_store(f"{elsewhere.rstrip('/')}/{where}" if elsewhere else root / where)


def check_published_name(shards: ShardSet) -> ShardSet:
    """The same; DataError for a set called as a published one that has other counts or classes, or was resized."""
    if shards.name in NAMES and shards.manifest.resized:
        raise DataError(f"{shards.place} is not {shards.name}: its pictures were resized; give it another name")
    counts = {name: len(part) for name, part in shards.splits.items()}
    wrong = any(count != ILSVRC_2012[name] for name, count in counts.items()) or shards.manifest.resized
    if shards.name == IMAGENET and (
        wrong or list(shards.classes) != WNIDS_FILE.read_text(encoding="ascii").split()
    ):
        found = " + ".join(map(str, counts.values()))
        raise DataError(
            f"{shards.place} is not ImageNet: {found} pictures, where ILSVRC-2012 has 1281167 for training and"
            " 50000 for validation; prepare those, or give another set another name"
        )
    return shards


def decode_shards(shards: ShardSet) -> ImageSet:
    """A prepared set of small images, decoded into memory: the same set as the one it was prepared from."""
    train, test = (_decoded(part, shards.name) for part in (shards.train, shards.test))
    found = ImageSet(shards.name, shards.source, shards.classes, train, test)
    if (len(train), len(test)) != SIZES.get(shards.name, (len(train), len(test))):
        raise DataError(
            f"{shards.place} is not {shards.name}: {len(train)} + {len(test)} pictures; give it another name"
        )
    return _checked_mnist(found, f"the shards in {shards.place}") if shards.name == "mnist" else found


def _decoded(part: ShardSplit, name: str) -> LabelledImages:
    pixels: np.ndarray | None = None
    for start in range(0, len(part), DECODED_AT_ONCE):
        numbers = range(start, min(len(part), start + DECODED_AT_ONCE))
        for number, content in zip(numbers, part.read(numbers), strict=True):
            image = read_pixels(content, part.where(number))
            if pixels is None:
                pixels = np.empty((len(part), *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise DataError(
                    f"{name} holds pictures of many sizes, which are read one by one; say in data.crop how they"
                    " become squares, and in data.test how they are judged"
                )
            pixels[number] = image
    assert pixels is not None
    return in_canonical_order(LabelledImages(torch.from_numpy(pixels), part.labels))


def _holds_classes(folder: Path) -> bool:
    """True for class folders; False for `MNIST/raw`, which some file systems also find as `mnist`."""
    return folder.is_dir() and not (folder / "raw").is_dir()


def _digits() -> ImageSet:
    """scikit-learn's 1797 digits; values 0 to 16 become 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy((bunch.images.astype(np.int64) * 255 + 8) // 16).to(torch.uint8).unsqueeze(-1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    is_test = torch.arange(len(labels)) % 5 == 0
    return ImageSet(
        name="digits",
        source="scikit-learn's load_digits; images 0, 5, 10, ... are the test split",
        classes=tuple(str(digit) for digit in range(10)),
        train=in_canonical_order(LabelledImages(pixels[~is_test], labels[~is_test])),
        test=in_canonical_order(LabelledImages(pixels[is_test], labels[is_test])),
    )


def _noise() -> ImageSet:
    """Ten prototypes of 4 x 4 coloured blocks, each pixel off by up to 48 of 255."""
    draw = seeded_generator(0, "noise")  # integers only: the same on every platform
    blocks = torch.randint(64, 192, (10, 4, 4, 3), generator=draw)
    prototypes = blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)

    def part(count: int) -> LabelledImages:
        labels = torch.arange(count) % 10
        noise = torch.randint(-48, 49, (count, 16, 16, 3), generator=draw)
        return in_canonical_order(LabelledImages((prototypes[labels] + noise).to(torch.uint8), labels))

    classes = tuple(f"pattern{index}" for index in range(10))
    return ImageSet("noise", "generated (seed 0)", classes, train=part(200), test=part(100))


def _from_torchvision(name: str, root: Path) -> ImageSet:
    """Through torchvision's class: its addresses, its checksums, its reading of the files."""
    from torchvision import datasets

    class_name, below = TORCHVISION_SETS[name]
    dataset = getattr(datasets, class_name)
    files = [file for file, _ in dataset.resources] if below else [dataset.filename]
    try:
        splits = [dataset(root, train=train, download=train) for train in (True, False)]  # fetched once
        train, test = (_images(split.data, split.targets) for split in splits)
    except (
        OSError,  # no connection, no permission, no space
        RuntimeError,  # a checksum, or every mirror failed
        http.client.HTTPException,
        tarfile.TarError,
        EOFError,
        ValueError,  # from here on: damaged files that torchvision does not check
        AssertionError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} could not be downloaded to {root / below} or read from there ({reason}); delete damaged"
            f" files and try again with a connection, or put {', '.join(files)} there by hand"
        ) from error
    classes = tuple(splits[0].classes)
    source = f"torchvision.datasets.{class_name}"
    if name == "mnist":
        digits = tuple(str(digit) for digit in range(10))  # torchvision: "0 - zero"
        return _checked_mnist(ImageSet(name, source, digits, train, test), f"the files in {root / below}")
    return ImageSet(name, source, classes, train, test)


def _images(data: object, targets: object) -> LabelledImages:
    """torchvision's arrays: uint8 (N, H, W) or (N, H, W, 3), and N labels."""
    pixels, labels = torch.as_tensor(data), torch.as_tensor(targets, dtype=torch.int64)
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} images but {len(labels)} labels")
    pixels = pixels.unsqueeze(-1) if pixels.dim() == 3 else pixels
    return in_canonical_order(LabelledImages(pixels.contiguous(), labels))


def _checked_mnist(images: ImageSet, where: str) -> ImageSet:
    found = fingerprint(images.classes, images.train, images.test)
    if found != MNIST_SHA256:
        raise DataError(
            f"{where} are not MNIST: {len(images.train)} + {len(images.test)} images with fingerprint"
            f" {found[:12]}, where MNIST has 60000 + 10000 with {MNIST_SHA256[:12]};"
            " restore them, or give another set another name"
        )
    return images
