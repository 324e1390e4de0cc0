"""Expand an experiment at a scale into runs and derived runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.common.hashing import digest
from pipeline.declare.data_settings import Data
from pipeline.declare.derived import DerivedSpec, TimingSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.load import load_experiment
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.recipe import Model, Recipe
from pipeline.declare.training import COST_METRICS
from pipeline.plan.declaration import (
    declaration_hashes,
    without_later_defaults,
    without_later_derived_defaults,
)

MAX_SEEDS = 1000

EXECUTION_SETTINGS = frozenset({"train.precision", "train.channels_last", "train.compile"})


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
    start: "Run | None" = None  # the run whose weights are its initial weights
    tunable: bool = False  # precision, memory format, compiler and threads may be those that are fastest

    @property
    def members(self) -> "tuple[Run, ...]":
        """The runs that must finish first: the one it starts from."""
        return (self.start,) if self.start else ()

    @property
    def declaration(self) -> str:
        """Hash of the resolved recipe, the seed, and the declaration of the run that it starts from.

        The names of variants, scales and experiments are not part of it.
        """
        return run_declarations([self])[0]

    @property
    def title(self) -> str:
        """'resnet-20 seed 0', for messages."""
        return run_title(self.variant, self.seed)


@dataclass(frozen=True)
class NetworkOfTiming:
    """A network that a timing builds, and the data whose image size and classes it has."""

    model: Model
    data: Data

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON and hashes."""
        return {"model": self.model.model_dump(mode="json"), "data": self.data.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "NetworkOfTiming":
        """Return the network that `to_dict` described."""
        return cls(Model.model_validate(raw["model"]), Data.model_validate(raw["data"]))


@dataclass(frozen=True)
class DerivedRun:
    """A result computed from finished runs at one scale."""

    experiment: str
    scale: str
    variant: str  # name of the derived run in the experiment
    seed: int  # of its first member
    spec: DerivedSpec
    members: tuple[Run, ...]  # the runs it consumes, of its experiment or of others; none for a timing
    networks: Mapping[str, NetworkOfTiming] = field(default_factory=dict)  # by variant; only of a timing

    @property
    def member_names(self) -> list[str]:
        """Names of its members' variants: PAPER/FILE/VARIANT for those of another experiment."""
        return [
            member.variant if member.experiment == self.experiment else f"{member.experiment}/{member.variant}"
            for member in self.members
        ]

    @property
    def needs_boxes(self) -> bool:
        """True if one of its members learned bounding boxes."""
        return any(member.recipe.data.boxes for member in self.members)

    @property
    def changes(self) -> dict[str, Any]:
        """Settings of --set in its members."""
        return {key: value for member in self.members for key, value in member.changes.items()}

    @property
    def declaration(self) -> str:
        """Hash of its settings and of its members' declarations. The names of variants are not part of it."""
        return derived_declarations([self])[0]

    def settings(self) -> dict[str, Any]:
        """Return the part of its declaration that is the same for all seeds."""
        names = {"of", "members", "member_test", "boxes", "classes"}
        settings = self.spec.model_dump(mode="json", exclude=names)
        settings["protocol_of_each"] = list(getattr(self.spec, "protocol_of_each", ()))
        settings = without_later_derived_defaults(settings)
        if isinstance(self.spec, LocalisationSpec):
            settings["roles"] = self.spec.roles(self.member_names)
        if isinstance(self.spec, TimingSpec):
            networks = {name: without_later_defaults(one.to_dict()) for name, one in self.networks.items()}
            return {"step": settings, "networks": networks}
        # The key is "step", the earlier name of derived runs: with another key the recorded ones would not count.
        return {"step": settings}

    @property
    def title(self) -> str:
        """'vgg-d-and-e seed 0', for messages."""
        return run_title(self.variant, self.seed)


def run_declarations(runs: Sequence[Run]) -> list[str]:
    """Return the declaration of each run. The runs of a variant have one recipe, which is serialised once."""
    seeds: dict[tuple[str, str], list[int]] = {}  # by experiment and variant
    for run in runs:
        seeds.setdefault((run.experiment, run.variant), []).append(run.seed)
    hashes: dict[tuple[str, str], dict[int, str]] = {}  # the same -> seed -> hash of recipe and seed
    for run in runs:
        key = run.experiment, run.variant
        if key not in hashes:
            recipe = run.recipe
            if recipe.train.start is not None:
                recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"start": None})})
            hashes[key] = declaration_hashes(recipe, seeds[key])
    starts = [run.start for run in runs if run.start and run.recipe.train.start]
    of_starts = iter(run_declarations(starts) if starts else ())
    found = []
    for run in runs:
        own, start = hashes[run.experiment, run.variant][run.seed], run.recipe.train.start
        if run.start and start:
            own = digest({"run": own, "start": next(of_starts), "layers": list(start.layers)})
        found.append(own)
    return found


