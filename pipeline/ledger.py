"""The ledger: every claim with its verdict and the evidence it rests on. Pure: records in, entries out."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.experiment import (
    PAPER_SCALE,
    BoundClaim,
    Claim,
    Departure,
    ExactClaim,
    Experiment,
    MetricClaim,
    OpenClaim,
    OrderingClaim,
    Printed,
    RatioClaim,
)
from pipeline.mistakes import UserError
from pipeline.plan import Run
from pipeline.record import FINISHED, Record
from pipeline.verdict import (
    LEVEL,
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

Measure = Callable[[str, Experiment, str | None], Any]  # metric, experiment, variant -> the exact value
ByVariant = dict[str, list[Record]]
Trained = MetricClaim | BoundClaim | OrderingClaim | RatioClaim


@dataclass(frozen=True)
class Evidence:
    """What a verdict on trained networks rests on: enough to find every run again."""

    scale: str
    data: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # identities
    run_ids: tuple[str, ...]  # MLflow's
    declarations: tuple[str, ...]
    manifests: tuple[str, ...]
    code: tuple[str, ...]
    locks: tuple[str, ...]
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    images: int  # test images counted in each run; 0 where none converged


@dataclass(frozen=True)
class Entry:
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
    experiment: Experiment, records: Iterable[Record], measure: Measure, scales: Sequence[str] = ()
) -> list[Entry]:
    """Judge all claims of `experiment` from `records`, at `scales` only if any are given."""
    rows = list(records)
    order = scales or sorted(experiment.scales, key=lambda scale: scale != PAPER_SCALE)
    grouped = {scale: counted(experiment, scale, rows) for scale in order}
    return [judge(claim, experiment, grouped, measure) for claim in experiment.claims]


def judge(claim: Claim, experiment: Experiment, grouped: dict[str, ByVariant], measure: Measure) -> Entry:
    """One claim's entry: at paper scale if that can be judged, else at the first scale that can."""

    def entry(verdict: Verdict, evidence: Evidence | None = None) -> Entry:
        return Entry(experiment.name, claim, verdict, evidence)

    if isinstance(claim, OpenClaim):
        return entry(cannot_judge(Reason(claim.reason), claim.why))
    if isinstance(claim, ExactClaim):
        return entry(judged_exactly(claim, experiment, measure))
    judged = []
    for scale, by_variant in grouped.items():
        records = comparable(claim, by_variant)
        if records:
            judged.append(entry(judged_at(scale, claim, experiment, records), evidence_of(scale, records)))
    for one in judged:
        told = one.verdict.outcome is not Outcome.CANNOT_JUDGE
        if told or one.verdict.reason is Reason.DID_NOT_CONVERGE:  # which no smaller scale can gloss over
            return one
    return judged[0] if judged else entry(not_run(claim, experiment, grouped))


def judged_exactly(claim: ExactClaim, experiment: Experiment, measure: Measure) -> Verdict:
    """The verdict of arithmetic: one value, or the ratio of two, compared with what is claimed.

    A claim that was not read in its source can be confirmed, but not used to say that the source is wrong.
    """
    value = measure(claim.metric, experiment, claim.of)
    printed = said_by(claim.metric, experiment)
    found = f"{printed.where[0].upper()}{printed.where[1:]} prints" if printed else "We measure"
    recalled = "memory" in (claim.confidence, printed and printed.confidence)
    if claim.over or claim.over_metric:
        below = measure(claim.over_metric or claim.metric, experiment, claim.over or claim.of)
        if not all(isinstance(side, int | float) for side in (value, below)) or not below:
            raise UserError(f"{experiment.name}, claim {claim.id}: {value!r} / {below!r} is no ratio")
        other = said_by(claim.over_metric or claim.metric, experiment)
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


def said_by(metric: str, experiment: Experiment) -> Printed | None:
    """What is printed and named by a printed/… metric; None for what is measured."""
    kind, _, name = metric.partition("/")
    return experiment.printed.get(name) if kind == "printed" else None


def judged_at(scale: str, claim: Trained, experiment: Experiment, records: ByVariant) -> Verdict:
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
    for variant, metric in measured_by(claim):
        for row in records[variant]:
            if metric not in row.metrics:
                known = ", ".join(sorted(row.metrics))
                why = f"{row.variant} seed {row.seed} measured no {metric}, only {known}"
                return cannot_judge(Reason.NOT_RUN, why)
    verdict = compare(claim, records)
    if is_number and material:
        return departing(verdict, material)
    if full and not material:
        return verdict
    where = f"at {scale} scale on {first.data}" if not full else "with a recipe that departs from the paper's"
    return as_trend(verdict, where)


