"""The leaderboard: networks ranked by error, with the paper's numbers. Pure: records in, rows out."""

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
    """One network at one scale on one data set, averaged over its seeds. Errors in percent."""

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
    paper_data: str  # data set of `paper`
    noise: float | None  # standard error due to the finite test set
    images: int  # test images in each run; 0 if no seed converged
    seeds: int
    diverged: int  # seeds that did not converge, left out of all means
    departs: str  # changes by --set

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON and tables."""
        return asdict(self)


def build_leaderboard(experiments: Iterable[Experiment], records: Sequence[Record]) -> list[LeaderboardRow]:
    """Return all rows, grouped by experiment, scale and data, the lowest error first.

    Runs that count for claims form a network's row. Runs changed by --set form rows of their own, with a label.
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
    """Return the rows of runs changed by --set, unless the declaration no longer allows the change."""
    changed = [r for r in records if r.changes and (r.experiment, r.scale) == (experiment.name, scale)]
    result = []
    for variant, label in dict.fromkeys((record.variant, changes_label(record)) for record in changed):
        group = [record for record in changed if (record.variant, changes_label(record)) == (variant, label)]
        try:
            rows = records_of(experiment, scale, variant, group, group[0].changes)
        except UserError:
            continue
        if rows:
            result.append(make_row(experiment, scale, variant, rows, label))
    return result


def changes_label(record: Record) -> str:
    """Return the changes by --set: 'train.lr=0.05'."""
    return ", ".join(f"{key}={value}" for key, value in record.changes.items())


def make_row(
    experiment: Experiment, scale: str, variant: str, records: Sequence[Record], departs: str = ""
) -> LeaderboardRow:
    """Return one row. Runs that did not converge are counted but left out of the means."""
    finished = [record.metrics for record in records if record.status == FINISHED]
    top1 = [metrics[TOP1] for metrics in finished]
    train = [metrics[TRAIN_TOP1] for metrics in finished if TRAIN_TOP1 in metrics]
    images = int(finished[0]["test/images"]) if finished else 0
    protocol = next(iter(experiment.protocols(variant, scale, records[0].changes)), "")
    return LeaderboardRow(
        experiment=experiment.name,
        variant=variant,
        scale=scale,
        data=records[0].data,
        protocol=protocol,
        top1=fmean(top1) if finished else None,
        top1_std=stdev(top1) if len(finished) > 1 else None,
        top5=fmean(metrics[TOP5] for metrics in finished) if finished else None,
        train=fmean(train) if train else None,
        paper=paper_error(experiment, variant, protocol),
        paper_data=experiment.paper_data(variant),
        noise=finite_test_set_noise(fmean(top1), images=images) if finished else None,
        images=images,
        seeds=len(finished),
        diverged=len(records) - len(finished),
        departs=departs,
    )


def paper_error(experiment: Experiment, variant: str, protocol: str = "") -> float | None:
    """Return the mean top-1 error that the paper prints for a variant and protocol; None if it prints none."""
    metric = TOP1.replace("/", f"/{protocol}/") if protocol else TOP1
    for claim in experiment.claims:
        if not isinstance(claim, MetricClaim) or claim.statistic.startswith("best"):
            continue
        if (claim.of, claim.metric, claim.by) == (variant, metric, "paper"):
            return claim.claimed
    return None
