"""What a paper prints: `experiments/PAPER/printed.yaml`, its own results, its comparisons, and the lecture on it.

    also: [deep_compression]     # other folders whose claims count
    results:                     # place -> what is measured -> network -> printed value
      Table 2:
        "ImageNet val, top-1 error %, 10-crop": {plain-18: 27.94, plain-34: 28.54}
    relations:                   # comparisons that the paper states in words
      plain-degrades: {says: The deeper plain network has a higher error, source: Table 2,
        claims: [resnet/imagenet/plain-34-worse]}
    lecture:                     # statements of Stanford CS231n, lecture 9, about this paper
      depth: {says: "The ImageNet network has 152 layers", claims: [resnet/architecture/depth-152]}

The claim of a result is found by its value and its place (pipeline.judge.coverage); relations and statements name
theirs as EXPERIMENT/ID, and so may a result: {value: 27.94, claims: [resnet/imagenet/top1]}. What has no claim is
listed under `not_claimed` in an experiment of the folder, with the reason.
"""

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from pipeline.common.errors import UserError
from pipeline.declare.fields import FrozenModel, StrictFloat
from pipeline.declare.validation import validation_message
from pipeline.declare.yaml_loader import parse_yaml

PRINTED_FILE = "printed.yaml"


class Cell(FrozenModel):
    """A printed result."""

    value: StrictFloat | str  # a text, such as "fail", where the paper prints no number
    claims: tuple[str, ...] = ()  # EXPERIMENT/ID; empty: found by value and place


def as_cell(raw: object) -> object:
    """Return a bare value as the map of a cell."""
    return raw if isinstance(raw, dict) else {"value": raw}


class Statement(FrozenModel):
    """A statement in words."""

    says: str
    source: str = ""  # table, figure or section; "" for the lecture's notes
    claims: tuple[str, ...] = ()  # EXPERIMENT/ID


Values = dict[str, Annotated[Cell, BeforeValidator(as_cell)]]


class PrintedFile(FrozenModel):
    """The content of one printed.yaml."""

    also: tuple[str, ...] = ()  # other folders whose claims count
    results: dict[str, dict[str, Values]] = Field(default_factory=dict)
    relations: dict[str, Statement] = Field(default_factory=dict)
    lecture: dict[str, Statement] = Field(default_factory=dict)


def load_printed(folder: Path) -> PrintedFile | None:
    """Return what the paper of an experiments' folder prints; None without such a file.

    Raises UserError for a file that is not as described above.
    """
    path = folder / PRINTED_FILE
    if not path.is_file():
        return None
    place = f"{folder.name}/{PRINTED_FILE}"
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: invalid YAML: {' '.join(str(error).split())}") from None
    try:
        return PrintedFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{place}: {validation_message(error, PrintedFile, raw)}") from None
