"""From an experiment to its runs, and from a run to its identity. Pure: reads source files, starts nothing."""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_modules.names import nearest
from pipeline.experiment import Experiment, Recipe
from pipeline.mistakes import UserError

ROOT = Path(__file__).resolve().parent.parent
TRAINING = (
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
        return digest({"recipe": settled(self.recipe.model_dump(mode="json")), "seed": self.seed})

    @property
    def title(self) -> str:
        """'resnet-20 seed 0', for a person."""
        return f"{self.variant} seed {self.seed}"


def plan(
    experiment: Experiment,
    *,
    scale: str,
    variants: Sequence[str] = (),
    seeds: int | None = None,
    changes: Mapping[str, Any] | None = None,
) -> list[Run]:
    """The runs of `experiment` at `scale`: all its variants (or those named), its first `seeds` seeds.

    More seeds than declared continue the row: 0, 1, 2, … Ordered by seed first, so that an interrupted plan has
    whole comparisons. UserError for an unknown name or an impossible number.
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
    row = list(experiment.seeds_at(scale))
    if seeds is not None:
        if not 1 <= seeds <= MOST_SEEDS:
            raise UserError(f"--seeds {seeds}: a number from 1 to {MOST_SEEDS} is needed")
        more = (s for s in range(MOST_SEEDS + len(row)) if s not in row)
        row = [*row, *more][:seeds]
    chosen = tuple(dict.fromkeys(variants)) or experiment.variants_at(scale)
    recipes = {variant: experiment.recipe(variant, scale, changes) for variant in chosen}
    changed = {  # a setting that is the declared one is no change
        variant: {} if recipe == experiment.recipe(variant, scale) else dict(changes or {})
        for variant, recipe in recipes.items()
    }
    return [
        Run(experiment.name, scale, variant, seed, recipes[variant], changed[variant])
        for seed in row
        for variant in chosen
    ]


def settled(value: Any, path: str = "") -> Any:
    """A dumped recipe without the younger settings that are at the value they always had."""
    if not isinstance(value, dict):
        return value
    named = {key: f"{path}.{key}".lstrip(".") for key in value}
    kept = {key: v for key, v in value.items() if named[key] not in YOUNGER or v != YOUNGER[named[key]]}
    return {key: settled(v, named[key]) for key, v in kept.items()}


def identity(run: Run, *, manifest: str, code: str) -> str:
    """What a run is: its resolved declaration, its data and the code that can change its numbers (hash).

    A run changed by --set never counts for a claim, so it must not stand for a declared run of the same recipe.
    """
    departs = {"departs": True} if run.changes else {}
    return digest({"declaration": run.declaration, "manifest": manifest, "code": code} | departs)


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
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
