"""Expand an experiment at a scale into its runs and derived runs."""

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


@dataclass(frozen=True)
class Run:
    """One training of one variant with one seed at one scale."""

    experiment: str
    scale: str
    variant: str
    seed: int
    recipe: Recipe
    changes: Mapping[str, Any] = field(default_factory=dict)  # of `--set`: departs from the declared recipe

    @property
    def declaration(self) -> str:
        """Hash of the resolved recipe and the seed; the scale's name is not part of what is computed."""
        return declaration_hashes(self.recipe, [self.seed])[self.seed]

    @property
    def title(self) -> str:
        """'resnet-20 seed 0', for a person."""
        return f"{self.variant} seed {self.seed}"


@dataclass(frozen=True)
class DerivedRun:
    """Work on finished runs of one experiment at one scale."""

    experiment: str
    scale: str
    variant: str  # the step's name
    seed: int  # of the first of its runs
    spec: DerivedSpec
    members: tuple[Run, ...]  # what it consumes

    @property
    def changes(self) -> dict[str, Any]:
        """Of `--set`, in what it consumes."""
        return {key: value for member in self.members for key, value in member.changes.items()}

    @property
    def declaration(self) -> str:
        """Hash of what is done, and of the declarations of its runs; what these are called is no part of it."""
        done = self.spec.model_dump(mode="json", exclude={"of", "members"})
        own: dict[str, dict[int, str]] = {}  # of each variant's runs, whose recipe is one
        for first in self.members:
            if first.variant not in own:
                seeds = [member.seed for member in self.members if member.variant == first.variant]
                own[first.variant] = declaration_hashes(first.recipe, seeds)
        return digest({"step": done, "members": [own[member.variant][member.seed] for member in self.members]})

    @property
    def title(self) -> str:
        """'vgg-d-and-e seed 0', for a person."""
        return f"{self.variant} seed {self.seed}"


def plan_runs(
    experiment: Experiment,
    *,
    scale: str,
    variants: Sequence[str] = (),
    seeds: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Run | DerivedRun]:
    """The runs of `experiment` at `scale`: all its variants (or those named), its first `seeds` seeds; its steps.

    More seeds than declared continue the row: 0, 1, 2, … Ordered by seed first, so that an interrupted plan has
    whole comparisons. A step comes after the last run that it consumes; one whose runs are not all there is left
    out. UserError for an unknown name or an impossible number.
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
        raise UserError(f"--seeds {seeds}: a number from 1 to {MAX_SEEDS} is needed")
    chosen = tuple(dict.fromkeys(variants)) or experiment.variants_at(scale)
    rows = {variant: seeds_for(experiment.seeds_of(variant, scale), seeds) for variant in chosen}
    runs = {variant: make_runs(experiment, scale, variant, rows[variant], changes) for variant in chosen}
    steps: dict[int, list[DerivedRun]] = {}  # by the place in its row of the last seed that they need
    for name in experiment.derived_at(scale, chosen):
        for step in make_derived_runs(experiment, name, scale, runs):
            last = max(rows[member.variant].index(member.seed) for member in step.members)
            steps.setdefault(last, []).append(step)
    found: list[Run | DerivedRun] = []
    for number in range(max(map(len, rows.values()))):
        found += [runs[variant][number] for variant in chosen if number < len(rows[variant])]
        found += steps.get(number, [])
    return found


def seeds_for(declared: Sequence[int], count: int | None) -> list[int]:
    """The first `count` seeds: those declared, and then 0, 1, 2, … without them; None: those declared."""
    return [seed_at(declared, place) for place in range(len(declared) if count is None else count)]


def seed_at(declared: Sequence[int], place: int) -> int:
    """What stands at a place of that row, however long it is."""
    if place < len(declared):
        return declared[place]
    seed = place - len(declared)
    for known in sorted(declared):
        seed += known <= seed
    return seed


def seed_index(declared: Sequence[int], seed: int) -> int:
    """Where a seed stands in it."""
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
    """The runs of a variant with these seeds, in this order."""
    recipe = experiment.recipe(variant, scale, changes)
    changed = {} if not changes or recipe == experiment.recipe(variant, scale) else dict(changes)
    return [Run(experiment.name, scale, variant, seed, recipe, changed) for seed in seeds]


def make_derived_runs(
    experiment: Experiment, name: str, scale: str, runs: Mapping[str, Sequence[Run]]
) -> list[DerivedRun]:
    """As many steps `name` as `runs`, by variant, give: each of them consumes others, in their order."""
    step = experiment.derived_spec(name, scale)
    needed = step.consumes
    first = min(needed)  # whatever the order in which they are written
    result = []
    for number in range(min(len(runs[variant]) // count for variant, count in needed.items())):
        members = {v: runs[v][number * count : (number + 1) * count] for v, count in needed.items()}
        in_order = tuple(run for variant in sorted(members) for run in members[variant])
        result.append(DerivedRun(experiment.name, scale, name, members[first][0].seed, step, in_order))
    return result
