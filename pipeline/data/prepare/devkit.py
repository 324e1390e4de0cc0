"""The ILSVRC-2012 devkit: the classes and the labels of the validation images."""

import gzip
import io
import re
import tarfile
import zlib
from dataclasses import dataclass

import numpy as np

from pipeline.data.class_names import imagenet_wnids
from pipeline.data.images import DataError
from pipeline.data.prepare.archive_files import (
    DEVKIT_ARCHIVE,
    STAND_IN_FILE,
    Archives,
    ByteCounter,
    check_regular_file,
    one_line,
)

META = "ILSVRC2012_devkit_t12/data/meta.mat"

TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"

MAX_DEVKIT_BYTES = 1 << 28  # unpacked


@dataclass(frozen=True)
class Devkit:
    """Classes and validation labels."""

    classes: tuple[str, ...]  # WordNet ids, in the order of labels
    val_labels: tuple[int, ...]  # val_labels[i] is the label of validation image i + 1


def read_devkit(archives: Archives, counter: ByteCounter) -> Devkit:
    """Read the classes and the labels of the validation images; raise DataError for a damaged devkit.

    The devkit numbers classes by ILSVRC2012_ID (1 to 1000), in another order than labels, so each number is mapped
    through its WordNet id.
    """
    files = _read_members(archives)
    wnids = _wnids(archives, files[META])
    classes = tuple(wnid for wnid in imagenet_wnids() if wnid in wnids.values())
    label = {number: classes.index(wnid) for number, wnid in wnids.items()}
    try:
        lines = files[TRUTH].decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise archives.error(f"{DEVKIT_ARCHIVE}, {_short(TRUTH)}", "is not a list of numbers") from None
    val_labels = []
    for line_number, line in enumerate(lines, start=1):
        number = int(line) if re.fullmatch(r"\s*\d{1,9}\s*", line) else None
        if number not in label:
            raise archives.error(
                f"{DEVKIT_ARCHIVE}, {_short(TRUTH)}, line {line_number}:",
                f"{line[:40]!r} is not the number of one of the {len(classes)} classes",
            )
        val_labels.append(label[number])
    counter.add(archives.path(DEVKIT_ARCHIVE).stat().st_size)
    return Devkit(classes, tuple(val_labels))


def _read_members(archives: Archives) -> dict[str, bytes]:
    """Return the content of META and TRUTH; other members are not read."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archives.path(DEVKIT_ARCHIVE)) as zipped:
            content = zipped.read(MAX_DEVKIT_BYTES + 1)
        if len(content) > MAX_DEVKIT_BYTES:
            raise archives.error(DEVKIT_ARCHIVE, f"unpacks to more than {MAX_DEVKIT_BYTES:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if member.name not in (META, TRUTH):
                    continue
                where = f"{DEVKIT_ARCHIVE}, {_short(member.name)}"
                check_regular_file(archives, where, member)
                if member.name in found:
                    raise archives.error(where, "occurs twice")
                opened = archive.extractfile(member)
                found[member.name] = opened.read() if opened else b""
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise archives.error(DEVKIT_ARCHIVE, f"cannot be read ({one_line(error)})") from None
    for name in (META, TRUTH):
        if name not in found:
            raise archives.error(DEVKIT_ARCHIVE, f"does not contain {_short(name)}")
    return found


def _wnids(archives: Archives, content: bytes) -> dict[int, str]:
    """Return ILSVRC2012_ID -> WordNet id of each class: the synsets in meta.mat without children.

    scipy.io.loadmat crashes the process on some damaged files, so only the published meta.mat is loaded. For a
    stand-in the numbers come from STAND-IN.json.
    """
    if archives.stand_in:
        leaves = list(zip(archives.stand_in.numbers, imagenet_wnids()[: archives.stand_in.classes], strict=True))
        where = STAND_IN_FILE
    else:
        leaves, where = _leaves(archives, content), f"{DEVKIT_ARCHIVE}, {_short(META)}"
    known = set(imagenet_wnids())
    for number, wnid in leaves:
        if wnid not in known:
            raise archives.error(where, f"gives number {number} to {wnid[:40]!r}, which is not an ImageNet class")
    numbers, wnids = {number for number, _ in leaves}, {wnid for _, wnid in leaves}
    if not len(numbers) == len(wnids) == len(leaves) > 0:
        raise archives.error(where, f"does not give {len(leaves)} classes distinct numbers")
    return dict(leaves)


def _leaves(archives: Archives, content: bytes) -> list[tuple[int, str]]:
    """Return (ILSVRC2012_ID, WordNet id) of the synsets without children in meta.mat."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        loaded = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        synsets = np.atleast_1d(loaded["synsets"])
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets if int(row["num_children"]) == 0]
    except (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        raise archives.error(
            f"{DEVKIT_ARCHIVE}, {_short(META)}", f"is not a list of synsets ({one_line(error)})"
        ) from None


def _short(name: str) -> str:
    """Return data/meta.mat for ILSVRC2012_devkit_t12/data/meta.mat."""
    return name.partition("/")[2]
