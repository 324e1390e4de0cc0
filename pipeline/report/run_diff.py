"""Differences between two finished runs: declaration, data, code, environment, results. Pure."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.track.record import Record

Part = Literal["declaration", "data", "code", "environment", "result"]

MIN_DIGITS = 4  # of an identity

MAX_CANDIDATES = 4  # listed for an ambiguous name

PLACE_OF_RUN = frozenset({"experiment", "scale", "variant"})  # no part of a declaration's hash


@dataclass(frozen=True)
class Difference:
    """One value that differs between two runs; "" where a run has none."""

    part: Part
    name: str
    first: Any
    second: Any

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON and tables."""
        return {"part": self.part, "name": self.name, "first": self.first, "second": self.second}


def run_name(record: Record) -> str:
    """Return the name of a run: "resnet/cifar10_depth/resnet-20/0 at laptop"."""
    return f"{record.experiment}/{record.variant}/{record.seed} at {record.scale}"


def find_record(name: str, records: Sequence[Record]) -> Record:
    """Return the finished run with a name: the first digits of its identity, or [PAPER/FILE/]VARIANT/SEED.

    Raises UserError for no match, or several.
    """
    found = [
        record
        for record in records
        if (len(name) >= MIN_DIGITS and record.identity.startswith(name))
        or name
        in (
            f"{record.variant}/{record.seed}",
            f"{record.experiment}/{record.variant}/{record.seed}",
            run_name(record),
        )
    ]
    if not found:
        known = list(dict.fromkeys(f"{record.variant}/{record.seed}" for record in records))
        similar = difflib.get_close_matches(name, known, n=1) or known[:1]
        hint = f"; use VARIANT/SEED, as in {similar[0]!r}" if similar else "; no runs have finished"
        raise UserError(f"no finished run {name!r}{hint}")
    if len(found) > 1:
        listed = " or ".join(f"{one.identity[:8]} ({run_name(one)})" for one in found[:MAX_CANDIDATES])
        others = f" or one of {len(found) - MAX_CANDIDATES:,} more" if len(found) > MAX_CANDIDATES else ""
        raise UserError(f"{name!r} is ambiguous: {listed}{others}; use the digits instead")
    return found[0]


def compare_runs(
    first: Record, second: Record, recipes: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]
) -> list[Difference]:
    """Return everything that differs, in the order of Part.

    `recipes` are the resolved recipes of both runs, None where one is not known; then only the hashes of the
    declarations are compared. They are compared, too, where nothing else explains a difference: the run that a run
    starts from, or the members of a derived run, may differ.
    """
    found: list[Difference] = []

    def compare(part: Part, name: str, one: Any, other: Any) -> None:
        if one != other:
            found.append(Difference(part, name, one, other))

    for name in ("experiment", "scale", "variant", "seed"):
        compare("declaration", name, getattr(first, name), getattr(second, name))
    if recipes[0] is not None and recipes[1] is not None:
        ours, theirs = (flattened(recipe) for recipe in recipes if recipe is not None)
        for name in dict.fromkeys([*ours, *theirs]):
            compare("declaration", name, ours.get(name, ""), theirs.get(name, ""))
    if recipes[0] is None or recipes[1] is None or {one.name for one in found} <= PLACE_OF_RUN:
        compare("declaration", "hash", first.declaration, second.declaration)
    compare("data", "name", first.data, second.data)
    compare("data", "manifest", first.manifest, second.manifest)
    compare("code", "hash", first.code, second.code)
    compare("code", "commit", first.commit, second.commit)
    for name in ("hardware", "world", "threads", "precision", "channels_last", "compiled", "device_batch", "lock"):
        compare("environment", name, getattr(first, name), getattr(second, name))
    for name in dict.fromkeys([*first.libraries, *second.libraries]):
        compare("environment", name, first.libraries.get(name, ""), second.libraries.get(name, ""))
    compare("result", "status", first.status, second.status)
    for name in dict.fromkeys([*first.metrics, *second.metrics]):
        compare("result", name, first.metrics.get(name, ""), second.metrics.get(name, ""))
    return found


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key: {"train": {"lr": 0.1}} -> {"train.lr": 0.1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flattened(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return flat