def derived_declarations(runs: Sequence[DerivedRun]) -> list[str]:
    """Return the declaration of each derived run. Those of a name have one spec, which is serialised once."""
    of_members = iter(run_declarations([member for run in runs for member in run.members]))
    settings: dict[tuple[str, str], dict[str, Any]] = {}  # by experiment and name
    found = []
    for run in runs:
        key = run.experiment, run.variant
        if key not in settings:
            settings[key] = run.settings()
        members = list(islice(of_members, len(run.members)))
        rest = {"seed": run.seed} if isinstance(run.spec, TimingSpec) else {"members": members}
        found.append(digest(settings[key] | rest))
    return found


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
    complete comparisons. A derived run follows the last run that it consumes, and is left out if one is missing. A
    run that starts from another follows it; the other is planned too, even if it is not among `variants`. The runs
    of other experiments that derived runs consume are planned too, unless `variants` leaves them out.

    Raises UserError for an unknown name or an invalid number of seeds.
    """
    if not experiment.scales:
        raise UserError(
            f"{experiment.name} trains nothing: its claims are judged by arithmetic, or from runs of other"
            f" experiments; to see them: repro verify {experiment.name}"
        )
    if scale not in experiment.scales:
        raise UserError(f"{experiment.name} has no scale {scale!r}{nearest(scale, experiment.scales)}")
    elsewhere = experiment.consumed_elsewhere(scale)
    for variant in variants:
        if variant not in experiment.variants and variant not in elsewhere:
            if variant in experiment.derived:
                used = " ".join(f"--variant {name}" for name in experiment.derived[variant].consumes)
                raise UserError(f"{variant!r} is made from runs of variants; name these: {used}")
            near = nearest(variant, [*experiment.variants, *elsewhere])
            raise UserError(f"{experiment.name} has no variant {variant!r}{near}")
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise UserError(f"--seeds {seeds}: must be an integer from 1 to {MAX_SEEDS}")
    if variants and experiment.measures:
        raise UserError(f"{experiment.name} measures all its networks together; leave out --variant")
    if experiment.measures and (ignored := sorted({*(changes or {})} - {"train.precision"})):
        raise UserError(
            f"{experiment.name} measures untrained networks and has no setting {ignored[0]}; leave out the change"
        )
    chosen = tuple(dict.fromkeys(variants)) or (*experiment.variants_at(scale), *elsewhere)
    sequences = {variant: seeds_for(experiment.seeds_of(variant, scale), seeds) for variant in chosen}
    runs = {variant: make_runs(experiment, scale, variant, sequences[variant], changes) for variant in chosen}
    derived: dict[int, list[DerivedRun]] = {}  # largest index of a member's seed in its sequence -> derived runs
    declared = seeds_for(experiment.seeds_at(scale), seeds)
    for name in experiment.derived_at(scale, chosen):
        if isinstance(experiment.derived[name], TimingSpec):
            for index, run in enumerate(make_timings(experiment, name, scale, declared)):
                derived.setdefault(index, []).append(run)
            continue
        for run in make_derived_runs(experiment, name, scale, runs):
            last = max(sequences[member_name(experiment, m)].index(m.seed) for m in run.members)
            derived.setdefault(last, []).append(run)
    planned: dict[tuple[str, str, int], Run | DerivedRun] = {}  # experiment, variant, seed -> run
    for index in range(max(map(len, [*sequences.values(), declared if experiment.measures else []]))):
        for variant in chosen:
            if index < len(sequences[variant]) and variant not in elsewhere:
                planned |= {title_of(run): run for run in with_ancestors(runs[variant][index])}
        for result in derived.get(index, []):
            planned |= {title_of(run): run for member in result.members for run in with_ancestors(member)}
            planned[title_of(result)] = result
    return list(planned.values())


def member_name(experiment: Experiment, run: Run) -> str:
    """Return the name of a run's variant in `experiment`: PAPER/FILE/VARIANT if it belongs to another one."""
    return run.variant if run.experiment == experiment.name else f"{run.experiment}/{run.variant}"


