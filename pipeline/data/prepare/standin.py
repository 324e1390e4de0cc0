"""A stand-in for ImageNet: generated pictures in ILSVRC-2012's own layout, for tests, dry runs, studies of growth.

Each picture shows one shape, filled with a two-coloured texture, before a spotted ground. A class is a shape, a
texture and the difference of the two colours; where the shape lies, how large it is and what colours there are on
average are drawn anew for each picture, so that neither one pixel nor the mean colour tells the class. All is
drawn from the seed with whole numbers, and nothing depends on time, user or machine: with one version of Pillow
and of scipy, the same bytes everywhere.

As in the real set, some pictures called .JPEG are grey, some are CMYK, and some are PNG files.
"""

import hashlib
import io
import os
import shutil
import struct
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pipeline.data.images import DataError
from pipeline.data.order import seeded_generator
from pipeline.data.prefetch import prefetch
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    VAL_ARCHIVE,
    PublishedSum,
    StandInSums,
    imagenet_wnids,
)
from pipeline.data.prepare.devkit import META, TRUTH

README = "ILSVRC2012_devkit_t12/readme.txt"

DESCRIPTION = "generated pictures in the layout of ILSVRC-2012; not ImageNet"

EVERY = 200  # of so many pictures one is grey, one CMYK, one a PNG file

STAND_IN_JPEG_QUALITY = 90  # of a JPEG

SPOT = 8  # pixels: the ground's spots

STAND_IN_CONTRAST = 56  # of 255: from a texture's mean to either of its colours

