"""The lecture's chart of the winners of ILSVRC, as rows beside the leaderboard. Pure: declarations in, rows out.

The numbers are published ones: what the lecture prints, and what the papers print. No run stands behind them.
Where a network of the chart was trained here, its error on the validation set is beside them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.declare.claims import Claim, ExactClaim, Printed
from pipeline.declare.experiment import Experiment
from pipeline.declare.printed import PrintedFile
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.judge.ledger import LedgerEntry
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.report.text import percent

CHART = "ilsvrc/architecture"  # experiment that judges the chart

CHART_PLACE = "winners chart"  # of its results in printed.yaml

DATA = "imagenet"

DEPTH = "model/longest_path"  # metric of the claims about the chart's layers

YEAR = re.compile(r"ILSVRC-(\d{4})")

PRINTED_ERROR = "printed/top5_"  # and the key of an entry: metric of a published error of the challenge


@dataclass(frozen=True)
class Winner:
    """One bar of the chart: an entry of a challenge, errors in percent."""

    year: int | None  # None: the human estimate
    entry: str
    lecture_top5: float  # as the chart prints it, on the challenge's test set
    paper_top5: float | None  # as the paper prints it
    layers: int | None  # as the chart prints it; None: not a network
    verdict: str  # on the chart's error, against the paper's
    source: str  # of the paper's number
    confidence: str  # "memory": the paper's number was not read in the paper
    network: str  # name of the variant; "": not a network
    ours_top5: float | None  # mean over seeds on the validation set; None: not trained here at paper scale
    ours_protocol: str
    ours_experiment: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON and tables."""
        return asdict(self)


def charted_claims(chart: Experiment, printed: PrintedFile) -> Experiment:
    """Return the chart's experiment with the claims about its errors alone, which are judged without a network."""
    named = {name for _, _, claims in charted_errors(printed) for name in claims}
    kept = [
        claim
        for claim in chart.claims
        if f"{chart.name}/{claim.id}" in named and isinstance(claim, ExactClaim) and claim.of is None
    ]
    return chart.model_copy(update={"claims": tuple(kept)})


def charted_error(claim: Claim) -> tuple[str, float] | None:
    """Return the key of an entry and its error in the lecture's chart, for a claim about one; None for others."""
    if not isinstance(claim, ExactClaim) or claim.by != "lecture" or not claim.metric.startswith(PRINTED_ERROR):
        return None
    if claim.over or claim.over_metric or not isinstance(claim.claimed, int | float):
        return None
    return claim.metric.removeprefix(PRINTED_ERROR), float(claim.claimed)


def charted_errors(printed: PrintedFile) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield what is measured, the entry and the claims of each printed error of the chart."""
    for place, groups in printed.results.items():
        if place.startswith(CHART_PLACE):
            for measured, values in groups.items():
                for entry, cell in values.items():
                    yield measured, entry, cell.claims


def winners(
    chart: Experiment, printed: PrintedFile, entries: Iterable[LedgerEntry], rows: Sequence[LeaderboardRow]
) -> list[Winner]:
    """Return the bars of the chart in the order of the years.

    `entries`: the verdicts on `charted_claims`. `rows`: the leaderboard, for our errors.
    """
    claims = {f"{chart.name}/{claim.id}": claim for claim in chart.claims}
    verdicts = {f"{entry.experiment}/{entry.claim.id}": str(entry.verdict.outcome) for entry in entries}
    found = []
    for measured, entry, names in charted_errors(printed):
        error, layers, verdict, network = None, None, "", ""
        number: Printed | None = None
        for name in names:
            claim = claims.get(name)
            if claim and name in verdicts and (charted := charted_error(claim)):
                number = chart.printed[f"top5_{charted[0]}"]
                error, verdict = charted[1], verdicts[name]
            elif isinstance(claim, ExactClaim) and claim.metric == DEPTH and isinstance(claim.claimed, int):
                layers, network = claim.claimed, claim.of or ""
        if error is None or number is None:
            continue
        year = YEAR.search(measured)
        ours = best_row(network, rows)
        found.append(
            Winner(
                year=int(year[1]) if year else None,
                entry=entry,
                lecture_top5=error,
                paper_top5=number.value if isinstance(number.value, int | float) else None,
                layers=layers,
                verdict=verdict,
                source=number.where,
                confidence=number.confidence,
                network=network,
                ours_top5=ours.top5 if ours else None,
                ours_protocol=ours.protocol if ours else "",
                ours_experiment=ours.experiment if ours else "",
            )
        )
    return sorted(found, key=lambda row: (row.year is None, row.year or 0, -row.lecture_top5))


def best_row(network: str, rows: Iterable[LeaderboardRow]) -> LeaderboardRow | None:
    """Return the row of a network at paper scale with the lowest top-5 error; None without one."""
    own = [
        row
        for row in rows
        if (row.variant, row.data, row.scale) == (network, DATA, PAPER_SCALE) and not row.departs and row.top5
    ]
    return min(own, key=lambda row: row.top5 or 0.0, default=None)


def winner_cells(row: Winner) -> dict[str, str]:
    """Return one bar as text."""
    ours = "" if row.ours_top5 is None else f"{percent(row.ours_top5)} ({row.ours_experiment} {row.network})"
    return {
        "year": "" if row.year is None else str(row.year),
        "entry": row.entry,
        "layers": "" if row.layers is None else str(row.layers),
        "lecture %": f"{row.lecture_top5:g}",
        "paper %": "" if row.paper_top5 is None else f"{row.paper_top5:g}",
        "verdict": row.verdict,
        "ours": ours,
        "source": row.source + (" (from memory)" if row.confidence == "memory" else ""),
    }
