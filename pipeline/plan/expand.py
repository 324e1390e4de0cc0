"""Expand an experiment at a scale into runs and derived runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.declare.derived import DerivedSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import Recipe
from pipeline.plan.declaration import declaration_hashes

MAX_SEEDS = 1000


def run_title(variant: str, seed: int) -> str:
    """Return the title of a run or derived run in messages: 'resnet-20 seed 0'."""
    return f"{variant} seed {seed}"


@dataclass(frozen=True)
class Run:
    """A training of one variant with one seed at one scale."""

    experiment: str
    scale: str
    variant: str
    seed: int
    recipe: Recipe
    changes: Mapping[str, Any] = field(
        default_factory=dict
    )  # settings of --set that differ from the declared ones

    @property
    def declaration(self) -> str:
        """Hash of the resolved recipe and the seed. The names of variant and scale are not part of it."""
        return declaration_hashes(self.recipe, [self.seed])[self.seed]

    @property
    def title(self) -> str:
        """'resnet-20 seed 0', for messages."""
        return run_title(self.variant, self.seed)


@dataclass(frozen=True)
class DerivedRun:
    """A result computed from finished runs of one experiment at one scale."""

    experiment: str
    scale: str
    variant: str  # name of the derived run in the experiment
    seed: int  # of its first member
    spec: DerivedSpec
    members: tuple[Run, ...]  # the runs it consumes

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of --set in its members."""
        return {key: value for member in self.members for key, value in member.changes.items()}

    @property
    def declaration(self) -> str:
        """Hash of its settings and of its members' declarations. The names of variants are not part of it."""
        settings = self.spec.model_dump(mode="json", exclude={"of", "members"})
        if settings.get("weights") == "last":  # added later: recorded derived runs keep their hashes
            del settings["weights"]
        hashes: dict[str, dict[int, str]] = {}  # variant -> seed -> declaration
        for first in self.members:
            if first.variant not in hashes:  # the members of a variant have the same recipe
                seeds = [member.seed for member in self.members if member.variant == first.variant]
                hashes[first.variant] = declaration_hashes(first.recipe, seeds)
        members = [hashes[member.variant][member.seed] for member in self.members]
        # The key is "step", the earlier name of derived runs: with another key the recorded ones would not count.
        return digest({"step": settings, "members": members})

    @property
    def title(self) -> str:
        """'vgg-d-and-e seed 0', for messages."""
        return run_title(self.variant, self.seed)


def plan_runs(
    experiment: Experiment,
    *,
    scale: str,
    variants: Sequence[str] = (),
    seeds: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Run | DerivedRun]:
    """Return the runs and derived runs of an experiment at a scale, in the order in which they are executed.

    `variants` defaults to those of the scale, and `seeds`, the number of seeds per variant, to the declared seeds;
    `seeds_for` says which are added beyond these. Runs are ordered by seed first, so that an interrupted plan has
    complete comparisons. A derived run follows the last run that it consumes, and is left out if one is missing.

    Raises UserError for an unknown name or an invalid number of seeds.
    """
    if not experiment.scales:
        raise UserError(
            f"{experiment.name} trains nothing: its claims are judged by arithmetic; "
            f"to see them: repro verify {experiment.name}"
        )
    if scale not in experiment.scales:
        raise UserError(f"{experiment.name} has no scale {scale!r}{nearest(scale, experiment.scales)}")
    for variant in variants:
        if variant not in experiment.variants:
            raise UserError(f"{experiment.name} has no variant {variant!r}{nearest(variant, experiment.variants)}")
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UserError(f"--seeds {seeds}: must be an integer from 1 to {MAX_SEEDS}")
    chosen = tuple(dict.fromkeys(variants)) or experiment.variants_at(scale)
    sequences = {variant: seeds_for(experiment.seeds_of(variant, scale), seeds) for variant in chosen}
    runs = {variant: make_runs(experiment, scale, variant, sequences[variant], changes) for variant in chosen}
    derived: dict[int, list[DerivedRun]] = {}  # largest index of a member's seed in its sequence -> derived runs
    for name in experiment.derived_at(scale, chosen):
        for run in make_derived_runs(experiment, name, scale, runs):
            last = max(sequences[member.variant].index(member.seed) for member in run.members)
            derived.setdefault(last, []).append(run)
    planned: list[Run | DerivedRun] = []
    for index in range(max(map(len, sequences.values()))):
        planned += [runs[variant][index] for variant in chosen if index < len(sequences[variant])]
        planned += derived.get(index, [])
    return planned


def seeds_for(declared: Sequence[int], count: int | None) -> list[int]:
    """Return the first `count` seeds of a variant: the declared ones, then 0, 1, 2, … without these.

    None stands for the number of declared seeds.
    """
    return [seed_at(declared, index) for index in range(len(declared) if count is None else count)]


def seed_at(declared: Sequence[int], index: int) -> int:
    """Return the seed at an index of the unlimited sequence of `seeds_for`."""
    if index < len(declared):
        return declared[index]
    seed = index - len(declared)
    for known in sorted(declared):
        seed += known <= seed
    return seed


def seed_index(declared: Sequence[int], seed: int) -> int:
    """Return the index of a seed in the unlimited sequence of `seeds_for`."""
    if seed in declared:
        return declared.index(seed)
    return len(declared) + seed - sum(known < seed for known in declared)


def make_runs(
    experiment: Experiment,
    scale: str,
    variant: str,
    seeds: Sequence[int],
    changes: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Return the runs of a variant with these seeds, in their order."""
    recipe = experiment.recipe(variant, scale, changes)
    changed = {} if not changes or recipe == experiment.recipe(variant, scale) else dict(changes)
    return [Run(experiment.name, scale, variant, seed, recipe, changed) for seed in seeds]


def make_derived_runs(
    experiment: Experiment, name: str, scale: str, runs: Mapping[str, Sequence[Run]]
) -> list[DerivedRun]:
    """Return as many derived runs `name` as `runs` (variant -> runs) suffice for. They share no members."""
    spec = experiment.derived_spec(name, scale)
    needed = spec.consumes
    first = min(needed)  # independent of the order in the experiment file
    result = []
    for number in range(min(len(runs[variant]) // count for variant, count in needed.items())):
        members = {v: runs[v][number * count : (number + 1) * count] for v, count in needed.items()}
        in_order = tuple(run for variant in sorted(members) for run in members[variant])
        result.append(DerivedRun(experiment.name, scale, name, members[first][0].seed, spec, in_order))
    return result
