"""Hash of a resolved recipe and seed."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pipeline.common.hashing import canonical_json
from pipeline.declare.recipe import Recipe

# Settings that were added after the first runs were recorded. At these values they are left out of a declaration's
# hash, so that the recorded runs keep their hashes.
LATER_DEFAULTS: dict[str, Any] = {
    "train.optimizer.nesterov": False,
    "train.lr_drops.every": None,
    "train.optimizer.rate_in_velocity": False,
    "train.optimizer.form": "pytorch",
    "train.loss.smoothing": 0.0,
    "train.lr_end": None,
    "train.lr_power": 1.0,
    "train.plateau": None,
    "train.start": None,
    "train.clip_norm": None,
    "train.filter_rms_limit": None,
    "train.average": None,
    "train.select": "last",
    "train.steps_to_error_pct": [],
    "train.gradient_norms": [],
    "train.column_losses": [],
    "train.trainable": [],
    "data.val_per_class": None,
    "data.jitter": None,
    "data.crop": None,
    "data.test": [],
    "data.boxes": False,
}

LATER_DERIVED_DEFAULTS: dict[str, Any] = {  # the same for the settings of derived runs
    "weights": "last",
    "protocol_of_each": [],
    "bits": {},
    "conv_index_bits": 8,
    "fc_index_bits": 5,
    "prunings": 1,
    "retrain": None,
    "tune": None,
    "layer": None,
    "scales": "average",
    "normalise": "standardise",
    "classifier": "softmax",
    "validation": None,
    "train_parts": ["train"],
    "test_part": "test",
    "splits": None,
    "train_per_class": None,
    "test_per_class": None,
}


def declaration_hashes(recipe: Recipe, seeds: Iterable[int]) -> dict[int, str]:
    """Return seed -> `digest` of {"recipe": recipe, "seed": seed}. The recipe is serialised once for all seeds."""
    text = canonical_json({"recipe": without_later_defaults(recipe.model_dump(mode="json"))})
    prefix = hashlib.sha256(f'{text[:-1]},"seed":'.encode())
    hashes = {}
    for seed in seeds:
        complete = prefix.copy()
        complete.update(f"{seed}}}".encode())
        hashes[seed] = complete.hexdigest()[:16]
    return hashes


def without_later_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dumped recipe without the settings of LATER_DEFAULTS that are at their default."""
    kept = {**recipe}
    for path, defaults in later_defaults_by_part().items():
        part: Any = kept
        for name in path:
            inner = part.get(name)
            if not isinstance(inner, dict):
                break
            part[name] = part = {**inner}
        else:
            for key, default in defaults.items():
                if key in part and part[key] == default:
                    del part[key]
    return kept


@cache
def later_defaults_by_part() -> dict[tuple[str, ...], dict[str, Any]]:
    """Return LATER_DEFAULTS by their part of a recipe: ("train", "optimizer") -> {"nesterov": False, …}."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for dotted, default in LATER_DEFAULTS.items():
        *path, key = dotted.split(".")
        found.setdefault(tuple(path), {})[key] = default
    return found


def without_later_derived_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a derived run without those of LATER_DERIVED_DEFAULTS that are at their default."""
    return {
        key: value
        for key, value in settings.items()
        if key not in LATER_DERIVED_DEFAULTS or value != LATER_DERIVED_DEFAULTS[key]
    }
