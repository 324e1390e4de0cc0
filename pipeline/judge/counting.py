"""Which records count for a variant at a scale."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.declare.claims import Claim
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.plan.declaration import declaration_hashes
from pipeline.plan.expand import make_derived_runs, make_runs, seed_at, seed_index
from pipeline.track.record import Record

ByVariant = dict[str, list[Record]]


def variants_of(claim: Claim) -> list[str]:
    """The variants whose runs a claim needs, each once."""
    named = [getattr(claim, key, None) for key in ("of", "lhs", "rhs")]
    return list(dict.fromkeys(variant for variant in named if variant is not None))


def counted_records(experiment: Experiment, scale: str, records: Iterable[Record]) -> ByVariant:
    """The records that count at `scale`, by variant: as now declared, nothing changed by --set.

    At paper scale only the seeds declared beforehand: more, until the verdict pleases, would prove nothing.
    """
    unchanged = [record for record in records if not record.changes]
    every = [*experiment.variants, *experiment.derived]
    found = {variant: records_of(experiment, scale, variant, unchanged) for variant in every}
    return {variant: rows for variant, rows in found.items() if rows}


def records_of(
    experiment: Experiment,
    scale: str,
    variant: str,
    records: Sequence[Record],
    changes: Mapping[str, Any] | None = None,
) -> list[Record]:
    """The records of one resolved recipe, or of a step, by seed; at paper scale of the seeds declared beforehand.

    What was trained decides, not what it was trained for: two scales, variants or experiments of one recipe share
    their runs. Where runs were made with different code or data, those of one kind count, not a mixture: the
    kind with the most seeds, of equals the latest. A seed that ran twice in it (on other hardware) counts once,
    the first.
    """
    counts = declarations_of(experiment, scale, variant, {record.seed for record in records}, changes)
    kinds: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    of_it = [record for record in records if record.declaration in counts]
    for record in sorted(of_it, key=lambda record: record.finished):
        kinds[record.manifest, record.code].setdefault(record.seed, record)
    if not kinds:
        return []
    best = max(kinds.values(), key=lambda rows: (len(rows), max(row.finished for row in rows.values())))
    named = {"experiment": experiment.name, "scale": scale, "variant": variant}
    return [replace(best[seed], **named) for seed in sorted(best)]  # type: ignore[arg-type]


def declarations_of(
    experiment: Experiment, scale: str, name: str, seeds: Collection[int], changes: Mapping[str, Any] | None = None
) -> set[str]:
    """The declarations that runs of a variant, or steps, may have which have one of these seeds.

    At paper scale of the seeds declared beforehand alone, but for runs that are changed and count for nothing.
    """
    beforehand = scale == PAPER_SCALE and not changes
    if name in experiment.variants:
        known = experiment.seeds_of(name, scale)
        chosen = [seed for seed in seeds if not beforehand or seed in known]
        return set(declaration_hashes(experiment.recipe(name, scale, changes), chosen).values())
    needed = experiment.derived_spec(name, scale).consumes
    rows = {variant: experiment.seeds_of(variant, scale) for variant in needed}
    first = min(needed)  # a step's seed is that of the first run it consumes
    places = (divmod(seed_index(rows[first], seed), needed[first]) for seed in seeds)
    numbers = [number for number, rest in places if not rest]
    if beforehand:
        numbers = [n for n in numbers if all((n + 1) * needed[v] <= len(rows[v]) for v in needed)]
    runs = {}
    for variant, count in needed.items():
        chosen = [seed_at(rows[variant], number * count + i) for number in numbers for i in range(count)]
        runs[variant] = make_runs(experiment, scale, variant, chosen, changes)
    return {step.declaration for step in make_derived_runs(experiment, name, scale, runs)}


def comparable_records(claim: Claim, by_variant: ByVariant) -> ByVariant:
    """The records a claim compares, or {} where a variant has none or the variants saw different data."""
    needed = variants_of(claim)
    if any(variant not in by_variant for variant in needed):
        return {}
    found = {variant: by_variant[variant] for variant in needed}
    manifests = {record.manifest for rows in found.values() for record in rows}
    return found if len(manifests) == 1 else {}