PALETTES = (  # in which channels the two colours of a texture differ, and which way
    *((1, 1, 1), (1, -1, 0), (1, 0, -1), (0, 1, -1), (1, 1, -1)),
    *((1, -1, 1), (-1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
)

LIMITS = {"classes": (1, 1000), "train": (1, 10_000), "test": (1, 10_000), "side": (32, 2000)}


@dataclass(frozen=True)
class DrawnImage:
    """One picture to be drawn."""

    seed: int
    split: str
    number: int  # within the split, from 0
    label: int
    name: str  # of its file
    side: int  # pixels: the least that its short side may have


def make_standin(
    out: Path,
    *,
    classes: int = 10,
    train: int = 130,
    test: int = 50,
    side: int = 160,
    seed: int = 0,
    layout: Literal["archives", "folders"] = "archives",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a stand-in to `out`, a new or an empty folder, which is then there whole or not at all.

    `train` and `test`: pictures of each class. `side`: a picture's short side in pixels, up to half as much more.
    `progress` is told pictures done and pictures in all. DataError says what is in the way.
    """
    asked = {"classes": classes, "train": train, "test": test, "side": side}
    for name, (least, most) in LIMITS.items():
        if not least <= asked[name] <= most:
            raise DataError(f"{name} of a stand-in is {asked[name]}; it should be from {least} to {most}")
    out = out.resolve()
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    order = torch.randperm(
        classes, generator=seeded_generator(seed, "stand-in", "numbers")
    )  # the real one has its own too
    numbers = tuple((order + 1).tolist())
    plan = StandInSums(format=1, what=DESCRIPTION, seed=seed, numbers=numbers, files={}, **asked)
    say = progress or (lambda done, total: None)
    try:
        _check_room(out)
        temporary.mkdir(parents=True)
        if layout == "archives":
            plan = _write_archives(temporary, plan, say)
        else:
            _write_folders(temporary, plan, say)
        (temporary / STAND_IN_FILE).write_text(plan.to_json(), encoding="utf-8", newline="\n")
        _check_room(out)
        temporary.replace(out)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}); mend that and start again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_room(out: Path) -> None:
    """Raise DataError if something is there already."""
    if out == Path.cwd():
        raise DataError(f"{out} is the folder you are in; name a new one for the stand-in")
    if out.is_dir():
        held = sorted(path.name for path in out.iterdir())
        if held:
            raise DataError(f"{out} holds {held[0]} already; choose a new or an empty folder for the stand-in")
    elif out.exists():
        raise DataError(f"{out} is there already and is no folder; choose another place for the stand-in")


def _write_archives(folder: Path, plan: StandInSums, progress: Callable[[int, int], None]) -> StandInSums:
    """The three archives; returns the plan with their sums."""
    wnids = imagenet_wnids()[: plan.classes]
    with _new_tar(folder / TRAIN_ARCHIVE) as outer:
        for label, pictures in groupby(_drawn_images(plan, "train", progress), lambda drawn: drawn[0].label):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as inner:
                for picture, picture_bytes in pictures:
                    _add(inner, picture.name, picture_bytes)
            _add(outer, f"{wnids[label]}.tar", content.getvalue())
    with _new_tar(folder / VAL_ARCHIVE) as archive:
        for picture, picture_bytes in _drawn_images(plan, "test", progress):
            _add(archive, picture.name, picture_bytes)
    (folder / DEVKIT_ARCHIVE).write_bytes(_gzip(_devkit_archive(plan, wnids)))
    sums = {}
    for name in (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE):
        with (folder / name).open("rb") as opened:
            digest = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False))
        sums[name] = PublishedSum(md5=digest.hexdigest(), bytes=(folder / name).stat().st_size)
    return plan.model_copy(update={"files": sums})


def _write_folders(folder: Path, plan: StandInSums, progress: Callable[[int, int], None]) -> None:
    """train/<wnid>/*.JPEG and val/<wnid>/*.JPEG: the same pictures as in the archives."""
    wnids = imagenet_wnids()
    for split, name in (("train", "train"), ("test", "val")):
        for picture, content in _drawn_images(plan, split, progress):
            file = folder / name / wnids[picture.label] / picture.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _new_tar(file: Path) -> tarfile.TarFile:
    return tarfile.open(file, mode="w", format=tarfile.USTAR_FORMAT)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file; of no user and no time."""
    head = tarfile.TarInfo(name)
    head.size = len(content)
    archive.addfile(head, io.BytesIO(content))


def _gzip(content: bytes) -> bytes:
    """As a gzip file without compression, since what compresses best differs between versions of zlib."""
    blocks = [content[i : i + 65535] for i in range(0, len(content), 65535)] or [b""]
    stored = [
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    ]  # RFC 1951, section 3.2.4
    head = b"\x1f\x8b\x08" + bytes(6) + b"\xff"  # RFC 1952: deflate, no name, no time, unknown system
    return head + b"".join(stored) + struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)


def _devkit_archive(plan: StandInSums, wnids: list[str]) -> bytes:
    """A tar file with what torchvision and we read of the devkit."""
    truth = "".join(f"{plan.numbers[label]}\n" for label in mixed_labels(plan))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        _add(archive, README, f"{DESCRIPTION}\n".encode())
        _add(archive, META, _meta(wnids, plan.numbers))
        _add(archive, TRUTH, truth.encode())
    return content.getvalue()


def _meta(wnids: list[str], numbers: Sequence[int]) -> bytes:
    """meta.mat: the synsets by number, the classes first, then one above them, as the real file has 676 of."""
    from scipy.io import savemat

    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    nothing = np.zeros((1, 0), np.uint16)
    rows: list[tuple[Any, ...]] = [
        (np.uint16(mine), wnid, f"stand-in {wnid}", DESCRIPTION, np.uint16(0), nothing, np.uint16(0))
        for mine, wnid in sorted(zip(numbers, wnids, strict=True))
    ]
    above = np.uint16(len(wnids) + 1)
    below = np.arange(1, len(wnids) + 1, dtype=np.uint16)
    rows.append((above, "n00001740", "entity", DESCRIPTION, np.uint16(len(wnids)), below, np.uint16(1)))
    synsets = np.empty((len(rows), 1), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        synsets[index, 0] = row
    content = io.BytesIO()
    savemat(content, {"synsets": synsets})
    return b"MATLAB 5.0 MAT-file".ljust(116) + content.getvalue()[116:]  # scipy writes the time into these bytes


def mixed_labels(plan: StandInSums) -> list[int]:
    """Of each validation picture its label, in the order of the pictures' numbers: mixed."""
    mixed = torch.randperm(plan.classes * plan.test, generator=seeded_generator(plan.seed, "stand-in", "test"))
    return (mixed % plan.classes).tolist()


def _drawn_images(
    plan: StandInSums, split: str, progress: Callable[[int, int], None]
) -> Iterator[tuple[DrawnImage, bytes]]:
    """Every picture of a split, in order, with its file."""
    total = plan.classes * (plan.train + plan.test)
    done = plan.classes * plan.train if split == "test" else 0
    jobs = _planned_images(plan, split)
    for drawn in prefetch(
        jobs, lambda picture: (picture, encode_image(picture)), threads=os.cpu_count() or 1, depth=64
    ):
        done += 1
        progress(done, total)
        yield drawn


def _planned_images(plan: StandInSums, split: str) -> Iterator[DrawnImage]:
    """What there is to draw."""
    if split == "train":
        for label, wnid in enumerate(imagenet_wnids()[: plan.classes]):
            for i in range(plan.train):
                number, name = label * plan.train + i, f"{wnid}_{18 + 37 * i}.JPEG"
                yield DrawnImage(plan.seed, split, number, label, name, plan.side)
    else:
        for number, label in enumerate(mixed_labels(plan)):
            name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
            yield DrawnImage(plan.seed, split, number, label, name, plan.side)


def encode_image(picture: DrawnImage) -> bytes:
    """A picture's file: JPEG, but for one of EVERY that is grey, one in CMYK, one that is a PNG file."""
    from PIL import Image

    image = Image.fromarray(draw_image(picture))
    kind = {0: "grey", 1: "CMYK", 2: "PNG"}.get(picture.number % EVERY, "RGB")
    content = io.BytesIO()
    if kind == "PNG":
        image.save(content, "PNG", compress_level=0)
    else:
        image.convert({"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB")).save(
            content, "JPEG", quality=STAND_IN_JPEG_QUALITY
        )
    return content.getvalue()


def draw_image(picture: DrawnImage) -> np.ndarray:
    """The pixels, uint8 (H, W, 3)."""
    source = seeded_generator(picture.seed, "stand-in", picture.split, picture.number)
    drawn = iter(torch.randint(1 << 30, (16,), generator=source).tolist())

    def between(low: int, high: int) -> int:
        return low + next(drawn) % (high - low + 1)

    short = between(picture.side, picture.side * 3 // 2)
    long = short * between(100, 200) // 100
    height, width = (short, long) if between(0, 1) else (long, short)
    radius = short * between(28, 42) // 100
    top, left = (size // 2 + between(-short // 10, short // 10) for size in (height, width))
    ground = [between(56, 200) for _ in range(3)]
    colours = [between(STAND_IN_CONTRAST + 16, 239 - STAND_IN_CONTRAST) for _ in range(3)]
    phase = between(0, 1000)

    spots = torch.randint(-32, 33, (-(-height // SPOT), -(-width // SPOT), 3), generator=source).numpy()
    pixels = np.array(ground) + spots.repeat(SPOT, axis=0).repeat(SPOT, axis=1)[:height, :width]
    y, x = np.arange(height)[:, None] - top, np.arange(width)[None, :] - left
    shape, kind, palette = class_appearance(picture.label)
    light = texture_mask(kind, y, x, radius, phase)[..., None]
    inside = np.broadcast_to(shape_mask(shape, y, x, radius), (height, width))
    difference = STAND_IN_CONTRAST * np.array(PALETTES[palette])
    filled = np.array(colours) + np.where(light, difference, -difference)
    return np.where(inside[..., None], filled, pixels).astype(np.uint8)


def class_appearance(label: int) -> tuple[int, int, int]:
    """Which of ten shapes, textures and palettes a class has: no two of a thousand the same, and of the first ten
    no two share even one."""
    ones, tens, hundreds = label % 10, label // 10 % 10, label // 100
    return ones, (ones + tens) % 10, (ones + hundreds) % 10


def shape_mask(shape: int, y: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
    """bool (H, W): what lies within a shape about row 0, column 0. `y` (H, 1), `x` (1, W), in pixels."""
    far, near, square = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y)), x * x + y * y
    third, block = radius // 3, radius * 4 // 5
    if shape == 0:  # disc
        return square <= radius * radius
    if shape == 1:  # square
        return far <= block
    if shape == 2:  # diamond
        return abs(x) + abs(y) <= radius
    if shape == 3:  # triangle
        return (2 * abs(x) <= y + radius) & (y <= block)
    if shape == 4:  # ring
        return (square <= radius * radius) & (3 * square >= radius * radius)
    if shape == 5:  # plus
        return (near <= third) & (far <= radius)
    if shape == 6:  # times
        return (far - near <= third) & (far <= radius)
    if shape == 7:  # frame
        return (far <= block) & (2 * far >= radius)
    if shape == 8:  # half a disc
        return (square <= radius * radius) & (y >= 0)
    return (far <= block) & (abs(x) >= third)  # two bars


def texture_mask(kind: int, y: np.ndarray, x: np.ndarray, radius: int, phase: int) -> np.ndarray:
    """bool (H, W): where a texture has its one colour; five patterns, each coarse and fine."""
    stripe = max(2, radius // (3 if kind < 5 else 7))  # pixels
    rows, columns = np.broadcast_arrays(y, x)
    across = (rows, columns, rows + columns, rows - columns, rows)[kind % 5]
    light = (across + phase) // stripe % 2 == 0
    if kind % 5 == 4:  # checks
        light = light ^ ((columns + phase) // stripe % 2 == 0)
    return light
