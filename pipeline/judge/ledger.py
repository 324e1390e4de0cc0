"""The ledger: every claim with its verdict and its evidence. Pure: records in, entries out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.common.errors import UserError
from pipeline.declare.claims import (
    BoundClaim,
    Claim,
    ExactClaim,
    GainClaim,
    MetricClaim,
    OpenClaim,
    OrderingClaim,
    Printed,
    RatioClaim,
)
from pipeline.declare.derived import COMPRESSION_RATIOS, DEVICE_METRICS, RANDOM_PIXELS
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.declare.training import COST_METRICS, STEPS_TO
from pipeline.declare.transfer import is_score
from pipeline.judge.category import category
from pipeline.judge.counting import (
    ByVariant,
    Records,
    comparable_records,
    counted_records,
    referenced_records,
    scales_of,
    unchanged_records,
    variants_of,
)
from pipeline.judge.evidence import Evidence, make_evidence
from pipeline.judge.exact import judge_exact
from pipeline.judge.missing import (
    TrainedClaim,
    Unfinished,
    ends,
    missing_runs,
    not_run_verdict,
    with_missing_runs,
)
from pipeline.judge.remedy import command_to_judge
from pipeline.judge.rules import conclude, number_below_paper_scale, on_generated_images
from pipeline.judge.setups import (
    different_budgets,
    different_setups,
    generated_data,
    mixed_device_batches,
    precision_departures,
)
from pipeline.judge.trained import (
    ClaimedNumber,
    judge_bound,
    judge_gain,
    judge_metric,
    judge_ordering,
    judge_ratio,
)
from pipeline.judge.verdict import TRENDS, Outcome, Reason, Verdict, cannot_judge
from pipeline.track.record import FINISHED, Record

Measure = Callable[[str, Experiment, str | None], Any]  # metric, experiment, variant -> the exact value

FINAL = frozenset({Reason.DID_NOT_CONVERGE, Reason.RECIPE_DEPARTS, Reason.RECIPE_UNSPECIFIED})
"""Reasons of complete runs: no smaller scale may hide them behind a trend. UNDERPOWERED is one at paper scale."""


@dataclass(frozen=True)
class LedgerEntry:
    """One claim with its verdict and its evidence."""

    experiment: str
    claim: Claim
    verdict: Verdict
    evidence: Evidence | None  # None if the verdict rests on no run
    command: str = ""  # runs that would allow a verdict where there is none; "" if no command would

    @property
    def is_judged_from_runs(self) -> bool:
        """Return True for a trained claim that rests on finished runs at a scale that can judge it."""
        return self.evidence is not None and self.verdict.reason is not Reason.NOT_RUN

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {
            "experiment": self.experiment,
            "claim": self.claim.model_dump(mode="json"),
            "verdict": asdict(self.verdict),
            "evidence": asdict(self.evidence) if self.evidence else None,
            "category": category(self.claim),
            "command": self.command,
        }


def ledger(
    experiment: Experiment,
    records: Records,
    measure: Measure,
    scales: Sequence[str] = (),
    unfinished: Unfinished | None = None,
) -> list[LedgerEntry]:
    """Judge all claims of `experiment` from `records`, at `scales` only if any are given.

    `unfinished` gives the reasons why runs are unfinished, where they are known.
    """
    rows = unchanged_records(records)
    by_claim = {claim.id: scales_of(claim, experiment, scales) for claim in experiment.claims}
    by_scale: dict[str, ByVariant] = {}
    for scale in dict.fromkeys(scale for names in by_claim.values() for scale in names):
        own: ByVariant = {}
        if scale in experiment.scales:
            own = counted_records(experiment, scale, rows, needed_elsewhere(experiment, scale))
        by_scale[scale] = own | referenced_records(experiment, experiment.claims, scale, rows)
    return [
        judge_claim(
            claim,
            experiment,
            {scale: by_scale[scale] for scale in by_claim[claim.id]},
            measure,
            unfinished or {},
            rows,
        )
        for claim in experiment.claims
    ]


def needed_elsewhere(experiment: Experiment, scale: str) -> list[str]:
    """Return the variants of other experiments, PAPER/FILE/VARIANT, behind an experiment's runs at a scale."""
    behind = experiment.behind(experiment.variants) if experiment.trains else set()
    starts = [
        name for name in behind if scale in (owner := experiment.owner(name)[0]).scales and owner is not experiment
    ]
    return sorted({*experiment.consumed_elsewhere(scale), *starts})


def judge_claim(
    claim: Claim,
    experiment: Experiment,
    by_scale: dict[str, ByVariant],
    measure: Measure,
    unfinished: Unfinished | None = None,
    rows: Records = (),
) -> LedgerEntry:
    """Return the entry of one claim: judged at paper scale if possible, else at the first scale that allows it.

    `rows` are all records, from which `by_scale` was chosen.
    """

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
    verdict, evidence, scale = judge_trained_claim(claim, experiment, by_scale, unfinished or {}, rows)
    command = command_to_judge(verdict, claim, experiment, scale, by_scale)
    return LedgerEntry(experiment.name, claim, verdict, evidence, command)


