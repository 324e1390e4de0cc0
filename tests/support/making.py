"""Small sets of real pictures, for the tests of whatever prepares and reads them."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.shards import ShardSet, open_shards
from pipeline.data.store import Store

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


def picture(seed: int, *, height: int | None = None, width: int | None = None) -> np.ndarray:
    """uint8 (H, W, 3): soft coloured patches, and some noise; 20 to 60 pixels a side where not said."""
    draw = np.random.default_rng(seed)
    sides = draw.integers(20, 61, 2)
    size = (int(width or sides[1]), int(height or sides[0]))
    patches = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noise = draw.integers(-12, 13, (size[1], size[0], 3))
    return np.clip(np.asarray(patches).astype(np.int64) + noise, 0, 255).astype(np.uint8)


def photograph(file: Path, seed: int, *, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Write a picture as `file`, a JPEG or what the suffix says; its pixels before that."""
    pixels = picture(seed, height=height, width=width)
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if file.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(pixels).save(file, kind)
    return pixels


def photographs(folder: Path, classes: int = 3, train: int = 7, test: int = 4, seed: int = 0) -> Path:
    """JPEGs of many sizes in `folder/train/<class>/` and `folder/test/<class>/`, so many of each class; none: no
    such part. Of the same numbers the same bytes."""
    for part, count in (("train", train), ("test", test)):
        for label in range(classes):
            name = NAMES[label] if classes <= len(NAMES) else f"kind{label:04d}"
            for number in range(count):
                file = folder / part / name / f"{name}_{number:05d}.jpg"
                photograph(file, hash_of(seed, part == "test", label, number))
    return folder


def hash_of(*numbers: int) -> int:
    """One number for several, each different."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def prepared(
    folder: Path,
    classes: int = 3,
    train: int = 7,
    test: int = 4,
    seed: int = 0,
    *,
    samples: int = 4,
    short_side: int | None = None,
) -> ShardSet:
    """`photographs` in `folder/photographs`, made into shards of `samples` pictures in `folder/shards`."""
    from pipeline.data.prepare.source_folders import source_from_folders
    from pipeline.data.prepare.write_shards import prepare_shards

    originals = source_from_folders(photographs(folder / "photographs", classes, train, test, seed))
    out = Store(str(folder / "shards"))
    prepare_shards(originals, out, short_side=short_side, samples=samples, workers=1)
    return open_shards(out)
