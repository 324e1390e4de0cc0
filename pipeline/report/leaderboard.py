"""The leaderboard: networks ranked by error, the paper's number beside ours. Pure: records in, rows out."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from pipeline.common.errors import UserError
from pipeline.declare.claims import MetricClaim
from pipeline.declare.experiment import Experiment
from pipeline.judge.counting import counted_records, records_of
from pipeline.judge.statistics import finite_test_set_noise
from pipeline.track.record import FINISHED, Record

TOP1, TOP5, TRAIN_TOP1 = "test/top1_error_pct", "test/top5_error_pct", "train/top1_error_pct"


@dataclass(frozen=True)
class LeaderboardRow:
    """One network, trained with all its seeds at one scale on one data set. Errors in percent."""

    experiment: str
    variant: str
    scale: str
    data: str
    protocol: str  # by which photographs are judged; "": whole images
    top1: float | None  # mean over the seeds; None where none converged, as for all that follows
    top1_std: float | None  # over the seeds; None with one
    top5: float | None
    train: float | None  # top-1 on the training batches at the end, as augmented
    paper: float | None  # top-1 as published
    paper_data: str  # the data set that number is for
    noise: float | None  # standard error that the finite test set alone gives
    images: int  # test images counted in each run; 0 where none converged
    seeds: int
    diverged: int  # seeds that did not converge, and are in no mean
    departs: str  # what --set changed

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and tables."""
        return asdict(self)


def build_leaderboard(experiments: Iterable[Experiment], records: Sequence[Record]) -> list[LeaderboardRow]:
    """All rows, grouped by experiment, scale and data, the lowest error first.

    Runs that count for claims form a network's row; those changed by --set, one of their own, labelled.
    """
    rows: list[LeaderboardRow] = []
    for experiment in experiments:
        for scale in experiment.scales:
            found = [
                make_row(experiment, scale, variant, good)
                for variant, good in counted_records(experiment, scale, records).items()
            ]
            found += changed_rows(experiment, scale, records)
            rows += sorted(found, key=lambda row: (row.data, row.top1 is None, row.top1 or 0.0))
    return rows


def changed_rows(experiment: Experiment, scale: str, records: Sequence[Record]) -> list[LeaderboardRow]:
    """The rows of runs changed by --set; not of a change or a variant that the declaration no longer allows."""
    here = [r for r in records if r.changes and (r.experiment, r.scale) == (experiment.name, scale)]
    result = []
    for variant, label in dict.fromkeys((record.variant, changes_label(record)) for record in here):
        group = [record for record in here if (record.variant, changes_label(record)) == (variant, label)]
        try:
            rows = records_of(experiment, scale, variant, group, group[0].changes)
        except UserError:
            continue
        if rows:
            result.append(make_row(experiment, scale, variant, rows, label))
    return result


def changes_label(record: Record) -> str:
    """What --set changed: 'train.lr=0.05'."""
    return ", ".join(f"{key}={value}" for key, value in record.changes.items())


def make_row(
    experiment: Experiment, scale: str, variant: str, records: Sequence[Record], departs: str = ""
) -> LeaderboardRow:
    """One row; the runs that did not converge are counted, and are in no mean."""
    good = [record.metrics for record in records if record.status == FINISHED]
    top1 = [metrics[TOP1] for metrics in good]
    train = [metrics[TRAIN_TOP1] for metrics in good if TRAIN_TOP1 in metrics]
    images = int(good[0]["test/images"]) if good else 0
    protocol = next(iter(experiment.protocols(variant, scale, records[0].changes)), "")
    return LeaderboardRow(
        experiment=experiment.name,
        variant=variant,
        scale=scale,
        data=records[0].data,
        protocol=protocol,
        top1=fmean(top1) if good else None,
        top1_std=stdev(top1) if len(good) > 1 else None,
        top5=fmean(metrics[TOP5] for metrics in good) if good else None,
        train=fmean(train) if train else None,
        paper=paper_error(experiment, variant, protocol),
        paper_data=experiment.paper_data(variant),
        noise=finite_test_set_noise(fmean(top1), images=images) if good else None,
        images=images,
        seeds=len(good),
        diverged=len(records) - len(good),
        departs=departs,
    )


def paper_error(experiment: Experiment, variant: str, protocol: str = "") -> float | None:
    """The paper's own mean top-1 error of a variant by this protocol, where it prints one."""
    metric = TOP1.replace("/", f"/{protocol}/") if protocol else TOP1
    for claim in experiment.claims:
        if not isinstance(claim, MetricClaim) or claim.statistic != "mean":
            continue
        if (claim.of, claim.metric, claim.by) == (variant, metric, "paper"):
            return claim.claimed
    return None
