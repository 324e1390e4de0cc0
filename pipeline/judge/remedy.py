"""The command whose runs would allow a verdict on a trained claim that has none."""

from collections.abc import Mapping

from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.counting import ByVariant, variants_of
from pipeline.judge.missing import TrainedClaim, missing_runs, run_command
from pipeline.judge.statistics import MIN_SEEDS
from pipeline.judge.verdict import Outcome, Reason, Verdict


def command_to_judge(
    verdict: Verdict, claim: TrainedClaim, experiment: Experiment, scale: str, by_scale: Mapping[str, ByVariant]
) -> str:
    """Return the command, or "" if the claim is judged or no command would help.

    `scale` is that of the verdict. At paper scale only the declared seeds count, so more seeds do not help there.
    """
    if verdict.outcome is not Outcome.CANNOT_JUDGE:
        return ""
    if scale != PAPER_SCALE and verdict.reason is Reason.UNDERPOWERED:
        few = MIN_SEEDS if verdict.n < MIN_SEEDS else None
        if seeds := verdict.enough or few:
            return run_command(experiment, scale, variants_of(claim), seeds * networks_per_seed(claim, experiment))
    if scale == PAPER_SCALE and verdict.reason not in (Reason.NOT_RUN, Reason.OVER_BUDGET, Reason.UNDERPOWERED):
        return ""
    names = variants_to_run(claim, experiment, by_scale)
    return run_command(experiment, PAPER_SCALE, names) if names else ""


def variants_to_run(claim: TrainedClaim, experiment: Experiment, by_scale: Mapping[str, ByVariant]) -> list[str]:
    """Return the variants and derived runs of a claim that have missing runs at paper scale."""
    by_variant = by_scale.get(PAPER_SCALE, {})
    missing = {variant for variant, _ in missing_runs(claim, experiment, PAPER_SCALE, by_variant)}
    return [name for name in variants_of(claim) if name in missing or missing & set(experiment.consumed(name))]


def networks_per_seed(claim: TrainedClaim, experiment: Experiment) -> int:
    """Return the number of networks of a variant that each seed of the claim needs: several for an ensemble."""
    owners = [experiment.owner(name) for name in variants_of(claim)]
    derived = [declared.derived[own] for declared, own in owners if own in declared.derived]
    return max([1, *(count for spec in derived for count in spec.consumes.values())])
