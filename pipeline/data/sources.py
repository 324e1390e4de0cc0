"""Data sets by name: `load_images("cifar10", Path("data"))`.

digits          scikit-learn's handwritten digits, 8 x 8 grey; every fifth image is a test image (1437/360)
mnist           28 x 28 grey, 60,000/10,000; downloaded, or class folders with the same content
fashion-mnist   28 x 28 grey, 60,000/10,000
cifar10         32 x 32 RGB, 50,000/10,000
cifar100        32 x 32 RGB, 50,000/10,000 (fine labels)
svhn            32 x 32 RGB, 73,257/26,032; cropped digits, format 2
svhn-extra      the same with the extra images for training, 604,388/26,032; 1.9 GB in memory, twice that to load
noise           16 x 16 RGB, 200/100; generated, ten easy classes, for tests
anything else   shards (see shards.py) or class folders (folders.py) below the data root
"""

import difflib
import http.client
import os
import pickle
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_modules.names import nearest
from pipeline.data.boxes import with_boxes
from pipeline.data.class_names import WNIDS_FILE
from pipeline.data.folders import known_folders, read_folders, read_pixels
from pipeline.data.images import (
    DataError,
    ImageSet,
    LabelledImages,
    canonical_order,
    fingerprint,
    in_canonical_order,
)
from pipeline.data.order import seeded_generator
from pipeline.data.shard_manifest import MANIFEST_NAME
from pipeline.data.shards import ShardSet, ShardSplit, open_shards
from pipeline.data.store import Store, open_store

# images.fingerprint of MNIST with the classes "0" to "9", both splits in canonical order. It was computed from PNG
# files that, in their original order, have the md5 sums of MNIST's own four files
# (train-images-idx3-ubyte: 6bbc9ace898e44ae57da46a324031adb). To recompute it from class folders in data/mnist
# (any lossless copy), without the check in `load_images`:
#   from pipeline.data.folders import read_folders; from pipeline.data.images import fingerprint
#   s = read_folders("mnist", Path("data")); fingerprint(s.classes, s.train, s.test)
MNIST_SHA256 = "2d8f870709d0608a5944ae5186068f58c33ed48fdced3348e1b427fee3cfda31"

TORCHVISION_SETS = {  # name -> (torchvision's class, folder of its downloads in the root)
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", ""),
    "cifar100": ("CIFAR100", ""),
}
SVHN_PARTS = {"svhn": ("train",), "svhn-extra": ("train", "extra")}  # name -> published parts used for training
SVHN_FOLDER = "SVHN/raw"  # of the downloads, in the root
NAMES = ("digits", *TORCHVISION_SETS, *SVHN_PARTS, "noise")
IMAGENET_STAND_IN = "imagenet-standin"  # made by repro data stand-in and repro data prepare
IMAGENET, ILSVRC_2012 = "imagenet", {"train": 1_281_167, "test": 50_000}  # images of the classification task
SIZES = {
    "fashion-mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "svhn": (73_257, 26_032),
    "svhn-extra": (604_388, 26_032),
}
SET_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
DECODE_CHUNK = 1000  # images decoded at a time


@overload
def load_images(name: str, root: Path) -> ImageSet: ...
@overload
def load_images(name: str, root: Path, *, sharded: bool, boxes: bool = False) -> ImageSet | ShardSet: ...
def load_images(name: str, root: Path, *, sharded: bool = False, boxes: bool = False) -> ImageSet | ShardSet:
    """Load the named set, in canonical order. `root` holds downloads, shards, class folders and their cache.

    With `sharded` the images stay in their shards; otherwise a set in shards is decoded into memory. With `boxes`
    too, the result is a BoxedShards: the images that have bounding boxes. Raises DataError for a set that is not
    found, damaged, without boxes, or different from the published set of that name.
    """
    store = find_shards(name, root) if SET_NAME.fullmatch(name) else None
    if store and store.exists(MANIFEST_NAME):
        shards = check_published_name(open_shards(store, cache=root / ".cache" / "shards"))
        if shards.name != name:
            raise DataError(
                f"the shards in {store} are of {shards.name!r}; move them to a folder of that name and use it"
                f" (--data {shards.name})"
            )
        if not sharded:
            return decode_shards(shards)
        return with_boxes(shards) if boxes else shards
    if sharded and store is None:
        raise DataError(
            f"{name!r} cannot be the name of a prepared set"
            f"{_suggestion(name, root) or '; use the name that repro data prepare prints'}"
        )
    if sharded:
        variable = " (REPRO_SHARDS)" if os.environ.get("REPRO_SHARDS") else ""
        command = f"repro data prepare SOURCE --out {store}"
        if name == IMAGENET_STAND_IN:
            command = f"repro data stand-in imagenet --out DIR && repro data prepare DIR --out {store}"
        raise DataError(
            f"no shards of {name} in {store}{variable}{_suggestion(name, root) or f'; make them with: {command}'}"
        )
    if name == "mnist" and _holds_classes(root / name):
        return _checked_mnist(read_folders(name, root), f"the class folders in {root / name}")
    if name in NAMES and _holds_classes(root / name):
        raise DataError(
            f"{root / name} holds class folders, but {name!r} is the name of the published set;"
            f" rename the folder (for example to {name}-folders) and use that name"
        )
    if name == "digits":
        return _digits()
    if name == "noise":
        return _noise()
    if name in TORCHVISION_SETS:
        return _from_torchvision(name, root)
    if name in SVHN_PARTS:
        return _svhn(name, root)
    if not name or name[0] == "." or "/" in name or "\\" in name or not (root / name).is_dir():
        raise DataError(
            f"no data set {name!r}, and no class folders in {root / name} (train/CLASS and test/CLASS)"
            f"{nearest(name, known_sets(root))}"
        )
    return read_folders(name, root)


