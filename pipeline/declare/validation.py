"""Turn pydantic's validation errors into one sentence: the key in the user's file, and the reason."""

import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from lightning_modules.names import nearest

EXPECTED_TYPES = {  # pydantic's error type -> the expected type in YAML's words
    "model_type": "a map of keys",
    "model_attributes_type": "a map of keys",
    "dict_type": "a map of keys",
    "tuple_type": "a list",
    "string_type": "text (quote it)",
}

REASONS = {  # pydantic's error type -> the complete reason
    "missing": "this key is required",
    "invalid_key": "a key must be text: quote it",
    "too_short": "should not be empty",
}


def explain_validation_error(
    error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the dotted key and the reason of the first error in a validation of `raw` as `root`.

    An unknown key comes before other errors, since a misspelt key also counts as missing. Of the errors in the
    members of a union, the one deepest in the document is reported: it belongs to the member that fits best. At
    one depth, a wrong type comes last: the value is meant for another member.
    """
    errors = [(found, *locate(root, found["loc"])) for found in error.errors()]
    unknown = [found for found in errors if found[0]["type"] == "extra_forbidden"]
    shallow = (unknown or errors)[0][1]
    inside = [found for found in unknown or errors if found[1][: len(shallow)] == shallow]
    first, path, parents = max(inside, key=lambda found: (len(found[1]), not found[0]["type"].endswith("_type")))
    kind, given = first["type"], first["input"]
    if path[-1:] == ["[key]"]:  # pydantic's name for a dictionary's key, in place of the path of a value
        path, kind = path[:-1], "invalid_key"
    key = dotted_path(path, raw)
    if kind == "too_short" and (least := first["ctx"]["min_length"]) > 1:
        return key, f"should have at least {least} values, not {first['ctx']['actual_length']}"
    if kind in REASONS:
        return key, REASONS[kind]
    if kind == "extra_forbidden":
        return key, f"unknown key{nearest(path[-1], field_names(parents))}"
    if kind == "literal_error" and isinstance(given, str):
        known = [word.strip(" '") for word in first["ctx"]["expected"].replace(" or ", ",").split(",")]
        return key, f"unknown value {given!r}{nearest(given, known)}"
    if kind == "union_tag_not_found":
        return key, f"the key {first['ctx']['discriminator']} is required"
    if kind == "union_tag_invalid":
        discriminator, tag = first["ctx"]["discriminator"].strip("'"), first["ctx"]["tag"]
        known = first["ctx"]["expected_tags"].replace("'", "").split(", ")
        return key, f"unknown {discriminator} {tag!r}{nearest(tag, known)}"
    prefix, message = "Input should be ", first["msg"].removeprefix("Value error, ")
    if kind in EXPECTED_TYPES:
        message = prefix + EXPECTED_TYPES[kind]
    if message.startswith(prefix):
        message = f"should be {message.removeprefix(prefix)}, not {reprlib.repr(given)}"
    return key, message


def validation_message(error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]) -> str:
    """Return the first error of a validation as 'key: reason'."""
    return ": ".join(part for part in explain_validation_error(error, root, raw) if part)


def locate(root: Any, loc: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Return the path of an error in the document, and the types that may stand at the path's parent.

    Pydantic's `loc` also contains the names of union members, which are not keys of the document.
    """
    path: list[Any] = []
    parents, kinds = [], [root]
    for part in loc:
        if len(kinds) > 1:
            kinds = [kind for kind in kinds if is_union_member(kind, part)]
            continue
        path.append(part)
        parents, kinds = kinds, [child for kind in kinds for child in child_types(kind, part)]
        if not kinds:
            break
    return path, parents


def is_union_member(kind: Any, part: Any) -> bool:
    """Return whether `part` is pydantic's name for the union member `kind`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        tags = [kind.model_fields[key].annotation for key in ("kind", "name") if key in kind.model_fields]
        if not tags:  # PartCounts, or with a validator "function-after[_fits(), PartCounts]"
            return str(part).removesuffix("]").split(", ")[-1] == kind.__name__
        return any(part in typing.get_args(tag) for tag in tags)
    return str(part).startswith(getattr(typing.get_origin(kind), "__name__", " "))


def field_names(kinds: Iterable[Any]) -> list[str]:
    """Return the sorted keys that a map of these types may have."""
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return sorted({key for model in models for key in model.model_fields})


def dotted_path(path: Sequence[Any], raw: Mapping[str, Any]) -> str:
    """Return a path as 'claims.error-20.margin'. An item of a list is named by its `id`, else by its index."""
    words: list[str] = []
    value: Any = raw
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            value = {}
        has_id = isinstance(part, int) and isinstance(value, Mapping) and isinstance(value.get("id"), str)
        words.append(value["id"] if has_id else str(part))
    return ".".join(words)


def child_types(kind: Any, part: Any) -> list[Any]:
    """Return the types that a value of type `kind` may have at a key or an index."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return unwrap_annotation(kind.model_fields[part].annotation) if part in kind.model_fields else []
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return unwrap_annotation(arguments[1])
    return unwrap_annotation(arguments[0]) if origin is tuple else []


def unwrap_annotation(kind: Any) -> list[Any]:
    """Return a type without Annotated, as a list of one; for a union its members without None."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return unwrap_annotation(typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [member for argument in typing.get_args(kind) for member in unwrap_annotation(argument)]
    return [] if kind is types.NoneType else [kind]
