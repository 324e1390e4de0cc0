"""The leaderboard: networks ranked by error, with the paper's numbers. Pure: records in, rows out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any, Literal, TypeGuard

from pipeline.common.errors import UserError
from pipeline.declare.claims import Claim, MetricClaim
from pipeline.declare.experiment import Experiment
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.counting import RecordIndex, counted_records, records_of, unchanged_records
from pipeline.judge.ledger import LedgerEntry, Measure
from pipeline.judge.statistics import finite_test_set_noise, interval_test, sample_spread
from pipeline.track.record import FINISHED, Record

TOP1, TOP5, TRAIN_TOP1 = "test/top1_error_pct", "test/top5_error_pct", "train/top1_error_pct"

Error = Literal["top1", "top5"]


@dataclass(frozen=True)
class LeaderboardRow:
    """One network at one scale, on one data set, by one test protocol: means over seeds, errors in percent."""

    experiment: str
    variant: str
    scale: str
    data: str
    protocol: str  # test protocol; "": whole images
    top1: float | None  # mean over the seeds; this and the other errors are None if no seed converged
    top1_std: float | None  # over the seeds; None for one seed
    top5: float | None
    train: float | None  # top-1 on the last training batches, with augmentation
    paper: float | None  # top-1 as published
    paper_top5: float | None  # top-5 as published
    paper_data: str  # data set of `paper`
    difference: float | None  # mean top-1 minus the paper's; None on other data or at another scale
    difference_interval: tuple[float, float] | None  # of 90 %, over the seeds; None for one seed
    noise: float | None  # standard error due to the finite test set
    images: int  # test images in each run; 0 if no seed converged
    seeds: int
    diverged: int  # seeds that did not converge, left out of all means
    seconds: float | None  # of training with evaluations, median over the seeds
    hardware: str
    departs: str  # changes by --set
    runs: tuple[str, ...]  # identities
    verdict: str = ""  # of the claim about the paper's top-1 error; "" if there is none
    parameters: int | None = None  # of one network; None for a derived run
    multiply_adds: int | None = None  # of one image in the paper's size

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON and tables."""
        return asdict(self)

    def error(self, by: Error) -> float | None:
        """Return the error that the rows are ranked by."""
        return self.top5 if by == "top5" else self.top1

    def published(self, by: Error) -> float | None:
        """Return the paper's error of the same kind."""
        return self.paper_top5 if by == "top5" else self.paper

    @property
    def group(self) -> tuple[str, str, str]:
        """Data set, test protocol and scale: rows of one group can be ranked."""
        return self.data, self.protocol, self.scale


def build_leaderboard(
    experiments: Iterable[Experiment], records: Sequence[Record], index: RecordIndex | None = None
) -> list[LeaderboardRow]:
    """Return all rows, grouped by experiment, scale and data, the lowest error first.

    A network has one row for each test protocol; networks that predict bounding boxes have none. Runs that count
    for claims form its rows. Runs changed by --set form rows of their own, with a label. `index`: that of the
    `unchanged_records`, where it exists already.
    """
    rows: list[LeaderboardRow] = []
    unchanged, changed = index or unchanged_records(records), [record for record in records if record.changes]
    for experiment in experiments:
        for scale in experiment.scales:
            found = [
                row
                for variant, good in counted_records(experiment, scale, unchanged).items()
                if experiment.classifies(variant)
                for row in make_rows(experiment, scale, variant, good)
            ]
            found += changed_rows(experiment, scale, changed)
            rows += sorted(found, key=lambda row: (row.data, row.protocol, row.top1 is None, row.top1 or 0.0))
    return rows