def title_of(run: Run | DerivedRun) -> tuple[str, str, int]:
    """Return experiment, variant and seed."""
    return run.experiment, run.variant, run.seed


def member_title(run: Run | DerivedRun, member: Run) -> str:
    """Return the title of a run that `run` needs, after the experiment's name where it is another one."""
    return member.title if member.experiment == run.experiment else f"{member.experiment} {member.title}"


def with_ancestors(run: Run) -> list[Run]:
    """Return the runs that a run starts from, directly or not, in the order of training, and the run itself."""
    return [*(with_ancestors(run.start) if run.start else ()), run]


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
    """Return the runs of a variant with these seeds, in their order, each with the run that it starts from.

    The variant may be PAPER/FILE/VARIANT, of another experiment. Raises UserError for an unknown experiment,
    variant or scale to start from.
    """
    experiment, variant = experiment.owner(variant)
    recipe = experiment.recipe(variant, scale, changes)
    changed = {} if not changes or recipe == experiment.recipe(variant, scale) else dict(changes)
    starts: Sequence[Run | None] = [None] * len(seeds)
    if start := recipe.train.start:
        other = other_experiment(experiment, start.experiment) if start.experiment else experiment
        starts = make_runs(other, scale, start.variant, seeds, changes)
    pairs = zip(seeds, starts, strict=True)
    tunable = is_tunable(experiment, recipe, changes or {})
    return [Run(experiment.name, scale, variant, seed, recipe, changed, origin, tunable) for seed, origin in pairs]


def is_tunable(experiment: Experiment, recipe: Recipe, changes: Mapping[str, Any]) -> bool:
    """Return True if the execution settings of a recipe's runs may be chosen by timing.

    The recipe must allow reduced precision, the user must not have given one of the settings, and the experiment
    must claim no time of training: the times that it compares are measured in equal settings.
    """
    if recipe.train.precision != "bf16" or EXECUTION_SETTINGS & set(changes):
        return False
    return all(getattr(claim, "metric", None) not in COST_METRICS for claim in experiment.claims)


def other_experiment(experiment: Experiment, name: str) -> Experiment:
    """Return another experiment, from whose runs those of `experiment` start; it is read once.

    Raises UserError for an unknown name.
    """
    key = "other experiment", name
    if key not in experiment.memo:
        experiment.memo[key] = load_experiment(name)
    found: Experiment = experiment.memo[key]
    return found


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


def make_timings(experiment: Experiment, name: str, scale: str, seeds: Sequence[int]) -> list[DerivedRun]:
    """Return the timing `name` with each of these seeds."""
    spec = experiment.derived_spec(name, scale)
    assert isinstance(spec, TimingSpec)
    published = {variant: experiment.published(variant) for variant in spec.networks}
    networks = {variant: NetworkOfTiming(recipe.model, recipe.data) for variant, recipe in published.items()}
    return [DerivedRun(experiment.name, scale, name, seed, spec, (), networks) for seed in seeds]
