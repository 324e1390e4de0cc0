"""A user's mistakes: what they are, and what is said about them."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union

from pydantic import BaseModel, ValidationError

from lightning_modules.names import nearest


class UserError(ValueError):
    """A user's mistake: one sentence with what is wrong, where, and what to do. Shown without a traceback."""


def sentence(error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]) -> str:
    """The first mistake of a validation as 'key: reason', with the nearest right word."""
    errors = error.errors()
    first = next(
        (one for one in errors if one["type"] == "extra_forbidden"), errors[0]
    )  # often why one is missing
    path = [part for part in first["loc"] if in_document(part, first["loc"], raw)]
    where, kind = named_place(path, raw), first["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key{nearest(str(path[-1]), fields_at(root, first['loc'][:-1]))}"
    if kind == "missing":
        return f"{where}: this key is required"
    if kind == "literal_error" and isinstance(first["input"], str):
        known = [word.strip(" '") for word in first["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{where}: {first['input']!r} is not one of {', '.join(known)}{hint(first['input'], known)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag, known_tags = first["ctx"].get("tag"), first["ctx"].get("expected_tags", "")
        named = first["ctx"]["discriminator"].strip("'")
        known = known_tags.replace("'", "").split(", ")
        what = f"the key {named!r} is required"
        if tag:
            what = f"{named} {tag!r} is not one of {', '.join(known)}{hint(tag, known)}"
        return f"{where}: {what}"
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["msg"].startswith("Input should be "):
        reason = f"should be {reason}, not {first['input']!r}"
    return f"{where}: {reason}" if where else reason


def named_place(path: list[Any], raw: Mapping[str, Any]) -> str:
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


def in_document(part: Any, loc: tuple[Any, ...], raw: Mapping[str, Any]) -> bool:
    """Whether a part of an error's place is the document's own key, not the tag of a union."""
    here: Any = raw
    for step in loc:
        inside = isinstance(here, list | tuple) and isinstance(step, int) and step < len(here)
        own = (isinstance(here, Mapping) and step in here) or inside
        if step is part or step == part:
            return own or step == loc[-1]
        if own:
            here = here[step]
    return False


def fields_at(root: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys allowed at place `loc` of a document typed by `root`."""
    here = [root]
    for part in loc:
        here = [t for one in here for t in types_below(one, part)]
    found = {key for t in here if isinstance(t, type) and issubclass(t, BaseModel) for key in t.model_fields}
    return sorted(found - {"kind"} if len(here) > 1 else found)


def types_below(kind: Any, part: Any) -> list[Any]:
    """The types a value of type `kind` may have at key, index or union tag `part`."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(str(part))
        if field is None:  # a union's tag: the type itself, if it is the one meant
            tags = [typing.get_args(f.annotation) for n, f in kind.model_fields.items() if n in ("kind", "name")]
            return [kind] if any(part in tag for tag in tags) else []
        return unwrapped(field.annotation)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return unwrapped(args[1])
    if origin is tuple:
        return unwrapped(args[0])
    return []


def unwrapped(kind: Any) -> list[Any]:
    """A type without Annotated, its alternatives if it is a union."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return unwrapped(typing.get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return [t for arg in typing.get_args(kind) for t in unwrapped(arg)]
    return [kind]