def departing(verdict: Verdict, departures: Sequence[Departure]) -> Verdict:
    """What remains of a verdict on a number where the recipe is not the paper's: what was measured."""
    why = f"The recipe departs from the paper's: {' '.join(departure.what for departure in departures)}"
    if verdict.measured is not None and verdict.interval:
        low, high = verdict.interval
        why += f" Measured so: {verdict.measured:.4g} ({100 * LEVEL:.0f} % interval {low:.4g} to {high:.4g})."
    return replace(verdict, outcome=Outcome.CANNOT_JUDGE, reason=Reason.RECIPE_DEPARTS, sentence=why)


def compare(claim: Trained, records: ByVariant) -> Verdict:
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


def variants_of(claim: Claim) -> list[str]:
    """The variants whose runs a claim needs, each once."""
    named = [getattr(claim, key, None) for key in ("of", "lhs", "rhs")]
    return list(dict.fromkeys(variant for variant in named if variant is not None))


def measured_by(claim: Trained) -> list[tuple[str, str]]:
    """Each side's variant, and the metric it is measured by."""
    if isinstance(claim, OrderingClaim):
        return [(claim.lhs, claim.metric), (claim.rhs, claim.rhs_metric or claim.metric)]
    return [(variant, claim.metric) for variant in variants_of(claim)]


def counted(experiment: Experiment, scale: str, records: Iterable[Record]) -> ByVariant:
    """The records that count at `scale`, by variant: as now declared, nothing changed by --set.

    At paper scale only the seeds declared beforehand: more, until the verdict pleases, would prove nothing.
    """
    beforehand = experiment.seeds_at(scale)
    declared = [
        record for record in records if not record.changes and (scale != PAPER_SCALE or record.seed in beforehand)
    ]
    found = {variant: runs_of(experiment, scale, variant, declared) for variant in experiment.variants}
    return {variant: rows for variant, rows in found.items() if rows}


def runs_of(
    experiment: Experiment,
    scale: str,
    variant: str,
    records: Sequence[Record],
    changes: Mapping[str, Any] | None = None,
) -> list[Record]:
    """The records of one resolved recipe, by seed.

    What was trained decides, not what it was trained for: two scales, variants or experiments of one recipe share
    their runs. Where runs were made with different code or data, those of one kind count, not a mixture: the
    kind with the most seeds, of equals the latest. A seed that ran twice in it (on other hardware) counts once,
    the first.
    """
    recipe = experiment.recipe(variant, scale, changes)
    seeds = {record.seed for record in records}
    declared = {Run(experiment.name, scale, variant, seed, recipe).declaration for seed in seeds}
    kinds: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: record.finished):
        if record.declaration in declared:
            kinds[record.manifest, record.code].setdefault(record.seed, record)
    if not kinds:
        return []
    best = max(kinds.values(), key=lambda rows: (len(rows), max(row.finished for row in rows.values())))
    named = {"experiment": experiment.name, "scale": scale, "variant": variant}
    return [replace(best[seed], **named) for seed in sorted(best)]  # type: ignore[arg-type]


def comparable(claim: Claim, by_variant: ByVariant) -> ByVariant:
    """The records a claim compares, or {} where a variant has none or the variants saw different data."""
    needed = variants_of(claim)
    if any(variant not in by_variant for variant in needed):
        return {}
    found = {variant: by_variant[variant] for variant in needed}
    manifests = {record.manifest for rows in found.values() for record in rows}
    return found if len(manifests) == 1 else {}


def first_values(records: ByVariant) -> list[Record]:
    """The records of the first variant."""
    return next(iter(records.values()))


def not_run(claim: Claim, experiment: Experiment, grouped: dict[str, ByVariant]) -> Verdict:
    """Which variant is missing, and the command that would run it."""
    scale = next(iter(grouped))
    missing = [variant for variant in variants_of(claim) if variant not in grouped[scale]]
    asked = " ".join(f"--variant {variant}" for variant in missing or variants_of(claim))
    return cannot_judge(
        Reason.NOT_RUN, f"no finished runs; to run them: repro run {experiment.name} --scale {scale} {asked}"
    )


def evidence_of(scale: str, records: ByVariant) -> Evidence:
    """Where a verdict's numbers come from."""
    rows = [record for rows in records.values() for record in rows]

    def each(field: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(getattr(record, field) for record in rows))

    return Evidence(
        scale=scale,
        data=rows[0].data,
        seeds=tuple(sorted({record.seed for record in rows})),
        runs=each("identity"),
        run_ids=each("run_id"),
        declarations=each("declaration"),
        manifests=each("manifest"),
        code=each("code"),
        locks=each("lock"),
        commits=each("commit"),
        hardware=each("hardware"),
        precision=each("precision"),
        images=int(max(record.metrics.get("test/images", 0) for record in rows)),
    )
