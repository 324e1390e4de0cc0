"""Runs that a claim needs and that are missing, unfinished or did not converge, and the command that runs them."""

from collections.abc import Iterable, Mapping, Sequence

from pipeline.declare.claims import BoundClaim, Claim, GainClaim, MetricClaim, OrderingClaim, RatioClaim
from pipeline.declare.derived import TimingSpec
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.references import beside
from pipeline.judge.counting import ByVariant, variants_of
from pipeline.judge.verdict import Outcome, Reason, Verdict, cannot_judge
from pipeline.judge.wording import name_seeds
from pipeline.plan.expand import make_derived_runs, make_runs, member_name
from pipeline.track.record import FINISHED, Record

TrainedClaim = MetricClaim | BoundClaim | OrderingClaim | GainClaim | RatioClaim

Unfinished = Mapping[
    tuple[str, str, str, int], Mapping[str, str]
]  # experiment, scale, variant, seed -> {"why", "text"}


def with_missing_runs(
    verdict: Verdict | None,
    claim: TrainedClaim,
    experiment: Experiment,
    scale: str,
    by_variant: ByVariant,
    unfinished: Unfinished,
) -> Verdict | None:
    """Return the verdict of one scale, or "cannot judge" if runs did not converge, are unfinished or missing.

    Seeds are declared beforehand: the finished ones prove nothing without the others. Below paper scale, where a
    verdict is a trend and other seeds count too, those that were never started may be missing.
    """
    diverged = diverged_members(claim, experiment, by_variant)
    if diverged:
        return cannot_judge(Reason.DID_NOT_CONVERGE, diverged)
    if verdict and verdict.reason is Reason.DID_NOT_CONVERGE:  # final
        return verdict
    left = unfinished_verdict(claim, experiment, scale, by_variant, unfinished)
    if left or not verdict or verdict.outcome is Outcome.CANNOT_JUDGE or scale != PAPER_SCALE:
        return left or verdict
    return missing_verdict(claim, experiment, scale, by_variant) or verdict


def diverged_members(claim: TrainedClaim, experiment: Experiment, by_variant: ByVariant) -> str:
    """Return a sentence naming the runs behind those of a claim that did not converge, or ""."""
    names = variants_of(claim)
    behind = sorted(experiment.behind(names) - set(names))
    rows = [row for name in behind for row in by_variant.get(name, []) if row.status != FINISHED]
    return f"Every seed counts, and runs that others need did not converge: {ends(rows)}." if rows else ""


def ends(records: Iterable[Record]) -> str:
    """Return how runs ended: "resnet-20 seed 2 (the loss became nan at step 17), ..."."""
    return ", ".join(f"{record.variant} seed {record.seed} ({record.ended})" for record in records)


def unfinished_verdict(
    claim: TrainedClaim, experiment: Experiment, scale: str, by_variant: ByVariant, unfinished: Unfinished
) -> Verdict | None:
    """Return "cannot judge" if runs that are declared for a claim at a scale are unfinished; over-budget first."""
    at_scale = {
        (variant if name == experiment.name else f"{name}/{variant}", seed): left
        for (name, at, variant, seed), left in sorted(unfinished.items())
        if at == scale and (name == experiment.name or name in experiment.others)
    }
    missing = missing_runs(claim, experiment, scale, by_variant) if at_scale else set()
    found: dict[tuple[bool, str, str], list[int]] = {}  # (not over budget, variant, why) -> seeds
    for (variant, seed), left in at_scale.items():
        if (variant, seed) in missing:
            why, text = left["why"], left["text"]
            other = why != Reason.OVER_BUDGET
            text = f"{text} ({why})" if other and why not in text else text
            found.setdefault((other, variant, text), []).append(seed)
    if not found:
        return None
    texts = [f"{variant} {name_seeds(seeds)}: {text}" for (_, variant, text), seeds in sorted(found.items())]
    return cannot_judge(
        Reason.NOT_RUN if min(found)[0] else Reason.OVER_BUDGET,
        f"Every seed counts, and some runs are unfinished: {'; '.join(texts)}."
        f" To resume them: {resume_command(claim, experiment, scale)}",
    )