def ranked(rows: Iterable[LeaderboardRow], by: Error = "top1") -> list[list[LeaderboardRow]]:
    """Return the rows of all experiments by data set, test protocol and scale, the lowest error first in each.

    Experiments that declare the same recipe share its runs. Of their rows, the first with a number of the paper is
    kept, or else the first.
    """
    groups: dict[tuple[str, str, str], list[LeaderboardRow]] = {}
    seen: set[tuple[tuple[str, str, str], tuple[str, ...]]] = set()
    for row in sorted(rows, key=lambda row: row.paper is None):
        if (row.group, row.runs) not in seen:
            seen.add((row.group, row.runs))
            groups.setdefault(row.group, []).append(row)

    def order(group: tuple[str, str, str]) -> tuple[bool, str, str, str]:
        data, protocol, scale = group
        return scale != PAPER_SCALE, scale, data, protocol

    return [
        sorted(groups[group], key=lambda row: (row.error(by) is None, row.error(by) or 0.0))
        for group in sorted(groups, key=order)
    ]


def changed_rows(experiment: Experiment, scale: str, records: Sequence[Record]) -> list[LeaderboardRow]:
    """Return the rows of runs changed by --set, unless the declaration no longer allows the change."""
    changed = [
        record
        for record in records
        if record.changes
        and (record.experiment, record.scale) == (experiment.name, scale)
        and (TOP1 in record.metrics or record.status != FINISHED)
    ]
    result: list[LeaderboardRow] = []
    for variant, label in dict.fromkeys((record.variant, changes_label(record)) for record in changed):
        group = [record for record in changed if (record.variant, changes_label(record)) == (variant, label)]
        try:
            rows = records_of(experiment, scale, variant, group, group[0].changes)
        except UserError:
            continue
        if rows:
            result += make_rows(experiment, scale, variant, rows, label)
    return result


def in_protocol_order(experiment: Experiment, rows: Iterable[LeaderboardRow]) -> list[LeaderboardRow]:
    """Return the rows of an experiment, of each variant that of its first test protocol first."""

    def position(row: LeaderboardRow) -> int:
        declared = experiment.protocols(row.variant, row.scale)
        return declared.index(row.protocol) if row.protocol in declared else len(declared)

    return sorted(rows, key=position)


def changes_label(record: Record) -> str:
    """Return the changes by --set: 'train.lr=0.05'."""
    return ", ".join(f"{key}={value}" for key, value in record.changes.items())


def make_rows(
    experiment: Experiment, scale: str, variant: str, records: Sequence[Record], departs: str = ""
) -> Iterator[LeaderboardRow]:
    """Return one row for each test protocol by which all runs have measured an error; one if no run converged.

    Transfers that measure only a score, such as a mean average precision, have no row.
    """
    finished = [record for record in records if record.status == FINISHED]
    for number, protocol in enumerate(experiment.protocols(variant, scale, records[0].changes) or ("",)):
        prefix = f"test/{protocol}/" if number else "test/"
        if all(f"{prefix}top1_error_pct" in one.metrics for one in finished) if finished else number == 0:
            yield make_row(experiment, scale, variant, records, departs, protocol=protocol, prefix=prefix)


def make_row(
    experiment: Experiment,
    scale: str,
    variant: str,
    records: Sequence[Record],
    departs: str,
    *,
    protocol: str,
    prefix: str,
) -> LeaderboardRow:
    """Return one row. Runs that did not converge are counted but left out of the means."""
    finished = [record for record in records if record.status == FINISHED]
    metrics = [record.metrics for record in finished]
    top1 = [one[f"{prefix}top1_error_pct"] for one in metrics]
    train = [one[TRAIN_TOP1] for one in metrics if TRAIN_TOP1 in one]
    images = int(metrics[0][f"{prefix}images"]) if finished else 0
    paper, data = paper_error(experiment, variant, protocol), records[0].data
    comparable = scale == PAPER_SCALE and data == experiment.paper_data(variant) and not departs
    against = [error - paper for error in top1] if paper is not None and comparable else []
    test = interval_test(against) if len(against) > 1 else None
    return LeaderboardRow(
        experiment=experiment.name,
        variant=variant,
        scale=scale,
        data=data,
        protocol=protocol,
        top1=fmean(top1) if finished else None,
        top1_std=sample_spread(top1) if len(finished) > 1 else None,
        top5=fmean(one[f"{prefix}top5_error_pct"] for one in metrics) if finished else None,
        train=fmean(train) if train else None,
        paper=paper,
        paper_top5=paper_error(experiment, variant, protocol, TOP5),
        paper_data=experiment.paper_data(variant),
        difference=fmean(against) if against else None,
        difference_interval=(test.low, test.high) if test else None,
        noise=finite_test_set_noise(fmean(top1), images=images) if finished else None,
        images=images,
        seeds=len(finished),
        diverged=len(records) - len(finished),
        seconds=median(record.seconds for record in finished) if finished else None,
        hardware=", ".join(dict.fromkeys(record.hardware for record in records)),
        departs=departs,
        runs=tuple(record.identity for record in records),
    )