def judge_trained_claim(
    claim: TrainedClaim,
    experiment: Experiment,
    by_scale: Mapping[str, ByVariant],
    unfinished: Unfinished,
    rows: Records,
) -> tuple[Verdict, Evidence | None, str]:
    """Return verdict, evidence and scale: paper scale if possible, else the first scale that allows a verdict.

    The scales of a file stand in the order of their closeness to the paper. A trend that another scale contradicts
    says so.
    """

    def judge_at(scale: str) -> tuple[Verdict | None, ByVariant]:
        records = comparable_records(claim, experiment, scale, by_scale[scale], rows)
        verdict = judge_at_scale(scale, claim, experiment, records) if records else None
        shows_trend = isinstance(claim, OrderingClaim) and not generated_data(records or by_scale[scale])
        if scale == PAPER_SCALE or shows_trend:  # no other scale allows a verdict
            present = by_scale[scale] | records
            verdict = with_missing_runs(verdict, claim, experiment, scale, present, unfinished)
        return verdict, records

    found: list[tuple[Verdict, Evidence | None, str]] = []
    scales = list(by_scale)
    for number, scale in enumerate(scales):
        verdict, records = judge_at(scale)
        if not verdict:
            continue
        evidence = make_evidence(scale, records) if records else None
        found.append((verdict, evidence, scale))
        is_final = verdict.outcome is not Outcome.CANNOT_JUDGE or verdict.reason in FINAL
        if scale == PAPER_SCALE and verdict.reason is Reason.UNDERPOWERED:
            is_final = not missing_runs(claim, experiment, scale, by_scale[scale] | records)
        if is_final:
            farther = scales[number + 1 :] if verdict.outcome in TRENDS else []
            remarks = contrary_trends(verdict, {other: judge_at(other) for other in farther})
            return replace(verdict, sentence=verdict.sentence + remarks), evidence, scale
    return found[0] if found else (not_run_verdict(claim, experiment, by_scale), None, next(iter(by_scale)))


def contrary_trends(verdict: Verdict, others: Mapping[str, tuple[Verdict | None, ByVariant]]) -> str:
    """Return " At laptop scale on digits: trend supported." for each scale with the opposite trend, or ""."""
    return "".join(
        f" At {scale} scale on {next(iter(records.values()))[0].data}: {other.outcome}."
        for scale, (other, records) in others.items()
        if other and other.outcome in TRENDS - {verdict.outcome}
    )


def judge_exact_claim(claim: ExactClaim, experiment: Experiment, measure: Measure) -> Verdict:
    """Compare one exact value, or the ratio of two, with the claimed one.

    A claim that was not read in its source can be confirmed, but cannot show that the source is wrong.
    """
    value = measure_side(measure, claim.metric, experiment, claim.of)
    printed = printed_value(claim.metric, experiment)
    recipe = category(claim) == "recipe"
    ours = "We use" if recipe else "We measure"
    found = f"{printed.where[0].upper()}{printed.where[1:]} prints" if printed else ours
    from_memory = "memory" in (claim.confidence, printed and printed.confidence)
    if claim.over or claim.over_metric:
        below = measure_side(measure, claim.over_metric or claim.metric, experiment, claim.over or claim.of)
        if not all(isinstance(side, int | float) for side in (value, below)) or not below:
            raise UserError(f"cannot divide {value!r} by {below!r}")
        other = printed_value(claim.over_metric or claim.metric, experiment)
        from_memory = from_memory or bool(other and other.confidence == "memory")
        aside = f" ({other.where})" if other else " (measured)" if printed else ""
        found = f"{found} {value:,} / {below:,}{aside} ="
        value = value / below
    verdict = judge_exact(
        value,
        claimed=claim.claimed,
        margin=claim.margin,
        corrected=claim.corrected,
        op=claim.op,
        recipe=recipe,
        found=found,
    )
    if from_memory and verdict.outcome not in (Outcome.CONFIRMED, Outcome.FOLLOWED):
        sentence = f"{verdict.sentence} The claimed value was quoted from memory, so the error may be ours."
        return replace(
            verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.PROTOCOL_UNSPECIFIED, sentence=sentence
        )
    return verdict


def measure_side(measure: Measure, metric: str, experiment: Experiment, name: str | None) -> Any:
    """Return the exact value of one side of a claim, of the experiment that declares its variant."""
    return measure(metric, experiment, None) if name is None else measure(metric, *experiment.owner(name))


