"""The output of a network that each class of a data set belongs to, for weights that others trained.

A network with ILSVRC's 1000 classes numbers them in the order of their WordNet ids. Class folders of other names
say nothing of that order: `1` to `1000` may be the devkit's own numbers, and sorted names have another order. So
the order must be given as a file, or stands in the result as assumed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.files import file_hash
from pipeline.common.words import printable
from pipeline.data.class_names import comparable_name, describe_order, imagenet_wnids
from pipeline.data.images import DataError

WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class ClassLabels:
    """Which output of a network each class of a set is."""

    numbers: tuple[int, ...]  # of each class
    order: str  # of the network's classes: "ILSVRC's WordNet ids", "labels.txt (sha256 0123456789abcdef)"
    is_assumed: bool = False  # nothing says that the network has this order


def read_class_order(file: Path, classes: int) -> list[str]:
    """Return the names of a network's classes in the order of its outputs, from a text file with one per line.

    Of a line that begins with a WordNet id, as in "n01440764 tench, Tinca tinca", the id counts. Raises DataError
    unless there are `classes` different names.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}); give a text file with one class per line"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text; give a text file with one class per line") from None
    names = [comparable_name(line) for line in lines if line.strip()]
    names = [first[0] if (first := WNID.match(name)) else name for name in names]
    if len(names) != classes:
        raise DataError(f"{file} names {len(names)} classes, but the network has {classes}; give one per line")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file} names the class {twice!r} twice; give each class once")
    return names


def class_labels(
    where: str, names: Sequence[str], classes: int, order_file: Path | None = None, *, known: bool = False
) -> ClassLabels:
    """Return which of a network's `classes` outputs each class in `names` is.

    `known`: the set is the published one that the network is for, in its own order. Raises DataError that names
    `where` for other classes than the network's, and for ILSVRC's classes by names of unknown order.
    """
    if order_file is not None:
        return _labels_by_file(where, names, classes, order_file)
    wnids = imagenet_wnids()
    number = {wnid: i for i, wnid in enumerate(wnids)}
    comparable = [comparable_name(name) for name in names]
    if classes == len(wnids) and set(comparable) <= set(wnids):
        return ClassLabels(tuple(number[name] for name in comparable), describe_order(comparable))
    if len(names) != classes:
        message = f"{where} holds {len(names)} classes, but the network has {classes}"
        if classes == len(wnids):
            other = next(name for name in names if comparable_name(name) not in number)
            message += (
                f"; use all of them, or any of ILSVRC's by name, such as n01440764 ({printable(other)!r} is none"
                " of them), or give the network's classes with --classes FILE"
            )
        raise DataError(message)
    if classes == len(wnids):
        _check_numbers(where, names)
    return ClassLabels(tuple(range(classes)), describe_order(names), is_assumed=not known)


def _labels_by_file(where: str, names: Sequence[str], classes: int, file: Path) -> ClassLabels:
    """Return the labels of the classes by the order in a file."""
    number = {name: i for i, name in enumerate(read_class_order(file, classes))}
    unknown = [name for name in names if comparable_name(name) not in number]
    if unknown:
        raise DataError(f"{where} holds the class {printable(unknown[0])!r}, which {file} does not name; add it")
    labels = tuple(number[comparable_name(name)] for name in names)
    return ClassLabels(labels, f"{file.name} (sha256 {file_hash(file)})")


def _check_numbers(where: str, names: Sequence[str]) -> None:
    """Raise DataError unless the names of ILSVRC's classes are the numbers from 0 on, in this order."""
    values = [int(name) if name.isdecimal() else -1 for name in names]
    if values == list(range(len(names))):
        return
    remedy = "give the order of the network's classes with --classes FILE, one name per line"
    if sorted(values) == list(range(1, len(names) + 1)):
        raise DataError(
            f"{where} holds the classes 1 to {len(names)}, and the numbers of ILSVRC's devkit are in another order"
            f" than a network's classes; {remedy}"
        )
    known = set(imagenet_wnids())
    other = next((name for name in names if comparable_name(name) not in known), names[0])
    raise DataError(
        f"{where} holds {len(names)} classes that are not named by ILSVRC's WordNet ids, such as"
        f" {printable(other)!r}, so their order is not known; {remedy}"
    )
