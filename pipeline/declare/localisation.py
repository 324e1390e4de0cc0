"""Localisation: networks that predict bounding boxes, and the derived run that merges their boxes."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.declare.data_settings import Data, ProtocolName
from pipeline.declare.fields import FrozenModel, PositiveInt, require_unique

BOX_METRICS = ("localisation_error_pct", "loss", "images")  # of a network that predicts boxes

LOCALISATION_METRICS = (
    "test/localisation_error_pct",  # the class is given
    "test/top1_localisation_error_pct",
    "test/top5_localisation_error_pct",
    "test/images",
)


class LocalisationSpec(FrozenModel):
    """A bounding box for each of the five most probable classes of an image (VGG, arXiv:1409.1556, appendix A.1).

    Networks that predict boxes are applied densely to the image and its mirror image. The boxes of all networks,
    sizes and positions are merged, and rated by the class scores at their positions.
    """

    kind: Literal["localisation"]
    # Variant that predicts boxes -> short sides of the resized test images, in pixels.
    boxes: Annotated[dict[str, Annotated[tuple[PositiveInt, ...], Field(min_length=1)]], Field(min_length=1)]
    # Variants whose averaged class scores give the five classes, and rate the boxes.
    classes: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(require_unique)]
    labels: ProtocolName  # test protocol by which the five classes are predicted
    # Boxes are merged as long as two of them have an intersection over union above this.
    merge_overlap: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.5

    @property
    def consumes(self) -> dict[str, int]:
        """Return variant -> number of its runs that are consumed."""
        return dict.fromkeys((*self.boxes, *self.classes), 1)

    def roles(self, variants: Sequence[str]) -> list[list[int] | str]:
        """Return what each of its variants does: its short sides, or "classes"."""
        return [list(self.boxes[name]) if name in self.boxes else "classes" for name in variants]

    @model_validator(mode="after")
    def _fits(self) -> "LocalisationSpec":
        if both := set(self.boxes) & set(self.classes):
            raise ValueError(f"{min(both)} is in 'boxes' and in 'classes'")
        for name, shorts in self.boxes.items():
            if list(shorts) != sorted(set(shorts)):
                raise ValueError(f"the short sides of {name} must be increasing")
        return self


def localisation_incompatibility(spec: LocalisationSpec, datas: Sequence[Data]) -> str:
    """Return the reason why a localisation cannot consume runs with these data, in the order of `consumes`."""
    for name, data in zip(spec.consumes, datas, strict=True):
        if name in spec.boxes and not data.boxes:
            return f"{name} predicts no bounding boxes; declare data.boxes, or list it in 'classes'"
        if name in spec.classes and (data.boxes or not data.crop):
            return f"{name} predicts no classes of images in shards; 'classes' needs networks that do"
        if name in spec.boxes and data.crop and min(spec.boxes[name]) < data.crop.side:
            return f"{name} reads {data.crop.side} pixels, but a short side is {min(spec.boxes[name])}"
    return "its runs train on different data" if len({data.name for data in datas}) > 1 else ""
