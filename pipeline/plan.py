"""From an experiment to its runs and steps, and from these to identities. Pure: reads source, starts nothing."""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_modules.names import nearest
from pipeline.experiment import AnyStep, Experiment, Recipe
from pipeline.mistakes import UserError

ROOT = Path(__file__).resolve().parent.parent
TRAINING = (
    "pipeline/group.py",
    "pipeline/train.py",
    "pipeline/supply.py",
    "pipeline/evaluate.py",
    "pipeline/protocol.py",
    *(
        f"pipeline/data/{name}.py"
        for name in (
            "ahead",
            "batches",
            "colour",
            "folders",
            "images",
            "jpeg",
            "manifest",
            "normalise",
            "order",
            "photographs",
            "samples",
            "shards",
            "sources",
            "statistics",
            "store",
            "views",
        )
    ),
)
STEPS = {  # kind of step -> the files that can change its numbers, but for those of its runs
    "ensemble": ("pipeline/steps.py",),
    "protocol": ("pipeline/steps.py",),
    "transfer": ("pipeline/steps.py", "pipeline/steps_transfer.py"),
    "compression": ("pipeline/steps.py", "pipeline/steps_compression.py"),
}
MOST_SEEDS = 1000
# Settings younger than the first tracked runs: at these values they are left out of a declaration's hash, so that
# the runs made before still are runs of the same recipe.
YOUNGER: dict[str, Any] = {
    "train.optimizer.nesterov": False,
    "train.lr_drops.every": None,
    "train.lr_end": None,
    "data.crop": None,
    "data.test": [],
}


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
        return declared(self.recipe, [self.seed])[self.seed]

    @property
    def title(self) -> str:
        """'resnet-20 seed 0', for a person."""
        return f"{self.variant} seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """Work on finished runs of one experiment at one scale."""

    experiment: str
    scale: str
    variant: str  # the step's name
    seed: int  # of the first of its runs
    step: AnyStep
    members: tuple[Run, ...]  # what it consumes

    @property
    def changes(self) -> dict[str, Any]:
        """Of `--set`, in what it consumes."""
        return {key: value for member in self.members for key, value in member.changes.items()}

    @property
    def declaration(self) -> str:
        """Hash of what is done, and of the declarations of its runs; what these are called is no part of it."""
        done = self.step.model_dump(mode="json", exclude={"of", "members"})
        own: dict[str, dict[int, str]] = {}  # of each variant's runs, whose recipe is one
        for first in self.members:
            if first.variant not in own:
                seeds = [member.seed for member in self.members if member.variant == first.variant]
                own[first.variant] = declared(first.recipe, seeds)
        return digest({"step": done, "members": [own[member.variant][member.seed] for member in self.members]})

    @property
    def title(self) -> str:
        """'vgg-d-and-e seed 0', for a person."""
        return f"{self.variant} seed {self.seed}"


def plan(
    experiment: Experiment,
    *,
    scale: str,
    variants: Sequence[str] = (),
    seeds: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Run | Step]:
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
    if seeds is not None and not 1 <= seeds <= MOST_SEEDS:
        raise UserError(f"--seeds {seeds}: a number from 1 to {MOST_SEEDS} is needed")
    chosen = tuple(dict.fromkeys(variants)) or experiment.variants_at(scale)
    rows = {variant: seed_row(experiment.seeds_of(variant, scale), seeds) for variant in chosen}
    runs = {variant: runs_with(experiment, scale, variant, rows[variant], changes) for variant in chosen}
    steps: dict[int, list[Step]] = {}  # by the place in its row of the last seed that they need
    for name in experiment.steps_at(scale, chosen):
        for step in steps_with(experiment, name, scale, runs):
            last = max(rows[member.variant].index(member.seed) for member in step.members)
            steps.setdefault(last, []).append(step)
    found: list[Run | Step] = []
    for number in range(max(map(len, rows.values()))):
        found += [runs[variant][number] for variant in chosen if number < len(rows[variant])]
        found += steps.get(number, [])
    return found


def seed_row(declared: Sequence[int], count: int | None) -> list[int]:
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


def place_of(declared: Sequence[int], seed: int) -> int:
    """Where a seed stands in it."""
    if seed in declared:
        return declared.index(seed)
    return len(declared) + seed - sum(known < seed for known in declared)


def runs_with(
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


def steps_with(experiment: Experiment, name: str, scale: str, runs: Mapping[str, Sequence[Run]]) -> list[Step]:
    """As many steps `name` as `runs`, by variant, give: each of them consumes others, in their order."""
    step = experiment.step(name, scale)
    needed = step.consumes
    first = min(needed)  # whatever the order in which they are written
    result = []
    for number in range(min(len(runs[variant]) // count for variant, count in needed.items())):
        members = {v: runs[v][number * count : (number + 1) * count] for v, count in needed.items()}
        in_order = tuple(run for variant in sorted(members) for run in members[variant])
        result.append(Step(experiment.name, scale, name, members[first][0].seed, step, in_order))
    return result


def declared(recipe: Recipe, seeds: Iterable[int]) -> dict[int, str]:
    """`Run.declaration` of each seed: `digest` of {"recipe": ..., "seed": ...}; the recipe is written out once."""
    text = canonical({"recipe": settled(recipe.model_dump(mode="json"))})
    begun = hashlib.sha256(f'{text[:-1]},"seed":'.encode())
    found = {}
    for seed in seeds:
        whole = begun.copy()
        whole.update(f"{seed}}}".encode())
        found[seed] = whole.hexdigest()[:16]
    return found


def settled(value: Any, path: str = "") -> Any:
    """A dumped recipe without the younger settings that are at the value they always had."""
    if not isinstance(value, dict):
        return value
    named = {key: f"{path}.{key}".lstrip(".") for key in value}
    kept = {key: v for key, v in value.items() if named[key] not in YOUNGER or v != YOUNGER[named[key]]}
    return {key: settled(v, named[key]) for key, v in kept.items()}


def identity(run: Run | Step, *, manifest: str, code: str, members: Sequence[str] = ()) -> str:
    """What a run is: its resolved declaration, its data and the code that can change its numbers (hash).

    A step is that and the identities of its members. A run changed by --set never counts for a claim, so it must
    not stand for a declared run of the same recipe.
    """
    departs: dict[str, Any] = {"departs": True} if run.changes else {}
    consumed = {"members": list(members)} if members else {}
    return digest({"declaration": run.declaration, "manifest": manifest, "code": code} | departs | consumed)


def step_code(step: Step, codes: Sequence[str], root: Path = ROOT) -> str:
    """Hash of the code that can change the numbers of a step: that of its runs, and its own."""
    own = {file: bare_source(root / file) for file in STEPS[step.step.kind]}
    return digest({"runs": list(codes), "step": own})


def code_hash(network_file: Path, root: Path = ROOT) -> str:
    """Hash of the code that can change the numbers of a run whose network is defined in `network_file`.

    That is the training path, the shared modules and the network's file with what it imports of
    `lightning_modules`; not the other papers' files. A module which imports the network's file and holds no
    paper's networks (LeNet-5's own way to learn) belongs to it. Comments, docstrings and layout do not count.
    """
    root, network_file = root.resolve(), network_file.resolve()
    modules = root / "lightning_modules"
    papers = imported_modules(modules / "networks.py")
    own = [
        path
        for path in modules.glob("*.py")
        if path.stem not in ("networks", *papers) and network_file.stem in imported_modules(path)
    ]
    files = {path for pattern in TRAINING for path in root.glob(pattern)}
    waiting = [network_file, modules / "classifier.py", *own]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += [modules / f"{name}.py" for name in imported_modules(path)]
    parts = {str(path.relative_to(root)): bare_source(path) for path in sorted(files)}
    return digest(parts)


def imported_modules(path: Path) -> set[str]:
    """Names of the `lightning_modules` that `path` imports, but for those that change no number."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("lightning_modules.")} - {"networks", "names"}


def bare_source(path: Path) -> str:
    """A file's code without comments, docstrings and layout."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of plain data, independent of the order of its keys."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """Plain data as JSON without spaces, its keys in order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
