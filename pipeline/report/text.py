"""Tables as rows of words, the same for the terminal, MLflow, the page and RESULTS.md."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    """One row of the leaderboard, ready to show."""
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
    """One row of weights of others, ready to show."""
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
    """Two decimals, nothing for nothing."""
    return "" if value is None else f"{value:.2f}"


def paper_number(row: LeaderboardRow) -> str:
    """The published error; with the data it is for, where ours were trained on other data."""
    if row.paper is None:
        return ""
    return f"{row.paper:g}" if row.data == row.paper_data else f"{row.paper:g} ({row.paper_data})"


def verdict_cells(entry: LedgerEntry) -> dict[str, str]:
    """One row of the ledger, ready to show."""
    claim, verdict = entry.claim, entry.verdict
    rule = getattr(claim, "rule", "")
    source = claim.source if claim.by == "paper" else f"lecture; {claim.source}"
    if claim.confidence != "checked":
        source += f" ({'read off a figure' if claim.confidence == 'figure' else 'from memory'})"
    return {
        "claim": claim.id,
        "says": claim.says,
        "source": source,
        "verdict": verdict_text(verdict),
        "evidence": verdict.sentence + (f" Counting rule: {rule.rstrip('.')}." if rule else ""),
        "runs": runs_text(entry),
    }


def verdict_text(verdict: Verdict) -> str:
    """'✔ reproduced', '– cannot judge: not-run'."""
    reason = f": {verdict.reason}" if verdict.reason else ""
    return f"{MARKS[verdict.outcome]} {verdict.outcome}{reason}"


def runs_text(entry: LedgerEntry) -> str:
    """The runs behind a verdict, in few words."""
    if entry.evidence is None:
        return ""
    evidence = entry.evidence
    commits = ", ".join(short_commit(commit) for commit in evidence.commits)
    below = f" (made of {len(evidence.members)} more)" if evidence.members else ""
    runs = f"{len(evidence.runs) - len(evidence.members)} runs{below}"
    return f"{evidence.scale} on {evidence.data}, {runs}, commit {commits}"


def short_commit(commit: str) -> str:
    """The first 8 digits of a commit, keeping its "-dirty"."""
    digits, dash, dirty = commit.partition("-")
    return digits[:8] + dash + dirty


def outcome_counts(entries: Sequence[LedgerEntry]) -> str:
    """'12 reproduced, 2 erratum, 31 cannot judge', in a fixed order."""
    found = [(kind, sum(entry.verdict.outcome is kind for entry in entries)) for kind in Outcome]
    return ", ".join(f"{number} {kind}" for kind, number in found if number) or "no claims"


def markdown(rows: Sequence[dict[str, str]], columns: Sequence[str] = ()) -> str:
    """A Markdown table; `columns` chooses and orders."""

    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    if not rows:
        return ""
    names = list(columns or rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)
