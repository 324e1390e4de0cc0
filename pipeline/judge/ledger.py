"""The ledger: every claim with its verdict and the evidence it rests on. Pure: records in, entries out."""

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
    """One claim of the ledger, judged."""

    experiment: str
    claim: Claim
    verdict: Verdict
    evidence: Evidence | None  # None where arithmetic, or nothing, was enough

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
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
    lefts: Unfinished | None = None,
) -> list[LedgerEntry]:
    """Judge all claims of `experiment` from `records`, at `scales` only if any are given.

    `lefts` says why runs were left unfinished, where that is known.
    """
    rows = list(records)
    order = scales or sorted(experiment.scales, key=lambda scale: scale != PAPER_SCALE)
    grouped = {scale: counted_records(experiment, scale, rows) for scale in order}
    return [judge_claim(claim, experiment, grouped, measure, lefts or {}) for claim in experiment.claims]


def judge_claim(
    claim: Claim,
    experiment: Experiment,
    grouped: dict[str, ByVariant],
    measure: Measure,
    lefts: Unfinished | None = None,
) -> LedgerEntry:
    """One claim's entry: at paper scale if that can be judged, else at the first scale that can."""

    def entry(verdict: Verdict, evidence: Evidence | None = None) -> LedgerEntry:
        return LedgerEntry(experiment.name, claim, verdict, evidence)

    if isinstance(claim, OpenClaim):
        return entry(cannot_judge(Reason(claim.reason), claim.why))
    if isinstance(claim, ExactClaim):
        try:
            return entry(judge_exact_claim(claim, experiment, measure))
        except UserError as error:
            said = str(error).removeprefix(f"{experiment.name}: ")
            raise UserError(f"{experiment.file}: claims.{claim.id}: {said}") from None
    judged = []
    for scale, by_variant in grouped.items():
        records = comparable_records(claim, by_variant)
        speaks = scale == PAPER_SCALE or isinstance(claim, OrderingClaim)
        verdict = judge_at_scale(scale, claim, experiment, records) if records else None
        if speaks and (diverged := diverged_members(claim, experiment, by_variant)):
            verdict = cannot_judge(Reason.DID_NOT_CONVERGE, diverged)
        elif speaks and not (verdict and verdict.reason is Reason.DID_NOT_CONVERGE):  # which is final
            verdict = left_unfinished(claim, experiment, scale, by_variant, lefts or {}) or verdict
        if verdict:
            judged.append(entry(verdict, make_evidence(scale, records) if records else None))
    for one in judged:
        told = one.verdict.outcome is not Outcome.CANNOT_JUDGE
        if told or one.verdict.reason is Reason.DID_NOT_CONVERGE:  # which no smaller scale can gloss over
            return one
    return judged[0] if judged else entry(not_run_verdict(claim, experiment, grouped))


def judge_exact_claim(claim: ExactClaim, experiment: Experiment, measure: Measure) -> Verdict:
    """The verdict of arithmetic: one value, or the ratio of two, compared with what is claimed.

    A claim that was not read in its source can be confirmed, but not used to say that the source is wrong.
    """
    value = measure(claim.metric, experiment, claim.of)
    printed = printed_value(claim.metric, experiment)
    found = f"{printed.where[0].upper()}{printed.where[1:]} prints" if printed else "We measure"
    recalled = "memory" in (claim.confidence, printed and printed.confidence)
    if claim.over or claim.over_metric:
        below = measure(claim.over_metric or claim.metric, experiment, claim.over or claim.of)
        if not all(isinstance(side, int | float) for side in (value, below)) or not below:
            raise UserError(f"{value!r} / {below!r} is no ratio")
        other = printed_value(claim.over_metric or claim.metric, experiment)
        recalled = recalled or bool(other and other.confidence == "memory")
        aside = f" ({other.where})" if other else " (measured)" if printed else ""
        found = f"{found} {value:,} / {below:,}{aside} ="
        value = value / below
    verdict = judge_exact(
        value, claimed=claim.claimed, margin=claim.margin, corrected=claim.corrected, op=claim.op, found=found
    )
    if recalled and verdict.outcome is not Outcome.REPRODUCED:
        sentence = (
            f"{verdict.sentence} The claimed value was recalled and not read again, so the error may be ours."
        )
        return replace(
            verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.PROTOCOL_UNSPECIFIED, sentence=sentence
        )
    return verdict


