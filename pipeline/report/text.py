"""Cells of the tables on the terminal, in MLflow, on the HTML page and in RESULTS.md."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.common.words import plural
from pipeline.judge.ledger import LedgerEntry
from pipeline.judge.statistics import finite_test_set_noise
from pipeline.judge.verdict import Outcome, Verdict
from pipeline.report.leaderboard import LeaderboardRow

if TYPE_CHECKING:
    from pipeline.track.published_results import PublishedResult

MARKS = {
    Outcome.REPRODUCED: "✔",
    Outcome.TREND: "✔",
    Outcome.BETTER: "▲",
    Outcome.NOT_REPRODUCED: "✘",
    Outcome.NO_TREND: "✘",
    Outcome.ERRATUM: "!",
    Outcome.CANNOT_JUDGE: "–",
}


def leaderboard_cells(row: LeaderboardRow) -> dict[str, str]:
    """Return one row of the leaderboard as text."""
    spread = "" if row.top1_std is None else f" ± {row.top1_std:.2f}"
    seeds = f"{row.seeds}" + (f" (+{row.diverged} diverged)" if row.diverged else "")
    return {
        "network": row.variant + (f" [{row.departs}]" if row.departs else ""),
        "top-1 error %": percent(row.top1) + spread if row.seeds else "did not converge",
        "top-5 error %": percent(row.top5),
        "training error %": percent(row.train),
        "paper top-1 %": paper_number(row),
        "seeds": seeds,
        "images": f"{row.images:,}" if row.seeds else "",
        "test-set noise": "" if row.noise is None else f"± {percent(row.noise)}",
        "scale": row.scale,
        "data": f"{row.data}, {row.protocol}" if row.protocol else row.data,
    }


def published_cells(row: "PublishedResult") -> dict[str, str]:
    """Return one row of published weights as text."""
    return {
        "network": row.network,
        "weights": row.weights,
        "top-1 error %": percent(row.top1),
        "top-5 error %": percent(row.top5),
        "stated top-1 %": percent(row.stated_top1),
        "images": f"{row.images:,}",
        "noise": f"± {percent(finite_test_set_noise(row.top1, images=row.images))}",
    }


def percent(value: float | None) -> str:
    """Return a number with two decimals, "" for None."""
    return "" if value is None else f"{value:.2f}"


def paper_number(row: LeaderboardRow) -> str:
    """Return the published error, with its data set if that is not ours."""
    if row.paper is None:
        return ""
    return f"{row.paper:g}" if row.data == row.paper_data else f"{row.paper:g} ({row.paper_data})"


def verdict_cells(entry: LedgerEntry) -> dict[str, str]:
    """Return one entry of the ledger as text."""
    claim, verdict = entry.claim, entry.verdict
    rule = getattr(claim, "rule", "")
    source = claim.source if claim.by == "paper" else f"lecture; {claim.source}"
    if claim.confidence != "checked":
        source += f" ({'read from a figure' if claim.confidence == 'figure' else 'from memory'})"
    return {
        "claim": claim.id,
        "says": claim.says,
        "source": source,
        "verdict": verdict_text(verdict),
        "evidence": verdict.sentence + (f" Counting rule: {rule.rstrip('.')}." if rule else ""),
        "runs": runs_text(entry),
    }


def verdict_text(verdict: Verdict) -> str:
    """Return a verdict with its mark: '✔ reproduced', '– cannot judge: not-run'."""
    reason = f": {verdict.reason}" if verdict.reason else ""
    return f"{MARKS[verdict.outcome]} {verdict.outcome}{reason}"


def runs_text(entry: LedgerEntry) -> str:
    """Return the scale, data, number and commits of the runs behind a verdict; "" without runs."""
    if entry.evidence is None:
        return ""
    evidence = entry.evidence
    commits = ", ".join(short_commit(commit) for commit in evidence.commits)
    members = f" (made from {len(evidence.members)} others)" if evidence.members else ""
    runs = plural(len(evidence.runs) - len(evidence.members), "run")
    return f"{evidence.scale} scale on {evidence.data}, {runs}{members}, commit {commits}"


def short_commit(commit: str) -> str:
    """Return the first 8 digits of a commit and its "-dirty"."""
    digits, dash, dirty = commit.partition("-")
    return digits[:8] + dash + dirty


def outcome_counts(entries: Sequence[LedgerEntry]) -> str:
    """Return the number of each outcome in a fixed order: '12 reproduced, 2 erratum, 31 cannot judge'."""
    found = [(kind, sum(entry.verdict.outcome is kind for entry in entries)) for kind in Outcome]
    return ", ".join(f"{number} {kind}" for kind, number in found if number) or "no claims"


def markdown(rows: Sequence[dict[str, str]], columns: Sequence[str] = ()) -> str:
    """Return a Markdown table; `columns` selects and orders the columns."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    if not rows:
        return ""
    names = list(columns or rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)