def printed_value(metric: str, experiment: Experiment) -> Printed | None:
    """Return the printed value that a printed/... metric names; None for any other metric."""
    kind, _, name = metric.partition("/")
    return experiment.printed.get(name) if kind == "printed" else None


def judge_at_scale(scale: str, claim: TrainedClaim, experiment: Experiment, records: ByVariant) -> Verdict:
    """Return the verdict of a trained claim from the records of one scale; at most a trend below paper scale."""
    first = next(iter(records.values()))
    full = scale == PAPER_SCALE and all(
        row.data == declared.paper_data(variant)
        for name, rows in records.items()
        for declared, variant in [experiment.owner(name)]
        for row in rows
    )
    where = f"at {scale} scale on {first[0].data}"
    number = not isinstance(claim, OrderingClaim)
    if not full and (data := generated_data(records)):
        return on_generated_images(scale, data, len(first))
    if number and not full:
        return number_below_paper_scale(where, len(first))
    diverged = [row for rows in records.values() for row in rows if row.status != FINISHED]
    if diverged:
        return cannot_judge(
            Reason.DID_NOT_CONVERGE, f"Every seed counts, and some runs did not converge: {ends(diverged)}."
        )
    for variant, metric in measured_sides(claim):
        for row in records[variant]:
            if metric not in row.measured:
                reason = Reason.NO_DATA if metric.endswith(DEVICE_METRICS) else Reason.NOT_RUN
                return cannot_judge(reason, missing_metric(row, metric))
    if claim.metric in COST_METRICS and (different := different_setups(records)):
        return cannot_judge(Reason.PROTOCOL_UNSPECIFIED, f"{claim.metric} depends on the hardware: {different}.")
    choices, departures = (
        [item.what for item in experiment.material("choices", variants_of(claim))],
        [item.what for item in experiment.material("departures", variants_of(claim))],
    )
    departures += precision_departures(experiment, records)
    verdict = conclude(
        compare(claim, records), number=number, full=full, where=where, choices=choices, departures=departures
    )
    remarks = mixed_device_batches(records) + ("" if full else different_budgets(experiment, scale, records))
    return replace(verdict, sentence=verdict.sentence + remarks)


def missing_metric(row: Record, metric: str) -> str:
    """Return a sentence saying why a finished run has no such metric."""
    run = f"{row.variant} seed {row.seed}"
    if metric.startswith(STEPS_TO):
        return f"{run} has no {metric}: its training error did not fall below this value in {row.ended}."
    if metric in COST_METRICS:
        return (
            f"{run} has no {metric}: it was trained on changing hardware, or where this is not measured; memory is"
            " measured on GPUs."
        )
    if metric.endswith(DEVICE_METRICS):
        return f"{run} has no {metric}: the device ({row.hardware}) does not report it."
    if row.data == RANDOM_PIXELS:
        return f"{run} has no {metric}: at this scale it measures other networks or batch sizes."
    return f"{run} has no metric {metric}; it has {', '.join(sorted(row.metrics))}."


def compare(claim: TrainedClaim, records: ByVariant) -> Verdict:
    """Run the statistical test of a claim's kind."""
    sides = [
        {record.seed: record.measured[metric] for record in records[variant]}
        for variant, metric in measured_sides(claim)
    ]
    match claim:
        case MetricClaim():
            return judge_metric(
                *sides,
                claimed=claim.claimed,
                margin=claim.margin,
                statistic=claim.statistic,
                measure=measure_of(claim.metric),
            )
        case BoundClaim():
            return judge_bound(*sides, op=claim.op, bound=claim.claimed)
        case OrderingClaim():
            return judge_ordering(*sides, op=claim.op, margin=claim.margin, names=side_names(claim))
        case GainClaim():
            return judge_gain(*sides, claimed=claim.claimed, margin=claim.margin, names=side_names(claim))
        case RatioClaim():
            return judge_ratio(*sides, claimed=claim.claimed, margin=claim.margin, op=claim.op)
    raise AssertionError(claim)


def measure_of(metric: str) -> ClaimedNumber:
    """Return which kind of number a metric is."""
    if metric in COMPRESSION_RATIOS:
        return "ratio"
    return "score" if is_score(metric) else "error"


def measured_sides(claim: TrainedClaim) -> list[tuple[str, str]]:
    """Return the variant and the metric of each side of a claim."""
    if isinstance(claim, OrderingClaim | GainClaim):
        return [(claim.lhs, claim.metric), (claim.rhs, claim.rhs_metric or claim.metric)]
    return [(variant, claim.metric) for variant in variants_of(claim)]


def side_names(claim: OrderingClaim | GainClaim) -> tuple[str, str]:
    """Return the names of both sides: their variants, with the metrics if these differ."""
    if not claim.rhs_metric:
        return claim.lhs, claim.rhs
    return f"{claim.metric} of {claim.lhs}", f"{claim.rhs_metric} of {claim.rhs}"
