"""The ledger: every claim with its verdict and the evidence it rests on. Pure: records in, entries out."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from pipeline.plan import declared, place_of, runs_with, seed_at, steps_with
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
Lefts = Mapping[
    tuple[str, str, str, int], Mapping[str, str]
]  # experiment, scale, variant, seed -> {"why", "text"}


@dataclass(frozen=True)
class Evidence:
    """What a verdict on trained networks rests on: enough to find every run again."""

    scale: str
    data: str
    seeds: tuple[int, ...]
    runs: tuple[str, ...]  # identities; those of the networks that steps are made of come last
    run_ids: tuple[str, ...]  # MLflow's
    declarations: tuple[str, ...]
    manifests: tuple[str, ...]
    code: tuple[str, ...]
    locks: tuple[str, ...]
    commits: tuple[str, ...]
    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    images: int  # test images counted in each run; 0 where none converged
    world: tuple[int, ...] = ()  # devices that trained a run together
    device_batch: tuple[int, ...] = ()  # images that batch normalisation saw at a time; 0: not known
    members: tuple[str, ...] = ()  # of `runs`, those that are here only because a step is made of them


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
    experiment: Experiment,
    records: Iterable[Record],
    measure: Measure,
    scales: Sequence[str] = (),
    lefts: Lefts | None = None,
) -> list[Entry]:
    """Judge all claims of `experiment` from `records`, at `scales` only if any are given.

    `lefts` says why runs were left unfinished, where that is known.
    """
    rows = list(records)
    order = scales or sorted(experiment.scales, key=lambda scale: scale != PAPER_SCALE)
    grouped = {scale: counted(experiment, scale, rows) for scale in order}
    return [judge(claim, experiment, grouped, measure, lefts or {}) for claim in experiment.claims]


def judge(
    claim: Claim,
    experiment: Experiment,
    grouped: dict[str, ByVariant],
    measure: Measure,
    lefts: Lefts | None = None,
) -> Entry:
    """One claim's entry: at paper scale if that can be judged, else at the first scale that can."""

    def entry(verdict: Verdict, evidence: Evidence | None = None) -> Entry:
        return Entry(experiment.name, claim, verdict, evidence)

    if isinstance(claim, OpenClaim):
        return entry(cannot_judge(Reason(claim.reason), claim.why))
    if isinstance(claim, ExactClaim):
        try:
            return entry(judged_exactly(claim, experiment, measure))
        except UserError as error:
            said = str(error).removeprefix(f"{experiment.name}: ")
            raise UserError(f"{experiment.file}: claims.{claim.id}: {said}") from None
    judged = []
    for scale, by_variant in grouped.items():
        records = comparable(claim, by_variant)
        speaks = scale == PAPER_SCALE or isinstance(claim, OrderingClaim)
        verdict = judged_at(scale, claim, experiment, records) if records else None
        if speaks and (diverged := diverged_below(claim, experiment, by_variant)):
            verdict = cannot_judge(Reason.DID_NOT_CONVERGE, diverged)
        elif speaks and not (verdict and verdict.reason is Reason.DID_NOT_CONVERGE):  # which is final
            verdict = left_unfinished(claim, experiment, scale, by_variant, lefts or {}) or verdict
        if verdict:
            judged.append(entry(verdict, evidence_of(scale, records) if records else None))
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
            raise UserError(f"{value!r} / {below!r} is no ratio")
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


def diverged_below(claim: Trained, experiment: Experiment, by_variant: ByVariant) -> str:
    """Which runs that a claim's steps consume did not converge: every seed counts, so the others say nothing."""
    steps = [experiment.steps[name] for name in variants_of(claim) if name in experiment.steps]
    below = {variant for step in steps for variant in step.consumes}
    rows = [row for variant in sorted(below) for row in by_variant.get(variant, []) if row.status != FINISHED]
    what = ", ".join(f"{row.variant} seed {row.seed} ({row.ended})" for row in rows)
    return f"every seed counts, and some that a step needs did not converge: {what}" if rows else ""


def left_unfinished(
    claim: Trained, experiment: Experiment, scale: str, by_variant: ByVariant, lefts: Lefts
) -> Verdict | None:
    """That a claim cannot be judged at a scale, where runs declared for it were left; a budget's end comes first.

    Seeds are fixed beforehand: those that ended say nothing without those that were left.
    """
    here = {
        (variant, seed): left
        for (of, at, variant, seed), left in sorted(lefts.items())
        if (of, at) == (experiment.name, scale)
    }
    missing = missed(claim, experiment, scale, by_variant) if here else set()
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
        f" to go on: {command(experiment, scale)}",
    )


