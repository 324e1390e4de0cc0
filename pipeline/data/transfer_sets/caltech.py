"""Caltech-101 and Caltech-256: one label per image, and no parts for training and testing.

    caltech-101.zip            caltech-101/101_ObjectCategories.tar.gz, and in it
                               101_ObjectCategories/accordion/image_0001.jpg
    256_ObjectCategories.tar   256_ObjectCategories/001.ak47/001_0001.jpg

Both have a class of background images, BACKGROUND_Google and 257.clutter, which counts as a class: 102 and 257
classes, as in appendix B of arXiv:1409.1556. Other files in the archives are not images of the sets.
"""

import gzip
import re
import shutil
import uuid
import zipfile
import zlib
from pathlib import Path

import torch

from pipeline.data.images import DataError
from pipeline.data.transfer_sets.images import ArchiveImages, TransferSet, sorted_members
from pipeline.data.transfer_sets.published import SetArchives

INNER_ARCHIVE = "101_ObjectCategories.tar"  # in the zip file, with gzip
CALTECH_IMAGES = {
    "caltech101": re.compile(r"101_ObjectCategories/([^/]+)/image_\d{4}\.jpg"),
    "caltech256": re.compile(r"256_ObjectCategories/(\d{3}\.[^/]+)/\d{3}_\d{4}\.jpg"),
}


def read_caltech101(archives: SetArchives, cache: Path) -> TransferSet:
    """Return Caltech-101. `cache` is a folder for the tar file in the zip file, without compression."""
    return _read_caltech(archives, unpack_inner_archive(archives.files[0], archives.md5[0], cache), "caltech101")


def read_caltech256(archives: SetArchives, cache: Path) -> TransferSet:
    """Return Caltech-256; `cache` is not used."""
    return _read_caltech(archives, archives.files[0], "caltech256")


def _read_caltech(archives: SetArchives, file: Path, published: str) -> TransferSet:
    pattern = CALTECH_IMAGES[published]
    members = sorted_members([file], lambda name: pattern.fullmatch(name) is not None, f"images of {published}")
    names = [pattern.sub(r"\1", member.name) for member in members]
    classes = tuple(sorted(set(names)))
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in names])
    images = ArchiveImages(members, labels)
    return TransferSet(archives.name, archives.source, classes, images, {}, archives.sha256)


def unpack_inner_archive(file: Path, md5: str, cache: Path) -> Path:
    """Return the tar file inside Caltech-101's zip file, unpacked into `cache` unless it is there.

    Its name contains the zip file's MD5 sum. Raises DataError for a damaged zip file, or if `cache` cannot be
    written.
    """
    target = cache / f"{INNER_ARCHIVE}.{md5}"
    if target.is_file():
        return target
    partial = cache / f".{target.name}.{uuid.uuid4().hex}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(file) as zipped:
            inner = [
                name
                for name in zipped.namelist()
                if name.rpartition("/")[2] == f"{INNER_ARCHIVE}.gz" and not name.startswith("__MACOSX/")
            ]
            if len(inner) != 1:
                raise DataError(f"{file} has no {INNER_ARCHIVE}.gz; delete it and run again")
            with zipped.open(inner[0]) as content, gzip.open(content) as unpacked, partial.open("wb") as written:
                shutil.copyfileobj(unpacked, written)
        partial.replace(target)
    except (zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is damaged ({' '.join(str(error).split())}); delete it and run again") from None
    except OSError as error:
        raise DataError(
            f"{file} cannot be unpacked to {cache} ({error.strerror or error}); fix this and run again"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return target
