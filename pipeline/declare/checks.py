"""Checks of an experiment that its types cannot express: references between keys, and what claims can name."""

from lightning_modules.names import nearest
from pipeline.declare.claims import (
    BoundClaim,
    Claim,
    ExactClaim,
    GainClaim,
    MetricClaim,
    OpenClaim,
    OrderingClaim,
    RatioClaim,
)
from pipeline.declare.derived import COMPRESSION_METRICS, COMPRESSION_RATIOS, TimingSpec
from pipeline.declare.derived_checks import check_derived
from pipeline.declare.experiment import DeclarationError, Experiment
from pipeline.declare.metrics import metric_names
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.references import split_reference
from pipeline.declare.training import COST_METRICS
from pipeline.declare.transfer import is_score

CLAIM_NAMES = ("of", "over", "lhs", "rhs")  # keys of claims whose values are variants or derived runs

PRINTED = "printed/"  # prefix of the metrics that are values of `printed`


def check_experiment(experiment: Experiment) -> None:
    """Check the references between keys, and the recipe of every variant at every scale.

    Raises DeclarationError for the first error.
    """
    file = experiment.file
    if experiment.scales and PAPER_SCALE not in experiment.scales:
        raise DeclarationError(f"{file}: scales: the scale 'paper' (the recipe as published) is required")
    if not experiment.variants and not experiment.derived:
        raise DeclarationError(f"{file}: variants: this key is required without derived runs")
    for variant in experiment.variants:
        if "/" in variant:
            raise DeclarationError(f"{file}: variants.{variant}: a name must not contain '/'")
    if experiment.scales and experiment.variants and experiment.train is None and not experiment.measures:
        raise DeclarationError(
            f"{file}: train: this key is required if there are scales, except for timings alone"
        )
    for scale_name, scale in experiment.scales.items():
        for variant in scale.variants or ():
            if variant not in experiment.variants:
                near = nearest(variant, experiment.variants)
                raise DeclarationError(f"{file}: scales.{scale_name}.variants: unknown variant {variant!r}{near}")
        for variant in experiment.variants if experiment.trains else ():
            experiment.recipe(variant, scale_name)
    for variant in experiment.variants:
        experiment.published(variant)
    for key in ("choices", "departures"):
        for number, item in enumerate(getattr(experiment, key)):
            for name in item.of:
                if name not in (known := [*experiment.variants, *experiment.derived]):
                    near = nearest(name, known)
                    raise DeclarationError(f"{file}: {key}.{number}.of: unknown variant {name!r}{near}")
    check_starts(experiment)
    check_derived(experiment)
    check_claims(experiment)


def check_starts(experiment: Experiment) -> None:
    """Check that variants start from known variants, and that none starts from itself, directly or not."""
    for scale in experiment.scales if experiment.trains else ():
        for variant in experiment.variants:
            place = f"{experiment.file}: variants.{variant}.train.start.variant"
            chain = [variant]
            while (start := experiment.recipe(chain[-1], scale).train.start) and start.experiment is None:
                if start.variant not in experiment.variants:
                    near = nearest(start.variant, experiment.variants)
                    raise DeclarationError(f"{place}: unknown variant {start.variant!r}{near}")
                if start.variant in chain:
                    raise DeclarationError(f"{place}: {' starts from '.join([*chain, start.variant])}")
                chain.append(start.variant)
    for variant in experiment.variants:
        experiment.started_from(variant)  # of other experiments too, as published


def check_claims(experiment: Experiment) -> None:
    """Check that claims have unique ids, known variants, runs to judge them by, and metrics that these measure."""
    file = experiment.file
    ids: set[str] = set()
    for claim in experiment.claims:
        if claim.id in ids:
            raise DeclarationError(f"{file}: claims: the id {claim.id!r} is used twice")
        ids.add(claim.id)
        for key in CLAIM_NAMES:
            if (name := getattr(claim, key, None)) is not None:
                check_claim_name(experiment, claim, key, name)
        check_printed_names(experiment, claim)
        check_metrics(experiment, claim)


def check_printed_names(experiment: Experiment, claim: Claim) -> None:
    """Check that the metrics printed/NAME of a claim are values of `printed`."""
    for key in ("metric", "over_metric"):
        metric = getattr(claim, key, None) or ""
        name = metric.removeprefix(PRINTED)
        if metric.startswith(PRINTED) and name not in experiment.printed:
            near = nearest(name, experiment.printed)
            raise DeclarationError(
                f"{experiment.file}: claims.{claim.id}.{key}: printed has no value {name!r}{near}"
            )


