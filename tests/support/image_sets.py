"""Small random image sets: image files, class folders, and prepared shards."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.shards import ShardSet, open_shards
from pipeline.data.store import Store

CLASS_NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen")


def random_image(seed: int, *, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Return uint8 (H, W, 3): soft colour patches with noise; 20 to 60 pixels per side unless given."""
    generator = np.random.default_rng(seed)
    sides = generator.integers(20, 61, 2)
    size = (int(width or sides[1]), int(height or sides[0]))
    patches = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noise = generator.integers(-12, 13, (size[1], size[0], 3))
    return np.clip(np.asarray(patches).astype(np.int64) + noise, 0, 255).astype(np.uint8)


def write_image(file: Path, seed: int, *, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Write a random image as a PNG or, for any other suffix, as a JPEG; return its pixels before encoding."""
    pixels = random_image(seed, height=height, width=width)
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if file.suffix.lower() == ".png" else "JPEG"
    Image.fromarray(pixels).save(file, kind)
    return pixels


def write_class_folders(folder: Path, classes: int = 3, train: int = 7, test: int = 4, seed: int = 0) -> Path:
    """Write JPEGs of many sizes to `folder/train/<class>/` and `folder/test/<class>/`, and return `folder`.

    `train` and `test`: images per class; 0 omits the split. The same arguments give the same bytes.
    """
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            name = CLASS_NAMES[label] if classes <= len(CLASS_NAMES) else f"kind{label:04d}"
            for number in range(count):
                file = folder / split / name / f"{name}_{number:05d}.jpg"
                write_image(file, combine_seeds(seed, split == "test", label, number))
    return folder


def combine_seeds(*numbers: int) -> int:
    """Return one seed for several numbers, different for each combination."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def prepare_random_set(
    folder: Path,
    classes: int = 3,
    train: int = 7,
    test: int = 4,
    seed: int = 0,
    *,
    samples: int = 4,
    short_side: int | None = None,
) -> ShardSet:
    """Write class folders to `folder/photographs`, and prepare them as shards in `folder/shards`."""
    from pipeline.data.prepare.source_folders import source_from_folders
    from pipeline.data.prepare.write_shards import prepare_shards

    source = source_from_folders(write_class_folders(folder / "photographs", classes, train, test, seed))
    out = Store(str(folder / "shards"))
    prepare_shards(source, out, short_side=short_side, samples=samples, workers=1)
    return open_shards(out)