def missing_verdict(
    claim: TrainedClaim, experiment: Experiment, scale: str, by_variant: ByVariant
) -> Verdict | None:
    """Return "cannot judge" if declared runs of a claim have no record: seeds chosen afterwards prove nothing."""
    by_name: dict[str, list[int]] = {}
    for variant, seed in sorted(missing_runs(claim, experiment, scale, by_variant)):
        by_name.setdefault(variant, []).append(seed)
    if not by_name:
        return None
    named = "; ".join(f"{variant} {name_seeds(seeds)}" for variant, seeds in by_name.items())
    return cannot_judge(
        Reason.NOT_RUN,
        f"Every declared seed counts, and some have no finished run: {named}."
        f" To run them: {resume_command(claim, experiment, scale)}",
    )


def missing_runs(
    claim: TrainedClaim, experiment: Experiment, scale: str, by_variant: ByVariant
) -> set[tuple[str, int]]:
    """Return (variant, seed) of the runs that are declared for a claim at a scale and have no record.

    For a derived run without a record, that includes the runs it consumes.
    """
    recorded = {(name, row.seed) for name, rows in by_variant.items() for row in rows}
    found: set[tuple[str, int]] = set()
    for name in variants_of(claim):
        declared, own = experiment.owner(name)
        if scale not in declared.scales:
            continue
        if own in declared.variants:
            found |= {(name, seed) for seed in declared.seeds_of(own, scale)}
            continue
        if isinstance(declared.derived[own], TimingSpec):
            found |= {(name, seed) for seed in declared.seeds_at(scale)}
            continue
        for seed, members in members_by_seed(declared, own, scale).items():
            if (name, seed) not in recorded:
                found |= {(name, seed), *((beside(name, member), of) for member, of in members)}
    return found - recorded


def members_by_seed(experiment: Experiment, name: str, scale: str) -> Mapping[int, Sequence[tuple[str, int]]]:
    """Return the seed of each declared derived run `name` -> variant and seed of the runs that it consumes."""
    key = "members", scale, name
    if key not in experiment.memo:
        consumed = experiment.derived_spec(name, scale).consumes
        runs = {one: make_runs(experiment, scale, one, experiment.seeds_of(one, scale)) for one in consumed}
        experiment.memo[key] = {
            derived.seed: [(member_name(experiment, member), member.seed) for member in derived.members]
            for derived in make_derived_runs(experiment, name, scale, runs)
        }
    found: Mapping[int, Sequence[tuple[str, int]]] = experiment.memo[key]
    return found


def not_run_verdict(claim: Claim, experiment: Experiment, by_scale: Mapping[str, ByVariant]) -> Verdict:
    """Return "cannot judge" with the command that runs the missing variants."""
    scale = next((at for at, rows in by_scale.items() if {*variants_of(claim)} <= rows.keys()), "")
    if scale:
        named = " and ".join(variants_of(claim))
        return cannot_judge(
            Reason.NOT_RUN,
            f"The finished runs of {named} at {scale} scale are of different data or code, and cannot be compared."
            f" To run them: {run_command(experiment, scale, variants_of(claim))}",
        )
    scale = next(iter(by_scale))
    missing = [variant for variant in variants_of(claim) if variant not in by_scale[scale]]
    command = run_command(experiment, scale, missing or variants_of(claim))
    return cannot_judge(Reason.NOT_RUN, f"No finished runs. To run them: {command}")


def run_command(experiment: Experiment, scale: str, names: Sequence[str] = (), seeds: int | None = None) -> str:
    """Return the command that runs these variants and the variants that these derived runs consume.

    Without names it runs all variants of the experiment. Variants of several experiments need several commands,
    joined by "&&". `seeds` is the number of seeds; None: the declared ones.
    """
    by_experiment: dict[str, dict[str, None]] = {} if names else {experiment.name: {}}
    for declared, own in map(experiment.owner, names):
        by_experiment.setdefault(declared.name, {}).update(dict.fromkeys(declared.consumed(own)))
    count = f" --seeds {seeds}" if seeds else ""
    commands = [
        " ".join([f"repro run {name} --scale {scale}", *(f"--variant {variant}" for variant in variants)]) + count
        for name, variants in by_experiment.items()
    ]
    return " && ".join(commands)


def resume_command(claim: TrainedClaim, experiment: Experiment, scale: str) -> str:
    """Return the command that runs all variants of the experiments that a claim names."""
    involved = {declared.name: declared for declared, _ in map(experiment.owner, variants_of(claim))}
    return " && ".join(run_command(declared, scale) for declared in involved.values())
