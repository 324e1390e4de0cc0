"""The leaderboard: networks ranked by error, the paper's number beside ours. Pure: records in, rows out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from pipeline.experiment import Experiment, MetricClaim
from pipeline.ledger import counted
from pipeline.record import FINISHED, Record
from pipeline.verdict import finite_test_set_noise

TOP1, TOP5 = "test/top1_error_pct", "test/top5_error_pct"


@dataclass(frozen=True)
class Row:
    """One network, trained with all its seeds at one scale on one data set. Errors in percent."""

    experiment: str
    variant: str
    scale: str
    data: str
    top1: float  # mean over the seeds
    top1_std: float | None  # over the seeds; None with one
    top5: float
    train: float | None  # top-1 on the training batches at the end, as augmented
    paper: float | None  # top-1 as published
    paper_data: str  # the data set that number is for
    noise: float  # standard error that the finite test set alone gives
    images: int  # test images counted in each run
    seeds: int
    diverged: int  # seeds that did not converge, and are in no mean
    departs: str  # what --set changed

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and tables."""
        return asdict(self)


def leaderboard(experiments: Iterable[Experiment], records: Sequence[Record]) -> list[Row]:
    """All rows, grouped by experiment, scale and data, the lowest error first.

    Runs that count for claims form a network's row; those changed by --set, one of their own, labelled.
    """
    rows: list[Row] = []
    for experiment in experiments:
        mine = [record for record in records if record.experiment == experiment.name]
        for scale in experiment.scales:
            found = []
            for variant, good in counted(experiment, scale, mine).items():
                found.append(row_of(experiment, scale, variant, good, ""))
            changed: Mapping[tuple[str, str, str], list[Record]] = defaultdict(list)
            for record in mine:
                if record.changes and record.scale == scale:
                    label = ", ".join(f"{key}={value}" for key, value in record.changes.items())
                    changed[record.variant, label, record.code].append(record)
            for (variant, label, _), group in changed.items():
                found.append(row_of(experiment, scale, variant, group, label))
            rows += sorted((row for row in found if row), key=lambda row: (row.data, row.top1))
    return rows


def row_of(
    experiment: Experiment, scale: str, variant: str, records: Sequence[Record], departs: str
) -> Row | None:
    """One row; None where no run converged."""
    good = [record for record in records if record.status == FINISHED]
    if not good:
        return None
    top1 = [record.metrics[TOP1] for record in good]
    train = [record.metrics["train/top1_error_pct"] for record in good if "train/top1_error_pct" in record.metrics]
    images = int(good[0].metrics["test/images"])
    return Row(
        experiment=experiment.name,
        variant=variant,
        scale=scale,
        data=good[0].data,
        top1=fmean(top1),
        top1_std=stdev(top1) if len(top1) > 1 else None,
        top5=fmean(record.metrics[TOP5] for record in good),
        train=fmean(train) if train else None,
        paper=published(experiment, variant),
        paper_data=experiment.data.name,
        noise=finite_test_set_noise(fmean(top1), images=images),
        images=images,
        seeds=len(good),
        diverged=len(records) - len(good),
        departs=departs,
    )


def published(experiment: Experiment, variant: str) -> float | None:
    """The paper's own mean top-1 error of a variant, where it prints one."""
    for claim in experiment.claims:
        if not isinstance(claim, MetricClaim) or claim.statistic != "mean":
            continue
        if (claim.of, claim.metric, claim.by) == (variant, TOP1, "paper"):
            return claim.claimed
    return None
