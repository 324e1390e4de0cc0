"""Hash of a resolved recipe and seed."""

import hashlib
from collections.abc import Iterable
from typing import Any

from pipeline.common.hashing import canonical_json
from pipeline.declare.recipe import Recipe

# Settings younger than the first tracked runs: at these values they are left out of a declaration's hash, so that
# the runs made before still are runs of the same recipe.
LATER_DEFAULTS: dict[str, Any] = {
    "train.optimizer.nesterov": False,
    "train.lr_drops.every": None,
    "train.lr_end": None,
    "data.crop": None,
    "data.test": [],
}


def declaration_hashes(recipe: Recipe, seeds: Iterable[int]) -> dict[int, str]:
    """`Run.declaration` of each seed: `digest` of {"recipe": ..., "seed": ...}; the recipe is written out once."""
    text = canonical_json({"recipe": without_later_defaults(recipe.model_dump(mode="json"))})
    begun = hashlib.sha256(f'{text[:-1]},"seed":'.encode())
    found = {}
    for seed in seeds:
        whole = begun.copy()
        whole.update(f"{seed}}}".encode())
        found[seed] = whole.hexdigest()[:16]
    return found


def without_later_defaults(value: Any, path: str = "") -> Any:
    """A dumped recipe without the younger settings that are at the value they always had."""
    if not isinstance(value, dict):
        return value
    named = {key: f"{path}.{key}".lstrip(".") for key in value}
    kept = {
        key: v for key, v in value.items() if named[key] not in LATER_DEFAULTS or v != LATER_DEFAULTS[named[key]]
    }
    return {key: without_later_defaults(v, named[key]) for key, v in kept.items()}