def check_claim_name(experiment: Experiment, claim: Claim, key: str, name: str) -> None:
    """Check that a claim names a variant, or for a trained claim also a derived run, that exists and has runs."""
    place, other = f"{experiment.file}: claims.{claim.id}", split_reference(name)[0]
    if other == experiment.name:
        raise DeclarationError(f"{place}.{key}: {name!r} is in this file; write {split_reference(name)[1]!r}")
    declared, variant = experiment.owner(name)
    is_exact = isinstance(claim, ExactClaim)
    known = declared.variants if is_exact else {**declared.variants, **declared.derived}
    if variant not in known:
        where = f" of {other}" if other else ""
        raise DeclarationError(f"{place}.{key}: unknown variant {variant!r}{where}{nearest(variant, known)}")
    if not declared.scales and not is_exact:
        which = other or "the experiment"
        raise DeclarationError(
            f"{place}: a claim of kind {claim.kind!r} needs runs, but {which} declares no scales"
        )


def check_metrics(experiment: Experiment, claim: Claim) -> None:
    """Check that the variants of a trained claim measure its metric at paper scale.

    With test protocols, the metric of a number names its protocol. A comparison may use the short name, which
    stands for the first protocol of each side. Times and memory can only be compared between runs, and only errors
    have a unit in percent.
    """
    if isinstance(claim, ExactClaim | OpenClaim):
        return
    for side in ("of", "lhs", "rhs"):
        if (full_name := getattr(claim, side, None)) is None:
            continue
        declared, name = experiment.owner(full_name)
        key = "rhs_metric" if side == "rhs" and getattr(claim, "rhs_metric", None) else "metric"
        metric = getattr(claim, key)
        place = f"{experiment.file}: claims.{claim.id}.{key}"
        if metric in COST_METRICS and name in declared.variants:
            if not isinstance(claim, OrderingClaim | RatioClaim):
                raise DeclarationError(
                    f"{place}: {metric} depends on the hardware, so only a claim of kind 'ordering' or 'ratio' can"
                    f" name it, not {claim.kind!r}"
                )
            continue
        is_timing = isinstance(declared.derived.get(name), TimingSpec)
        if isinstance(claim, MetricClaim | GainClaim) and is_timing:
            raise DeclarationError(
                f"{place}: {metric} is not an error in percent, so only a claim of kind 'ordering', 'ratio' or"
                f" 'bound' can name it, not {claim.kind!r}"
            )
        if declared.measures and not is_timing:
            raise DeclarationError(f"{place}: {full_name} is not trained, so it has no metric {metric!r}")
        if isinstance(claim, MetricClaim | GainClaim) and name in declared.variants:
            train = declared.recipe(name, PAPER_SCALE).train
            if metric in train.measurements:
                raise DeclarationError(
                    f"{place}: {metric} is not an error in percent, so only a claim of kind 'ordering', 'ratio' or"
                    f" 'bound' can name it, not {claim.kind!r}"
                )
        if isinstance(claim, MetricClaim) and metric in COMPRESSION_METRICS:
            check_compression_claim(claim, place)
        if isinstance(claim, MetricClaim) and is_score(metric) and claim.statistic != "mean":
            raise DeclarationError(
                f"{place.rpartition('.')[0]}.statistic: {metric} is not an error; only 'mean' is possible"
            )
        known = metric_names(declared, name, named=isinstance(claim, MetricClaim | BoundClaim))
        if metric not in known:
            raise DeclarationError(f"{place}: unknown metric {metric!r} of {full_name}; known: {', '.join(known)}")


def check_compression_claim(claim: MetricClaim, place: str) -> None:
    """Check that the claimed number of a compression is a ratio, averaged over seeds."""
    if claim.metric not in COMPRESSION_RATIOS:
        raise DeclarationError(
            f"{place}: {claim.metric} is neither an error in percent nor a ratio, so only a claim of kind"
            f" 'ordering', 'ratio' or 'bound' can name it, not {claim.kind!r}"
        )
    if claim.statistic != "mean":
        raise DeclarationError(
            f"{place.rpartition('.')[0]}.statistic: {claim.metric} is a ratio; only 'mean' is possible"
        )
