"""PASCAL VOC classification of 2007 and 2012: an image may show objects of several of 20 classes.

    VOCdevkit/VOC2007/JPEGImages/000005.jpg
    VOCdevkit/VOC2007/ImageSets/Main/train.txt            "000005": the images of a part
    VOCdevkit/VOC2007/ImageSets/Main/chair_train.txt      "000005  1": 1 positive, -1 negative, 0 difficult

VOCevalcls.m of the development kit takes marks from the same files, and ignores images in which all objects of the
class are difficult. The labels of the test part of 2012 are not published; the archive has the other parts.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.images import DataError
from pipeline.data.transfer_sets.images import (
    DIFFICULT,
    NEGATIVE,
    POSITIVE,
    ArchiveImages,
    AveragePrecision,
    TarMember,
    TransferSet,
    sorted_members,
)
from pipeline.data.transfer_sets.published import SetArchives
from pipeline.declare.transfer import published_name

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_PARTS = {"voc2007": ("train", "val", "test"), "voc2012": ("train", "val")}
# The curve is sampled at 11 recalls in 2007; since 2010 the area below it is measured.
VOC_AVERAGE_PRECISION: dict[str, AveragePrecision] = {"voc2007": "11-point", "voc2012": "area"}
VOC_MARKS = {"1": POSITIVE, "0": DIFFICULT, "-1": NEGATIVE}


def read_voc(archives: SetArchives, cache: Path) -> TransferSet:
    """Return VOC-2007 or VOC-2012; `cache` is not used. DataError for a missing part, image or mark."""
    published = published_name(archives.name)
    folder = f"VOCdevkit/VOC{published.removeprefix('voc')}"
    wanted = re.compile(rf"{folder}/(JPEGImages/[\w-]+\.jpg|ImageSets/Main/\w+\.txt)")
    found = {
        member.name.removeprefix(f"{folder}/"): member
        for member in sorted_members(
            archives.files, lambda name: wanted.fullmatch(name) is not None, f"images of {published}"
        )
    }
    members: list[TarMember] = []
    marks: list[Tensor] = []
    parts: dict[str, Tensor] = {}
    for part in VOC_PARTS[published]:
        names = [line[0] for line in _lines(found, archives, part)]
        parts[part] = torch.arange(len(members), len(members) + len(names))
        members += [_member(found, archives, f"JPEGImages/{name}.jpg") for name in names]
        marks.append(torch.stack([_marks(found, archives, part, names, label) for label in VOC_CLASSES], dim=1))
    images = ArchiveImages(members, torch.cat(marks))
    return TransferSet(
        archives.name,
        archives.source,
        VOC_CLASSES,
        images,
        parts,
        archives.sha256,
        VOC_AVERAGE_PRECISION[published],
    )


def _marks(
    found: Mapping[str, TarMember], archives: SetArchives, part: str, names: list[str], label: str
) -> Tensor:
    """Return the marks of one class in the images `names` of a part, int8 (N,)."""
    lines = _lines(found, archives, f"{label}_{part}")
    if [line[0] for line in lines] != names or any(len(line) != 2 or line[1] not in VOC_MARKS for line in lines):
        raise _damaged(
            archives, f"ImageSets/Main/{label}_{part}.txt does not mark each image of {part} with 1, 0 or -1"
        )
    return torch.tensor([VOC_MARKS[line[1]] for line in lines], dtype=torch.int8)


def _lines(found: Mapping[str, TarMember], archives: SetArchives, name: str) -> list[list[str]]:
    """Return the words of each line of a text file, sorted by the first."""
    content = _member(found, archives, f"ImageSets/Main/{name}.txt").read()
    lines = sorted(line.split() for line in content.decode("ascii", errors="replace").splitlines() if line.strip())
    if not lines or len({line[0] for line in lines}) != len(lines):
        raise _damaged(archives, f"ImageSets/Main/{name}.txt lists no image, or one twice")
    return lines


def _member(found: Mapping[str, TarMember], archives: SetArchives, name: str) -> TarMember:
    if name not in found:
        raise _damaged(archives, f"{name} not found")
    return found[name]


def _damaged(archives: SetArchives, problem: str) -> DataError:
    return DataError(f"{archives.name}: {problem} in {archives.source}; delete the archives and run again")
