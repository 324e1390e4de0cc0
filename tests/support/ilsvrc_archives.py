"""Change the archives of an ImageNet stand-in for tests: rewrite members, update checksums, expect an error."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.images import DataError
from pipeline.data.prepare import archive_files
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    TRAIN_ARCHIVE,
    TRAIN_BOXES,
    VAL_ARCHIVE,
    VAL_BOXES,
)
from pipeline.data.prepare.source_archives import source_from_archives
from pipeline.data.prepare.source_images import SourceSet

ARCHIVE_NAMES = (TRAIN_ARCHIVE, VAL_ARCHIVE, DEVKIT_ARCHIVE, TRAIN_BOXES, VAL_BOXES)
CLASSES = ["n01440764", "n01443537", "n01484850", "n01491361"]  # the first of ImageNet, in its order

Members = list[tuple[tarfile.TarInfo | str, bytes]]  # of a tar file, or names of regular files


def list_archives(folder: Path, **options: Any) -> SourceSet:
    """Call source_from_archives with a cache beside `folder`."""
    return source_from_archives(folder, cache=folder.parent / "cache", **options)


def assert_refused(folder: Path, *texts: str) -> None:
    """Expect that listing the archives raises a one-line DataError with the folder and all of `texts`."""
    with pytest.raises(DataError) as caught:
        list_archives(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    for text in texts:
        assert text in message


def md5(file: Path) -> str:
    """Return the MD5 sum of a file."""
    return hashlib.md5(file.read_bytes()).hexdigest()


def update_checksums(folder: Path) -> None:
    """Write the MD5 sums of the archives as they are now into STAND-IN.json, so that their content is checked."""
    info = json.loads((folder / STAND_IN_FILE).read_text())
    info["files"] = {name: {"md5": md5(folder / name)} for name in ARCHIVE_NAMES if (folder / name).exists()}
    (folder / STAND_IN_FILE).write_text(json.dumps(info))


def treat_as_published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the archives in `folder` the published ones, whatever they contain."""
    sums = {name: archive_files.ExpectedFile(md5=md5(folder / name)) for name in ARCHIVE_NAMES}
    monkeypatch.setattr(archive_files, "PUBLISHED_FILES", sums)
    (folder / STAND_IN_FILE).unlink()


def tar_members(content: bytes) -> Members:
    """Return the members of a tar file and their content."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]


def build_tar(members: Members) -> bytes:
    """Return a tar file with the given members."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, inside in members:
            header = tarfile.TarInfo(member) if isinstance(member, str) else member
            header.size = len(inside) if header.isreg() else 0
            archive.addfile(header, io.BytesIO(inside))
    return content.getvalue()


def special_member(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """Return an empty tar member of another type than a regular file."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header, b""


def rewrite_archive(folder: Path, name: str, change: Callable[[Members], Members]) -> None:
    """Replace the members of an archive by what `change` returns for them."""
    zipped = name in (DEVKIT_ARCHIVE, TRAIN_BOXES, VAL_BOXES)
    content = (folder / name).read_bytes()
    content = build_tar(change(tar_members(gzip.decompress(content) if zipped else content)))
    (folder / name).write_bytes(gzip.compress(content) if zipped else content)
    update_checksums(folder)


def rewrite_class(folder: Path, change: Callable[[Members], Members], *, wnid: str = CLASSES[1]) -> None:
    """Replace the members of one class's tar file in the training archive."""

    def change_outer(members: Members) -> Members:
        return [
            (member.name, build_tar(change(tar_members(inside))) if member.name == f"{wnid}.tar" else inside)
            for member, inside in members
        ]

    rewrite_archive(folder, TRAIN_ARCHIVE, change_outer)


def rewrite_devkit_file(folder: Path, name: str, content: bytes) -> None:
    """Replace the content of one file of the devkit."""
    rewrite_archive(
        folder,
        DEVKIT_ARCHIVE,
        lambda members: [(m.name, content if m.name == name else inside) for m, inside in members],
    )


def meta_mat(rows: Sequence[tuple[Any, str, int]], **others: Any) -> bytes:
    """Return meta.mat with synsets of (ILSVRC2012_ID, WordNet id, number of children)."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    synsets = np.empty((len(rows), 1), dtype=[(field, object) for field in fields])
    for index, (number, wnid, children) in enumerate(rows):
        synsets[index, 0] = number, wnid, "words", "gloss", children, np.zeros((1, 0))
    content = io.BytesIO()
    savemat(content, {"synsets": synsets, **others})
    return content.getvalue()
