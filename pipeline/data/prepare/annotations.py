"""Bounding boxes as annotated: the objects of each image of a source set, before they are checked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.data.images import DataError


class AnnotatedBox(NamedTuple):
    """One object: its class, and its corners in pixels of the annotated size."""

    name: str  # WordNet id; the English name for some of the dogs
    left: int
    top: int
    right: int
    bottom: int


class Annotation(NamedTuple):
    """The objects of one image."""

    width: int  # pixels: the size of the image that the annotators saw
    height: int
    boxes: tuple[AnnotatedBox, ...]


@dataclass(frozen=True)
class BoxAnnotations:
    """The annotations of a source set."""

    splits: Mapping[str, Mapping[str, Annotation]]  # split -> stem of an image's file -> annotation
    archives: Mapping[str, str]  # split -> name of the archive of its annotations
    archive_error: Callable[[str, str], DataError]  # from a location and a problem
    strict: bool  # True: any fault of the training images' annotations is an error

    def error(self, split: str, problem: str, stem: str = "") -> DataError:
        """Return the error for the annotations of a split, or for those of one image."""
        where = f"{self.archives[split]}, {stem}.xml" if stem else self.archives[split]
        return self.archive_error(where, problem)