def diverged_members(claim: TrainedClaim, experiment: Experiment, by_variant: ByVariant) -> str:
    """Which runs that a claim's steps consume did not converge: every seed counts, so the others say nothing."""
    steps = [experiment.derived[name] for name in variants_of(claim) if name in experiment.derived]
    below = {variant for step in steps for variant in step.consumes}
    rows = [row for variant in sorted(below) for row in by_variant.get(variant, []) if row.status != FINISHED]
    what = ", ".join(f"{row.variant} seed {row.seed} ({row.ended})" for row in rows)
    return f"every seed counts, and some that a step needs did not converge: {what}" if rows else ""


def left_unfinished(
    claim: TrainedClaim, experiment: Experiment, scale: str, by_variant: ByVariant, lefts: Unfinished
) -> Verdict | None:
    """That a claim cannot be judged at a scale, where runs declared for it were left; a budget's end comes first.

    Seeds are fixed beforehand: those that ended say nothing without those that were left.
    """
    here = {
        (variant, seed): left
        for (of, at, variant, seed), left in sorted(lefts.items())
        if (of, at) == (experiment.name, scale)
    }
    missing = missing_runs(claim, experiment, scale, by_variant) if here else set()
    found: dict[tuple[bool, str, str], list[int]] = {}  # (not a budget's end, variant, why) -> seeds
    for (variant, seed), left in here.items():
        if (variant, seed) in missing:
            why, text = left["why"], left["text"]
            other = why != Reason.OVER_BUDGET
            said = f"{text} ({why})" if other and why not in text else text
            found.setdefault((other, variant, said), []).append(seed)
    if not found:
        return None
    texts = [
        f"{variant} seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}: {said}"
        for (_, variant, said), seeds in sorted(found.items())
    ]
    return cannot_judge(
        Reason.NOT_RUN if min(found)[0] else Reason.OVER_BUDGET,
        f"every seed counts, and runs were left unfinished: {'; '.join(texts)};"
        f" to go on: {run_command(experiment, scale)}",
    )


def missing_runs(
    claim: TrainedClaim, experiment: Experiment, scale: str, by_variant: ByVariant
) -> set[tuple[str, int]]:
    """Variant, or step, and seed of what is declared for a claim at a scale and has no record.

    Of a step that has none, the runs that it consumes too.
    """
    there = {(name, row.seed) for name, rows in by_variant.items() for row in rows}
    found: set[tuple[str, int]] = set()
    for name in variants_of(claim):
        if name in experiment.variants:
            found |= {(name, seed) for seed in experiment.seeds_of(name, scale)}
            continue
        needed = experiment.derived_spec(name, scale).consumes
        runs = {one: make_runs(experiment, scale, one, experiment.seeds_of(one, scale)) for one in needed}
        for step in make_derived_runs(experiment, name, scale, runs):
            if (name, step.seed) not in there:
                found |= {(name, step.seed), *((member.variant, member.seed) for member in step.members)}
    return found - there


def printed_value(metric: str, experiment: Experiment) -> Printed | None:
    """What is printed and named by a printed/… metric; None for what is measured."""
    kind, _, name = metric.partition("/")
    return experiment.printed.get(name) if kind == "printed" else None


