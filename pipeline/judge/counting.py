"""Records that count as evidence for a variant at a scale."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from pipeline.declare.claims import Claim
from pipeline.declare.derived import TimingSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.references import beside, split_reference
from pipeline.plan.expand import (
    derived_declarations,
    make_derived_runs,
    make_runs,
    make_timings,
    run_declarations,
    seed_at,
    seed_index,
)
from pipeline.plan.identity import first_equivalent
from pipeline.track.record import Record

ByVariant = dict[str, list[Record]]


class RecordIndex:
    """Records by the hash of their declaration: those of many variants are found without reading all for each."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.seeds = {record.seed for record in self.records}
        self.places: dict[str, list[int]] = defaultdict(list)  # declaration -> indices of its records
        for place, record in enumerate(self.records):
            self.places[record.declaration].append(place)
        self._groups: dict[frozenset[str], list[list[Record]]] = {}

    def matching(self, declarations: Iterable[str]) -> list[Record]:
        """Return the records of these declarations, in their order."""
        found = sorted(place for one in declarations for place in self.places.get(one, ()))
        return [self.records[place] for place in found]

    def groups(self, declarations: frozenset[str]) -> list[list[Record]]:
        """Return the records of these declarations by data and code, each group by seed: see `records_of`.

        The group that counts comes first. They are made once.
        """
        if declarations not in self._groups:
            found: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
            for record in sorted(self.matching(declarations), key=lambda record: record.finished):
                found[group_of(record)].setdefault(record.seed, record)
            in_order = sorted(found.values(), key=seeds_and_end, reverse=True)
            self._groups[declarations] = [[group[seed] for seed in sorted(group)] for group in in_order]
        return self._groups[declarations]


Records = Iterable[Record] | RecordIndex


def unchanged_records(records: Records) -> RecordIndex:
    """Return the index of the records that were not changed by --set; an index has only such records."""
    if isinstance(records, RecordIndex):
        return records
    return RecordIndex(record for record in records if not record.changes)


def variants_of(claim: Claim) -> list[str]:
    """Return the variants and derived runs that a claim is about, each once."""
    named = [getattr(claim, key, None) for key in ("of", "lhs", "rhs")]
    return list(dict.fromkeys(variant for variant in named if variant is not None))


def counted_records(experiment: Experiment, scale: str, records: Records, others: Sequence[str] = ()) -> ByVariant:
    """Return the records that count at `scale`, by variant: of the current declaration, not changed by --set.

    `others` are variants of other experiments, PAPER/FILE/VARIANT, whose records are returned too. At paper scale
    only the declared seeds count: adding seeds until a verdict pleases would prove nothing.
    """
    unchanged = unchanged_records(records)
    names = [*(() if experiment.measures else experiment.variants), *experiment.derived, *others]
    found = {name: records_of(experiment, scale, name, unchanged) for name in names}
    return {name: rows for name, rows in found.items() if rows}


def scales_of(claim: Claim, experiment: Experiment, scales: Sequence[str] = ()) -> list[str]:
    """Return the scales at which a claim can be judged, among `scales` if any are given; paper scale comes first.

    These are the scales of all experiments whose variants it names, or paper scale if there is none.
    """
    involved = [experiment.owner(name)[0] for name in variants_of(claim)] or [experiment]
    order = scales or sorted(involved[0].scales, key=lambda scale: scale != PAPER_SCALE)
    found = [scale for scale in order if all(scale in declared.scales for declared in involved)]
    return found or [PAPER_SCALE]


