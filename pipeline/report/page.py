"""HTML page of one experiment at one scale: leaderboard, figure and verdicts in one file."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment

from pipeline.common.errors import explain_write_errors
from pipeline.common.files import write_atomically
from pipeline.declare.experiment import Experiment
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.verdict import Reason
from pipeline.report.deviations import deviation_groups
from pipeline.report.leaderboard import LeaderboardRow
from pipeline.report.text import headlines, leaderboard_table, verdict_cells

TEMPLATE = Path(__file__).with_name("page.html.j2")
CLASSES = {"✔": "good", "▲": "good", "✘": "bad", "!": "note", "–": "open"}


def write_page(
    experiment: Experiment,
    scale: str,
    rows: Sequence[LeaderboardRow],
    entries: Sequence[LedgerEntry],
    figure: Path | None,
    path: Path,
) -> Path:
    """Write the page to `path` atomically; it refers to no other file. Verdicts that rest on runs come first.

    Raises UserError if the folder cannot be written.
    """
    runs_first = sorted(entries, key=lambda e: e.evidence is None or e.verdict.reason is Reason.NOT_RUN)
    verdicts = [verdict_cells(entry) for entry in runs_first]
    html = (
        Environment(autoescape=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            experiment=experiment,
            scale=scale,
            why=experiment.scales[scale].why,
            rows=leaderboard_table(rows),
            figure=base64.b64encode(figure.read_bytes()).decode() if figure else None,
            verdicts=[(row, CLASSES[row["verdict"][0]]) for row in verdicts],
            headlines=headlines(entries),
            deviations=deviation_groups(experiment),
        )
    )
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html)
    return path
