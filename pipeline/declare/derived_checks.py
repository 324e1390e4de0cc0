"""Checks of derived runs: names, members of this or other experiments, compatible data, enough seeds."""

from lightning_modules.names import nearest
from pipeline.declare.derived import TimingSpec, incompatibility, untrainable
from pipeline.declare.experiment import DeclarationError, Experiment


def check_derived(experiment: Experiment) -> None:
    """Check derived runs: unique names, known variants, enough seeds, and members with compatible data."""
    file, variants = experiment.file, experiment.variants
    for name, spec in experiment.derived.items():
        if name in variants:
            raise DeclarationError(
                f"{file}: derived.{name}: a variant has the same name; give the derived run another"
            )
        if isinstance(spec, TimingSpec) and not (experiment.measures and experiment.train is None):
            raise DeclarationError(
                f"{file}: derived.{name}: a timing measures untrained networks; declare it in an experiment of its"
                " own, without 'train' and without other derived runs"
            )
        for variant in spec.consumes:
            check_member(experiment, f"{file}: derived.{name}", variant)
    if experiment.derived and not experiment.scales:
        raise DeclarationError(f"{file}: derived: derived runs need scales, but the experiment has none")
    for scale_name, scale in experiment.scales.items():
        for name in scale.derived:
            if name not in experiment.derived:
                near = nearest(name, experiment.derived)
                raise DeclarationError(f"{file}: scales.{scale_name}.derived: unknown derived run {name!r}{near}")
        for name in experiment.derived:
            check_derived_at(experiment, name, scale_name)


def check_derived_at(experiment: Experiment, name: str, scale: str) -> None:
    """Check one derived run at one scale."""
    file, spec = experiment.file, experiment.derived_spec(name, scale)
    if isinstance(spec, TimingSpec):
        check_timing(experiment, f"{file}: derived.{name}", spec)
        return
    for variant in sorted(spec.consumes):
        check_member(experiment, f"{file}: scales.{scale}.derived.{name}", variant)
    owners = {variant: experiment.owner(variant)[0] for variant in spec.consumes}
    lacking = sorted({owner.name for owner in owners.values() if scale not in owner.scales})
    if lacking:
        if all(experiment.runs_at(variant, scale) for variant, owner in owners.items() if owner is experiment):
            raise DeclarationError(
                f"{file}: derived.{name} (at {scale} scale): {lacking[0]} has no scale {scale!r}; declare it"
                " there, or remove it here"
            )
        return  # its own variants do not run at this scale either
    recipes = [experiment.recipe(variant, scale) for variant in spec.consumes]
    reason = incompatibility(spec, [recipe.data for recipe in recipes]) or untrainable(spec, recipes[0].train)
    if reason:
        raise DeclarationError(f"{file}: derived.{name} (at {scale} scale): {reason}")
    if getattr(spec, "weights", "last") == "average":
        for variant in spec.consumes:
            if not experiment.recipe(variant, scale).train.average:
                raise DeclarationError(
                    f"{file}: derived.{name}.weights (at {scale} scale): {variant} keeps no average of its"
                    " weights; declare train.average"
                )
    if name not in experiment.derived_at(scale):
        return
    for variant, needed in spec.consumes.items():
        declared = len(experiment.seeds_of(variant, scale))
        if declared < needed:
            raise DeclarationError(
                f"{file}: derived.{name}: {needed} networks of {variant} need {needed} seeds, but there are"
                f" {declared} at {scale} scale; add seeds in {seeds_key(experiment, variant)}, or use fewer"
                f" networks in scales.{scale}.derived.{name}"
            )


def check_timing(experiment: Experiment, place: str, spec: TimingSpec) -> None:
    """Check that the networks of a timing are variants of the experiment."""
    for key, names in (("networks", spec.networks), ("accuracies", spec.accuracies)):
        for network in names:
            if network not in experiment.variants:
                near = nearest(network, experiment.variants)
                raise DeclarationError(f"{place}.{key}: unknown variant {network!r}{near}")


def seeds_key(experiment: Experiment, variant: str) -> str:
    """Return the place of a variant's own seeds: the key, after the file's name for another experiment."""
    owner, own = experiment.owner(variant)
    return f"{'' if owner is experiment else f'{owner.file}: '}variants.{own}.seeds"


def check_member(experiment: Experiment, place: str, variant: str) -> None:
    """Check that a variant that a derived run consumes exists, here or in the experiment that its name gives."""
    owner, own = experiment.owner(variant)
    if own not in owner.variants:
        near = nearest(own, owner.variants)
        if owner is experiment:
            raise DeclarationError(f"{place}: unknown variant {variant!r}{near}")
        raise DeclarationError(f"{place}: {owner.name} has no variant {own!r}{near}")