def referenced_records(experiment: Experiment, claims: Iterable[Claim], scale: str, records: Records) -> ByVariant:
    """Return the records that count at `scale` for the variants of other experiments that claims name.

    The keys, and the records' variants, are PAPER/FILE/VARIANT. The runs behind them are included: those that a
    derived run consumes, and those from which runs start.
    """
    unchanged = unchanged_records(records)
    found: ByVariant = {}
    for name in dict.fromkeys(name for claim in claims for name in variants_of(claim)):
        declared, variant = experiment.owner(name)
        if split_reference(name)[0] is None or scale not in declared.scales:
            continue
        for own in (variant, *sorted(declared.behind([variant]))):
            key = beside(name, own)
            known = key in found or scale not in declared.owner(own)[0].scales
            rows = [] if known else records_of(declared, scale, own, unchanged)
            if rows:
                found[key] = [replace(row, variant=key) for row in rows]
    return found


def records_of(
    experiment: Experiment,
    scale: str,
    variant: str,
    records: Records,
    changes: Mapping[str, Any] | None = None,
) -> list[Record]:
    """Return the records of one resolved recipe, or derived run, by seed; at paper scale of the declared seeds.

    The recipe decides, not the name it was run under: two scales, variants or experiments of one recipe share
    their runs. Runs of different data or code are never mixed, but for code that gives the same numbers
    (`EQUIVALENT_CODE`): the group with the most seeds counts, then the latest. A seed that ran twice in it (on
    other hardware) counts once, the first run. A smaller scale often puts one data set in place of several: what
    was run for a variant of the scale counts for no other (`is_left_out`).
    """
    found = groups_of(experiment, scale, variant, records, changes)
    return [named(record, experiment.name, scale, variant) for record in found[0]] if found else []


def groups_of(
    experiment: Experiment,
    scale: str,
    variant: str,
    records: Records,
    changes: Mapping[str, Any] | None = None,
) -> list[list[Record]]:
    """Return the groups of records of equal data and code among which `records_of` chooses, its choice first."""
    index = records if isinstance(records, RecordIndex) else RecordIndex(records)
    counted = declarations_of(experiment, scale, variant, index.seeds, changes)
    found = index.groups(frozenset(counted))
    return [] if found and not changes and is_left_out(experiment, scale, variant) else found


def group_of(record: Record) -> tuple[str, str]:
    """Return data and code of a record; records in which they are equal are of one group."""
    return record.manifest, first_equivalent(record.code)


def seeds_and_end(records: Mapping[int, Record]) -> tuple[int, str]:
    """Return the number of seeds and when the last run ended: the group that is first in this order counts."""
    return len(records), max(record.finished for record in records.values())


def named(record: Record, experiment: str, scale: str, variant: str) -> Record:
    """Return the record of a run under the name of what it counts for."""
    if (record.experiment, record.scale, record.variant) == (experiment, scale, variant):
        return record
    return replace(record, experiment=experiment, scale=scale, variant=variant)


def is_left_out(experiment: Experiment, scale: str, name: str) -> bool:
    """Return True if a smaller scale leaves a variant out and gives it the runs of a variant that it has.

    With one data set in place of CIFAR-10 and CIFAR-100, a variant for each has the same recipe. Its runs then
    stand for the variant that the scale names. A derived run is left out if a variant that it consumes is.
    """
    if scale == PAPER_SCALE:
        return False
    experiment, name = experiment.owner(name)
    if name in experiment.derived:
        consumed = experiment.derived_spec(name, scale).consumes
        return any(is_left_out(experiment, scale, own) for own in consumed)
    named = experiment.variants_at(scale)
    if name in named:
        return False
    seed = experiment.seeds_at(scale)[:1]
    own = declarations_of(experiment, scale, name, seed)
    return any(own & declarations_of(experiment, scale, other, seed) for other in named)


def declarations_of(
    experiment: Experiment, scale: str, name: str, seeds: Collection[int], changes: Mapping[str, Any] | None = None
) -> set[str]:
    """Return the declaration hashes of a variant's runs, or of derived runs, with these seeds.

    At paper scale only declared seeds are included, except for runs changed by --set, which count for no claim.
    """
    if changes:
        return make_declarations(experiment, scale, name, seeds, changes)
    key = "declarations", scale, name, frozenset(seeds)
    if key not in experiment.memo:
        experiment.memo[key] = make_declarations(experiment, scale, name, seeds)
    found: set[str] = experiment.memo[key]
    return found