def paper_error(experiment: Experiment, variant: str, protocol: str = "", metric: str = TOP1) -> float | None:
    """Return the mean error that the paper prints for a variant and protocol; None if it prints none."""
    claim = paper_claim(experiment.claims, variant, protocol, metric)
    return claim.claimed if claim else None


def paper_claim(
    claims: Iterable[Claim], variant: str, protocol: str = "", metric: str = TOP1
) -> MetricClaim | None:
    """Return the claim about the mean error that the paper prints; None if there is none."""
    name = metric.replace("/", f"/{protocol}/") if protocol else metric
    for claim in claims:
        if is_shown_error(claim) and (claim.of, claim.metric) == (variant, name):
            return claim
    return None


def with_verdicts(rows: Iterable[LeaderboardRow], entries: Iterable[LedgerEntry]) -> list[LeaderboardRow]:
    """Return the rows; those at paper scale have the verdicts of the claims about their top-1 errors."""
    found: dict[tuple[str, str, str], str] = {}
    for entry in entries:
        if is_shown_error(entry.claim):
            reason = f": {entry.verdict.reason}" if entry.verdict.reason else ""
            about = entry.experiment, entry.claim.of, entry.claim.metric
            found.setdefault(about, f"{entry.verdict.outcome}{reason}")
    return [replace(row, verdict=found.get(key, "")) if (key := judged_error(row)) else row for row in rows]


def only_shown_claims(experiments: Iterable[Experiment], rows: Iterable[LeaderboardRow]) -> list[Experiment]:
    """Return the experiments that have claims whose verdicts `with_verdicts` shows, with these claims alone."""
    shown = {judged_error(row) for row in rows}
    found = []
    for one in experiments:
        claims = [
            claim for claim in one.claims if is_shown_error(claim) and (one.name, claim.of, claim.metric) in shown
        ]
        if claims:
            found.append(one.model_copy(update={"claims": tuple(claims)}))
    return found


def is_shown_error(claim: Claim) -> TypeGuard[MetricClaim]:
    """Return True for a claim about the mean error that a paper prints."""
    return isinstance(claim, MetricClaim) and claim.by == "paper" and not claim.statistic.startswith("best")


def judged_error(row: LeaderboardRow) -> tuple[str, str, str] | None:
    """Return experiment, variant and metric of the claims about a row; None for a row without verdict."""
    if row.scale != PAPER_SCALE or row.departs:
        return None
    return row.experiment, row.variant, top1_metric(row.protocol)


def top1_metric(protocol: str) -> str:
    """Return the metric that a claim names: "test/10-crop-224-of-256/top1_error_pct"."""
    return TOP1.replace("/", f"/{protocol}/") if protocol else TOP1


def with_sizes(
    rows: Iterable[LeaderboardRow], experiments: Iterable[Experiment], measure: Measure
) -> list[LeaderboardRow]:
    """Return the rows; those of variants have the parameters and multiply-adds of their networks."""
    declared = {experiment.name: experiment for experiment in experiments}
    found: dict[tuple[str, str], tuple[int, int]] = {}
    result = []
    for row in rows:
        key, experiment = (row.experiment, row.variant), declared[row.experiment]
        if row.variant not in experiment.variants:
            result.append(row)
            continue
        if key not in found:
            sizes = [measure(f"model/{what}", experiment, row.variant) for what in ("parameters", "multiply_adds")]
            found[key] = (sizes[0], sizes[1])
        result.append(replace(row, parameters=found[key][0], multiply_adds=found[key][1]))
    return result
