"""Bounding boxes of ILSVRC-2012's CLS-LOC task, read from the archives of annotations.

    ILSVRC2012_bbox_train_v2.tar.gz   n01440764/n01440764_10026.xml, ..., of 544,546 images
    ILSVRC2012_bbox_val_v3.tgz        val/ILSVRC2012_val_00000001.xml to _00050000.xml

Each file describes one image as in PASCAL VOC: the size of the image as the annotators saw it, which may differ
from that of the file, and for each object its class and corners in pixels of that size.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import IO
from xml.etree import ElementTree

from pipeline.data.images import DataError
from pipeline.data.prepare.annotations import AnnotatedBox, Annotation, BoxAnnotations
from pipeline.data.prepare.archive_files import (
    TRAIN_ARCHIVE,
    TRAIN_BOXES,
    VAL_ARCHIVE,
    VAL_BOXES,
    Archives,
    ByteCounter,
    check_regular_file,
    one_line,
    require_packed,
)

BOX_ARCHIVES = {"train": TRAIN_BOXES, "test": VAL_BOXES}  # split -> archive

IMAGES_OF = {TRAIN_BOXES: TRAIN_ARCHIVE, VAL_BOXES: VAL_ARCHIVE}

MAX_ANNOTATION_BYTES = 1 << 20


def box_archives_present(archives: Archives) -> list[str]:
    """Return the names of the archives of boxes that belong to the archives of images.

    Raises DataError if there are boxes of one part of the images, but not of the other, or unpacked ones.
    """
    wanted = [name for name, images in IMAGES_OF.items() if archives.path(images).is_file()]
    for name in wanted:
        require_packed(archives, name)
    present = [name for name in wanted if archives.path(name).is_file()]
    if present and present != wanted:
        missing = min(set(wanted) - set(present))
        raise DataError(
            f"{archives.folder} contains {present[0]} but not {missing}; download {missing} or move"
            f" {present[0]} away"
        )
    return present


def read_annotations(archives: Archives, names: list[str], counter: ByteCounter) -> BoxAnnotations | None:
    """Return the annotations in these archives; None without any. Raises DataError for a damaged archive."""
    if not names:
        return None
    splits: dict[str, Mapping[str, Annotation]] = {}
    for split, name in BOX_ARCHIVES.items():
        if name in names:
            splits[split] = annotations_in(archives, name)
            counter.add(archives.path(name).stat().st_size)
    return BoxAnnotations(splits, BOX_ARCHIVES, archives.error, strict=archives.stand_in is not None)


def annotations_in(archives: Archives, name: str) -> dict[str, Annotation]:
    """Return stem -> annotation of one archive."""
    found: dict[str, Annotation] = {}
    for stem, content in annotation_files(archives, name):
        where = f"{name}, {stem}.xml"
        if stem in found:
            raise archives.error(where, "occurs twice")
        try:
            found[stem] = parse_annotation(content)
        except ValueError as error:
            raise archives.error(where, str(error)) from None
    if not found:
        raise archives.error(name, "contains no annotations")
    return found


def annotation_files(archives: Archives, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield stem and content of each XML file in an archive, in any folder."""
    try:
        with gzip.open(archives.path(name)) as zipped, tarfile.open(fileobj=zipped, mode="r|") as archive:
            for member in archive:
                if member.isdir():
                    continue
                path = PurePosixPath(member.name)
                where = f"{name}, {path.name!r}"
                check_regular_file(archives, where, member)
                if path.suffix != ".xml" or not re.fullmatch(r"\w+", path.stem, re.ASCII):
                    raise archives.error(where, "is not an annotation: it must be named IMAGE.xml")
                if member.size > MAX_ANNOTATION_BYTES:
                    raise archives.error(where, f"has {member.size:,} bytes, too large for an annotation")
                opened: IO[bytes] | None = archive.extractfile(member)
                assert opened  # it is a regular file
                yield path.stem, opened.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise archives.error(name, f"cannot be read ({one_line(error)})") from None


def parse_annotation(content: bytes) -> Annotation:
    """Return the annotation in an XML file. Raises ValueError with what is wrong with it."""
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: its encoding
        raise ValueError(f"is not XML ({one_line(error)})") from None
    boxes = []
    for number, item in enumerate(root.iter("object"), start=1):
        corners = [
            integer(item, f"bndbox/{key}", f"object {number}: ") for key in ("xmin", "ymin", "xmax", "ymax")
        ]
        boxes.append(AnnotatedBox(item.findtext("name", ""), *corners))
    width, height = (integer(root, f"size/{key}") for key in ("width", "height"))
    if min(width, height) < 1:
        raise ValueError(f"gives its image a size of {width} x {height} pixels")
    return Annotation(width, height, tuple(boxes))


def integer(element: ElementTree.Element, path: str, place: str = "") -> int:
    """Return the integer in the element at `path`. Raises ValueError if there is none."""
    text = element.findtext(path, "").strip()
    if not re.fullmatch(r"-?\d{1,6}", text, re.ASCII):
        raise ValueError(f"has no integer in {place}{path}, but {text[:20]!r}")
    return int(text)
