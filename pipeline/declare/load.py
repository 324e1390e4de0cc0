"""Load experiments from YAML files."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import yaml
from pydantic import ValidationError

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.checks import CLAIM_NAMES, check_experiment
from pipeline.declare.claim_tables import expand_claims, expand_printed
from pipeline.declare.declaration_cache import CachedDeclaration, DeclarationCache
from pipeline.declare.experiment import DeclarationError, Experiment
from pipeline.declare.printed import PRINTED_FILE, PrintedFile, load_printed
from pipeline.declare.references import split_reference
from pipeline.declare.validation import validation_message
from pipeline.declare.yaml_loader import parse_yaml

EXPERIMENTS = ROOT / "experiments"

LEAST_LIKENESS = 0.6  # of a name that is suggested, from 0 to 1

SAME_LIKENESS = 0.05  # names that are less like than the nearest by this are not suggested

MAX_SUGGESTIONS = 4


def experiment_names(folder: Path = EXPERIMENTS) -> list[str]:
    """Return the names of all experiments: "paper/file" for each experiments/paper/file.yaml."""
    paths = [path for path in folder.glob("*/*.yaml") if path.name != PRINTED_FILE]
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in paths)


def load_experiment(name: str, folder: Path = EXPERIMENTS) -> Experiment:
    """Return the experiment `name` ("paper/file", or the path of a .yaml file).

    The other experiments that it names are read from `folder`. Raises UserError if it does not exist, and
    DeclarationError if it is invalid.
    """
    return DeclarationReader(folder).load(name)


def load_all() -> list[Experiment]:
    """Return every declared experiment, sorted by name. Writes the cache of declarations if it is outdated."""
    reader = DeclarationReader(EXPERIMENTS)
    experiments = [reader.load(name) for name in reader.names]
    if reader.cache.is_outdated:
        reader.cache.write({one.name: reader.cached(one) for one in experiments})
    return experiments


def load_paper(paper: str) -> list[Experiment]:
    """Return the experiments of a paper, sorted by name; none for an unknown one."""
    reader = DeclarationReader(EXPERIMENTS)
    return [reader.load(name) for name in reader.names if name.partition("/")[0] == paper]


def load_all_printed(folder: Path = EXPERIMENTS) -> dict[str, PrintedFile]:
    """Return what the papers print, by folder of experiments. Raises UserError for an invalid file."""
    found = {path.name: load_printed(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    return {name: file for name, file in found.items() if file}


class DeclarationReader:
    """Reads experiments below a folder, each once. Those of the cache are neither parsed nor checked again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = experiment_names(folder)
        self.cache = DeclarationCache(folder, [f"{name}.yaml" for name in self.names])
        self.read_before: dict[str, Experiment] = {}

    def load(self, name: str) -> Experiment:
        """Return an experiment with the other ones that it names, checked."""
        experiment = self.read(name)
        if known := self.cache.declarations.get(name):
            return experiment.with_others(self.others(known.consumed) | self.claimed(known.claimed))
        consumed, claimed = self.consumed_names(experiment), self.claimed_names(experiment)
        experiment = experiment.with_others(self.others(consumed) | self.claimed(claimed))
        check_experiment(experiment)
        return experiment

    def read(self, name: str) -> Experiment:
        """Return an experiment without the other ones that it names."""
        if name not in self.read_before:
            cached = self.cache.declarations.get(name)
            self.read_before[name] = cached.experiment() if cached else read_experiment(name, self.folder)
        return self.read_before[name]

    def cached(self, experiment: Experiment) -> CachedDeclaration:
        """Return what the cache holds of a checked experiment."""
        return CachedDeclaration.of(experiment, self.consumed_names(experiment), self.claimed_names(experiment))

    def others(self, names: Iterable[str]) -> dict[str, Experiment]:
        """Return experiments that others need (`consumed_names`), by name."""
        return {name: self.read(name) for name in names}

    def claimed(self, names: Iterable[str]) -> dict[str, Experiment]:
        """Return experiments whose variants claims name, and those that these consume.

        They are not checked, as their claims may name the experiment that names them.
        """
        named: dict[str, Experiment] = {}
        consumed: dict[str, Experiment] = {}
        for name in names:
            declared, known = self.read(name), self.cache.declarations.get(name)
            others = self.others(known.consumed if known else self.consumed_names(declared))
            named[name] = declared.with_others(others)
            consumed |= others
        return consumed | named  # an experiment may be both; its own derived runs are known in `named` only

    def consumed_names(self, experiment: Experiment) -> list[str]:
        """Return the other experiments whose variants derived runs consume at any scale, or runs start from.

        Raises DeclarationError for a name of no experiment; and of this one, written PAPER/FILE/VARIANT.
        """
        found = dict.fromkeys(self.start_names(experiment))
        for name in experiment.derived:
            scales = [experiment.derived_spec(name, scale) for scale in experiment.scales]
            for variant in dict.fromkeys(v for spec in (experiment.derived[name], *scales) for v in spec.consumes):
                other, _, own = variant.rpartition("/")
                if not other or other in found:
                    continue
                place = f"{experiment.file}: derived.{name}"
                if other == experiment.name:
                    raise DeclarationError(f"{place}: {variant} is a variant of this experiment; write {own}")
                if other not in self.names:
                    raise DeclarationError(
                        f"{place}: {variant}: no experiment {other!r}{nearest(other, self.names)}"
                    )
                found[other] = None
        return list(found)

    def start_names(self, experiment: Experiment) -> list[str]:
        """Return the other experiments from whose runs those of an experiment start, directly or not.

        Raises DeclarationError for a name of no experiment.
        """
        found: list[str] = []
        left = [experiment]
        while left:
            declared = left.pop()
            for variant in declared.variants if declared.trains else ():
                train = declared.published(variant).train
                other = train.start.experiment if train and train.start else None
                if other is None or other in (experiment.name, *found):
                    continue
                if other not in self.names:
                    near = nearest(other, self.names)
                    place = f"{declared.file}: variants.{variant}.train.start.experiment"
                    raise DeclarationError(f"{place}: no experiment {other!r}{near}")
                found.append(other)
                left.append(self.read(other))
        return found

    def claimed_names(self, experiment: Experiment) -> list[str]:
        """Return the other experiments whose variants claims name, as PAPER/FILE/VARIANT.

        Raises DeclarationError for a name of no experiment.
        """
        found: dict[str, None] = {}
        for claim in experiment.claims:
            for key in CLAIM_NAMES:
                other = split_reference(getattr(claim, key, None) or "")[0]
                if other is None or other in found or other == experiment.name:
                    continue
                if other not in self.names:
                    near = nearest(other, self.names)
                    raise DeclarationError(
                        f"{experiment.file}: claims.{claim.id}.{key}: no experiment {other!r}{near}"
                    )
                found[other] = None
        return list(found)


