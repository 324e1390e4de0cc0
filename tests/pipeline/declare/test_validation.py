"""Validation errors as one sentence: key, reason, and the closest known name."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.declare.validation import dotted_path, validation_message


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Circle(Strict):
    kind: Literal["circle"]
    radius: float
    circle: int = 0  # a key with the name of a union member


class Square(Strict):
    kind: Literal["square"]
    side: float


class Drawing(Strict):
    title: str
    shapes: tuple[Annotated[Circle | Square, Field(discriminator="kind")], ...] = ()
    named: dict[str, Circle] = {}
    scale: Annotated[float, Field(gt=0)] | tuple[Annotated[float, Field(gt=0)], ...] = 1.0
    frame: Square | None = None
    colour: Literal["red", "green"] = "red"
    corners: Annotated[tuple[int, ...], Field(min_length=3)] = (0, 1, 2)


CIRCLE = {"kind": "circle", "radius": 1.0}


def message(**keys: object) -> str:
    """Return the message of a drawing with these keys."""
    raw = {"title": "x"} | keys
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(raw)
    return validation_message(caught.value, Drawing, raw)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"colou": "red"}, "colou: unknown key; did you mean 'colour'?"),
        ({"zzz": 1}, "zzz: unknown key; known: colour, corners, frame, named, scale, shapes, title"),
        ({"frame": {"kind": "square", "sid": 1}}, "frame.sid: unknown key; did you mean 'side'?"),
        ({"named": {"a": CIRCLE | {"radios": 1}}}, "named.a.radios: unknown key; did you mean 'radius'?"),
        # Of a union, only the member with this kind counts, and its name is not part of the path.
        ({"shapes": [CIRCLE, CIRCLE | {"sid": 1}]}, "shapes.1.sid: unknown key; known: circle, kind, radius"),
        (
            {"shapes": [CIRCLE | {"circle": 1, "radios": 1}]},
            "shapes.0.radios: unknown key; did you mean 'radius'?",
        ),
        ({"shapes": [{"kind": "circle"}]}, "shapes.0.radius: this key is required"),
        (
            {"shapes": [{"kind": "circel"}]},
            "shapes.0: unknown kind 'circel'; did you mean 'circle'?",
        ),
        ({"shapes": [{"radius": 1}]}, "shapes.0: the key 'kind' is required"),
        ({"shapes": [3]}, "shapes.0: should be a map of keys, not 3"),
        ({"shapes": 3}, "shapes: should be a list, not 3"),
        ({"title": 3}, "title: should be text (quote it), not 3"),
        ({"named": {7: CIRCLE}}, "named.7: a key must be text: quote it"),
        ({"named": []}, "named: should be a map of keys, not []"),
        ({"colour": "gren"}, "colour: unknown value 'gren'; did you mean 'green'?"),
        ({"colour": "blue"}, "colour: unknown value 'blue'; known: green, red"),
        ({"shapes": [{"kind": "line"}]}, "shapes.0: unknown kind 'line'; known: circle, square"),
        ({"colour": 3}, "colour: should be 'red' or 'green', not 3"),
        # Of a union of a number and a list: the member that fits best.
        ({"scale": -1}, "scale: should be greater than 0, not -1"),
        ({"scale": [1, -1]}, "scale.1: should be greater than 0, not -1"),
        ({"corners": [1]}, "corners: should have at least 3 values, not 1"),
    ],
)
def test_an_error_is_one_sentence_with_key_and_reason(keys, words):
    assert message(**keys) == words


def test_an_unknown_key_comes_before_a_missing_one():
    raw = {"titel": "x"}
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(raw)
    assert validation_message(caught.value, Drawing, raw) == "titel: unknown key; did you mean 'title'?"


def test_a_long_value_is_shortened():
    assert len(message(frame=list(range(10_000)))) < 100


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ([], ""),
        (["train", "lr"], "train.lr"),
        (["claims", 0, "margin"], "claims.error.margin"),
        (["claims", 1, "margin"], "claims.1.margin"),  # without an id
        (["claims", 7, "none", 3], "claims.7.none.3"),  # not in the document
    ],
)
def test_an_item_of_a_list_is_named_by_its_id(path, text):
    assert dotted_path(path, {"train": {"lr": 1}, "claims": [{"id": "error", "margin": 2}, {"margin": 3}]}) == text
