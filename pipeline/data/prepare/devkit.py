"""ImageNet's devkit: class names and validation labels."""

import gzip
import io
import re
import tarfile
import zlib
from dataclasses import dataclass

import numpy as np

from pipeline.data.images import DataError
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    Archives,
    Meter,
    _check_kind,
    _said,
    imagenet_wnids,
)

META = "ILSVRC2012_devkit_t12/data/meta.mat"

TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"

LARGEST_DEVKIT = 1 << 28  # bytes, unpacked


@dataclass(frozen=True)
class Devkit:
    """What the devkit says."""

    classes: tuple[str, ...]  # wnids, in the order of labels
    truth: tuple[int, ...]  # of validation picture i + 1: its label


def read_devkit(archives: Archives, meter: Meter) -> Devkit:
    """The classes and the validation pictures' labels. The devkit's own numbers (ILSVRC2012_ID, 1 to 1000) follow
    another order than labels do, so each goes through its wnid."""
    files = _devkit_files(archives)
    wnids = _wnids(archives, files[META])
    classes = tuple(wnid for wnid in imagenet_wnids() if wnid in wnids.values())
    label = {number: classes.index(wnid) for number, wnid in wnids.items()}
    try:
        lines = files[TRUTH].decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise archives.wrong(f"{DEVKIT_ARCHIVE}, {_short(TRUTH)}", "is no list of numbers") from None
    truth = []
    for place, line in enumerate(lines, start=1):
        number = int(line) if re.fullmatch(r"\s*\d{1,9}\s*", line) else None
        if number not in label:
            raise archives.wrong(
                f"{DEVKIT_ARCHIVE}, {_short(TRUTH)}, line {place}:",
                f"{line[:40]!r} is not the number of one of the {len(classes)} classes",
            )
        truth.append(label[number])
    meter.add(archives.path(DEVKIT_ARCHIVE).stat().st_size)
    return Devkit(classes, tuple(truth))


def _devkit_files(archives: Archives) -> dict[str, bytes]:
    """The two files that are needed; the others are not touched."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archives.path(DEVKIT_ARCHIVE)) as zipped:
            content = zipped.read(LARGEST_DEVKIT + 1)
        if len(content) > LARGEST_DEVKIT:
            raise archives.wrong(DEVKIT_ARCHIVE, f"unpacks to more than {LARGEST_DEVKIT:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if member.name not in (META, TRUTH):
                    continue
                where = f"{DEVKIT_ARCHIVE}, {_short(member.name)}"
                _check_kind(archives, where, member)
                if member.name in found:
                    raise archives.wrong(where, "is there twice")
                opened = archive.extractfile(member)
                found[member.name] = opened.read() if opened else b""
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise archives.wrong(DEVKIT_ARCHIVE, f"cannot be read ({_said(error)})") from None
    for name in (META, TRUTH):
        if name not in found:
            raise archives.wrong(DEVKIT_ARCHIVE, f"lacks {_short(name)}")
    return found


def _wnids(archives: Archives, content: bytes) -> dict[int, str]:
    """The devkit's number of each class -> its wnid: of the synsets in meta.mat those without children.

    loadmat crashes, and takes the process along, on some damaged files; so it only ever reads the published one.
    Of a stand-in, STAND-IN.json is believed.
    """
    if archives.stand_in:
        leaves = list(zip(archives.stand_in.numbers, imagenet_wnids()[: archives.stand_in.classes], strict=True))
        where = STAND_IN_FILE
    else:
        leaves, where = _leaves(archives, content), f"{DEVKIT_ARCHIVE}, {_short(META)}"
    known = set(imagenet_wnids())
    for number, wnid in leaves:
        if wnid not in known:
            raise archives.wrong(where, f"numbers {wnid[:40]!r} as {number}, which is none of the thousand")
    numbers, wnids = {number for number, _ in leaves}, {wnid for _, wnid in leaves}
    if not len(numbers) == len(wnids) == len(leaves) > 0:
        raise archives.wrong(where, f"does not give each of {len(leaves)} classes a number of its own")
    return dict(leaves)


def _leaves(archives: Archives, content: bytes) -> list[tuple[int, str]]:
    """Number and wnid of the synsets without children in meta.mat."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        loaded = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        synsets = np.atleast_1d(loaded["synsets"])
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets if int(row["num_children"]) == 0]
    except (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        raise archives.wrong(
            f"{DEVKIT_ARCHIVE}, {_short(META)}", f"is no list of synsets ({_said(error)})"
        ) from None


def _short(name: str) -> str:
    """ILSVRC2012_devkit_t12/data/meta.mat -> data/meta.mat"""
    return name.partition("/")[2]
