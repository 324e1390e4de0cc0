"""What is said about a mistake: place, reason, nearest right word. One sentence, in the author's words."""

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import UserError
from pipeline.declare.validation import hint, validation_message


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Circle(Strict):
    kind: Literal["circle"]
    radius: float
    circle: int = 0  # a key called as the alternative is


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


CIRCLE = {"kind": "circle", "radius": 1.0}


def said(**keys: object) -> str:
    raw = {"title": "x"} | keys
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(raw)
    return validation_message(caught.value, Drawing, raw)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"colou": "red"}, "colou: unknown key; did you mean 'colour'?"),
        ({"zzz": 1}, "zzz: unknown key; known: colour, frame, named, scale, shapes, title"),
        ({"frame": {"kind": "square", "sid": 1}}, "frame.sid: unknown key; did you mean 'side'?"),
        ({"named": {"a": CIRCLE | {"radios": 1}}}, "named.a.radios: unknown key; did you mean 'radius'?"),
        # of a union's alternatives, only the one that is meant; its name is not a part of the place
        ({"shapes": [CIRCLE, CIRCLE | {"sid": 1}]}, "shapes.1.sid: unknown key; known: circle, kind, radius"),
        (
            {"shapes": [CIRCLE | {"circle": 1, "radios": 1}]},
            "shapes.0.radios: unknown key; did you mean 'radius'?",
        ),
        ({"shapes": [{"kind": "circle"}]}, "shapes.0.radius: this key is required"),
        (
            {"shapes": [{"kind": "circel"}]},
            "shapes.0: kind 'circel' is not one of circle, square; did you mean 'circle'?",
        ),
        ({"shapes": [{"radius": 1}]}, "shapes.0: the key 'kind' is required"),
        ({"shapes": [3]}, "shapes.0: should be a map of keys, not 3"),
        ({"shapes": 3}, "shapes: should be a list, not 3"),
        ({"title": 3}, "title: should be text (quote it), not 3"),
        ({"named": {7: CIRCLE}}, "named.7: a key must be text: quote it"),
        ({"named": []}, "named: should be a map of keys, not []"),
        ({"colour": "gren"}, "colour: 'gren' is not one of red, green; did you mean 'green'?"),
        ({"colour": 3}, "colour: should be 'red' or 'green', not 3"),
        # of a number or a list of them: the nearest miss
        ({"scale": -1}, "scale: should be greater than 0, not -1"),
        ({"scale": [1, -1]}, "scale.1: should be greater than 0, not -1"),
    ],
)
def test_one_mistake_is_one_sentence(keys, words):
    assert said(**keys) == words


def test_an_unknown_key_is_named_before_the_missing_one_it_stands_for():
    raw = {"titel": "x"}
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(raw)
    assert validation_message(caught.value, Drawing, raw) == "titel: unknown key; did you mean 'title'?"


def test_a_long_value_is_cut():
    assert len(said(frame=list(range(10_000)))) < 100


def test_the_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_no_hint_where_nothing_is_near():
    assert hint("quux", ["red", "green"]) == ""
