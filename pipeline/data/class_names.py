"""Names of classes in folders: their order, ILSVRC's classes, and names that are equal to a reader."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.common.words import printable
from pipeline.data.images import DataError

WNIDS_FILE = Path(__file__).with_name("imagenet_classes.txt")  # ILSVRC-2012's 1000 classes in order


def imagenet_wnids() -> list[str]:
    """Return the WordNet ids of the 1000 classes in the order of their labels: sorted, as in torchvision."""
    return WNIDS_FILE.read_text(encoding="ascii").split()


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return class names in the order of their labels: sorted by value if all are numbers, else by name.

    Every reader of class folders uses this order. ILSVRC's WordNet ids are in the order of imagenet_classes.txt.
    """
    distinct = set(names)
    are_numbers = all(name.isdecimal() for name in distinct)
    return tuple(sorted(distinct, key=lambda name: (int(name) if are_numbers else 0, name)))


def describe_order(classes: Sequence[str]) -> str:
    """Return the order of a set's classes for a message: "ILSVRC's WordNet ids", "numbers by value", ..."""
    if set(classes) <= set(imagenet_wnids()):
        return "ILSVRC's WordNet ids"
    if tuple(classes) != class_order(classes):
        return "the set's own order"
    return "numbers by value" if all(name.isdecimal() for name in classes) else "sorted names"


def comparable_name(name: str) -> str:
    """Return a name in Unicode's composed form, without blanks at its ends. Names equal in it look equal."""
    return unicodedata.normalize("NFC", name).strip()


def check_distinct(where: str, names: Sequence[str]) -> None:
    """Raise DataError for two class names that look equal: of other Unicode forms, or with a blank at an end."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(comparable_name(name), name)
        if other != name:
            raise DataError(
                f"{where}: the class folders {other!a} and {name!a} have one name in two spellings"
                f" ({_spelling_difference(other, name)}); give both the name {printable(comparable_name(name))!r}"
            )


def _spelling_difference(one: str, other: str) -> str:
    return "a blank at an end" if one.strip() == other.strip() else "two Unicode forms"
