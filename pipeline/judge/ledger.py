"""The ledger: every claim with its verdict and its evidence. Pure: records in, entries out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.common.errors import UserError
from pipeline.declare.claims import (
    BoundClaim,
    Claim,
    Departure,
    ExactClaim,
    MetricClaim,
    OpenClaim,
    OrderingClaim,
    Printed,
    RatioClaim,
)
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.counting import ByVariant, comparable_records, counted_records, variants_of
from pipeline.judge.evidence import Evidence, make_evidence
from pipeline.judge.statistics import LEVEL
from pipeline.judge.verdict import (
    Outcome,
    Reason,
    Verdict,
    as_trend,
    cannot_judge,
    judge_bound,
    judge_exact,
    judge_metric,
    judge_ordering,
    judge_ratio,
)
from pipeline.plan.expand import make_derived_runs, make_runs
from pipeline.track.record import FINISHED, Record

Measure = Callable[[str, Experiment, str | None], Any]  # metric, experiment, variant -> the exact value

TrainedClaim = MetricClaim | BoundClaim | OrderingClaim | RatioClaim

Unfinished = Mapping[
    tuple[str, str, str, int], Mapping[str, str]
]  # experiment, scale, variant, seed -> {"why", "text"}


@dataclass(frozen=True)
class LedgerEntry:
    """One claim with its verdict and its evidence."""

    experiment: str
    claim: Claim
    verdict: Verdict
    evidence: Evidence | None  # None if the verdict rests on no run

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {
            "experiment": self.experiment,
            "claim": self.claim.model_dump(mode="json"),
            "verdict": asdict(self.verdict),
            "evidence": asdict(self.evidence) if self.evidence else None,
        }


def ledger(
    experiment: Experiment,
    records: Iterable[Record],
    measure: Measure,
    scales: Sequence[str] = (),
    unfinished: Unfinished | None = None,
) -> list[LedgerEntry]:
    """Judge all claims of `experiment` from `records`, at `scales` only if any are given.

    `unfinished` gives the reasons why runs are unfinished, where they are known.
    """
    rows = list(records)
    order = scales or sorted(experiment.scales, key=lambda scale: scale != PAPER_SCALE)
    by_scale = {scale: counted_records(experiment, scale, rows) for scale in order}
    return [judge_claim(claim, experiment, by_scale, measure, unfinished or {}) for claim in experiment.claims]


def judge_claim(
    claim: Claim,
    experiment: Experiment,
    by_scale: dict[str, ByVariant],
    measure: Measure,
    unfinished: Unfinished | None = None,
) -> LedgerEntry:
    """Return the entry of one claim: judged at paper scale if possible, else at the first scale that allows it."""

    def entry(verdict: Verdict, evidence: Evidence | None = None) -> LedgerEntry:
        return LedgerEntry(experiment.name, claim, verdict, evidence)

    if isinstance(claim, OpenClaim):
        return entry(cannot_judge(Reason(claim.reason), claim.why))
    if isinstance(claim, ExactClaim):
        try:
            return entry(judge_exact_claim(claim, experiment, measure))
        except UserError as error:
            message = str(error).removeprefix(f"{experiment.name}: ")
            raise UserError(f"{experiment.file}: claims.{claim.id}: {message}") from None
    judged = []
    for scale, by_variant in by_scale.items():
        records = comparable_records(claim, by_variant)
        verdict = judge_at_scale(scale, claim, experiment, records) if records else None
        if scale == PAPER_SCALE or isinstance(claim, OrderingClaim):  # a smaller scale can show a trend only
            verdict = with_missing_runs(verdict, claim, experiment, scale, by_variant, unfinished or {})
        if verdict:
            judged.append(entry(verdict, make_evidence(scale, records) if records else None))
    for candidate in judged:
        is_judged = candidate.verdict.outcome is not Outcome.CANNOT_JUDGE
        if is_judged or candidate.verdict.reason is Reason.DID_NOT_CONVERGE:  # no smaller scale may hide it
            return candidate
    return judged[0] if judged else entry(not_run_verdict(claim, experiment, by_scale))


def with_missing_runs(
    verdict: Verdict | None,
    claim: TrainedClaim,
    experiment: Experiment,
    scale: str,
    by_variant: ByVariant,
    unfinished: Unfinished,
) -> Verdict | None:
    """Return the verdict of one scale, or "cannot judge" if runs did not converge or are unfinished.

    Seeds are declared beforehand: the finished ones prove nothing without the others.
    """
    diverged = diverged_members(claim, experiment, by_variant)
    if diverged:
        return cannot_judge(Reason.DID_NOT_CONVERGE, diverged)
    if verdict and verdict.reason is Reason.DID_NOT_CONVERGE:  # final
        return verdict
    return unfinished_verdict(claim, experiment, scale, by_variant, unfinished) or verdict


def judge_exact_claim(claim: ExactClaim, experiment: Experiment, measure: Measure) -> Verdict:
    """Compare one exact value, or the ratio of two, with the claimed one.

    A claim that was not read in its source can be confirmed, but cannot show that the source is wrong.
    """
    value = measure(claim.metric, experiment, claim.of)
    printed = printed_value(claim.metric, experiment)
    found = f"{printed.where[0].upper()}{printed.where[1:]} prints" if printed else "We measure"
    from_memory = "memory" in (claim.confidence, printed and printed.confidence)
    if claim.over or claim.over_metric:
        below = measure(claim.over_metric or claim.metric, experiment, claim.over or claim.of)
        if not all(isinstance(side, int | float) for side in (value, below)) or not below:
            raise UserError(f"cannot divide {value!r} by {below!r}")
        other = printed_value(claim.over_metric or claim.metric, experiment)
        from_memory = from_memory or bool(other and other.confidence == "memory")
        aside = f" ({other.where})" if other else " (measured)" if printed else ""
        found = f"{found} {value:,} / {below:,}{aside} ="
        value = value / below
    verdict = judge_exact(
        value, claimed=claim.claimed, margin=claim.margin, corrected=claim.corrected, op=claim.op, found=found
    )
    if from_memory and verdict.outcome is not Outcome.REPRODUCED:
        sentence = f"{verdict.sentence} The claimed value was quoted from memory, so the error may be ours."
        return replace(
            verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.PROTOCOL_UNSPECIFIED, sentence=sentence
        )
    return verdict


def diverged_members(claim: TrainedClaim, experiment: Experiment, by_variant: ByVariant) -> str:
    """Return a sentence naming the runs that a claim's derived runs consume and that did not converge, or ""."""
    derived = [experiment.derived[name] for name in variants_of(claim) if name in experiment.derived]
    consumed = {variant for spec in derived for variant in spec.consumes}
    rows = [row for name in sorted(consumed) for row in by_variant.get(name, []) if row.status != FINISHED]
    return (
        f"Every seed counts, and runs that a derived run consumes did not converge: {ends(rows)}." if rows else ""
    )


