"""Turn pydantic's validation errors into one sentence: the key in the user's file, and the reason."""

import difflib
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from lightning_modules.names import nearest

EXPECTED_TYPES = {  # kind of error -> what was expected, in YAML's words
    "model_type": "a map of keys",
    "model_attributes_type": "a map of keys",
    "dict_type": "a map of keys",
    "tuple_type": "a list",
    "string_type": "text (quote it)",
}

REASONS = {  # kind of error -> the whole reason
    "missing": "this key is required",
    "invalid_key": "a key must be text: quote it",
    "too_short": "should not be empty",
}


def explain_validation_error(
    error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]
) -> tuple[str, str]:
    """The first mistake of a validation: its place in dotted keys, and the reason with the nearest right word."""
    errors = [(one, *locate(root, one["loc"])) for one in error.errors()]
    unknown = [one for one in errors if one[0]["type"] == "extra_forbidden"]  # often why another key is missing
    shallow = (unknown or errors)[0][1]
    inside = [one for one in unknown or errors if one[1][: len(shallow)] == shallow]
    first, path, above = max(inside, key=lambda one: len(one[1]))  # of a union's alternatives, the nearest miss
    kind, given = first["type"], first["input"]
    if path[-1:] == ["[key]"]:  # pydantic's name for the key itself, where a value's place is expected
        path, kind = path[:-1], "invalid_key"
    where = dotted_path(path, raw)
    if kind in REASONS:
        return where, REASONS[kind]
    if kind == "extra_forbidden":
        return where, f"unknown key{nearest(path[-1], field_names(above))}"
    if kind == "literal_error" and isinstance(given, str):
        known = [word.strip(" '") for word in first["ctx"]["expected"].replace(" or ", ",").split(",")]
        return where, f"{given!r} is not one of {', '.join(known)}{hint(given, known)}"
    if kind == "union_tag_not_found":
        return where, f"the key {first['ctx']['discriminator']} is required"
    if kind == "union_tag_invalid":
        named, tag = first["ctx"]["discriminator"].strip("'"), first["ctx"]["tag"]
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return where, f"{named} {tag!r} is not one of {', '.join(known)}{hint(tag, known)}"
    should, message = "Input should be ", first["msg"].removeprefix("Value error, ")
    if kind in EXPECTED_TYPES:
        message = should + EXPECTED_TYPES[kind]
    if message.startswith(should):
        message = f"should be {message.removeprefix(should)}, not {reprlib.repr(given)}"
    return where, message


def validation_message(error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]) -> str:
    """The first mistake of a validation as 'key: reason'."""
    return ": ".join(part for part in explain_validation_error(error, root, raw) if part)


def locate(root: Any, loc: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """An error's place in the document's own keys, and the types that the place above it may have.

    Pydantic also puts the name of a union's alternative into `loc`, which no document holds.
    """
    path: list[Any] = []
    above, here = [], [root]
    for part in loc:
        if len(here) > 1:
            here = [kind for kind in here if is_union_member(kind, part)]
            continue
        path.append(part)
        above, here = here, [below for kind in here for below in child_types(kind, part)]
        if not here:
            break
    return path, above


def is_union_member(kind: Any, part: Any) -> bool:
    """Whether `part` is pydantic's name for the alternative `kind` of a union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        tags = [kind.model_fields[key].annotation for key in ("kind", "name") if key in kind.model_fields]
        return any(part in typing.get_args(tag) for tag in tags)
    return str(part).startswith(getattr(typing.get_origin(kind), "__name__", " "))


def field_names(kinds: Iterable[Any]) -> list[str]:
    """The keys that a map of these types may have."""
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return sorted({key for model in models for key in model.model_fields})


def dotted_path(path: list[Any], raw: Mapping[str, Any]) -> str:
    """'claims.error-20.margin': the place in dotted keys, an item of a list by its id where it has one."""
    words, here = [], raw
    for part in path:
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            here = {}
        named = isinstance(part, int) and isinstance(here, Mapping) and isinstance(here.get("id"), str)
        words.append(here["id"] if named else str(part))
    return ".".join(words)


def hint(word: str, known: Iterable[str]) -> str:
    """'; did you mean X?' where something is near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def child_types(kind: Any, part: Any) -> list[Any]:
    """The types a value of type `kind` may have at a key or an index."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return unwrap_annotation(kind.model_fields[part].annotation) if part in kind.model_fields else []
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return unwrap_annotation(args[1])
    return unwrap_annotation(args[0]) if origin is tuple else []


def unwrap_annotation(kind: Any) -> list[Any]:
    """A type without Annotated; its alternatives if it is a union, None left out."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return unwrap_annotation(typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [one for arg in typing.get_args(kind) for one in unwrap_annotation(arg)]
    return [] if kind is types.NoneType else [kind]