def known_sets(root: Path) -> list[str]:
    """Return all names that `load_images` accepts now."""
    folders = {path.parent.name for path in root.glob(f"*/{MANIFEST_NAME}")} | {*known_folders(root)}
    return [*NAMES, *sorted(folders - {*NAMES})]


def _suggestion(name: str, root: Path) -> str:
    """Return "; did you mean 'X'?", or "" if no other known name is close."""
    close = difflib.get_close_matches(name, known_sets(root), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close and close[0] != name else ""


def find_shards(where: str, root: Path) -> Store:
    """Return the store of a set's shards: path or address `where` if it holds shards, else the set of that name.

    A set is searched by name in REPRO_SHARDS (a folder or an address) if that is set, else in `root`. The sets in
    NAMES are always in `root`.
    """
    store = open_store(where)
    if not SET_NAME.fullmatch(where) or store.exists(MANIFEST_NAME):
        return store
    parent = None if where in NAMES else os.environ.get("REPRO_SHARDS")
    return open_store(f"{parent.rstrip('/')}/{where}" if parent else root / where)


def check_published_name(shards: ShardSet) -> ShardSet:
    """Return `shards`; DataError if they have the name of a published set but not its counts, classes or sizes."""
    if shards.name in NAMES and shards.manifest.resized:
        raise DataError(f"{shards.store} is not {shards.name}: its images were resized; give it another name")
    counts = {name: len(part) for name, part in shards.splits.items()}
    wrong = any(count != ILSVRC_2012[name] for name, count in counts.items()) or shards.manifest.resized
    if shards.name == IMAGENET and (
        wrong or list(shards.classes) != WNIDS_FILE.read_text(encoding="ascii").split()
    ):
        found = " + ".join(map(str, counts.values()))
        raise DataError(
            f"{shards.store} is not ImageNet: it has {found} images, but ILSVRC-2012 has 1281167 for training and"
            " 50000 for validation; prepare those, or give the set another name"
        )
    return shards


def decode_shards(shards: ShardSet) -> ImageSet:
    """Decode a prepared set of images of one size into memory; the result equals the set it was prepared from."""
    train, test = (_decoded(part, shards.name) for part in (shards.train, shards.test))
    images = ImageSet(shards.name, shards.source, shards.classes, train, test)
    if (len(train), len(test)) != SIZES.get(shards.name, (len(train), len(test))):
        raise DataError(
            f"{shards.store} is not {shards.name}: it has {len(train)} + {len(test)} images; give it another name"
        )
    return _checked_mnist(images, f"the shards in {shards.store}") if shards.name == "mnist" else images


def _decoded(part: ShardSplit, name: str) -> LabelledImages:
    """Return the images of one split in canonical order; DataError if they differ in size."""
    pixels: NDArray[np.uint8] | None = None
    for start in range(0, len(part), DECODE_CHUNK):
        numbers = range(start, min(len(part), start + DECODE_CHUNK))
        for number, content in zip(numbers, part.read(numbers), strict=True):
            image = read_pixels(content, part.where(number))
            if pixels is None:
                pixels = np.empty((len(part), *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise DataError(
                    f"{name} holds images of different sizes; declare how they are cropped in data.crop, and the"
                    " test protocols in data.test"
                )
            pixels[number] = image
    assert pixels is not None
    return in_canonical_order(LabelledImages(torch.from_numpy(pixels), part.labels))


def _holds_classes(folder: Path) -> bool:
    """Return True for class folders, but not for `MNIST/raw` on file systems that ignore case."""
    return folder.is_dir() and not (folder / "raw").is_dir()


def _digits() -> ImageSet:
    """Return scikit-learn's 1797 digits; values 0 to 16 become 0 to 255."""
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
    """Return images of ten prototypes of 4 x 4 coloured blocks, with noise of up to 48 of 255 per pixel."""
    generator = seeded_generator(0, "noise")  # integers only, so the same on every platform
    blocks = torch.randint(64, 192, (10, 4, 4, 3), generator=generator)
    prototypes = blocks.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)

    def part(count: int) -> LabelledImages:
        labels = torch.arange(count) % 10
        noise = torch.randint(-48, 49, (count, 16, 16, 3), generator=generator)
        return in_canonical_order(LabelledImages((prototypes[labels] + noise).to(torch.uint8), labels))

    classes = tuple(f"pattern{index}" for index in range(10))
    return ImageSet("noise", "generated (seed 0)", classes, train=part(200), test=part(100))


def _from_torchvision(name: str, root: Path) -> ImageSet:
    """Download and read a set with torchvision; DataError if that fails or a file is damaged."""
    from torchvision import datasets

    class_name, below = TORCHVISION_SETS[name]
    dataset = getattr(datasets, class_name)
    files = [file for file, _ in dataset.resources] if below else [dataset.filename]
    with _download_errors(name, root / below, files):
        splits = [dataset(root, train=train, download=train) for train in (True, False)]  # downloaded once
        train, test = (_images(split.data, split.targets) for split in splits)
    classes = tuple(splits[0].classes)
    source = f"torchvision.datasets.{class_name}"
    if name == "mnist":
        digits = tuple(str(digit) for digit in range(10))  # torchvision: "0 - zero"
        return _checked_mnist(ImageSet(name, source, digits, train, test), f"the files in {root / below}")
    return ImageSet(name, source, classes, train, test)


@contextmanager
def _download_errors(name: str, folder: Path, files: Sequence[str]) -> Iterator[None]:
    """Context in which an error of torchvision becomes a DataError that names the folder and the files."""
    try:
        yield
    except (
        OSError,  # no connection, no permission, no space
        RuntimeError,  # a checksum, or every mirror failed
        http.client.HTTPException,
        tarfile.TarError,
        EOFError,
        ValueError,  # this and the following: damaged files that torchvision does not check
        AssertionError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{name} could not be downloaded to {folder} or read from there ({reason}); delete damaged"
            f" files and run again with a connection, or put {', '.join(files)} there by hand"
        ) from error


def _svhn(name: str, root: Path) -> ImageSet:
    """Download and read SVHN's cropped digits; class 10 of the files is digit 0, as in torchvision."""
    from torchvision.datasets import SVHN

    folder, parts = root / SVHN_FOLDER, SVHN_PARTS[name]
    with _download_errors(name, folder, [SVHN.split_list[part][1] for part in (*parts, "test")]):
        train, counts = _svhn_images(folder, parts)
        test, _ = _svhn_images(folder, ("test",))
    order = canonical_order(train)
    first = torch.tensor(counts).cumsum(0) - torch.tensor(counts)  # index of each part's first image
    origins = torch.bucketize(order, first, right=True) - 1
    return ImageSet(
        name=name,
        source="torchvision.datasets.SVHN",
        classes=tuple(str(digit) for digit in range(10)),
        train=LabelledImages(train.pixels[order], train.labels[order]),
        test=in_canonical_order(test),
        train_parts={part: (origins == i).nonzero().flatten() for i, part in enumerate(parts)},
    )


def _svhn_images(folder: Path, parts: Sequence[str]) -> tuple[LabelledImages, list[int]]:
    """Return the images of the named parts, one part after the other, and the number of images of each."""
    from torchvision.datasets import SVHN

    read = [SVHN(folder, split=part, download=True) for part in parts]
    counts = [len(part.labels) for part in read]
    if any(part.data.shape != (count, 3, 32, 32) for part, count in zip(read, counts, strict=True)):
        raise ValueError(f"images of shape {[part.data.shape for part in read]} but {counts} labels")
    pixels = np.empty((sum(counts), 32, 32, 3), np.uint8)
    np.concatenate([part.data.transpose(0, 2, 3, 1) for part in read], out=pixels)
    labels = torch.from_numpy(np.concatenate([part.labels for part in read]))
    return LabelledImages(torch.from_numpy(pixels), labels), counts


def _images(data: object, targets: object) -> LabelledImages:
    """Return torchvision's arrays, uint8 (N, H, W) or (N, H, W, 3) and N labels, in canonical order."""
    pixels, labels = torch.as_tensor(data), torch.as_tensor(targets, dtype=torch.int64)
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} images but {len(labels)} labels")
    pixels = pixels.unsqueeze(-1) if pixels.dim() == 3 else pixels
    return in_canonical_order(LabelledImages(pixels.contiguous(), labels))


def _checked_mnist(images: ImageSet, where: str) -> ImageSet:
    """Return `images`; DataError if they are not MNIST."""
    found = fingerprint(images.classes, images.train, images.test)
    if found != MNIST_SHA256:
        raise DataError(
            f"{where} are not MNIST: {len(images.train)} + {len(images.test)} images with fingerprint"
            f" {found[:12]}, but MNIST has 60000 + 10000 with {MNIST_SHA256[:12]};"
            " restore them, or give the set another name"
        )
    return images
