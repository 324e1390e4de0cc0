"""Overrides of a declaration: the settings of a variant, of a scale and of --set are merged in this order."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.common.errors import UserError
from pipeline.declare.recipe import Recipe


def merge_layers(*maps: Mapping[str, Any]) -> dict[str, Any]:
    """Return the maps merged key by key, nested dicts too. Later maps override earlier ones; none is changed.

    A nested map with another "name" (another optimizer, say) replaces the earlier one instead of being merged.
    """
    result: dict[str, Any] = {}
    for layer in maps:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(below, dict) and isinstance(value, dict):
                same = below.get("name") in (None, value.get("name", below.get("name")))
                result[key] = merge_layers(below, value) if same else merge_layers(value)
            else:
                result[key] = merge_layers(value) if isinstance(value, dict) else value
    return result


def describe_changes(key: str, changes: Mapping[str, Any]) -> str:
    """Return the --set options that cause an error at `key` of a recipe that is valid without `changes`.

    If the setting itself was changed: '--set train.steps'. Otherwise the error is in the combination of several
    settings: '--set train.steps=100: train' names the changes within `key`, or within the closest enclosing map
    that has any.
    """
    if any(f"{key}.".startswith(f"{changed}.") for changed in changes):
        return f"--set {key}"
    enclosing, culprits = key, list(changes)
    while enclosing:
        if found := [changed for changed in changes if changed.startswith(f"{enclosing}.")]:
            culprits = found
            break
        enclosing = enclosing.rpartition(".")[0]
    options = ", ".join(f"--set {changed}={yaml_flow(changes[changed])}" for changed in culprits)
    return f"{options}: {key}" if key else options


def yaml_flow(value: Any) -> str:
    """Return a value as one line of YAML: [0.08, 1]."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def set_dotted(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` ("train.lr") of a raw recipe.

    Raises UserError if the key does not start with model, data or train, or leads through a value.
    """
    *path, last = key.split(".")
    if not path or path[0] not in Recipe.model_fields:
        raise UserError(f"--set {key}: a setting starts with model., data. or train., as in train.lr=0.05")
    for part in path:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(f"--set {key}: {part!r} is a value, not a map of settings")
    raw[last] = value
