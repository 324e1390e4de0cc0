"""Load experiments from YAML files and check what types alone cannot express."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from lightning_modules.names import nearest
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.declare.claims import BoundClaim, Claim, ExactClaim, MetricClaim, OpenClaim
from pipeline.declare.derived import misfit
from pipeline.declare.experiment import DeclarationError, Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.validation import sentence
from pipeline.declare.yaml_loader import read_yaml

EXPERIMENTS = ROOT / "experiments"


def names(folder: Path = EXPERIMENTS) -> list[str]:
    """All experiments: "paper/file" for every experiments/paper/file.yaml."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml"))


def load(name: str, folder: Path = EXPERIMENTS) -> Experiment:
    """The experiment `name` ("paper/file"), or a path to a .yaml file; DeclarationError says what is wrong."""
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        if name.endswith(".yaml"):
            raise UserError(f"there is no file {name}")
        of_paper = [one for one in names(folder) if one.startswith(f"{name.rstrip('/')}/")]
        raise UserError(f"there is no experiment {name!r}{nearest(name, of_paper or names(folder))}")
    named = f"{path.resolve().parent.name}/{path.stem}"
    file = f"{named}.yaml"
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
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
        raise DeclarationError(f"{file}: {sentence(error, Experiment, raw)}") from None
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
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
    check_steps(experiment)
    seen: set[str] = set()
    for claim in experiment.claims:
        if claim.id in seen:
            raise DeclarationError(f"{file}: claims: the id {claim.id!r} is used twice")
        seen.add(claim.id)
        for key in ("of", "over", "lhs", "rhs"):
            named = getattr(claim, key, None)
            callable_so = known if isinstance(claim, ExactClaim) else {**known, **experiment.steps}
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


def check_steps(experiment: Experiment) -> None:
    """Steps have names of their own, consume variants, have seeds enough, and see images that all members know."""
    file, known = experiment.file, experiment.variants
    for name, step in experiment.steps.items():
        if name in known:
            raise DeclarationError(f"{file}: steps.{name}: a variant is called so; give the step another name")
        for variant in step.consumes:
            if variant not in known:
                raise DeclarationError(
                    f"{file}: steps.{name}: unknown variant {variant!r}{nearest(variant, known)}"
                )
    if experiment.steps and not experiment.scales:
        raise DeclarationError(f"{file}: steps: they need runs, and there are no scales")
    for scale, declared in experiment.scales.items():
        for name in declared.steps:
            if name not in experiment.steps:
                near = nearest(name, experiment.steps)
                raise DeclarationError(f"{file}: scales.{scale}.steps: unknown step {name!r}{near}")
        for name in experiment.steps:
            step = experiment.step(name, scale)
            if strangers := set(step.consumes) - set(known):
                near = nearest(min(strangers), known)
                raise DeclarationError(
                    f"{file}: scales.{scale}.steps.{name}: unknown variant {min(strangers)!r}{near}"
                )
            if reason := misfit(step, [experiment.recipe(variant, scale).data for variant in step.consumes]):
                raise DeclarationError(f"{file}: steps.{name} (at {scale} scale): {reason}")
        for name in experiment.steps_at(scale):
            for variant, needed in experiment.step(name, scale).consumes.items():
                there = len(experiment.seeds_of(variant, scale))
                if there < needed:
                    raise DeclarationError(
                        f"{file}: steps.{name}: {needed} networks of {variant} need {needed} seeds, and at {scale}"
                        f" scale there are {there}; give variants.{variant}.seeds, or fewer networks in"
                        f" scales.{scale}.steps.{name}"
                    )


def all_experiments() -> list[Experiment]:
    """Every declared experiment."""
    return [load(name) for name in names()]
