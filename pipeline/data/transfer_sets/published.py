"""Archives of the published sets: addresses, checksums, download.

The archives of a set are in `<data folder>/<set>/`. A missing one is downloaded. Each must have the published MD5
sum, except those of a stand-in (see prepare/transfer_stand_in.py), whose name says that it is one.
"""

import hashlib
import http.client
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.checksums import cached_md5
from pipeline.common.locks import file_lock
from pipeline.data.images import DataError
from pipeline.declare.transfer import STAND_IN_SUFFIX, published_name


@dataclass(frozen=True)
class PublishedArchive:
    """One file of a published set."""

    name: str
    url: str
    md5: str


# Addresses and MD5 sums as in torchvision.datasets.caltech and torchvision.datasets.voc.
CALTECH = "https://data.caltech.edu/records"
PASCAL = "https://thor.robots.ox.ac.uk/pascal/VOC"
PUBLISHED_ARCHIVES: dict[str, tuple[PublishedArchive, ...]] = {
    "caltech101": (
        PublishedArchive(
            "caltech-101.zip",
            f"{CALTECH}/mzrjq-6wc02/files/caltech-101.zip",
            "3138e1922a9193bfa496528edbbc45d0",
        ),
    ),
    "caltech256": (
        PublishedArchive(
            "256_ObjectCategories.tar",
            f"{CALTECH}/nyy15-4j048/files/256_ObjectCategories.tar",
            "67b4f42ca05d46448c6bb8ecd2220f6d",
        ),
    ),
    "voc2007": (
        PublishedArchive(
            "VOCtrainval_06-Nov-2007.tar",
            f"{PASCAL}/voc2007/VOCtrainval_06-Nov-2007.tar",
            "c52e279531787c972589f7e41ab4ae64",
        ),
        PublishedArchive(
            "VOCtest_06-Nov-2007.tar",
            f"{PASCAL}/voc2007/VOCtest_06-Nov-2007.tar",
            "b6e924de25625d8de591ea690078ad9f",
        ),
    ),
    "voc2012": (
        PublishedArchive(
            "VOCtrainval_11-May-2012.tar",
            f"{PASCAL}/voc2012/VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd",
        ),
    ),
}


@dataclass(frozen=True)
class SetArchives:
    """The archives of one set on this machine."""

    name: str  # of the set
    files: tuple[Path, ...]
    md5: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """The identity of the set's content: the sha256 of the archives' names and MD5 sums."""
        values = [[file.name, md5] for file, md5 in zip(self.files, self.md5, strict=True)]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    @property
    def source(self) -> str:
        """The origin, in one line."""
        names = " and ".join(file.name for file in self.files)
        published = published_name(self.name)
        return names if published == self.name else f"a stand-in for {published}, generated: {names}"


def open_archives(name: str, root: Path) -> SetArchives:
    """Return the archives of a set below the data folder `root`, downloaded if they are missing.

    Raises DataError for a file that cannot be downloaded, or that has another MD5 sum than the published one.
    """
    folder, expected = root / name, PUBLISHED_ARCHIVES[published_name(name)]
    if name.endswith(STAND_IN_SUFFIX):
        missing = [archive.name for archive in expected if not (folder / archive.name).is_file()]
        if missing:
            raise DataError(
                f"{folder} has no {' and no '.join(missing)}; make the set with:"
                f" repro data stand-in {published_name(name)} --out {folder}"
            )
    else:
        for archive in expected:
            if not (folder / archive.name).is_file():
                download(archive, folder, root / ".cache")
    try:
        sums = [cached_md5(folder / archive.name, root / ".cache", lambda _: None) for archive in expected]
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror}); fix this and run again"
        ) from None
    for archive, md5 in zip(expected, sums, strict=True):
        if md5 != archive.md5 and not name.endswith(STAND_IN_SUFFIX):
            raise DataError(
                f"{folder / archive.name} is damaged or another file: its MD5 is {md5}, expected {archive.md5};"
                " delete it and run again to download it"
            )
    return SetArchives(name, tuple(folder / archive.name for archive in expected), tuple(sums))


def download(archive: PublishedArchive, folder: Path, cache: Path) -> None:
    """Download an archive into `folder`; the file is complete and has its MD5 sum, or does not exist.

    Of several processes that download it, one does and the others wait; the lock is in the folder `cache`. Raises
    DataError if it cannot be downloaded.
    """
    from torchvision.datasets.utils import download_url

    partial = f".{archive.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / f"{archive.name}.lock"):
            if not (folder / archive.name).is_file():
                download_url(archive.url, folder, partial, archive.md5)
                (folder / partial).replace(folder / archive.name)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{archive.name} could not be downloaded to {folder} ({reason}); run again with a connection, or put"
            f" the file from {archive.url} there by hand"
        ) from None
