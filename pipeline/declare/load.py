"""Load experiments from YAML files and check what types alone cannot express."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.claims import BoundClaim, Claim, ExactClaim, MetricClaim, OpenClaim
from pipeline.declare.derived import incompatibility
from pipeline.declare.experiment import DeclarationError, Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.validation import validation_message
from pipeline.declare.yaml_loader import parse_yaml

EXPERIMENTS = ROOT / "experiments"


def experiment_names(folder: Path = EXPERIMENTS) -> list[str]:
    """All experiments: "paper/file" for every experiments/paper/file.yaml."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml"))


def load_experiment(name: str, folder: Path = EXPERIMENTS) -> Experiment:
    """The experiment `name` ("paper/file"), or a path to a .yaml file; DeclarationError says what is wrong."""
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        if name.endswith(".yaml"):
            raise UserError(f"there is no file {name}")
        of_paper = [one for one in experiment_names(folder) if one.startswith(f"{name.rstrip('/')}/")]
        raise UserError(f"there is no experiment {name!r}{nearest(name, of_paper or experiment_names(folder))}")
    named = f"{path.resolve().parent.name}/{path.stem}"
    file = f"{named}.yaml"
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise DeclarationError(f"{file}: not readable as YAML: {reason}") from None
    if not isinstance(raw, dict):
        raise DeclarationError(f"{file}: an experiment is a map of keys (paper, data, train, variants, …)")
    if "name" in raw:
        raise DeclarationError(f"{file}: name: unknown key; an experiment is called as its file is")
    raw["name"] = named
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise DeclarationError(f"{file}: {validation_message(error, Experiment, raw)}") from None
    check_experiment(experiment)
    return experiment


def check_experiment(experiment: Experiment) -> None:
    """What types alone cannot say: names that point at each other, and every variant at every scale."""
    file, known = experiment.file, experiment.variants
    if experiment.scales and PAPER_SCALE not in experiment.scales:
        raise DeclarationError(f"{file}: scales: there is no 'paper' scale (the recipe as published)")
    if experiment.scales and experiment.train is None:
        raise DeclarationError(f"{file}: train: required where there are scales to train at")
    for name, scale in experiment.scales.items():
        for variant in scale.variants or ():
            if variant not in known:
                raise DeclarationError(
                    f"{file}: scales.{name}.variants: unknown variant {variant!r}{nearest(variant, known)}"
                )
        for variant in known:
            experiment.recipe(variant, name)
    for variant in known:
        experiment.published(variant)
    check_derived(experiment)
    seen: set[str] = set()
    for claim in experiment.claims:
        if claim.id in seen:
            raise DeclarationError(f"{file}: claims: the id {claim.id!r} is used twice")
        seen.add(claim.id)
        for key in ("of", "over", "lhs", "rhs"):
            named = getattr(claim, key, None)
            callable_so = known if isinstance(claim, ExactClaim) else {**known, **experiment.derived}
            if named is not None and named not in callable_so:
                raise DeclarationError(
                    f"{file}: claims.{claim.id}.{key}: unknown variant {named!r}{nearest(named, callable_so)}"
                )
        if not experiment.scales and not isinstance(claim, ExactClaim | OpenClaim):
            raise DeclarationError(
                f"{file}: claims.{claim.id}: a claim of kind {claim.kind!r} needs runs, and there are no scales"
            )
        check_metrics(experiment, claim)


def check_metrics(experiment: Experiment, claim: Claim) -> None:
    """What a trained claim is about is measured of each of its sides at paper scale.

    A number of photographs is one by a certain protocol; a comparison may be of what each side is judged by first.
    """
    if isinstance(claim, ExactClaim | OpenClaim):
        return
    for side in ("of", "lhs", "rhs"):
        if (name := getattr(claim, side, None)) is None:
            continue
        key = "rhs_metric" if side == "rhs" and getattr(claim, "rhs_metric", None) else "metric"
        metric = getattr(claim, key)
        known = experiment.measured(name, named=isinstance(claim, MetricClaim | BoundClaim))
        if metric not in known:
            place = f"{experiment.file}: claims.{claim.id}.{key}"
            raise DeclarationError(f"{place}: {name} measures no {metric!r}, only {', '.join(known)}")


def check_derived(experiment: Experiment) -> None:
    """Steps have names of their own, consume variants, have seeds enough, and see images that all members know."""
    file, known = experiment.file, experiment.variants
    for name, step in experiment.derived.items():
        if name in known:
            raise DeclarationError(
                f"{file}: derived.{name}: a variant has this name; give the derived run another"
            )
        for variant in step.consumes:
            if variant not in known:
                raise DeclarationError(
                    f"{file}: derived.{name}: unknown variant {variant!r}{nearest(variant, known)}"
                )
    if experiment.derived and not experiment.scales:
        raise DeclarationError(f"{file}: derived: derived runs need scales to run at, and the experiment has none")
    for scale, declared in experiment.scales.items():
        for name in declared.derived:
            if name not in experiment.derived:
                near = nearest(name, experiment.derived)
                raise DeclarationError(f"{file}: scales.{scale}.derived: unknown derived run {name!r}{near}")
        for name in experiment.derived:
            step = experiment.derived_spec(name, scale)
            if strangers := set(step.consumes) - set(known):
                near = nearest(min(strangers), known)
                raise DeclarationError(
                    f"{file}: scales.{scale}.derived.{name}: unknown variant {min(strangers)!r}{near}"
                )
            if reason := incompatibility(
                step, [experiment.recipe(variant, scale).data for variant in step.consumes]
            ):
                raise DeclarationError(f"{file}: derived.{name} (at {scale} scale): {reason}")
        for name in experiment.derived_at(scale):
            for variant, needed in experiment.derived_spec(name, scale).consumes.items():
                there = len(experiment.seeds_of(variant, scale))
                if there < needed:
                    raise DeclarationError(
                        f"{file}: derived.{name}: {needed} networks of {variant} need {needed} seeds, and at {scale}"
                        f" scale there are {there}; give variants.{variant}.seeds, or fewer networks in"
                        f" scales.{scale}.derived.{name}"
                    )


def load_all() -> list[Experiment]:
    """Every declared experiment."""
    return [load_experiment(name) for name in experiment_names()]