def nearest_experiments(name: str, known: Sequence[str]) -> str:
    """Return the end of an error message about an unknown experiment: those of the paper, or the nearest names.

    A name without a paper is compared with the names of the files, and with the papers.
    """
    own = [one for one in known if one.startswith(f"{name.rstrip('/')}/")]
    if own:
        return f"; known: {', '.join(own)}"

    def likeness(one: str) -> float:
        parts = [one] if "/" in name else [one, *one.split("/")]
        return max(SequenceMatcher(None, name, part).ratio() for part in parts)

    scores = {one: likeness(one) for one in known}
    best = max(scores.values(), default=0.0)
    if best < LEAST_LIKENESS:
        return "; list them with: repro list"
    near = [one for one in sorted(known, key=lambda one: -scores[one]) if scores[one] > best - SAME_LIKENESS]
    return f"; did you mean {' or '.join(map(repr, near[:MAX_SUGGESTIONS]))}?"


def read_experiment(name: str, folder: Path) -> Experiment:
    """Return the experiment `name` as its types allow, without the checks of references between keys.

    Raises UserError if it does not exist, and DeclarationError if it is invalid.
    """
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        if name.endswith(".yaml"):
            raise UserError(f"no file {name}")
        raise UserError(f"no experiment {name!r}{nearest_experiments(name, experiment_names(folder))}")
    full_name = f"{path.resolve().parent.name}/{path.stem}"
    file = f"{full_name}.yaml"
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise DeclarationError(f"{file}: invalid YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise DeclarationError(f"{file}: must be a map of keys (paper, data, train, variants, …)")
    if "name" in raw:
        raise DeclarationError(f"{file}: name: unknown key; the name of an experiment is the path of its file")
    raw["name"] = full_name
    try:
        raw["claims"] = expand_claims(raw.get("claims", []))
        raw["printed"] = expand_printed(raw.get("printed", {}))
    except ValueError as error:
        raise DeclarationError(f"{file}: {error}") from None
    try:
        return Experiment.model_validate(raw)
    except ValidationError as error:
        raise DeclarationError(f"{file}: {validation_message(error, Experiment, raw)}") from None
