"""Merge the layers of a declaration: experiment, variant, scale, command line."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.common.errors import UserError
from pipeline.declare.recipe import Recipe


def merge_layers(*maps: Mapping[str, Any]) -> dict[str, Any]:
    """The maps laid over each other, later ones on top, nested maps likewise.

    A nested map that names another thing (its "name" differs) replaces the one below instead of mixing with it.
    """
    result: dict[str, Any] = {}
    for layer in maps:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(below, Mapping) and isinstance(value, Mapping):
                same = below.get("name") in (None, value.get("name", below.get("name")))
                result[key] = merge_layers(below, value) if same else merge_layers(value)
            else:
                result[key] = merge_layers(value) if isinstance(value, Mapping) else value
    return result


def describe_changes(key: str, changes: Mapping[str, Any]) -> str:
    """'--set train.steps=100' for a mistake at `key` of a recipe that was right before `changes`.

    A change of the setting itself is named by its key; else the changes are that lie in the same map, or in the
    nearest map around it that has any.
    """
    if any(f"{key}.".startswith(f"{one}.") for one in changes):
        return f"--set {key}"
    around, inside = key, list(changes)
    while around:
        if found := [one for one in changes if one.startswith(f"{around}.")]:
            inside = found
            break
        around = around.rpartition(".")[0]
    said = ", ".join(f"--set {one}={yaml_flow(changes[one])}" for one in inside)
    return f"{said}: {key}" if key else said


def yaml_flow(value: Any) -> str:
    """A value as it is written in one line of YAML: [0.08, 1]."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def set_dotted(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` ("train.lr") of a raw recipe; the first part must be model, data or train."""
    *path, last = key.split(".")
    if not path or path[0] not in Recipe.model_fields:
        raise UserError(f"--set {key}: a setting starts with model., data. or train., as in train.lr=0.05")
    for part in path:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(f"--set {key}: {part!r} is a value, not a map of settings")
    raw[last] = value
