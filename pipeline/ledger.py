"""The ledger: every claim with its verdict and the evidence it rests on. Pure: records in, entries out."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.experiment import (
    PAPER_SCALE,
    BoundClaim,
    Claim,
    ExactClaim,
    Experiment,
    MetricClaim,
    OpenClaim,
    OrderingClaim,
    RatioClaim,
)
from pipeline.plan import Run
from pipeline.record import FINISHED, Record
from pipeline.verdict import (
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

Measure = Callable[[str, Experiment, str], Any]  # metric, experiment, variant -> the exact value
ByVariant = dict[str, list[Record]]


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
    images: int  # test images counted in each run


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
    mine = [record for record in records if record.experiment == experiment.name]
    order = scales or [PAPER_SCALE, *(scale for scale in experiment.scales if scale != PAPER_SCALE)]
    grouped = {scale: counted(experiment, scale, mine) for scale in order}
    return [judge(claim, experiment, grouped, measure) for claim in experiment.claims]


def judge(claim: Claim, experiment: Experiment, grouped: dict[str, ByVariant], measure: Measure) -> Entry:
    """One claim's entry: at paper scale if that can be judged, else at the first scale that can."""

    def entry(verdict: Verdict, evidence: Evidence | None = None) -> Entry:
        return Entry(experiment.name, claim, verdict, evidence)

    if isinstance(claim, OpenClaim):
        return entry(cannot_judge(Reason(claim.reason), claim.why))
    if isinstance(claim, ExactClaim):
        value = measure(claim.metric, experiment, claim.of)
        margin, corrected = claim.margin, claim.corrected
        return entry(judge_exact(value, claimed=claim.claimed, margin=margin, corrected=corrected))
    judged = []
    for scale, by_variant in grouped.items():
        records = comparable(claim, by_variant)
        if records:
            judged.append(entry(judged_at(scale, claim, experiment, records), evidence_of(scale, records)))
    for one in judged:
        if one.verdict.outcome is not Outcome.CANNOT_JUDGE:
            return one
    return judged[0] if judged else entry(not_run(claim, experiment, grouped))


def judged_at(scale: str, claim: Claim, experiment: Experiment, records: ByVariant) -> Verdict:
    """The verdict of a trained claim from the records of one scale; a trend at most below paper scale."""
    first = next(iter(records.values()))[0]
    full = scale == PAPER_SCALE and first.data == experiment.data.name
    material = [departure for departure in experiment.departures if departure.material]
    if isinstance(claim, MetricClaim | BoundClaim | RatioClaim):
        if not full:
            what = f"runs at {scale} scale on {first.data} say nothing about a number of the paper's own setting"
            return cannot_judge(Reason.NOT_RUN, f"not run at paper scale; {what}", n=len(first_values(records)))
        if material:
            why = f"the recipe departs from the paper's: {material[0].what}"
            return cannot_judge(Reason.RECIPE_DEPARTS, why, n=len(first_values(records)))
    diverged = [r for rows in records.values() for r in rows if r.status != FINISHED]
    if diverged:
        what = ", ".join(f"{r.variant} seed {r.seed} ({r.ended})" for r in diverged)
        return cannot_judge(Reason.DID_NOT_CONVERGE, f"every seed counts, and some did not converge: {what}")
    verdict = compare(claim, records)
    return verdict if full and not material else as_trend(verdict)


def compare(claim: Claim, records: ByVariant) -> Verdict:
    """The statistics a kind of claim asks for."""

    def values(variant: str) -> dict[int, float]:
        return {record.seed: record.metrics[claim.metric] for record in records[variant]}  # type: ignore[union-attr]

    match claim:
        case MetricClaim():
            return judge_metric(
                values(claim.of), claimed=claim.claimed, margin=claim.margin, statistic=claim.statistic
            )
        case BoundClaim():
            return judge_bound(values(claim.of), op=claim.op, bound=claim.claimed)
        case OrderingClaim():
            return judge_ordering(values(claim.lhs), values(claim.rhs), op=claim.op, margin=claim.margin)
        case RatioClaim():
            return judge_ratio(values(claim.lhs), values(claim.rhs), claimed=claim.claimed, margin=claim.margin)
    raise AssertionError(claim)


def variants_of(claim: Claim) -> list[str]:
    """The variants whose runs a claim needs."""
    named = [getattr(claim, key, None) for key in ("of", "lhs", "rhs")]
    return [variant for variant in named if variant is not None]


def counted(experiment: Experiment, scale: str, records: Iterable[Record]) -> ByVariant:
    """The records that count at `scale`, by variant: as now declared, nothing changed by --set.

    Where runs were made with different code or data, those of one kind count, not a mixture: the kind with the
    most seeds, of equals the latest. A seed that ran twice in it (on other hardware) counts once, the first.
    """
    result: ByVariant = {}
    for variant in experiment.variants:
        recipe = experiment.recipe(variant, scale)
        kinds: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
        for record in sorted(records, key=lambda record: record.finished):
            declared = Run(experiment.name, scale, variant, record.seed, recipe).declaration
            same = (record.scale, record.variant, record.declaration) == (scale, variant, declared)
            if same and not record.changes:
                kinds[record.manifest, record.code].setdefault(record.seed, record)
        if kinds:
            best = max(kinds.values(), key=lambda seeds: (len(seeds), max(r.finished for r in seeds.values())))
            result[variant] = [best[seed] for seed in sorted(best)]
    return result


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
        images=int(rows[0].metrics.get("test/images", 0)),
    )
