"""HTML page of one experiment at one scale: a report of that experiment alone, in one file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.common.errors import WRITE_HINT
from pipeline.common.provenance import commit
from pipeline.declare.experiment import Experiment
from pipeline.judge.ledger import LedgerEntry
from pipeline.report.document.content import make_content
from pipeline.report.document.html import PageOptions, render_page, write_file
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.report.paper_figures.paper_figure import PaperFigure
from pipeline.track.record import Record


def write_page(
    experiment: Experiment,
    scale: str,
    rows: Sequence[LeaderboardRow],
    entries: Sequence[LedgerEntry],
    records: Sequence[Record],
    figures: Sequence[PaperFigure],
    path: Path,
    *,
    unread: Mapping[str, str] | None = None,
) -> Path:
    """Write the page to `path` atomically; it refers to no other file. Verdicts that rest on runs come first.

    `unread`: identity of a run -> which of its files cannot be read, and why.
    Raises UserError if the folder cannot be written.
    """
    subject = f"{experiment.name} at {scale} scale"
    why = experiment.scales[scale].why
    content = make_content(
        [experiment],
        entries,
        rows,
        records,
        subject=f"{subject} ({why.rstrip('.')})" if why else subject,
        figures=figures,
        scales=[scale],
        unread=unread,
        commit=commit(),
    )
    html = render_page(content, content.papers, PageOptions(), title=experiment.question)
    return write_file(path, html, WRITE_HINT)