def judge_at_scale(scale: str, claim: TrainedClaim, experiment: Experiment, records: ByVariant) -> Verdict:
    """The verdict of a trained claim from the records of one scale; a trend at most below paper scale."""
    first = next(iter(records.values()))[0]
    full = scale == PAPER_SCALE and all(
        row.data == experiment.paper_data(row.variant) for rows in records.values() for row in rows
    )
    material = [departure for departure in experiment.departures if departure.material]
    is_number = isinstance(claim, MetricClaim | BoundClaim | RatioClaim)
    if is_number and not full:
        what = f"runs at {scale} scale on {first.data} say nothing about a number of the paper's own setting"
        return cannot_judge(Reason.NOT_RUN, f"not run at paper scale; {what}", n=len(first_values(records)))
    diverged = [r for rows in records.values() for r in rows if r.status != FINISHED]
    if diverged:
        what = ", ".join(f"{r.variant} seed {r.seed} ({r.ended})" for r in diverged)
        return cannot_judge(Reason.DID_NOT_CONVERGE, f"every seed counts, and some did not converge: {what}")
    for variant, metric in measured_sides(claim):
        for row in records[variant]:
            if metric not in row.metrics:
                known = ", ".join(sorted(row.metrics))
                why = f"{row.variant} seed {row.seed} measured no {metric}, only {known}"
                return cannot_judge(Reason.NOT_RUN, why)
    verdict = compare(claim, records)
    if is_number and material:
        verdict = as_departing(verdict, material)
    elif not full or material:
        what = f"at {scale} scale on {first.data}" if not full else "with a recipe that departs from the paper's"
        verdict = as_trend(verdict, what)
    return replace(verdict, sentence=verdict.sentence + mixed_device_batches(records))


def mixed_device_batches(records: ByVariant) -> str:
    """A sentence to add for variants whose runs were split differently over devices; "" where there are none.

    Batch normalisation averages over the images that a device sees at a time: their number is part of a recipe.
    """
    found = []
    for variant, rows in records.items():
        sizes = sorted({row.device_batch for row in rows if row.device_batch})
        if len(sizes) > 1:
            found.append(f"{variant} ({', '.join(map(str, sizes))} images)")
    if not found:
        return ""
    return f" Counted together are runs whose batch normalisation saw different batches: {'; '.join(found)}."


def as_departing(verdict: Verdict, departures: Sequence[Departure]) -> Verdict:
    """What remains of a verdict on a number where the recipe is not the paper's: what was measured."""
    why = f"The recipe departs from the paper's: {' '.join(departure.what for departure in departures)}"
    if verdict.measured is not None and verdict.interval:
        low, high = verdict.interval
        why += f" Measured so: {verdict.measured:.4g} ({100 * LEVEL:.0f} % interval {low:.4g} to {high:.4g})."
    return replace(verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.RECIPE_DEPARTS, sentence=why)


def compare(claim: TrainedClaim, records: ByVariant) -> Verdict:
    """The statistics a kind of claim asks for."""

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
    """Each side's variant, and the metric it is measured by."""
    if isinstance(claim, OrderingClaim):
        return [(claim.lhs, claim.metric), (claim.rhs, claim.rhs_metric or claim.metric)]
    return [(variant, claim.metric) for variant in variants_of(claim)]


def first_values(records: ByVariant) -> list[Record]:
    """The records of the first variant."""
    return next(iter(records.values()))


def not_run_verdict(claim: Claim, experiment: Experiment, grouped: dict[str, ByVariant]) -> Verdict:
    """Which variant is missing, and the command that would run it."""
    scale = next(iter(grouped))
    missing = [variant for variant in variants_of(claim) if variant not in grouped[scale]]
    return cannot_judge(
        Reason.NOT_RUN,
        f"no finished runs; to run them: {run_command(experiment, scale, missing or variants_of(claim))}",
    )


def run_command(experiment: Experiment, scale: str, names: Sequence[str] = ()) -> str:
    """The command that runs these variants, and those that these steps consume."""
    of = [experiment.derived[name].consumes if name in experiment.derived else [name] for name in names]
    variants = dict.fromkeys(variant for several in of for variant in several)
    return " ".join([f"repro run {experiment.name} --scale {scale}", *(f"--variant {name}" for name in variants)])