def make_declarations(
    experiment: Experiment, scale: str, name: str, seeds: Collection[int], changes: Mapping[str, Any] | None = None
) -> set[str]:
    """Return what `declarations_of` returns and keeps."""
    declared_only = scale == PAPER_SCALE and not changes
    if name not in experiment.derived:
        declared = experiment.seeds_of(name, scale)
        chosen = [seed for seed in seeds if not declared_only or seed in declared]
        return set(run_declarations(make_runs(experiment, scale, name, chosen, changes)))
    spec = experiment.derived_spec(name, scale)
    if isinstance(spec, TimingSpec):
        chosen = [seed for seed in seeds if not declared_only or seed in experiment.seeds_at(scale)]
        return set(derived_declarations(make_timings(experiment, name, scale, chosen)))
    consumed = spec.consumes
    declared_seeds = {variant: experiment.seeds_of(variant, scale) for variant in consumed}
    first = min(consumed)  # the seed of a derived run is that of the first run it consumes
    places = (divmod(seed_index(declared_seeds[first], seed), consumed[first]) for seed in seeds)
    numbers = [number for number, rest in places if not rest]
    if declared_only:
        numbers = [n for n in numbers if all((n + 1) * consumed[v] <= len(declared_seeds[v]) for v in consumed)]
    runs = {}
    for variant, count in consumed.items():
        chosen = [seed_at(declared_seeds[variant], number * count + i) for number in numbers for i in range(count)]
        runs[variant] = make_runs(experiment, scale, variant, chosen, changes)
    return set(derived_declarations(make_derived_runs(experiment, name, scale, runs)))


def comparable_records(
    claim: Claim, experiment: Experiment, scale: str, by_variant: ByVariant, records: Records
) -> ByVariant:
    """Return the records a claim compares; {} if a variant has none, or none of the same data and code.

    Where variants have several groups of records (data prepared again, code changed), these are the groups of the
    same data, and of the same code where any are, with the most common seeds, then the latest. Networks of
    different papers never have the same code hash; variants of one network must have it.
    """
    names = variants_of(claim)
    if any(name not in by_variant for name in names):
        return {}
    own = {name: by_variant[name] for name in names}
    if len(names) == 1 or len({group_of(record) for rows in own.values() for record in rows}) == 1:
        return own
    groups = [all_groups(experiment, scale, name, records) for name in names]
    sides = [dict(zip(names, chosen, strict=True)) for chosen in product(*groups)]
    same_data = [one for one in sides if len({rows[0].manifest for rows in one.values()}) == 1]
    same_code = [one for one in same_data if len({group_of(rows[0]) for rows in one.values()}) == 1]
    if not same_code and have_one_network(experiment, names):
        return {}
    return max(same_code or same_data, key=common_seeds_and_end, default={})


def all_groups(experiment: Experiment, scale: str, name: str, records: Records) -> list[list[Record]]:
    """Return the groups of records of a variant under its name here, which may be PAPER/FILE/VARIANT."""
    declared, own = experiment.owner(name)
    groups = groups_of(declared, scale, own, unchanged_records(records))
    return [[named(record, declared.name, scale, name) for record in group] for group in groups]


def common_seeds_and_end(sides: ByVariant) -> tuple[int, str]:
    """Return the number of seeds that all sides have, and when the last run ended."""
    seeds = [{record.seed for record in rows} for rows in sides.values()]
    return len(set.intersection(*seeds)), max(record.finished for rows in sides.values() for record in rows)


def have_one_network(experiment: Experiment, names: Iterable[str]) -> bool:
    """Return True if all these are variants of one network, such as two depths of it."""
    owners = [experiment.owner(name) for name in names]
    if not all(own in declared.variants for declared, own in owners):
        return False
    return len({declared.variants[own].model.name for declared, own in owners}) == 1