def ends(records: Iterable[Record]) -> str:
    """Return how runs ended: "resnet-20 seed 2 (the loss became nan at step 17), ..."."""
    return ", ".join(f"{record.variant} seed {record.seed} ({record.ended})" for record in records)


def unfinished_verdict(
    claim: TrainedClaim, experiment: Experiment, scale: str, by_variant: ByVariant, unfinished: Unfinished
) -> Verdict | None:
    """Return "cannot judge" if runs that are declared for a claim at a scale are unfinished; over-budget first."""
    at_scale = {
        (variant, seed): left
        for (name, at, variant, seed), left in sorted(unfinished.items())
        if (name, at) == (experiment.name, scale)
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
    texts = [
        f"{variant} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {text}"
        for (_, variant, text), seeds in sorted(found.items())
    ]
    return cannot_judge(
        Reason.NOT_RUN if min(found)[0] else Reason.OVER_BUDGET,
        f"Every seed counts, and some runs are unfinished: {'; '.join(texts)}."
        f" To resume them: {run_command(experiment, scale)}",
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
        if name in experiment.variants:
            found |= {(name, seed) for seed in experiment.seeds_of(name, scale)}
            continue
        consumed = experiment.derived_spec(name, scale).consumes
        runs = {
            variant: make_runs(experiment, scale, variant, experiment.seeds_of(variant, scale))
            for variant in consumed
        }
        for derived in make_derived_runs(experiment, name, scale, runs):
            if (name, derived.seed) not in recorded:
                found |= {(name, derived.seed), *((member.variant, member.seed) for member in derived.members)}
    return found - recorded


def printed_value(metric: str, experiment: Experiment) -> Printed | None:
    """Return the printed value that a printed/... metric names; None for any other metric."""
    kind, _, name = metric.partition("/")
    return experiment.printed.get(name) if kind == "printed" else None


def judge_at_scale(scale: str, claim: TrainedClaim, experiment: Experiment, records: ByVariant) -> Verdict:
    """Return the verdict of a trained claim from the records of one scale; at most a trend below paper scale."""
    first = next(iter(records.values()))
    full = scale == PAPER_SCALE and all(
        row.data == experiment.paper_data(row.variant) for rows in records.values() for row in rows
    )
    material = [departure for departure in experiment.departures if departure.material]
    is_number = isinstance(claim, MetricClaim | BoundClaim | RatioClaim)
    if is_number and not full:
        why = f"runs at {scale} scale on {first[0].data} cannot be compared with the paper's number"
        return cannot_judge(Reason.NOT_RUN, f"Not run at paper scale; {why}.", n=len(first))
    diverged = [row for rows in records.values() for row in rows if row.status != FINISHED]
    if diverged:
        return cannot_judge(
            Reason.DID_NOT_CONVERGE, f"Every seed counts, and some runs did not converge: {ends(diverged)}."
        )
    for variant, metric in measured_sides(claim):
        for row in records[variant]:
            if metric not in row.metrics:
                known = ", ".join(sorted(row.metrics))
                return cannot_judge(
                    Reason.NOT_RUN, f"{row.variant} seed {row.seed} has no metric {metric}; it has {known}."
                )
    verdict = compare(claim, records)
    if is_number and material:
        verdict = as_departing(verdict, material)
    elif not full or material:
        where = (
            f"at {scale} scale on {first[0].data}" if not full else "with a recipe that departs from the paper's"
        )
        verdict = as_trend(verdict, where)
    return replace(verdict, sentence=verdict.sentence + mixed_device_batches(records))


def mixed_device_batches(records: ByVariant) -> str:
    """Return a sentence that names variants whose runs have different batch sizes per device, or "".

    Batch normalisation averages over the images of one device, so their number is part of the recipe.
    """
    found = []
    for variant, rows in records.items():
        sizes = sorted({row.device_batch for row in rows if row.device_batch})
        if len(sizes) > 1:
            found.append(f"{variant} ({', '.join(map(str, sizes))} images)")
    if not found:
        return ""
    return f" Batch normalisation used different batch sizes per device in these runs: {'; '.join(found)}."


def as_departing(verdict: Verdict, departures: Sequence[Departure]) -> Verdict:
    """Return "cannot judge" with the measured number, for a claimed number and a recipe that departs from it."""
    sentence = f"The recipe departs from the paper's: {' '.join(departure.what for departure in departures)}"
    if verdict.measured is not None and verdict.interval:
        low, high = verdict.interval
        sentence += (
            f" Measured with it: {verdict.measured:.4g} ({100 * LEVEL:.0f} % interval {low:.4g} to {high:.4g})."
        )
    return replace(verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.RECIPE_DEPARTS, sentence=sentence)


def compare(claim: TrainedClaim, records: ByVariant) -> Verdict:
    """Run the statistical test of a claim's kind."""

    def values(variant: str, metric: str = claim.metric) -> dict[int, float]:
        return {record.seed: record.metrics[metric] for record in records[variant]}

    match claim:
        case MetricClaim():
            return judge_metric(
                values(claim.of), claimed=claim.claimed, margin=claim.margin, statistic=claim.statistic
            )
        case BoundClaim():
            return judge_bound(values(claim.of), op=claim.op, bound=claim.claimed)
        case OrderingClaim():
            other = claim.rhs_metric or claim.metric
            sides = values(claim.lhs), values(claim.rhs, other)
            names = (claim.lhs, claim.rhs)
            if claim.rhs_metric:
                names = (f"{claim.lhs}'s {claim.metric}", f"{claim.rhs}'s {other}")
            return judge_ordering(*sides, op=claim.op, margin=claim.margin, names=names)
        case RatioClaim():
            return judge_ratio(values(claim.lhs), values(claim.rhs), claimed=claim.claimed, margin=claim.margin)
    raise AssertionError(claim)


def measured_sides(claim: TrainedClaim) -> list[tuple[str, str]]:
    """Return the variant and the metric of each side of a claim."""
    if isinstance(claim, OrderingClaim):
        return [(claim.lhs, claim.metric), (claim.rhs, claim.rhs_metric or claim.metric)]
    return [(variant, claim.metric) for variant in variants_of(claim)]


def not_run_verdict(claim: Claim, experiment: Experiment, by_scale: dict[str, ByVariant]) -> Verdict:
    """Return "cannot judge" with the command that runs the missing variants."""
    scale = next(iter(by_scale))
    missing = [variant for variant in variants_of(claim) if variant not in by_scale[scale]]
    command = run_command(experiment, scale, missing or variants_of(claim))
    return cannot_judge(Reason.NOT_RUN, f"No finished runs. To run them: {command}")


def run_command(experiment: Experiment, scale: str, names: Sequence[str] = ()) -> str:
    """Return the command that runs these variants and the variants that these derived runs consume."""
    needed = [experiment.derived[name].consumes if name in experiment.derived else [name] for name in names]
    variants = dict.fromkeys(variant for group in needed for variant in group)
    return " ".join([f"repro run {experiment.name} --scale {scale}", *(f"--variant {name}" for name in variants)])