def missed(claim: Trained, experiment: Experiment, scale: str, by_variant: ByVariant) -> set[tuple[str, int]]:
    """Variant, or step, and seed of what is declared for a claim at a scale and has no record.

    Of a step that has none, the runs that it consumes too.
    """
    there = {(name, row.seed) for name, rows in by_variant.items() for row in rows}
    found: set[tuple[str, int]] = set()
    for name in variants_of(claim):
        if name in experiment.variants:
            found |= {(name, seed) for seed in experiment.seeds_of(name, scale)}
            continue
        needed = experiment.step(name, scale).consumes
        runs = {one: runs_with(experiment, scale, one, experiment.seeds_of(one, scale)) for one in needed}
        for step in steps_with(experiment, name, scale, runs):
            if (name, step.seed) not in there:
                found |= {(name, step.seed), *((member.variant, member.seed) for member in step.members)}
    return found - there


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
        verdict = departing(verdict, material)
    elif not full or material:
        what = f"at {scale} scale on {first.data}" if not full else "with a recipe that departs from the paper's"
        verdict = as_trend(verdict, what)
    return replace(verdict, sentence=verdict.sentence + pooled(records))


def pooled(records: ByVariant) -> str:
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
    unchanged = [record for record in records if not record.changes]
    every = [*experiment.variants, *experiment.steps]
    found = {variant: runs_of(experiment, scale, variant, unchanged) for variant in every}
    return {variant: rows for variant, rows in found.items() if rows}


def runs_of(
    experiment: Experiment,
    scale: str,
    variant: str,
    records: Sequence[Record],
    changes: Mapping[str, Any] | None = None,
) -> list[Record]:
    """The records of one resolved recipe, or of a step, by seed; at paper scale of the seeds declared beforehand.

    What was trained decides, not what it was trained for: two scales, variants or experiments of one recipe share
    their runs. Where runs were made with different code or data, those of one kind count, not a mixture: the
    kind with the most seeds, of equals the latest. A seed that ran twice in it (on other hardware) counts once,
    the first.
    """
    counts = declarations(experiment, scale, variant, {record.seed for record in records}, changes)
    kinds: dict[tuple[str, str], dict[int, Record]] = defaultdict(dict)
    of_it = [record for record in records if record.declaration in counts]
    for record in sorted(of_it, key=lambda record: record.finished):
        kinds[record.manifest, record.code].setdefault(record.seed, record)
    if not kinds:
        return []
    best = max(kinds.values(), key=lambda rows: (len(rows), max(row.finished for row in rows.values())))
    named = {"experiment": experiment.name, "scale": scale, "variant": variant}
    return [replace(best[seed], **named) for seed in sorted(best)]  # type: ignore[arg-type]


def declarations(
    experiment: Experiment, scale: str, name: str, seeds: Collection[int], changes: Mapping[str, Any] | None = None
) -> set[str]:
    """The declarations that runs of a variant, or steps, may have which have one of these seeds.

    At paper scale of the seeds declared beforehand alone, but for runs that are changed and count for nothing.
    """
    beforehand = scale == PAPER_SCALE and not changes
    if name in experiment.variants:
        known = experiment.seeds_of(name, scale)
        chosen = [seed for seed in seeds if not beforehand or seed in known]
        return set(declared(experiment.recipe(name, scale, changes), chosen).values())
    needed = experiment.step(name, scale).consumes
    rows = {variant: experiment.seeds_of(variant, scale) for variant in needed}
    first = min(needed)  # a step's seed is that of the first run it consumes
    places = (divmod(place_of(rows[first], seed), needed[first]) for seed in seeds)
    numbers = [number for number, rest in places if not rest]
    if beforehand:
        numbers = [n for n in numbers if all((n + 1) * needed[v] <= len(rows[v]) for v in needed)]
    runs = {}
    for variant, count in needed.items():
        chosen = [seed_at(rows[variant], number * count + i) for number in numbers for i in range(count)]
        runs[variant] = runs_with(experiment, scale, variant, chosen, changes)
    return {step.declaration for step in steps_with(experiment, name, scale, runs)}


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
    return cannot_judge(
        Reason.NOT_RUN,
        f"no finished runs; to run them: {command(experiment, scale, missing or variants_of(claim))}",
    )


def command(experiment: Experiment, scale: str, names: Sequence[str] = ()) -> str:
    """The command that runs these variants, and those that these steps consume."""
    of = [experiment.steps[name].consumes if name in experiment.steps else [name] for name in names]
    variants = dict.fromkeys(variant for several in of for variant in several)
    return " ".join([f"repro run {experiment.name} --scale {scale}", *(f"--variant {name}" for name in variants)])


def evidence_of(scale: str, records: ByVariant) -> Evidence:
    """Where a verdict's numbers come from."""
    rows = [record for rows in records.values() for record in rows]

    def each(field: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(getattr(record, field) for record in rows))

    own = each("identity")
    members = tuple(one for one in dict.fromkeys(one for row in rows for one in row.members) if one not in own)
    return Evidence(
        scale=scale,
        data=rows[0].data,
        seeds=tuple(sorted({record.seed for record in rows})),
        runs=own + members,
        run_ids=each("run_id"),
        declarations=each("declaration"),
        manifests=each("manifest"),
        code=each("code"),
        locks=each("lock"),
        commits=each("commit"),
        hardware=each("hardware"),
        precision=each("precision"),
        images=int(max(record.metrics.get("test/images", 0) for record in rows)),
        world=each("world"),
        device_batch=each("device_batch"),
        members=members,
    )
