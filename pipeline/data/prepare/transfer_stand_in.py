"""Stand-ins for the sets of transfers: generated images in the published archives' layout.

The images are those of the ImageNet stand-in (see prepare/synthetic_images.py). An image of a VOC stand-in shows
one object, or two side by side, of which the second is marked difficult in every fourth image. The same arguments
give the same bytes.
"""

import io
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.data.images import DataError
from pipeline.data.prepare.stand_in import gzip_stored
from pipeline.data.prepare.synthetic_images import SYNTHETIC_JPEG_QUALITY, SyntheticImage, draw_image
from pipeline.data.transfer_sets.caltech import INNER_ARCHIVE
from pipeline.data.transfer_sets.images import DIFFICULT, NEGATIVE, POSITIVE
from pipeline.data.transfer_sets.published import PUBLISHED_ARCHIVES
from pipeline.data.transfer_sets.voc import VOC_CLASSES, VOC_PARTS
from pipeline.declare.transfer import MULTI_LABEL_SETS, TRANSFER_SETS

OBJECT_CLASSES = 10  # of a Caltech stand-in; a VOC stand-in has objects of the first ten classes
DIFFICULT_EVERY = 4
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can hold

Files = Iterator[tuple[str, bytes]]  # name and content


def make_transfer_stand_in(
    published: str,
    out: Path,
    *,
    images: int = 12,
    side: int = 160,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a stand-in for the set `published` to `out`, a new or empty folder, completely or not at all.

    `images`: of each class and, for VOC, of each part. `side`: the smallest short side in pixels. Raises DataError
    for numbers out of range, or if `out` is not empty or cannot be written.
    """
    if published not in TRANSFER_SETS:
        raise DataError(f"no stand-in for {published!r}; use one of {', '.join(TRANSFER_SETS)}")
    for name, value, least, most in (("images", images, 2, 1000), ("side", side, 32, 2000)):
        if not least <= value <= most:
            raise DataError(f"stand-in: {name} is {value}, must be from {least} to {most}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not an empty folder; give a new folder for the stand-in")
    temporary = out.resolve().with_name(f".{out.name}.{uuid.uuid4().hex}")
    parts = len(VOC_PARTS.get(published, ("all",)))
    counter = ImageCounter(progress, OBJECT_CLASSES * images * parts)
    try:
        temporary.mkdir(parents=True)
        for archive in PUBLISHED_ARCHIVES[published]:
            if published in MULTI_LABEL_SETS:
                content = tar_of(voc_files(published, archive.name, images, side, seed, counter))
            else:
                content = tar_of(caltech_files(published, images, side, seed, counter))
            if archive.name.endswith(".zip"):
                content = zip_of(f"caltech-101/{INNER_ARCHIVE}.gz", gzip_stored(content))
            (temporary / archive.name).write_bytes(content)
        if out.is_dir():
            out.rmdir()
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror or error}); fix this and run again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class ImageCounter:
    """Reports the number of images drawn so far."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def add(self) -> None:
        """Count one image."""
        self.done += 1
        self.progress(self.done, self.total)


def caltech_files(published: str, images: int, side: int, seed: int, counter: ImageCounter) -> Files:
    """Yield the files of a Caltech stand-in, and one that is no image of the set, as the real archives have."""
    for label in range(OBJECT_CLASSES):
        for number in range(images):
            pixels = draw_image(SyntheticImage(seed, published, label * images + number, label, "", side))
            if published == "caltech101":
                name = f"101_ObjectCategories/class{label:02d}/image_{number + 1:04d}.jpg"
            else:
                name = f"256_ObjectCategories/{label + 1:03d}.class/{label + 1:03d}_{number + 1:04d}.jpg"
            counter.add()
            yield name, jpeg_file(pixels)
    yield f"{name.partition('/')[0]}/056.dog/greg/RENAME2", b""


def voc_files(published: str, archive: str, images: int, side: int, seed: int, counter: ImageCounter) -> Files:
    """Yield the files of one archive of a VOC stand-in."""
    folder = f"VOCdevkit/VOC{published.removeprefix('voc')}"
    for number_of_part, part in enumerate(VOC_PARTS[published]):
        if (part == "test") != archive.startswith("VOCtest"):
            continue
        marks: dict[str, dict[int, int]] = {}  # name of an image -> class -> mark
        for number in range(OBJECT_CLASSES * images):
            name = f"{number_of_part * OBJECT_CLASSES * images + number + 1:06d}"
            marks[name] = voc_marks(number)
            drawn = [
                draw_image(SyntheticImage(seed, f"{published}-{part}", 2 * number + which, label, "", side))
                for which, label in enumerate(marks[name])
            ]
            counter.add()
            yield f"{folder}/JPEGImages/{name}.jpg", jpeg_file(side_by_side(drawn))
        yield f"{folder}/ImageSets/Main/{part}.txt", "".join(f"{name}\n" for name in marks).encode()
        for label, label_name in enumerate(VOC_CLASSES):
            lines = [f"{name} {mark.get(label, NEGATIVE):2d}\n" for name, mark in marks.items()]
            yield f"{folder}/ImageSets/Main/{label_name}_{part}.txt", "".join(lines).encode()


def voc_marks(number: int) -> dict[int, int]:
    """Return class -> mark of the objects in image `number`: one object, or in every other ten images two."""
    first, rounds = number % OBJECT_CLASSES, number // OBJECT_CLASSES
    if rounds % 2 == 0:
        return {first: POSITIVE}
    second = (first + 1 + rounds) % OBJECT_CLASSES
    if second == first:
        second = (first + 1) % OBJECT_CLASSES
    return {first: POSITIVE, second: DIFFICULT if number % DIFFICULT_EVERY == 0 else POSITIVE}


def side_by_side(images: list[np.ndarray]) -> np.ndarray:
    """Return uint8 (H, W, 3) images in a row, cut to the smallest height."""
    height = min(image.shape[0] for image in images)
    return np.concatenate([image[:height] for image in images], axis=1)


def jpeg_file(pixels: np.ndarray) -> bytes:
    """Return uint8 (H, W, 3) pixels as a JPEG file."""
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=SYNTHETIC_JPEG_QUALITY)
    return content.getvalue()


def tar_of(files: Files) -> bytes:
    """Return a tar file, without users and times."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, inside in files:
            header = tarfile.TarInfo(name)
            header.size = len(inside)
            archive.addfile(header, io.BytesIO(inside))
    return content.getvalue()


def zip_of(name: str, inside: bytes) -> bytes:
    """Return a zip file with one member, without its time."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), inside)
    return content.getvalue()
