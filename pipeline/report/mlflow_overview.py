"""Tables and a figure over all papers for MLflow's experiment `leaderboard`: the papers' errors beside ours."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.paths import report_folder
from pipeline.declare.load import load_all
from pipeline.declare.recipe import PAPER_SCALE
from pipeline.report.leaderboard import Error, LeaderboardRow, build_leaderboard, ranked
from pipeline.report.text import percent
from pipeline.track.mlflow_pages import publish_tables
from pipeline.track.mlflow_writer import Tracker
from pipeline.track.record import Record

OVERVIEW_NOTE = (
    "# Networks of all papers\n\nOne run for each network, data set, test protocol and scale: the mean over its"
    " seeds beside the paper's number. The view `leaderboard` ranks them by error, `verdicts` groups them by"
    " verdict; the description of a row links to the runs of its seeds. The run `tables` has the tables"
    " top5_errors and top1_errors and the figure top5_errors.png."
)


@dataclass(frozen=True)
class ErrorPair:
    """An error that a paper prints, in percent, beside ours."""

    row: LeaderboardRow
    paper: float
    ours: float

    @property
    def is_comparable(self) -> bool:
        """True if ours was measured at paper scale on the paper's data."""
        return self.row.scale == PAPER_SCALE and self.row.data == self.row.paper_data and not self.row.departs


def error_pairs(rows: Iterable[LeaderboardRow], by: Error) -> list[ErrorPair]:
    """Return the rows that have both errors, ranked as `repro leaderboard` ranks them."""
    found = []
    for group in ranked(rows, by):
        for row in group:
            ours, paper = row.error(by), row.published(by)
            if ours is not None and paper is not None:
                found.append(ErrorPair(row, paper, ours))
    return found


def pair_cells(pair: ErrorPair) -> dict[str, str]:
    """Return one row of a table; there is a difference only where both errors are of the same thing."""
    row = pair.row
    return {
        "experiment": row.experiment,
        "network": row.variant,
        "scale": row.scale,
        "data": row.data,
        "test protocol": row.protocol,
        "paper %": percent(pair.paper),
        "ours %": percent(pair.ours),
        "ours - paper": f"{pair.ours - pair.paper:+.2f}" if pair.is_comparable else "",
        "seeds": str(row.seeds),
        "images": str(row.images),
    }


def publish_overview(records: Sequence[Record], tracker: Tracker) -> None:
    """Write the tables and the figure of all papers to MLflow. Raises TrackingError or RefusedError."""
    from pipeline.report.error_chart import top5_chart

    rows = build_leaderboard(load_all(), records)
    pairs: dict[Error, list[ErrorPair]] = {by: error_pairs(rows, by) for by in ("top5", "top1")}
    tables = {f"{by}_errors": [pair_cells(pair) for pair in found] for by, found in pairs.items()}
    files: list[Path] = []
    if comparable := [pair for pair in pairs["top5"] if pair.is_comparable]:
        bars = [(f"{one.row.variant}, {one.row.scale}", one.paper, one.ours) for one in comparable]
        files.append(top5_chart(bars, report_folder() / "top5_errors.png"))
    publish_tables(tracker, tables, files, OVERVIEW_NOTE)
